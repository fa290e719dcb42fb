package raftstore

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-io/holdfast/internal/faults"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
	"github.com/holdfast-io/holdfast/raftstore/seal"
)

// Config says what a Store is made of.
type Config struct {
	// ID is this peer's, for ever. ClusterID is the cluster's. Both required.
	ID, ClusterID string
	// Dir holds log, votes and snapshots. Made if it does not exist. Required,
	// unless there is Storage.
	Dir string
	// Incarnation is the cluster's, as it was told when this peer joined. It is kept
	// in an empty store only. Optional: the first peer that is heard from has it.
	Incarnation uint64
	// Address is the host:port at which other peers reach this one's Stream; it
	// stands in raft's configuration. Required.
	Address string

	// Stream carries raft's connections. Required, unless there is Transport.
	Stream StreamLayer
	// Remote returns a client for the store of another peer. Required as soon as
	// there are others.
	Remote func(peerID string) (peerv1connect.StoreServiceClient, error)
	// Resolve returns where a peer is now, if anybody knows better than raft's
	// configuration. Optional. It is called for every dial and must not block.
	Resolve func(peerID string) (address string, ok bool)
	// Alive reports whether somebody, gossip say, has just seen a peer alive. It can
	// keep a peer from being taken for dead and nothing else. Optional. It must not
	// block.
	Alive func(peerID string) bool
	// DeadAfter is how long a voter must have been silent before the autopilot
	// removes it, if a replacement is there. Optional; 10 min. Negative: never.
	DeadAfter time.Duration

	// HeartbeatTimeout is how long a follower waits for a silent leader. Elections
	// then take up to half as long again. Pauses of peers (a slow disk, a busy
	// machine) that are shorter cost nothing. Optional; 1 s.
	HeartbeatTimeout time.Duration
	// SnapshotBytes is how much log is applied before a snapshot is taken and the
	// log cut. Optional; 64 MiB.
	SnapshotBytes int64
	// TrailingBytes is about how much log is kept behind a snapshot, for peers
	// that were away. Optional; 64 MiB.
	TrailingBytes int64
	// HistoryEvents and HistoryBytes bound the history, for watches that resume
	// and for reads at older revisions: what is kept of it counts changes, and the
	// memory of versions that only history holds. Optional; 100,000 and 128 MiB.
	HistoryEvents int
	HistoryBytes  int64
	// HistoryAge is how long history is kept, by the leader's clock, if those two
	// allow it; up to twice as long while nothing changes, and after an election.
	// Optional; 5 min. Negative: for ever.
	HistoryAge time.Duration

	// Keys wraps the keys that seal what is in Dir. With nil they are wrapped by one
	// in a file of Dir, which protects copies of the other files and nothing else.
	// The same Keys are needed at each start.
	Keys seal.Keys
	// LowSpace is the free space, in bytes, on the disk of Dir below which this peer
	// hands over the leadership, or takes only deletes if nobody else can lead.
	// Optional; a tenth of the disk, but 1 to 4 GiB, and at most a quarter.
	LowSpace int64

	// Logger and Registerer are optional; nil discards.
	Logger     *slog.Logger
	Registerer prometheus.Registerer

	// Faults is what goes wrong on purpose with disk and wall clock; network faults
	// are Stream's and Remote's. Optional; nil is none.
	Faults *faults.Plane

	// Transport and Storage take the place of Stream and Dir in tests. Transport
	// must also implement raft.WithPreVote and raft.WithClose.
	Transport raft.Transport
	Storage   *Storage

	minTrailing   int           // minTrailing; less in tests
	commitTimeout time.Duration // commitTimeout; more in tests of idle hours
	// onApply sees what is applied, and what became of it. For tests.
	onApply func(id string, entries []*raft.Log, root *mvcc.Root)
	// onSample may change the evidence for reads that this peer gives. For tests.
	onSample func(id string, answer *peerv1.ReadIndexResponse)
}

// Storage is where raft keeps its log, its votes and its snapshots.
type Storage struct {
	Logs      raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
	// Space returns the room there is. Optional; nil: enough.
	Space func() (Space, error)

	files *files // nil in tests
}

const (
	// logCacheBytes bounds the newest entries kept in memory: enough for followers
	// that are a moment behind.
	logCacheBytes = 16 << 20
	// snapshotEntries is how many entries bring about a snapshot, however small:
	// they are applied again at each start.
	snapshotEntries = 50_000
	// minTrailing is far above the batches in flight: a follower whose log was cut
	// under it must be caught up by a snapshot, which is not free of faults
	// (hashicorp/raft#697).
	minTrailing = 1024
	maxTrailing = 20_000
	// maxAppendEntries bounds the entries of one message. Batches in flight are few;
	// this is for catching up, where a message must fit into rpcTimeout on a slow
	// link: 128 of the largest usual entries are 32 MiB.
	maxAppendEntries = 128
	// commitTimeout is how long followers may take to learn what is committed when
	// nothing follows it, half to twice this.
	commitTimeout = 20 * time.Millisecond
)

func (cfg *Config) complete() error {
	var missing []error
	require := func(ok bool, what string) {
		if !ok {
			missing = append(missing, fmt.Errorf("raftstore: Config.%s is missing", what))
		}
	}
	require(cfg.ID != "", "ID")
	require(cfg.ClusterID != "", "ClusterID")
	require(cfg.Address != "", "Address")
	require(cfg.Dir != "" || cfg.Storage != nil, "Dir")
	require(cfg.Stream != nil || cfg.Transport != nil, "Stream")
	if cfg.Transport != nil {
		_, ok := cfg.Transport.(carrier)
		require(ok, "Transport with pre-vote and close")
	}
	if err := errors.Join(missing...); err != nil {
		return err
	}
	if cfg.HeartbeatTimeout == 0 {
		cfg.HeartbeatTimeout = time.Second
	}
	if cfg.HeartbeatTimeout < minHeartbeat {
		return fmt.Errorf("raftstore: Config.HeartbeatTimeout of %v is below %v", cfg.HeartbeatTimeout, minHeartbeat)
	}
	orDefault(&cfg.SnapshotBytes, 64<<20)
	orDefault(&cfg.TrailingBytes, 64<<20)
	orDefault(&cfg.HistoryEvents, 100_000)
	orDefault(&cfg.HistoryBytes, 128<<20)
	orDefault(&cfg.HistoryAge, 5*time.Minute)
	orDefault(&cfg.minTrailing, minTrailing)
	orDefault(&cfg.commitTimeout, commitTimeout)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Resolve == nil {
		cfg.Resolve = func(string) (string, bool) { return "", false }
	}
	if cfg.Alive == nil {
		cfg.Alive = func(string) bool { return false }
	}
	if cfg.DeadAfter == 0 {
		cfg.DeadAfter = 10 * time.Minute
	}
	if cfg.Remote == nil {
		cfg.Remote = func(id string) (peerv1connect.StoreServiceClient, error) {
			return nil, fmt.Errorf("no way to reach peer %s is configured", id)
		}
	}
	return nil
}

func orDefault[T ~int | ~int64](v *T, otherwise T) {
	if *v == 0 {
		*v = otherwise
	}
}

// minHeartbeat leaves room for nudgeStep, and for the network.
const minHeartbeat = 20 * time.Millisecond

// raftConfig returns the configuration of raft's library.
func (s *Store) raftConfig() *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(s.cfg.ID)
	conf.HeartbeatTimeout = s.cfg.HeartbeatTimeout
	conf.ElectionTimeout = s.cfg.HeartbeatTimeout
	// As long as raft allows, so that two slow followers do not depose a leader;
	// reads do not rest on it. It must stay below what nudge lowers the heartbeat
	// timeout to.
	conf.LeaderLeaseTimeout = s.cfg.HeartbeatTimeout - nudgeStep
	conf.CommitTimeout = s.cfg.commitTimeout
	conf.MaxAppendEntries = maxAppendEntries
	conf.BatchApplyCh = true
	conf.ShutdownOnRemove = false
	conf.NoLegacyTelemetry = true
	conf.Logger = newRaftLogger(s.log)
	conf.TrailingLogs = uint64(s.cfg.minTrailing)
	// Snapshots are taken by bytes, see Store.snapshots; never by raft's own count.
	conf.SnapshotInterval = 24 * 365 * time.Hour
	conf.SnapshotThreshold = 1 << 62
	return conf
}
