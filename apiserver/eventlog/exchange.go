package eventlog

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
)

// ID identifies this log: made anew with its directory.
func (l *Log) ID() string { return l.id }

// Own returns at most limit of the records of this peer's own log after a
// sequence, in order, and a channel that is closed once there may be more.
// Records that were written again since, or are gone, are not among them.
func (l *Log) Own(after int64, limit int) ([]*peerv1.EventRecord, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := l.own.Back()
	for ; from != nil && from.Value.(*record).sequence > after; from = from.Prev() {
	}
	if from == nil {
		from = l.own.Front()
	} else {
		from = from.Next()
	}
	var records []*peerv1.EventRecord
	for ; from != nil && len(records) < limit; from = from.Next() {
		records = append(records, from.Value.(*record).message())
	}
	return records, l.changed
}

// Known returns the log that peer last had and the last sequence of it that is
// known here: where to go on reading it. Empty and 0 at first.
func (l *Log) Known(peer string) (log string, after int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	log = l.peers[peer]
	return log, l.logs[log]
}

// Merge takes in records of another peer's log, as that peer sent them. Records
// that are known change nothing. It fails, and takes in nothing, when the
// records are not of that log.
func (l *Log) Merge(peer, log string, records []*peerv1.EventRecord) error {
	if log == "" || log == l.id {
		return fmt.Errorf("peer %s sent events of log %q, which is not its own", peer, log)
	}
	for _, rec := range records {
		if rec.GetLog() != log || rec.GetSequence() <= 0 || rec.GetAbout().GetName() == "" {
			return fmt.Errorf("peer %s sent a bad record: log %q, sequence %d, about %q", peer, rec.GetLog(), rec.GetSequence(), rec.GetAbout().GetName())
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.peers[peer] = log
	oldest := l.cfg.Now().Add(-l.cfg.MaxAge)
	changed := false
	for _, in := range records {
		if in.GetSequence() <= l.logs[log] {
			continue
		}
		l.logs[log] = in.GetSequence()
		if in.GetLast().AsTime().Before(oldest) {
			continue
		}
		rec := l.take(in, 0)
		l.append(rec)
		changed = true
	}
	if changed {
		l.notify()
	}
	return nil
}

// take puts a record into the index, in place of what was known of it.
func (l *Log) take(in *peerv1.EventRecord, segment int64) *record {
	about := corev1.ObjectReference{
		APIVersion: in.GetAbout().GetApiVersion(), Kind: in.GetAbout().GetKind(), Namespace: in.GetAbout().GetNamespace(),
		Name: in.GetAbout().GetName(), UID: types.UID(in.GetAbout().GetUid()),
	}
	e := l.eventFor(about, in.GetType(), in.GetReason(), in.GetMessage(), in.GetComponent(), in.GetHost())
	rec, ok := e.records[in.GetLog()]
	if !ok {
		rec = &record{event: e, log: in.GetLog(), peer: in.GetPeer()}
		e.records[in.GetLog()] = rec
	}
	rec.sequence, rec.count = in.GetSequence(), in.GetCount()
	rec.first, rec.last = in.GetFirst().AsTime(), in.GetLast().AsTime()
	rec.written, rec.segment = rec.last, segment
	if rec.log == l.id {
		if rec.place == nil {
			rec.place = l.own.PushBack(rec)
		} else {
			l.own.MoveToBack(rec.place)
		}
	}
	l.touch(e)
	return rec
}

// Logs returns the ids of the logs that records are held of, sorted.
func (l *Log) Logs() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ids []string
	for id := range l.logs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
