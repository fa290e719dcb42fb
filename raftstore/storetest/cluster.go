package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"github.com/hashicorp/raft"

	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// latency is that of each message, one way. Without any, a busy loop between
	// peers would not let virtual time pass.
	latency = time.Millisecond
	// callTimeout is after how long a call into a cut gives up, as a connection
	// with keepalives would.
	callTimeout = 4 * time.Second
)

// Cluster is a number of peers with a network and disks in memory, to be cut, to be
// crashed. It needs the virtual time of testing/synctest.
type Cluster struct {
	Peers []*Peer

	t       testing.TB
	options []func(*raftstore.Config)
	mu      sync.Mutex
	cut     map[[2]string]bool // from, to
	changed chan struct{}      // closed when cut or a peer's state changes
	running []func()           // end a process each
}

// Peer is one of a cluster's.
type Peer struct {
	ID    string
	Store *raftstore.Store // of the running, or last, process
	Disk  *Disk

	c         *Cluster
	process   int // counts restarts, so that calls to a former process fail
	up        bool
	transport *raft.InmemTransport
	service   *connect.Server
	stop      context.CancelFunc
	calls     context.Context // ends with the process
	ended     chan error      // what Run returned
}

// NewCluster returns a cluster of n voters, p1 to pn, with a leader. It is stopped
// with the test. Options may change each peer's configuration.
func NewCluster(t testing.TB, n int, options ...func(*raftstore.Config)) *Cluster {
	t.Helper()
	c := &Cluster{t: t, options: options, cut: make(map[[2]string]bool), changed: make(chan struct{})}
	t.Cleanup(c.stop)
	first := c.NewPeer()
	if err := first.Store.Bootstrap(); err != nil {
		t.Fatalf("bootstrap: %v", err)
	}
	first.Run()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	c.WaitLeader()
	for range n - 1 {
		p := c.NewPeer()
		p.Run()
		if err := first.Store.AddPeer(ctx, p.ID, p.ID); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// NewPeer adds a peer that is not running, and that no other knows.
func (c *Cluster) NewPeer() *Peer {
	c.t.Helper()
	p := &Peer{ID: fmt.Sprintf("p%d", len(c.Peers)+1), c: c, Disk: NewDisk()}
	p.build()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Peers = append(c.Peers, p)
	return p
}

// peer returns the peer called id.
func (c *Cluster) peer(id string) (*Peer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.Peers {
		if p.ID == id {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no peer %s", id)
}

// build makes the store of a new process.
func (p *Peer) build() {
	c := p.c
	c.t.Helper()
	_, p.transport = raft.NewInmemTransportWithTimeout(raft.ServerAddress(p.ID), callTimeout)
	cfg := raftstore.Config{
		ID: p.ID, ClusterID: "test", Address: p.ID,
		Transport: &network{p.transport, p, p.process},
		Storage:   p.Disk.Storage(),
		Remote:    p.remote,
		Logger:    slog.New(slog.NewTextHandler(c.t.Output(), nil)).With("peer", p.ID),
	}
	for _, option := range c.options {
		option(&cfg)
	}
	store, err := raftstore.New(cfg)
	if err != nil {
		c.t.Fatalf("new store %s: %v", p.ID, err)
	}
	service := connect.NewServer()
	peerv1connect.RegisterStoreServiceHandler(service, store.Service())
	c.mu.Lock()
	defer c.mu.Unlock()
	p.Store, p.service = store, service
}

// Run starts the peer's store.
func (p *Peer) Run() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.c.t.Context()))
	var dead context.CancelFunc
	p.c.mu.Lock()
	p.calls, dead = context.WithCancel(context.Background())
	p.stop, p.ended, p.up = cancel, make(chan error, 1), true
	for _, other := range p.c.Peers {
		if other != p {
			p.transport.Connect(raft.ServerAddress(other.ID), other.transport)
			other.transport.Connect(raft.ServerAddress(p.ID), p.transport)
		}
	}
	p.c.notify()
	p.c.mu.Unlock()
	store, ended := p.Store, p.ended
	go func() {
		ended <- store.Run(ctx)
		dead()
		close(ended)
	}()
	p.c.running = append(p.c.running, func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, raftstore.ErrPeerRemoved) {
			p.c.t.Errorf("run %s: %v", p.ID, err)
		}
	})
}

// stop ends everything that runs yet. Peers cannot say goodbye to each other.
func (c *Cluster) stop() {
	for _, p := range c.Peers {
		p.down()
		p.Disk.Release()
	}
	for _, end := range c.running {
		end()
	}
	// Raft leaves goroutines behind that wait for answers.
	time.Sleep(11 * callTimeout)
}

// Ended returns a channel with what the store's Run returns. To read from it
// accepts the error; the test fails otherwise.
func (p *Peer) Ended() <-chan error { return p.ended }

// Stop ends the peer's store politely and waits for it.
func (p *Peer) Stop() {
	p.stop()
	if err := <-p.ended; err != nil {
		p.c.t.Errorf("run %s: %v", p.ID, err)
	}
	p.down()
}

// Kill ends the peer's process as kill -9 does: at once, and with nothing on its
// disk that was not synced.
func (p *Peer) Kill() {
	p.down()
	p.Disk = p.Disk.Clone()
	p.stop() // what is left of the process ends, unheard
}

func (p *Peer) down() {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	p.up = false
	p.process++
	p.c.notify()
}

// Restart makes a new process of a peer that was stopped or killed.
func (p *Peer) Restart() {
	p.c.t.Helper()
	p.build()
	p.Run()
}

// Cut keeps messages from passing between the peers of the one and the other group.
func (c *Cluster) Cut(a, b []*Peer) {
	for _, from := range a {
		for _, to := range b {
			c.CutOneWay(from, to)
			c.CutOneWay(to, from)
		}
	}
}

// CutOneWay keeps messages from passing from one peer to another.
func (c *Cluster) CutOneWay(from, to *Peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut[[2]string{from.ID, to.ID}] = true
	c.notify()
}

// Heal undoes all cuts.
func (c *Cluster) Heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.cut)
	c.notify()
}

// Others returns all peers but p.
func (c *Cluster) Others(p *Peer) (others []*Peer) {
	for _, o := range c.Peers {
		if o != p {
			others = append(others, o)
		}
	}
	return others
}

// WaitLeader returns the peer that leads, in the eyes of a majority of the given
// peers; of all, if none are given.
func (c *Cluster) WaitLeader(among ...*Peer) *Peer {
	c.t.Helper()
	if len(among) == 0 {
		among = c.Peers
	}
	deadline := time.Now().Add(startTimeout)
	for time.Now().Before(deadline) {
		votes := make(map[string]int)
		var claim []*Peer
		c.mu.Lock()
		for _, p := range among {
			id, _ := p.Store.Leader()
			if p.up {
				votes[id]++
			}
			if p.up && id == p.ID {
				claim = append(claim, p)
			}
		}
		c.mu.Unlock()
		for _, p := range claim {
			if votes[p.ID] > len(among)/2 {
				return p
			}
		}
		time.Sleep(time.Millisecond)
	}
	c.t.Fatalf("no leader after %v", startTimeout)
	return nil
}

func (c *Cluster) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}

var (
	errRefused = errors.New("connection refused")
	errCut     = errors.New("timed out")
)

// deliver waits for a message to pass, and fails when it does not.
func (c *Cluster) deliver(ctx context.Context, from, to *Peer, process int) error {
	timeout := time.NewTimer(callTimeout)
	defer timeout.Stop()
	for {
		c.mu.Lock()
		changed := c.changed
		dead := !to.up || !from.up || from.process != process && process >= 0
		cut := c.cut[[2]string{from.ID, to.ID}]
		c.mu.Unlock()
		if dead {
			return errRefused
		}
		if !cut {
			return nil
		}
		select {
		case <-changed:
		case <-timeout.C:
			return errCut
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// network is a peer's raft transport.
type network struct {
	*raft.InmemTransport
	p       *Peer
	process int
}

func (n *network) call(to raft.ServerID, fn func() error) error {
	target, err := n.p.c.peer(string(to))
	if err != nil {
		return err
	}
	ctx := context.Background()
	time.Sleep(latency)
	if err := n.p.c.deliver(ctx, n.p, target, n.process); err != nil {
		return err
	}
	if err := fn(); err != nil {
		return err
	}
	time.Sleep(latency)
	return n.p.c.deliver(ctx, target, n.p, -1)
}

func (n *network) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

func (n *network) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return n.call(id, func() error { return n.InmemTransport.AppendEntries(id, target, args, resp) })
}

func (n *network) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return n.call(id, func() error { return n.InmemTransport.RequestVote(id, target, args, resp) })
}

func (n *network) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return n.call(id, func() error { return n.InmemTransport.RequestPreVote(id, target, args, resp) })
}

func (n *network) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	return n.call(id, func() error { return n.InmemTransport.InstallSnapshot(id, target, args, resp, data) })
}

func (n *network) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return n.call(id, func() error { return n.InmemTransport.TimeoutNow(id, target, args, resp) })
}

// remote returns a client to another peer's store, over the same network.
func (p *Peer) remote(id string) (peerv1connect.StoreServiceClient, error) {
	to, err := p.c.peer(id)
	if err != nil {
		return nil, err
	}
	p.c.mu.Lock()
	here, there, process, service := p.calls, to.calls, p.process, to.service
	p.c.mu.Unlock()
	if there == nil {
		return nil, errRefused
	}
	link := func(next connect.ClientFunc) connect.ClientFunc {
		return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
			ctx, cancel := context.WithCancel(ctx)
			stopHere, stopThere := context.AfterFunc(here, cancel), context.AfterFunc(there, cancel)
			release := func() { stopHere(); stopThere(); cancel() }
			stream, err := next(ctx, spec)
			if err != nil {
				release()
				return nil, err
			}
			return &linkedStream{ClientStream: stream, ctx: ctx, from: p, to: to, process: process, release: release}, nil
		}
	}
	return peerv1connect.NewStoreServiceClient(connect.NewClient(connectinprocess.New(service), link)), nil
}

// linkedStream is a stream over the cluster's network.
type linkedStream struct {
	connect.ClientStream
	ctx      context.Context
	from, to *Peer
	process  int
	release  func()
	received time.Time // the last message
}

func (s *linkedStream) pass(from, to *Peer, process int) error {
	if err := s.from.c.deliver(s.ctx, from, to, process); err != nil {
		s.release()
		return connect.NewError(connect.CodeUnavailable, err.Error())
	}
	return nil
}

func (s *linkedStream) Send(msg any) error {
	if err := s.pass(s.from, s.to, s.process); err != nil {
		return err
	}
	return s.ClientStream.Send(msg)
}

func (s *linkedStream) Receive(msg any) error {
	if err := s.ClientStream.Receive(msg); err != nil {
		return err
	}
	if time.Since(s.received) > 0 { // messages of one moment travel together
		time.Sleep(2 * latency)
	}
	s.received = time.Now()
	return s.pass(s.to, s.from, -1)
}

func (s *linkedStream) Close() error {
	s.release()
	return s.ClientStream.Close()
}
