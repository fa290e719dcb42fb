package raftstore

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
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
	store *Store
	disk  *disk
	limit time.Duration // of a stall
	// leads reports whether this peer still leads in term, and id is a member.
	leads func(term uint64, id raft.ServerID) bool

	inbox    chan raft.RPC // what the carrier receives and admit lets through
	closed   chan struct{}
	closing  sync.Once
	contacts contacts
}

// newTransport begins to receive; Close ends it.
func newTransport(inner carrier, s *Store) *transport {
	t := &transport{
		carrier: inner, store: s, disk: s.disk, limit: s.cfg.HeartbeatTimeout, leads: s.leadsAndHas,
		inbox: make(chan raft.RPC), closed: make(chan struct{}),
	}
	go t.receive()
	return t
}

// receive hands on the calls of others that may be answered.
func (t *transport) receive() {
	for {
		var rpc raft.RPC
		select {
		case rpc = <-t.carrier.Consumer():
		case <-t.closed:
			return
		}
		if err := t.admit(rpc.Command); err != nil {
			rpc.Respond(nil, err)
			continue
		}
		if _, ok := rpc.Command.(*raft.InstallSnapshotRequest); ok {
			t.store.metrics.snapshotsReceived.Inc()
		}
		select {
		case t.inbox <- rpc:
		case <-t.closed:
			rpc.Respond(nil, raft.ErrTransportShutdown)
			return
		}
	}
}

// Consumer implements raft.Transport.
func (t *transport) Consumer() <-chan raft.RPC { return t.inbox }

// Close implements raft.WithClose.
func (t *transport) Close() error {
	t.closing.Do(func() { close(t.closed) })
	return t.carrier.Close()
}

// Who is meant. Raft's calls say who sends them; they do not say for whom they are,
// and take the answer of whoever is at the address for that of the peer meant. So a
// peer that got another's address, or one whose disk is no longer the one that voted,
// would count as somebody whom it cannot speak for. Each call therefore names the
// peer that it is for, and the instance of its disk (see Store.instance): behind the
// sender's address in the header, where raft looks for nothing else.

// envelopeMark cannot be in an address.
const envelopeMark = "\x00"

// instanceMark stands between address and instance in raft's configuration.
const instanceMark = "#"

// withInstance is how raft's configuration has a peer: "192.0.2.1:7443#5f2a91c07b3de884".
func withInstance(address, instance string) raft.ServerAddress {
	if instance == "" {
		return raft.ServerAddress(address)
	}
	return raft.ServerAddress(address + instanceMark + instance)
}

// splitInstance undoes withInstance. Configurations that were written by hand, to
// recover a cluster, have no instance.
func splitInstance(address raft.ServerAddress) (_ raft.ServerAddress, instance string) {
	host, instance, _ := strings.Cut(string(address), instanceMark)
	return raft.ServerAddress(host), instance
}

// addressed returns header with the envelope for a peer.
func addressed(header raft.RPCHeader, id raft.ServerID, instance string) raft.RPCHeader {
	header.Addr = []byte(string(header.Addr) + envelopeMark + string(id) + envelopeMark + instance)
	return header
}

// DecodePeer implements raft.Transport. It leaves the envelope out.
func (t *transport) DecodePeer(data []byte) raft.ServerAddress {
	address, _, _ := strings.Cut(string(data), envelopeMark)
	return t.carrier.DecodePeer([]byte(address))
}

// admit returns why a call must not reach this peer's raft.
func (t *transport) admit(command any) error {
	call, ok := command.(raft.WithRPCHeader)
	if !ok {
		return nil // raft refuses it
	}
	s, header := t.store, call.GetRPCHeader()
	var to, instance, stamp string
	if _, envelope, ok := strings.Cut(string(header.Addr), envelopeMark); ok {
		to, instance, _ = strings.Cut(envelope, envelopeMark)
		instance, stamp, _ = strings.Cut(instance, envelopeMark)
	}
	if err := s.checkStamp(stamp); err != nil {
		return err
	}
	if to != "" && to != s.cfg.ID {
		return fmt.Errorf("this is peer %s, not %s: its address is another one now", s.cfg.ID, to)
	}
	if instance != "" && instance != s.instance {
		err := fmt.Errorf("%w: the cluster knows peer %s by disk %s, and this is disk %s", ErrForeignDisk, s.cfg.ID, instance, s.instance)
		if s.blank.Load() {
			s.fail(err)
		}
		return err
	}
	// A disk without any state may be one that was emptied, and has forgotten votes
	// and entries that others count on. It takes part from the moment on that
	// somebody knows it as it is.
	if s.blank.Load() {
		if instance == "" {
			return fmt.Errorf("peer %s has an empty disk, and the caller does not know this one", s.cfg.ID)
		}
		s.blank.Store(false)
	}
	if s.isOut(string(header.ID)) {
		return fmt.Errorf("%s: %s", removedAnswer, header.ID)
	}
	return s.adopt(stamp)
}

// silenced returns why this peer must not speak as leader or candidate.
func (t *transport) silenced() error {
	if t.disk.stalled(t.limit) {
		return errDiskStalled
	}
	return t.store.Refusal()
}

// removedAnswer is what a removed peer is told. It arrives as a text.
const removedAnswer = "the cluster has removed peer"

// heard looks at the answer to a call.
func (t *transport) heard(id raft.ServerID, err error) error {
	t.store.heed(err)
	switch {
	case err == nil:
		t.contacts.note(id)
	case strings.Contains(err.Error(), removedAnswer+": "+t.store.cfg.ID):
		t.store.fail(fmt.Errorf("%w: peer %s says so", ErrPeerRemoved, id))
	}
	return err
}

// contacts remembers when peers last answered.
type contacts struct{ last sync.Map } // raft.ServerID to time.Time

func (c *contacts) note(id raft.ServerID) { c.last.Store(id, time.Now()) }

// age returns how long ago the peer answered; false if it never did.
func (c *contacts) age(id raft.ServerID) (time.Duration, bool) {
	at, ok := c.last.Load(id)
	if !ok {
		return 0, false
	}
	return time.Since(at.(time.Time)), true
}

// A follower whose raft remembers a log that it no longer has takes the same snapshot
// again and again and comes no further (hashicorp/raft#697). Only a restart heals it.
const (
	maxInstalls    = 3
	installsWithin = time.Minute
)

// installs is the watchdog over snapshots that do not help. Raft's goroutine that
// restores them uses it.
type installs struct {
	index uint64
	times []time.Time // of the installations of the snapshot at index
}

// note counts an installed snapshot. It returns an error when this one is too many.
func (i *installs) note(index uint64, now time.Time) error {
	if index != i.index {
		i.index, i.times = index, nil
	}
	for len(i.times) > 0 && now.Sub(i.times[0]) >= installsWithin {
		i.times = i.times[1:]
	}
	i.times = append(i.times, now)
	if len(i.times) < maxInstalls {
		return nil
	}
	return fmt.Errorf("the snapshot at index %d came %d times within %v, and this peer could not go on from it: stopping, since a restart heals that", index, len(i.times), installsWithin)
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
	target, instance := splitInstance(target)
	letter := *args
	letter.RPCHeader = t.store.stamp(addressed(args.RPCHeader, id, instance))
	send := func() error {
		if err := t.silenced(); err != nil {
			return err
		}
		*resp = raft.AppendEntriesResponse{}
		return t.heard(id, t.carrier.AppendEntries(id, target, &letter, resp))
	}
	if heartbeat := args.PrevLogEntry == 0 && len(args.Entries) == 0 && args.LeaderCommitIndex == 0; heartbeat {
		return send()
	}
	return t.persist(id, args.Term, send)
}

// InstallSnapshot waits, as AppendEntries does, until the peer can be reached.
func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	target, instance := splitInstance(target)
	letter := *args
	letter.RPCHeader = t.store.stamp(addressed(args.RPCHeader, id, instance))
	knock := &raft.AppendEntriesRequest{RPCHeader: letter.RPCHeader, Term: args.Term} // a heartbeat
	err := t.persist(id, args.Term, func() error {
		if err := t.silenced(); err != nil {
			return err
		}
		return t.heard(id, t.carrier.AppendEntries(id, target, knock, new(raft.AppendEntriesResponse)))
	})
	if err != nil {
		return err
	}
	err = t.heard(id, t.carrier.InstallSnapshot(id, target, &letter, resp, data))
	if err == nil && resp.Success {
		t.store.metrics.snapshotsSent.Inc()
	}
	return err
}

// AppendEntriesPipeline implements raft.Transport: there is none (see Store.startRaft).
func (t *transport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// TimeoutNow implements raft.Transport.
func (t *transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	target, instance := splitInstance(target)
	letter := *args
	letter.RPCHeader = t.store.stamp(addressed(args.RPCHeader, id, instance))
	return t.heard(id, t.carrier.TimeoutNow(id, target, &letter, resp))
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
	target, instance := splitInstance(target)
	letter := *args
	letter.RPCHeader = t.store.stamp(addressed(args.RPCHeader, id, instance))
	return t.vote(func() error { return t.heard(id, t.carrier.RequestPreVote(id, target, &letter, resp)) })
}

// RequestVote is as RequestPreVote.
func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	target, instance := splitInstance(target)
	letter := *args
	letter.RPCHeader = t.store.stamp(addressed(args.RPCHeader, id, instance))
	return t.vote(func() error { return t.heard(id, t.carrier.RequestVote(id, target, &letter, resp)) })
}

func (t *transport) vote(call func() error) error {
	begin := time.Now()
	for tries := 0; ; tries++ {
		if err := t.silenced(); err != nil {
			return err
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
