package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// Store is one peer's part of the replicated store. Its methods are safe for
// concurrent use, and those that need Run wait for it, with their own deadlines.
type Store struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	disk       *disk
	logs       *logStore
	stable     *stableStore
	snapshotDB raft.SnapshotStore
	files      *files // nil over another Storage
	room       *room
	closeFiles func() error
	fsm        *fsm
	batcher    *batcher
	forwarder  *forwarder
	reader     *indexReader
	hub        *watchHub
	keeper     *leaseKeeper

	current  atomic.Pointer[published]  // what readers see
	leader   atomic.Pointer[leaderInfo] // of the cluster, as known here
	reign    atomic.Pointer[reign]      // this peer's leadership
	transfer transferWatch

	// instance tells this peer's disk from every other: random, made with it. It
	// stands beside the address in raft's configuration.
	instance string
	// blank is true while the disk has no state: it may be new, or it may have been
	// emptied (see transport.admit).
	blank     atomic.Bool
	transport *transport // set before ready is closed

	raft    *raft.Raft // set before ready is closed
	started atomic.Bool
	ready   chan struct{}
	stopped chan struct{}
	closing sync.Once
	failed  chan error // capacity 1: what ends Run

	alarms alarms

	incarnation atomic.Uint64
	refusal     atomic.Pointer[error]
	refused     chan struct{} // closed when refusal is set
	doubts      chan uint64   // capacity 1: an entry at which replicas differ

	snapshotWanted chan struct{} // capacity 1
	reloading      sync.Mutex    // of raft's reloadable configuration
	membership     chan struct{} // capacity 1: held during a change of members
	pilot          pilot
}

// New opens a peer's store and starts nothing. It fails with a sentence for the
// operator when cfg.Dir is in use, or belongs to another peer or cluster. What it
// opened is closed by Run's end, or by Close if Run is never called.
func New(cfg Config) (*Store, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	s := &Store{
		cfg:            cfg,
		log:            cfg.Logger,
		ready:          make(chan struct{}),
		stopped:        make(chan struct{}),
		failed:         make(chan error, 1),
		snapshotWanted: make(chan struct{}, 1),
		membership:     make(chan struct{}, 1),
		pilot:          pilot{wake: make(chan struct{}, 1)},
		refused:        make(chan struct{}),
		doubts:         make(chan uint64, 1),
		closeFiles:     func() error { return nil },
	}
	s.hub = newWatchHub(s)
	s.publish(mvcc.New().Root())
	s.leader.Store(&leaderInfo{lost: time.Now(), changed: make(chan struct{})})
	s.reign.Store(&reign{changed: make(chan struct{})})
	s.batcher, s.forwarder, s.reader, s.keeper = newBatcher(s), newForwarder(s), newIndexReader(s), newLeaseKeeper(s)
	s.fsm = &fsm{store: s, state: mvcc.New(), onCheck: s.hashChecked}
	s.room = &room{store: s}
	var err error
	if s.metrics, err = newMetrics(cfg.Registerer, s); err != nil {
		return nil, err
	}
	storage := cfg.Storage
	if storage == nil {
		if storage, s.closeFiles, err = openCurrent(cfg); err != nil {
			return nil, err
		}
	}
	if err := s.finishRecovery(storage); err != nil {
		return nil, errors.Join(err, s.closeFiles())
	}
	s.disk = newDisk(s.metrics, s.fail)
	s.room.space = storage.Space
	if s.files = storage.files; s.files != nil {
		s.room.dir = cfg.Dir
		s.files.onDamage(s.snapshotDamaged)
	}
	faulty := underFaults(*storage, cfg.Faults)
	storage = &faulty
	s.logs = newLogStore(storage.Logs, s.disk, logCacheBytes)
	s.logs.before = s.room.beforeAppend
	s.logs.makeRoom = func() bool { return dropBallast(s.room.dir) }
	s.stable = &stableStore{StableStore: storage.Stable, disk: s.disk}
	if s.snapshotDB, err = newForwardSnapshots(storage.Snapshots); err != nil {
		return nil, errors.Join(err, s.closeFiles())
	}
	if err := errors.Join(s.identify(), s.loadIncarnation()); err != nil {
		return nil, errors.Join(err, s.closeFiles())
	}
	cfg.Faults.Attach(memory{s})
	return s, nil
}

// Close releases what New has opened, for a store that is not Run. After Run it
// does nothing.
func (s *Store) Close() error {
	if !s.started.CompareAndSwap(false, true) {
		return nil
	}
	return s.release()
}

func (s *Store) release() (err error) {
	s.closing.Do(func() {
		close(s.stopped)
		s.disk.stop()
		err = s.closeFiles()
	})
	return err
}

// Bootstrap makes this store the only voter of a new cluster. Call it before Run.
// It fails if the store has state.
func (s *Store) Bootstrap() error {
	err := raft.BootstrapCluster(s.raftConfig(), s.logs, s.stable, s.snapshotDB, nil, raft.Configuration{
		Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(s.cfg.ID), Address: withInstance(s.cfg.Address, s.instance)}},
	})
	if err == nil {
		s.blank.Store(false)
	}
	if errors.Is(err, raft.ErrCantBootstrap) {
		return fmt.Errorf("%s already holds a cluster's state: a new cluster begins with an empty directory", s.place())
	}
	if err != nil {
		return err
	}
	s.incarnation.Store(firstIncarnation)
	return s.writeStable("write the incarnation", keyIncarnation, firstIncarnation)
}

func (s *Store) place() string {
	if s.cfg.Dir != "" {
		return s.cfg.Dir
	}
	return "the store of " + s.cfg.ID
}

// HasState reports whether the store has ever taken part in a cluster: it has a
// log, a term or a snapshot. A store that cannot be read has state, too.
func (s *Store) HasState() bool {
	has, err := raft.HasExistingState(s.logs, s.stable, s.snapshotDB)
	return has || err != nil
}

const (
	// stopTimeout bounds each step of stopping.
	stopTimeout = 5 * time.Second
	// hungStopTimeout is that when the disk hangs. Raft hangs with it, and what waits
	// for raft: only those end that wait for neither. Nobody is kept waiting for it
	// either, as another peer leads since this one fell silent.
	hungStopTimeout = 250 * time.Millisecond
)

// Run takes part in the cluster until ctx ends, which is not an error, or until the
// disk fails. It owns all of the store's goroutines and returns once they have
// ended; only a disk that hangs can keep one of them, and Run says so. A Store runs
// once.
func (s *Store) Run(ctx context.Context) (err error) {
	if !s.started.CompareAndSwap(false, true) {
		return errors.New("raftstore: Run or Close was called before; make a new Store")
	}
	defer func() { err = errors.Join(err, s.release()) }()

	changes := make(chan raft.Observation, 1)
	if err := s.startRaft(changes); err != nil {
		return err
	}
	s.log.Info("store is up", "revision", s.View().Revision(), "index", s.raft.LastIndex())

	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var parts sync.WaitGroup
	parts.Go(func() { s.batcher.run(running) })
	parts.Go(func() { s.forwarder.run(running) })
	parts.Go(func() { s.reader.run(running) })
	parts.Go(func() { s.hub.run(running) })
	parts.Go(func() { s.followLeadership(running, changes) })
	parts.Go(func() { s.watchSilence(running) })
	parts.Go(func() { s.snapshots(running) })
	parts.Go(func() { s.autopilot(running) })
	parts.Go(func() { s.keeper.run(running) })
	parts.Go(func() { _ = s.Lead(running, s.keeper.keep) })
	parts.Go(func() { _ = s.Lead(running, s.keepHistory) })
	parts.Go(func() { s.room.run(running) })
	parts.Go(func() { s.rotateKeys(running) })
	parts.Go(func() { s.greet(running) })
	parts.Go(func() { s.scrub(running) })
	parts.Go(func() { s.judge(running) })
	parts.Go(func() { _ = s.Lead(running, s.proposeChecks) })

	select {
	case <-ctx.Done():
		// Hand over first, so that the others need not find out by silence.
		s.handOver()
	case err = <-s.failed:
	}
	patience := stopTimeout
	if errors.Is(err, ErrDiskHangs) {
		patience = hungStopTimeout
	}
	// Nothing new is proposed; what is proposed gets its answer, while raft is
	// there to give it.
	stop()
	if !waitFor(func() { parts.Wait(); s.batcher.inFlight.wait() }, patience) {
		s.log.Warn("some transactions had no answer when the store stopped")
	}
	s.disk.stop()
	if !waitFor(func() { _ = s.raft.Shutdown().Error(); parts.Wait() }, patience) {
		s.closeFiles = func() error { return nil } // they are still in use
		err = errors.Join(err, fmt.Errorf("raft did not stop within %v: its disk hangs", patience))
	}
	return err
}

// waitFor reports whether wait returned within limit.
func waitFor(wait func(), limit time.Duration) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait()
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// startRaft restores the newest snapshot and starts raft.
func (s *Store) startRaft(changes chan raft.Observation) (err error) {
	inner, _ := s.cfg.Transport.(carrier)
	if inner == nil {
		inner = networkCarrier{raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream:                newStreams(s.cfg.Stream, s.cfg.Address),
			MaxPool:               poolSize,
			Timeout:               rpcTimeout,
			MaxRPCsInFlight:       1, // pipelining can wedge a follower for good (hashicorp/raft#612), and is slower
			ServerAddressProvider: resolver{s},
			Logger:                newRaftLogger(s.log),
		})}
	}
	s.transport = newTransport(inner, s)
	defer func() {
		// The library panics where it cannot read or write its own state.
		if p := recover(); p != nil {
			err = fmt.Errorf("start raft in %s: %v", s.place(), p)
		}
		if err != nil {
			s.transport.Close()
		}
	}()
	s.raft, err = raft.NewRaft(s.raftConfig(), s.fsm, s.logs, s.stable, s.snapshotDB, s.transport)
	if err != nil {
		return fmt.Errorf("start raft in %s: %w", s.place(), err)
	}
	s.raft.RegisterObserver(raft.NewObserver(changes, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	}))
	s.disk.running.Store(true)
	close(s.ready)
	return nil
}

// leadsAndHas reports whether this peer leads in term and has a member called id.
func (s *Store) leadsAndHas(term uint64, id raft.ServerID) bool {
	if !s.isReady() || s.raft.State() != raft.Leader || s.raft.CurrentTerm() != term {
		return false
	}
	return slices.ContainsFunc(s.configuration().Servers, func(server raft.Server) bool { return server.ID == id })
}

// resolver tells raft where peers are: as Resolve knows, or as raft's own
// configuration has it.
type resolver struct{ *Store }

// ServerAddr implements raft.ServerAddressProvider.
func (s resolver) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if string(id) == s.cfg.ID {
		return raft.ServerAddress(s.cfg.Address), nil
	}
	if address, ok := s.cfg.Resolve(string(id)); ok {
		return raft.ServerAddress(address), nil
	}
	for _, server := range s.configuration().Servers {
		if server.ID == id {
			address, _ := splitInstance(server.Address)
			return address, nil
		}
	}
	return "", fmt.Errorf("peer %s is in nobody's book", id)
}

// fail ends Run with err.
func (s *Store) fail(err error) {
	s.log.Error("store failed", "err", err)
	select {
	case s.failed <- err:
	default: // the first counts
	}
}

// Ready returns a channel that is closed once local state is restored and raft
// runs. There may be no leader yet.
func (s *Store) Ready() <-chan struct{} { return s.ready }

func (s *Store) isReady() bool {
	select {
	case <-s.ready:
		return true
	default:
		return false
	}
}

// Service returns what other peers' stores call. The caller mounts it, for peers
// only.
func (s *Store) Service() peerv1connect.StoreServiceHandler { return service{s} }

// configuration returns raft's latest configuration, which may not be committed.
func (s *Store) configuration() raft.Configuration {
	if !s.isReady() {
		return raft.Configuration{}
	}
	return s.raft.GetConfiguration().Configuration()
}

// reload changes raft's reloadable configuration.
func (s *Store) reload(change func(*raft.ReloadableConfig)) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	conf := s.raft.ReloadableConfig()
	change(&conf)
	if err := s.raft.ReloadConfig(conf); err != nil {
		s.log.Error("raft refused a change of its configuration", "err", err)
	}
}

// snapshots takes a snapshot and cuts the log whenever the state machine has
// applied enough.
func (s *Store) snapshots(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.snapshotWanted:
		}
		// Enough entries stay in the log for a peer that was away for a moment,
		// but not gigabytes of them: the bytes wanted, at the entries' mean size.
		if entries := s.fsm.entries.Load(); entries > 0 {
			keep := s.cfg.TrailingBytes / max(1, s.fsm.bytes.Load()/entries)
			s.reload(func(c *raft.ReloadableConfig) {
				c.TrailingLogs = uint64(min(max(keep, int64(s.cfg.minTrailing)), maxTrailing))
			})
		}
		begin := time.Now()
		if err := s.raft.Snapshot().Error(); err != nil {
			switch {
			case errors.Is(err, raft.ErrNothingNewToSnapshot) || ctx.Err() != nil:
			case strings.Contains(err.Error(), errOlderSnapshot.Error()): // raft does not wrap it
				s.log.Info("the leader's snapshot came before this peer's own was done", "err", err)
			default:
				// The next entries ask again.
				s.log.Error("snapshot failed", "err", err)
			}
			continue
		}
		s.metrics.snapshotSeconds.Observe(time.Since(begin).Seconds())
		s.alarms.clear(alarmSnapshot)
		if s.files != nil {
			if err := s.files.dropKeys(); err != nil {
				s.log.Error("keys that nothing needs any more could not be dropped", "err", err)
			}
		}
	}
}

// wantSnapshot asks for a snapshot, soon.
func (s *Store) wantSnapshot() {
	select {
	case s.snapshotWanted <- struct{}{}:
	default: // wanted already
	}
}

const alarmSnapshot = "snapshot-damaged"

// snapshotDamaged is called when a snapshot of this peer turns out to be damaged. The
// state is in memory, whole: it is written again.
func (s *Store) snapshotDamaged(err error) {
	if s.alarms.raise(alarmSnapshot, err.Error()+"; another is being taken; check the disk") {
		s.log.Error("snapshot damaged", "err", err)
	}
	s.wantSnapshot()
}

// RotateKey makes a new key for what is written to this peer's disk from now on. It
// returns once that key seals. What is sealed with older keys stays readable; they are
// forgotten as soon as a snapshot and the cut of the log behind it, the first of which
// follows at once, have left nothing that needs them. Call it on each peer after
// somebody may have seen its keys. A peer calls it by itself each month, at each
// start, and when a key has sealed much.
func (s *Store) RotateKey(ctx context.Context) error {
	if s.files == nil {
		return errors.New("rotate the key: this store keeps nothing in files")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-s.stopped:
		return ErrClosed
	default:
	}
	if err := s.files.rotate(s.disk); err != nil {
		return fmt.Errorf("rotate the key: %w", err)
	}
	s.log.Info("sealing with a new key", "key", s.files.ring.Current())
	s.wantSnapshot()
	return nil
}

// rotateKeys rotates the key when it is due, until ctx ends.
func (s *Store) rotateKeys(ctx context.Context) {
	if s.files == nil {
		return
	}
	tick := time.NewTicker(keyPeriod)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if s.files.ring.Due(time.Now()) {
			if err := s.RotateKey(ctx); err != nil {
				s.log.Error("the key is due to be replaced, and was not", "err", err)
			}
		}
	}
}

// keyPeriod is how often the key's age and use are looked at. A disk does not write
// anything near what a key may seal in it.
const keyPeriod = 10 * time.Second

// Status is what a store knows of itself and of the cluster.
type Status struct {
	ID string
	// Leader is empty when unknown.
	Leader   string
	Term     uint64
	Revision Revision
	// LastIndex is the log's last entry, CommitIndex the last known to be
	// committed, AppliedIndex the last that Revision includes.
	LastIndex, CommitIndex, AppliedIndex uint64
	// Hash is the state hash: peers with equal AppliedIndex have equal hashes.
	Hash  [16]byte
	Peers []PeerInfo
	// Alarms are what an operator must know of this peer's store: "name: what is
	// wrong and what to do". Empty when all is well.
	Alarms []string
	// Notes are what the leader's autopilot waits for with members that could vote,
	// or should be replaced.
	Notes []string
}

// PeerInfo is a peer in raft's configuration.
type PeerInfo struct {
	ID, Address string
	// Voter is false for a learner.
	Voter, Leader bool
}

// Status returns what this peer knows at this moment.
func (s *Store) Status() Status {
	root := s.current.Load().root
	st := Status{ID: s.cfg.ID, Revision: root.Revision(), AppliedIndex: root.Index(), Hash: root.Hash(), Alarms: s.alarms.list(), Notes: s.pilot.notes()}
	if !s.isReady() {
		return st
	}
	st.Leader, st.Term = s.Leader()
	st.LastIndex, st.CommitIndex = s.raft.LastIndex(), s.raft.CommitIndex()
	for _, server := range s.configuration().Servers {
		address, _ := splitInstance(server.Address)
		st.Peers = append(st.Peers, PeerInfo{
			ID: string(server.ID), Address: string(address),
			Voter: server.Suffrage == raft.Voter, Leader: string(server.ID) == st.Leader,
		})
	}
	return st
}
