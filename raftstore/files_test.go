package raftstore_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

// tcpStream is a StreamLayer over plain TCP.
type tcpStream struct{ net.Listener }

func (tcpStream) Dial(address raftstore.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", string(address), timeout)
}

// node is a store with real files, TCP for raft and HTTP/2 for the service.
type node struct {
	*raftstore.Store
	id      string
	address string // of raft
	web     string // of the service
	stop    func()
}

type nodes struct {
	mu   sync.Mutex
	list map[string]*node
}

// remote dials the service of a peer, wherever it is now.
func (ns *nodes) remote(id string) (peerv1connect.StoreServiceClient, error) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	n, ok := ns.list[id]
	if !ok {
		return nil, fmt.Errorf("no peer %s", id)
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: protocols}}
	return peerv1connect.NewStoreServiceClient(connect.NewClient(connecthttp.NewTransport(client, "http://"+n.web))), nil
}

// startNode runs a store in dir. It is stopped with the test, or before by stop.
func startNode(t testing.TB, ns *nodes, id, dir string, bootstrap bool, options ...func(*raftstore.Config)) *node {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := raftstore.Config{
		ID: id, ClusterID: "test", Dir: dir, Address: listener.Addr().String(),
		Stream: tcpStream{listener}, Remote: ns.remote,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)).With("peer", id),
	}
	for _, option := range options {
		option(&cfg)
	}
	store, err := raftstore.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if bootstrap {
		if err := store.Bootstrap(); err != nil {
			t.Fatal(err)
		}
	}
	server := connect.NewServer()
	peerv1connect.RegisterStoreServiceHandler(server, store.Service())
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	web := &http.Server{Handler: mux, Protocols: protocols}
	webListener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = web.Serve(webListener) }()

	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	n := &node{Store: store, id: id, address: cfg.Address, web: webListener.Addr().String()}
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run %s: %v", id, err)
		}
		web.Close()
	})
	t.Cleanup(n.stop)
	ns.mu.Lock()
	ns.list[id] = n
	ns.mu.Unlock()
	return n
}

func newNodes() *nodes { return &nodes{list: make(map[string]*node)} }

// deadline gives what talks to real disks and sockets a bound.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestRestartKeepsEverything covers the files: log alone, and log after snapshots.
func TestRestartKeepsEverything(t *testing.T) {
	for name, snapshotBytes := range map[string]int64{"log": 0, "snapshot": 16 << 10} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := deadline(t)
			dir := t.TempDir()
			small := func(c *raftstore.Config) { c.SnapshotBytes = snapshotBytes }
			registry := prometheus.NewRegistry()
			n := startNode(t, newNodes(), "p1", dir, true, small, func(c *raftstore.Config) { c.Registerer = registry })
			var last raftstore.Result
			for i := range 300 {
				var err error
				if last, err = n.Txn(ctx, put(fmt.Sprintf("k/%d", i%100), strings.Repeat("v", 100)+strconv.Itoa(i))); err != nil {
					t.Fatal(err)
				}
			}
			before := n.Status()
			n.stop()
			if snapshots, _ := filepath.Glob(filepath.Join(dir, "snapshots", "*")); (len(snapshots) > 0) != (snapshotBytes > 0) {
				t.Fatalf("snapshots: %v", snapshots)
			}
			if families, err := registry.Gather(); err != nil || len(families) < 10 {
				t.Errorf("%d families of metrics, %v", len(families), err)
			}

			n = startNode(t, newNodes(), "p1", dir, false, small)
			view, err := n.Sync(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if after := n.Status(); after.Revision != last.Revision || after.Hash != before.Hash {
				t.Errorf("after the restart revision %d hash %x, before %d hash %x", after.Revision, after.Hash, before.Revision, before.Hash)
			}
			if kv, _ := view.Get("k/99"); !strings.HasSuffix(string(kv.Value), "v299") || kv.Version != 3 {
				t.Errorf("k/99 after the restart: %+v", kv)
			}
			if old, err := n.ViewAt(100); err != nil {
				t.Errorf("view of an older revision after the restart: %v", err)
			} else if kv, _ := old.Get("k/99"); kv.Version != 1 {
				t.Errorf("k/99 at revision 100 after the restart: %+v", kv)
			}
			if events, _, _, err := n.Watch("k/", 250).Poll(); err != nil || len(events) != 50 {
				t.Errorf("watch from before the restart: %d events, %v", len(events), err)
			}
		})
	}
}

// TestRotateKey covers new keys beside writes: the old ones are forgotten once
// snapshots and the log's cut have left nothing that needs them.
func TestRotateKey(t *testing.T) {
	ctx := deadline(t)
	dir := t.TempDir()
	keys := func() (ids []int) {
		data, err := os.ReadFile(filepath.Join(dir, "keys.json"))
		if err != nil {
			t.Fatal(err)
		}
		var ring struct {
			Keys []struct {
				ID int `json:"id"`
			} `json:"keys"`
		}
		if err := json.Unmarshal(data, &ring); err != nil {
			t.Fatal(err)
		}
		for _, k := range ring.Keys {
			ids = append(ids, k.ID)
		}
		return ids
	}
	short := func(c *raftstore.Config) { c.SnapshotBytes, c.TrailingBytes = 4<<10, 1; raftstore.CutLogAt(5)(c) }
	n := startNode(t, newNodes(), "p1", dir, true, short)
	written := 0
	write := func() {
		t.Helper()
		if _, err := n.Txn(ctx, put(fmt.Sprintf("k/%d", written), strings.Repeat("v", 500))); err != nil {
			t.Fatal(err)
		}
		written++
	}
	for range 3 {
		if err := n.RotateKey(ctx); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			write()
		}
	}
	newest := slices.Max(keys())
	if newest != 4 {
		t.Errorf("keys %v", keys())
	}
	for !slices.Equal(keys(), []int{newest}) { // two snapshots and some entries later
		write()
		if written > 10_000 {
			t.Fatalf("keys %v are still there", keys())
		}
	}
	n.stop()
	if err := n.RotateKey(ctx); !errors.Is(err, raftstore.ErrClosed) {
		t.Errorf("a key for a store that has stopped: %v", err)
	}
	n = startNode(t, newNodes(), "p1", dir, false, short)
	view, err := n.Sync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range written {
		if _, ok := view.Get(fmt.Sprintf("k/%d", i)); !ok {
			t.Errorf("key %d of %d is lost", i, written)
		}
	}
}

// TestForeignDirectory covers directories that must not be used, with a sentence
// that says why.
func TestForeignDirectory(t *testing.T) {
	dir := t.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	cfg := raftstore.Config{ID: "p1", ClusterID: "ours", Dir: dir, Address: "a:1", Stream: tcpStream{listener}}
	store, err := raftstore.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if store.HasState() {
		t.Error("a new directory has state")
	}
	if err := store.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	if !store.HasState() {
		t.Error("a bootstrapped directory has no state")
	}
	if err := store.Bootstrap(); err == nil || !strings.Contains(err.Error(), "already holds") {
		t.Errorf("second bootstrap: %v", err)
	}
	refused := func(what, want string, change func(*raftstore.Config)) {
		t.Helper()
		other := cfg
		change(&other)
		if s, err := raftstore.New(other); err == nil {
			s.Close()
			t.Errorf("%s: opened", what)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, want it to say %q", what, err, want)
		}
	}
	refused("directory in use", "in use by another process", func(*raftstore.Config) {})
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	refused("other cluster", `belongs to peer "p1" of cluster "ours"`, func(c *raftstore.Config) { c.ClusterID = "theirs" })
	refused("other peer", `not to peer "p2"`, func(c *raftstore.Config) { c.ID = "p2" })
	refused("no way for raft", "Stream is missing", func(c *raftstore.Config) { c.Stream = nil })
	if err := os.Rename(filepath.Join(dir, "identity.json"), filepath.Join(dir, "x")); err != nil {
		t.Fatal(err)
	}
	refused("no identity", "says whose it is", func(*raftstore.Config) {})
	if err := os.WriteFile(filepath.Join(dir, "identity.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("damaged identity", "damaged", func(*raftstore.Config) {})
	if err := store.Run(t.Context()); err == nil {
		t.Error("a closed store runs")
	}
}

// TestThreePeersOverTCP covers raft's real transport, and forwarding over HTTP/2:
// writes on all, the loss of the leader, a peer that comes back at another address,
// and one that is caught up by a snapshot.
func TestThreePeersOverTCP(t *testing.T) {
	ctx := deadline(t)
	ns := newNodes()
	small := func(c *raftstore.Config) {
		c.HeartbeatTimeout = 200 * time.Millisecond
		c.SnapshotBytes, c.TrailingBytes = 32<<10, 1
		raftstore.CutLogAt(10)(c)
	}
	dirs := map[string]string{"p1": t.TempDir(), "p2": t.TempDir(), "p3": t.TempDir()}
	first := startNode(t, ns, "p1", dirs["p1"], true, small)
	if _, err := first.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"p2", "p3"} {
		n := startNode(t, ns, id, dirs[id], false, small)
		if err := first.AddPeer(ctx, id, addressOf(n)); err != nil {
			t.Fatal(err)
		}
	}
	write := func(n *node, key, value string) {
		t.Helper()
		for {
			_, err := n.Txn(ctx, put(key, value))
			if err == nil {
				return
			}
			if !errors.Is(err, raftstore.ErrOutcomeUnknown) || ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	for _, n := range ns.list {
		write(n, "by/"+n.id, "1")
	}
	ns.list["p1"].stop()
	write(ns.list["p2"], "k", "without p1")
	value := strings.Repeat("v", 1000)
	for i := range 200 {
		write(ns.list["p3"], fmt.Sprintf("many/%d", i%100), value)
	}
	// Its port has passed to nobody: it has a new one, which nobody knows yet.
	back := startNode(t, ns, "p1", dirs["p1"], false, small)
	for {
		leader, _ := ns.list["p2"].Leader()
		if n := ns.list[leader]; n != nil {
			if err := n.AddPeer(ctx, "p1", addressOf(back)); err == nil {
				break
			} else if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	view, err := back.Sync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"by/p1": "1", "by/p2": "1", "by/p3": "1", "k": "without p1", "many/99": value} {
		if kv, _ := view.Get(key); string(kv.Value) != want {
			t.Errorf("%s = %.20q on the peer that came back, want %.20q", key, kv.Value, want)
		}
	}
	write(back, "k", "with p1")
	if snapshots, _ := filepath.Glob(filepath.Join(dirs["p1"], "snapshots", "*")); len(snapshots) == 0 {
		t.Error("the peer came back without a snapshot: this test shows less than it should")
	}
}

func addressOf(n *node) string { return n.address }

// childEnv makes this test's binary the victim of TestKill.
const childEnv = "RAFTSTORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	if dir := os.Getenv(fullDiskEnv); dir != "" {
		if err := fullDisk(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if dir := os.Getenv(syncEnv); dir != "" {
		if err := syncChild(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child writes numbers, and says each that is acknowledged, until it is killed.
func child(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	fail(err)
	store, err := raftstore.New(raftstore.Config{
		ID: "p1", ClusterID: "test", Dir: dir, Address: "127.0.0.1:1", Stream: tcpStream{listener}, SnapshotBytes: 32 << 10,
	})
	fail(err)
	if !store.HasState() {
		fail(store.Bootstrap())
	}
	go func() { fail(store.Run(context.Background())) }()
	view, err := store.Sync(context.Background())
	fail(err)
	begin := view.Revision()
	var wg sync.WaitGroup
	var mu sync.Mutex
	wg.Go(func() {
		for {
			fail(store.RotateKey(context.Background()))
			_, err := store.Sync(context.Background())
			fail(err)
		}
	})
	for i := range 4 { // several at once, so that entries are batches
		wg.Go(func() {
			for n := 0; ; n++ {
				key := fmt.Sprintf("k/%d/%d/%d", begin, i, n)
				_, err := store.Txn(context.Background(), put(key, strings.Repeat(key, 10)))
				fail(err)
				mu.Lock()
				fmt.Println(key)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// TestKill kills a process that writes, and that seals with ever new keys, again and
// again: what it has acknowledged is there when the files are opened next, and the
// chain of its log is whole, or they would not open.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	acked := map[string]bool{}
	rounds := 6
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		cmd := exec.CommandContext(deadline(t), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n < 150+77*round && lines.Scan(); n++ {
			acked[lines.Text()] = true
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // acknowledged before the signal came
			acked[lines.Text()] = true
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child ended by itself")
		}
	}
	n := startNode(t, newNodes(), "p1", dir, false)
	view, err := n.Sync(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	for key := range acked {
		if kv, ok := view.Get(key); !ok || string(kv.Value) != strings.Repeat(key, 10) {
			t.Errorf("%s was acknowledged and is lost", key)
		}
	}
	if len(acked) < 150*rounds {
		t.Errorf("only %d writes were acknowledged", len(acked))
	}
	t.Logf("%d acknowledged writes, %d kills", len(acked), rounds)
}
