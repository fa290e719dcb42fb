package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"github.com/hashicorp/raft"

	"github.com/holdfast-io/holdfast/internal/faults"
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

// Cluster is a number of peers with a network and disks in memory, each under a
// fault plane of its own, to be crashed and restarted. It needs the virtual time of
// testing/synctest.
//
// A message that its sender has given up may still arrive, later, as bytes do that
// lie in the buffers of a network or of a machine that stands still. A paused peer's
// own deadlines stand still, too: answers that came meanwhile are there when it goes
// on.
type Cluster struct {
	Peers []*Peer

	t       testing.TB
	options []func(*raftstore.Config)
	mu      sync.Mutex
	changed chan struct{}     // closed when a peer's state changes
	running []func()          // end a process each
	leaders map[uint64]string // who spoke as the leader of each term
}

// Peer is one of a cluster's.
type Peer struct {
	ID    string
	Store *raftstore.Store // of the running, or last, process
	Disk  *Disk
	// Faults is what goes wrong on this machine; it outlives the process.
	Faults *faults.Plane
	// Incarnation is what the next process is told when its disk is empty.
	Incarnation uint64

	c         *Cluster
	process   int // counts restarts, so that calls to a former process fail
	killed    map[int]bool
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
	c := &Cluster{t: t, options: options, leaders: make(map[uint64]string), changed: make(chan struct{})}
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
	plane := faults.New(uint64(len(c.Peers)))
	p := &Peer{ID: fmt.Sprintf("p%d", len(c.Peers)+1), c: c, Faults: plane, Disk: NewDisk(), killed: make(map[int]bool)}
	p.Disk.plane, p.Disk.own = plane, false // the store asks it
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
		ID: p.ID, ClusterID: "test", Address: p.ID, Incarnation: p.Incarnation,
		Transport: &network{p.transport, p, p.process},
		Storage:   p.Disk.Storage(),
		Remote:    p.remote,
		Faults:    p.Faults,
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
	process := p.process
	p.c.running = append(p.c.running, func() {
		cancel()
		// A process that was killed is not asked how it felt.
		if err := <-ended; err != nil && !p.killed[process] && !errors.Is(err, raftstore.ErrPeerRemoved) {
			p.c.t.Errorf("run %s: %v", p.ID, err)
		}
	})
}

// stop ends everything that runs yet. Peers cannot say goodbye to each other.
func (c *Cluster) stop() {
	for _, p := range c.Peers {
		p.down()
		p.Faults.Clear()
	}
	for _, end := range c.running {
		end()
	}
	// Raft leaves goroutines behind that wait for answers.
	time.Sleep(11 * callTimeout)
}

// Up reports whether the peer's process was started and not stopped or killed. It may
// have given up since: see Ended.
func (p *Peer) Up() bool {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	return p.up
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
// disk that was not synced. A Disk.Hold ends with it; other faults last.
func (p *Peer) Kill() {
	p.killed[p.process] = true
	p.down()
	p.Disk = p.Disk.Clone()
	p.Disk.Release()
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
	from.Set("cut-to-"+to.ID, faults.Fault{Kind: faults.Cut, Peer: to.ID, Direction: faults.Out})
}

// Heal undoes all cuts.
func (c *Cluster) Heal() {
	for _, p := range c.Peers {
		for _, to := range c.Peers {
			p.Faults.Clear("cut-to-" + to.ID)
		}
	}
}

// Set puts a fault in force on the peer's machine.
func (p *Peer) Set(name string, f faults.Fault) {
	p.c.t.Helper()
	if err := p.Faults.Set(name, f); err != nil {
		p.c.t.Fatal(err)
	}
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

// addressed is where a message goes: to one process of a peer.
type addressed struct {
	p       *Peer
	process int
}

func (c *Cluster) alive(a addressed) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return a.p.up && a.p.process == a.process
}

// pass waits until a message has got from one process to another. It fails when the
// sender is dead, when the receiver is dead by the time it arrives, or ctx ends.
func (c *Cluster) pass(ctx context.Context, from, to addressed) error {
	if !c.alive(from) {
		return errRefused
	}
	if err := from.p.Faults.Pass(ctx, to.p.ID, faults.Out); err != nil {
		return err
	}
	if err := to.p.Faults.Pass(ctx, from.p.ID, faults.In); err != nil {
		return err
	}
	if !c.alive(to) {
		return errRefused
	}
	return nil
}

// network is a peer's raft transport.
type network struct {
	*raft.InmemTransport
	p       *Peer
	process int
}

// lateness is for how long a message that nobody waits for is under way.
const lateness = 5 * callTimeout

// call sends a message and waits for its answer, as long as a caller would. Both go
// on when it has given up, so send has a message and an answer of its own: raft goes
// on to use its.
func call[Answer any](n *network, to raft.ServerID, answer *Answer, send func(*Answer) error) error {
	c := n.p.c
	target, err := c.peer(string(to))
	if err != nil {
		return err
	}
	c.mu.Lock()
	here, there, calls := addressed{n.p, n.process}, addressed{target, target.process}, n.p.calls
	c.mu.Unlock()
	if !c.alive(there) { // no connection can be made
		time.Sleep(latency)
		return errRefused
	}
	type outcome struct {
		answer *Answer
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), lateness)
		defer cancel()
		got := new(Answer)
		time.Sleep(latency)
		err := c.pass(ctx, here, there)
		if err == nil {
			err = send(got)
		}
		if err == nil {
			time.Sleep(latency)
			err = c.pass(ctx, there, here)
		}
		done <- outcome{got, err}
	}()
	timeout := time.NewTimer(callTimeout)
	defer timeout.Stop()
	for {
		select {
		case o := <-done:
			if o.err == nil {
				*answer = *o.answer
			}
			return o.err
		case <-calls.Done():
			return errRefused
		case <-timeout.C:
			if !n.p.Faults.Paused() {
				return errCut
			}
			timeout.Reset(latency) // its clock stands still
		}
	}
}

// speaks notes that a peer leads in term.
func (c *Cluster) speaks(p *Peer, term uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if other := c.leaders[term]; other != "" && other != p.ID {
		c.t.Errorf("P6: %s and %s both speak as the leader of term %d", other, p.ID, term)
	}
	c.leaders[term] = p.ID
}

// Leaderships returns how many terms have had a leader who spoke as one. A second one
// in a term fails the test.
func (c *Cluster) Leaderships() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.leaders)
}

func (n *network) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

func (n *network) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	sent := *args
	n.p.c.speaks(n.p, args.Term)
	return call(n, id, resp, func(resp *raft.AppendEntriesResponse) error {
		return n.InmemTransport.AppendEntries(id, target, &sent, resp)
	})
}

func (n *network) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	sent := *args
	return call(n, id, resp, func(resp *raft.RequestVoteResponse) error {
		return n.InmemTransport.RequestVote(id, target, &sent, resp)
	})
}

func (n *network) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	sent := *args
	return call(n, id, resp, func(resp *raft.RequestPreVoteResponse) error {
		return n.InmemTransport.RequestPreVote(id, target, &sent, resp)
	})
}

func (n *network) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	sent := *args
	// What is sent late must not be read from a file that is closed by then.
	all, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	return call(n, id, resp, func(resp *raft.InstallSnapshotResponse) error {
		return n.InmemTransport.InstallSnapshot(id, target, &sent, resp, bytes.NewReader(all))
	})
}

func (n *network) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	sent := *args
	return call(n, id, resp, func(resp *raft.TimeoutNowResponse) error {
		return n.InmemTransport.TimeoutNow(id, target, &sent, resp)
	})
}

// remote returns a client to another peer's store, over the same network.
func (p *Peer) remote(id string) (peerv1connect.StoreServiceClient, error) {
	to, err := p.c.peer(id)
	if err != nil {
		return nil, err
	}
	p.c.mu.Lock()
	here, there, service := p.calls, to.calls, to.service
	from, far := addressed{p, p.process}, addressed{to, to.process}
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
			return &linkedStream{ClientStream: stream, ctx: ctx, from: from, to: far, release: release}, nil
		}
	}
	return peerv1connect.NewStoreServiceClient(connect.NewClient(connectinprocess.New(service), link)), nil
}

// linkedStream is a stream over the cluster's network.
type linkedStream struct {
	connect.ClientStream
	ctx      context.Context
	from, to addressed
	release  func()
	received time.Time // the last message
	asked    atomic.Bool
}

// pass fails, and breaks the stream, when a message has not got through after
// callTimeout, as a connection with keepalives would. A paused end does not notice.
func (s *linkedStream) pass(from, to addressed) error {
	c := s.from.p.c
	for {
		ctx, cancel := context.WithTimeoutCause(s.ctx, callTimeout, errCut)
		err := c.pass(ctx, from, to)
		cancel()
		if errors.Is(err, errCut) && s.from.p.Faults.Paused() {
			continue
		}
		if err != nil {
			s.release()
			return connect.NewError(connect.CodeUnavailable, err.Error())
		}
		return nil
	}
}

func (s *linkedStream) Send(msg any) error {
	if err := s.pass(s.from, s.to); err != nil {
		return err
	}
	s.asked.Store(true)
	return s.ClientStream.Send(msg)
}

func (s *linkedStream) Receive(msg any) error {
	if err := s.ClientStream.Receive(msg); err != nil {
		return err
	}
	// Messages of one moment travel together, unless one may be the answer to what
	// was sent after another: then it was under way.
	if s.asked.Swap(false) || time.Since(s.received) > 0 {
		time.Sleep(2 * latency)
	}
	s.received = time.Now()
	return s.pass(s.to, s.from)
}

func (s *linkedStream) Close() error {
	s.release()
	return s.ClientStream.Close()
}
