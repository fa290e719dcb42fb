package raftstore

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	txns            *prometheus.CounterVec
	outcomes        outcomes
	txnSeconds      prometheus.Histogram
	batchTxns       prometheus.Histogram
	applySeconds    prometheus.Histogram
	diskSeconds     prometheus.Histogram
	syncSeconds     prometheus.Histogram
	snapshotSeconds prometheus.Histogram
	leaderships     prometheus.Counter
	leasesExpired   prometheus.Counter
	// Snapshots between peers: as leader, and as follower.
	snapshotsSent, snapshotsReceived, snapshotsInstalled prometheus.Counter
}

// outcomes are the counters of metrics.txns: to find one by its label costs more than
// to count.
type outcomes struct{ committed, compareFailed, deposed, notLeader, unknown, overloaded prometheus.Counter }

// newMetrics makes the store's metrics and registers them, unless reg is nil.
func newMetrics(reg prometheus.Registerer, s *Store) (*metrics, error) {
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "holdfast", Subsystem: "store", Name: name, Help: help, Buckets: buckets})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "holdfast", Subsystem: "store", Name: name, Help: help})
	}
	seconds := prometheus.ExponentialBuckets(0.0001, 2, 18) // 0.1 ms to 13 s
	m := &metrics{
		txns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "holdfast", Subsystem: "store", Name: "txns_total",
			Help: "Transactions proposed by this peer as leader, by outcome: committed, compare_failed, deposed, not_leader, unknown, overloaded, no_space.",
		}, []string{"outcome"}),
		txnSeconds:         histogram("txn_seconds", "Time from a transaction's arrival at the leader to its result.", seconds),
		batchTxns:          histogram("batch_txns", "Transactions in a log entry, on the leader.", prometheus.ExponentialBuckets(1, 2, 10)),
		applySeconds:       histogram("apply_seconds", "Time to apply a run of committed entries.", seconds),
		diskSeconds:        histogram("log_write_seconds", "Time of a synced write to the log, vote or term.", seconds),
		syncSeconds:        histogram("read_index_seconds", "Time of a round that confirms linearizable reads.", seconds),
		snapshotSeconds:    histogram("snapshot_seconds", "Time to write a snapshot.", prometheus.ExponentialBuckets(0.001, 4, 10)),
		leaderships:        counter("leaderships_total", "How often this peer began to lead."),
		leasesExpired:      counter("leases_expired_total", "Leases that this peer ended, as leader, because their time was up."),
		snapshotsSent:      counter("snapshots_sent_total", "Snapshots that this peer, as leader, has sent to peers that lacked more than the log has, and that they took."),
		snapshotsReceived:  counter("snapshots_received_total", "Snapshots from a leader that began to arrive."),
		snapshotsInstalled: counter("snapshots_installed_total", "Snapshots from a leader that have taken the place of this peer's state."),
	}
	m.outcomes = outcomes{
		committed:     m.txns.WithLabelValues("committed"),
		compareFailed: m.txns.WithLabelValues("compare_failed"),
		deposed:       m.txns.WithLabelValues("deposed"),
		notLeader:     m.txns.WithLabelValues("not_leader"),
		unknown:       m.txns.WithLabelValues("unknown"),
		overloaded:    m.txns.WithLabelValues("overloaded"),
	}
	if reg == nil {
		return m, nil
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "holdfast", Subsystem: "store", Name: name, Help: help}, value)
	}
	collectors := []prometheus.Collector{
		m.txns, m.txnSeconds, m.batchTxns, m.applySeconds, m.diskSeconds, m.syncSeconds, m.snapshotSeconds, m.leaderships, m.leasesExpired,
		m.snapshotsSent, m.snapshotsReceived, m.snapshotsInstalled,
		gauge("revision", "Revision of this peer's state.", func() float64 { return float64(s.current.Load().root.Revision()) }),
		gauge("applied_index", "Last log entry applied.", func() float64 { return float64(s.current.Load().root.Index()) }),
		gauge("commit_index", "Last log entry known to be committed.", func() float64 { return float64(s.Status().CommitIndex) }),
		gauge("last_index", "Last log entry stored.", func() float64 { return float64(s.Status().LastIndex) }),
		gauge("term", "Raft term.", func() float64 { return float64(s.Status().Term) }),
		gauge("leader", "1 while this peer leads, else 0.", func() float64 {
			if s.leader.Load().id == s.cfg.ID {
				return 1
			}
			return 0
		}),
		gauge("keys", "Keys that exist.", func() float64 { return float64(s.current.Load().root.Keys()) }),
		gauge("keys_bytes", "Memory of the keys that exist, about.", func() float64 { return float64(s.current.Load().root.Bytes()) }),
		gauge("history_events", "Changes kept for watches and older reads.", func() float64 {
			n, _ := s.current.Load().root.History()
			return float64(n)
		}),
		gauge("history_bytes", "Memory of versions that only history holds, about.", func() float64 {
			_, b := s.current.Load().root.History()
			return float64(b)
		}),
	}
	for _, c := range collectors {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
