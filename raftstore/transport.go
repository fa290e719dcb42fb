package raftstore

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// StreamLayer is how raft's connections are made and accepted: a listener, and
// Dial. It decides who may connect.
type StreamLayer = raft.StreamLayer

// ServerAddress is the host:port that a StreamLayer dials.
type ServerAddress = raft.ServerAddress

const (
	// rpcTimeout bounds each of raft's calls but the sending of a snapshot, which
	// has as much again for each 256 KiB.
	rpcTimeout = 5 * time.Second
	// idleTimeout is how long an accepted connection may be silent. A sender that
	// was cut off in the middle of a snapshot would otherwise hold up this peer's
	// raft for as long as TCP does.
	idleTimeout = 10 * time.Second
)

var errDiskStalled = errors.New("this peer's disk is stalled: it does not speak as a leader or candidate")

// carrier is what a transport must be able to do.
type carrier interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose
}

// transport is raft's transport with a few differences. Embedding the interface
// keeps the methods that raft looks for by assertion, pre-vote above all.
type transport struct {
	carrier
	disk  *disk
	limit time.Duration // of a stall
	// leads reports whether this peer still leads in term, and id is a member.
	leads func(term uint64, id raft.ServerID) bool
}

// SetHeartbeatHandler ignores the fast path for heartbeats: with it they change
// raft's state beside its main loop, and logs of peers can diverge
// (hashicorp/raft#695). Without it they take their turn with the other calls.
func (*transport) SetHeartbeatHandler(func(raft.RPC)) {}

// AppendEntries stops speaking as a leader while the disk is stalled: raft would
// hold on to the leadership, as its heartbeats need no disk, and nobody could write.
//
// A message other than a heartbeat is sent again until it arrives. Raft would try
// after a pause that grows to 10 s, and a peer that has come back, or been cut off
// for a while, would have to wait for that before it gets what it has missed.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	send := func() error {
		if t.disk.stalled(t.limit) {
			return errDiskStalled
		}
		*resp = raft.AppendEntriesResponse{}
		return t.carrier.AppendEntries(id, target, args, resp)
	}
	if heartbeat := args.PrevLogEntry == 0 && len(args.Entries) == 0 && args.LeaderCommitIndex == 0; heartbeat {
		return send()
	}
	return t.persist(id, args.Term, send)
}

// InstallSnapshot waits, as AppendEntries does, until the peer can be reached.
func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	knock := &raft.AppendEntriesRequest{RPCHeader: args.RPCHeader, Term: args.Term} // a heartbeat
	err := t.persist(id, args.Term, func() error {
		if t.disk.stalled(t.limit) {
			return errDiskStalled
		}
		return t.carrier.AppendEntries(id, target, knock, new(raft.AppendEntriesResponse))
	})
	if err != nil {
		return err
	}
	return t.carrier.InstallSnapshot(id, target, args, resp, data)
}

// persistPause is the time between attempts to reach a peer with what it misses.
const persistPause = 100 * time.Millisecond

// persist calls send until it succeeds, as long as there is reason to.
func (t *transport) persist(id raft.ServerID, term uint64, send func() error) error {
	pause := time.NewTimer(persistPause)
	defer pause.Stop()
	for {
		err := send()
		if err == nil || !t.leads(term, id) {
			return err
		}
		pause.Reset(persistPause)
		select {
		case <-pause.C:
		case <-t.disk.done:
			return err
		}
	}
}

// RequestPreVote asks again at once when the connection was a dead one from the
// pool: an election would otherwise have to wait for the next timeout. Granting a
// vote twice is the same as once.
func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.vote(func() error { return t.carrier.RequestPreVote(id, target, args, resp) })
}

// RequestVote is as RequestPreVote.
func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.vote(func() error { return t.carrier.RequestVote(id, target, args, resp) })
}

func (t *transport) vote(call func() error) error {
	begin := time.Now()
	for tries := 0; ; tries++ {
		if t.disk.stalled(t.limit) {
			return errDiskStalled
		}
		err := call()
		if err == nil || tries == poolSize || time.Since(begin) > t.limit/4 {
			return err
		}
	}
}

// poolSize is the number of idle connections kept to each peer.
const poolSize = 3

// streams is a StreamLayer that bounds silence on what it accepts and closes it
// with the listener, which raft's transport does not.
type streams struct {
	StreamLayer
	addr net.Addr

	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
}

func newStreams(s StreamLayer, advertised string) *streams {
	return &streams{StreamLayer: s, addr: address(advertised), open: make(map[net.Conn]struct{})}
}

// address is an advertised address. The listener's own may be a wildcard.
type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// Addr returns the advertised address, which raft tells the others.
func (s *streams) Addr() net.Addr { return s.addr }

// Accept returns the next connection.
func (s *streams) Accept() (net.Conn, error) {
	conn, err := s.StreamLayer.Accept()
	if err != nil {
		return nil, err
	}
	c := &accepted{conn, s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	s.open[c] = struct{}{}
	return c, nil
}

// Close closes the listener and all that it has accepted.
func (s *streams) Close() error {
	s.mu.Lock()
	s.closed = true
	open := s.open
	s.open = make(map[net.Conn]struct{})
	s.mu.Unlock()
	for c := range open {
		c.(*accepted).Conn.Close()
	}
	return s.StreamLayer.Close()
}

// accepted is an inbound connection whose reads and writes time out when nothing
// moves.
type accepted struct {
	net.Conn
	from *streams
}

func (c *accepted) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(idleTimeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(b)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		err = io.EOF // what raft takes for a connection that is no longer used
	}
	return n, err
}

func (c *accepted) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(idleTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

func (c *accepted) Close() error {
	c.from.mu.Lock()
	delete(c.from.open, c)
	c.from.mu.Unlock()
	return c.Conn.Close()
}

// networkCarrier is raft's network transport; closing it closes pooled connections
// too.
type networkCarrier struct{ *raft.NetworkTransport }

// Close implements raft.WithClose.
func (n networkCarrier) Close() error {
	err := n.NetworkTransport.Close()
	n.CloseStreams()
	return err
}
