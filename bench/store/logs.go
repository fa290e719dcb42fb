package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
	"go.etcd.io/bbolt"

	"github.com/holdfast-io/holdfast/bench/rig"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

// What another log under raft would be worth: raft-boltdb, as the product uses it,
// beside raft-wal, which it does not ship for its dependencies.

// logDB is a log that can also hold raft's votes.
type logDB interface {
	raft.LogStore
	raft.StableStore
	Close() error
}

var logKinds = map[string]func(dir string) (logDB, error){
	"raft-boltdb": func(dir string) (logDB, error) {
		return raftboltdb.New(raftboltdb.Options{
			Path:        filepath.Join(dir, "raft.db"),
			BoltOptions: &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
		})
	},
	"raft-wal": func(dir string) (logDB, error) { return wal.Open(dir) },
}

var (
	bothLogs = []contender{{name: "raft-boltdb"}, {name: "raft-wal"}}
	// The store as it ships has more around its log: seals, votes in a file.
	allLogs = append([]contender{{name: "as shipped"}}, bothLogs...)
)

func (s scale) logCases() []testCase {
	var out []testCase
	for _, a := range []struct {
		what          string
		entries, size int
	}{
		{"an entry of 300 B", 1, 300}, // one client
		{"an entry of 64 KiB", 1, 64 << 10},
		{"4 entries of 256 KiB", 4, 256 << 10}, // all that is in flight
	} {
		out = append(out, testCase{name: "log append, " + a.what, contenders: bothLogs, run: appends(a.entries, a.size)})
	}
	for _, clients := range s.clients {
		if clients != 10 {
			out = append(out, testCase{name: fmt.Sprintf("store in one process, put 256 B, %d clients", clients), contenders: allLogs, run: bareStore(clients)})
		}
	}
	return out
}

// keepEntries is how many the appends leave in the log before they cut it, as a
// snapshot does.
const keepEntries = 4096

// appends measures StoreLogs, as a leader calls it.
func appends(entries, size int) func(context.Context, *run, contender) (map[string]float64, rig.Spent, error) {
	return func(ctx context.Context, r *run, c contender) (_ map[string]float64, _ rig.Spent, err error) {
		dir, err := os.MkdirTemp(r.dir, "log-")
		if err != nil {
			return nil, rig.Spent{}, err
		}
		defer os.RemoveAll(dir)
		db, err := logKinds[c.name](dir)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		defer func() { err = errors.Join(err, db.Close()) }()
		data := payload(size)
		index := uint64(0)
		t, err := rig.Load{
			Clients: 1, WarmUp: r.scale.warmUp, Measure: r.scale.measure,
			Call: func(context.Context, int, int64) (int, error) {
				batch := make([]*raft.Log, entries)
				for i := range batch {
					index++
					batch[i] = &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data, AppendedAt: time.Now()}
				}
				if err := db.StoreLogs(batch); err != nil {
					return 0, err
				}
				first, err := db.FirstIndex()
				if err == nil && index-first > 2*keepEntries {
					err = db.DeleteRange(first, index-keepEntries)
				}
				return entries, err
			},
		}.Run(ctx, nil, nil, 0)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		return t.Values(), t.Spent, nil
	}
}

// bareStore measures puts into three stores of this process, without API, TLS or
// authorization: raft, its log, and the state machine. The CPU figures are of the
// whole process, three peers and the clients.
func bareStore(clients int) func(context.Context, *run, contender) (map[string]float64, rig.Spent, error) {
	return func(ctx context.Context, r *run, c contender) (_ map[string]float64, _ rig.Spent, err error) {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		dir, err := os.MkdirTemp(r.dir, "stores-")
		if err != nil {
			return nil, rig.Spent{}, err
		}
		defer os.RemoveAll(dir)
		stores, stop, err := bareStores(ctx, dir, logKinds[c.name])
		if err != nil {
			return nil, rig.Spent{}, err
		}
		defer func() { err = errors.Join(err, stop()) }()
		value := payload(256)
		t, err := rig.Load{
			Clients: clients, WarmUp: r.scale.warmUp, Measure: r.scale.measure,
			Call: func(ctx context.Context, _ int, n int64) (int, error) {
				_, err := stores[0].Txn(ctx, raftstore.Txn{Then: []raftstore.Op{raftstore.Put(string(key(n%keySpace)), value)}})
				return 1, err
			},
		}.Run(ctx, nil, nil, 0)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		return t.Values(), t.Spent, nil
	}
}

// bareStores starts three peers, the first of which leads. Nil for open: on the
// product's own storage.
func bareStores(ctx context.Context, dir string, open func(string) (logDB, error)) (_ []*raftstore.Store, _ func() error, err error) {
	var (
		stores  []*raftstore.Store
		closers []func() error
		running sync.WaitGroup
		errs    = make(chan error, members)
		urls    sync.Map // of the peers' own service, by id
	)
	remote := func(id string) (peerv1connect.StoreServiceClient, error) {
		url, ok := urls.Load(id)
		if !ok {
			return nil, fmt.Errorf("no address is known for %s", id)
		}
		return peerv1connect.NewStoreServiceClient(connect.NewClient(connecthttp.NewTransport(http2Client, url.(string)))), nil
	}
	life, end := context.WithCancel(ctx)
	stop := func() error {
		end()
		running.Wait()
		var all []error
		for _, c := range slices.Backward(closers) {
			all = append(all, c())
		}
		close(errs)
		for err := range errs {
			all = append(all, err)
		}
		return errors.Join(all...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, stop())
		}
	}()
	for i := range members {
		own := filepath.Join(dir, fmt.Sprint(i))
		if err := os.MkdirAll(own, 0o700); err != nil {
			return nil, nil, err
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, err
		}
		cfg := raftstore.Config{
			ID: fmt.Sprint("p", i), ClusterID: "bench", Address: listener.Addr().String(), Stream: tcpStream{listener}, Dir: own,
			Remote: remote,
		}
		if open != nil {
			db, err := open(own)
			if err != nil {
				return nil, nil, err
			}
			closers = append(closers, db.Close)
			snapshots, err := raft.NewFileSnapshotStoreWithLogger(own, 2, nil)
			if err != nil {
				return nil, nil, err
			}
			cfg.Storage = &raftstore.Storage{Logs: db, Stable: db, Snapshots: snapshots}
		}
		s, err := raftstore.New(cfg)
		if err != nil {
			return nil, nil, err
		}
		stores = append(stores, s)
		url, closeServer := serveStore(s)
		urls.Store(cfg.ID, url)
		closers = append(closers, closeServer)
		if i == 0 {
			if err := s.Bootstrap(); err != nil {
				return nil, nil, errors.Join(err, s.Close())
			}
		}
		running.Go(func() { errs <- s.Run(life) })
		if i > 0 {
			if err := stores[0].AddPeer(ctx, cfg.ID, cfg.Address); err != nil {
				return nil, nil, err
			}
			continue
		}
		for leader, _ := s.Leader(); leader == ""; leader, _ = s.Leader() {
			if err := rig.Pause(ctx, 10*time.Millisecond); err != nil {
				return nil, nil, err
			}
		}
	}
	return stores, stop, nil
}

// http2Client speaks HTTP/2 without TLS.
var http2Client = func() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{Protocols: protocols}}
}()

// serveStore answers what other peers' stores ask.
func serveStore(s *raftstore.Store) (url string, _ func() error) {
	rpc := connect.NewServer()
	peerv1connect.RegisterStoreServiceHandler(rpc, s.Service())
	mux := http.NewServeMux()
	connecthttp.Mount(mux, rpc)
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	return server.URL, func() error {
		server.CloseClientConnections()
		server.Close()
		return nil
	}
}

// tcpStream is raft's way without TLS.
type tcpStream struct{ net.Listener }

func (tcpStream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", string(address), timeout)
}
