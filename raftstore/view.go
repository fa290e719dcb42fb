package raftstore

import (
	"context"
	"iter"

	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// published is a root and how to learn of later ones.
type published struct {
	root *mvcc.Root
	// revised is closed once a root with a higher revision is published, advanced
	// once any later one is.
	revised, advanced chan struct{}
}

// publish makes root what readers see. One goroutine at a time calls it: the one
// that starts raft, then raft's that applies entries.
func (s *Store) publish(root *mvcc.Root) {
	next := &published{root: root, revised: make(chan struct{}), advanced: make(chan struct{})}
	last := s.current.Load()
	if last != nil && last.root.Revision() == root.Revision() {
		next.revised = last.revised
	}
	s.current.Store(next)
	if last != nil {
		close(last.advanced)
		if next.revised != last.revised {
			close(last.revised)
			s.hub.revised()
		}
	}
}

// View is the store at one revision: an immutable snapshot, cheap, safe for
// concurrent use. It reads keys and values for object.Get and object.List. A View
// stays readable when its revision is compacted, and keeps what it needs alive.
type View struct {
	at  *published
	rev Revision
}

// Revision returns the view's revision.
func (v View) Revision() Revision { return v.rev }

// Get returns key, and false if it does not exist.
func (v View) Get(key string) (KeyValue, bool) { return v.at.root.Get(key, v.rev) }

// Prefix yields the keys that begin with prefix, in key order.
func (v View) Prefix(prefix string) iter.Seq[KeyValue] {
	return v.at.root.Range(prefix, mvcc.PrefixEnd(prefix), v.rev)
}

// Range yields the keys in [start, end), in key order. An end that is empty, or
// NoEnd, is no bound. To read in pages, go on from the last key with a zero byte
// behind it, in this View or in a ViewAt of its revision: both show what was then.
func (v View) Range(start, end string) iter.Seq[KeyValue] {
	return v.at.root.Range(start, end, v.rev)
}

// Count returns the number of keys that Range yields. It looks at each of them.
func (v View) Count(start, end string) int64 { return v.at.root.Count(start, end, v.rev) }

// Lease returns the lease with that id, and false if there is none. How much of its
// time is really left, the leader knows. Leases have no history: those of a View at
// an older revision are the newest it knows.
func (v View) Lease(id int64) (mvcc.Lease, bool) { return v.at.root.Lease(id) }

// Leases yields all leases by id.
func (v View) Leases() iter.Seq[mvcc.Lease] { return v.at.root.Leases() }

// LeaseKeys yields the keys that live by lease id, in key order.
func (v View) LeaseKeys(id int64) iter.Seq[string] { return v.at.root.LeaseKeys(id) }

// Changed returns a channel that is closed once this peer has a newer revision.
func (v View) Changed() <-chan struct{} {
	if v.rev < v.at.root.Revision() {
		return alreadyClosed
	}
	return v.at.revised
}

var alreadyClosed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// Value returns the value of key and the revision at which it last changed.
func (v View) Value(key string) (value []byte, revision int64, ok bool) {
	kv, ok := v.Get(key)
	return kv.Value, kv.Mod, ok
}

// Values yields the values of the keys that begin with prefix, in key order, with
// the revision at which each last changed.
func (v View) Values(prefix string) iter.Seq2[[]byte, int64] {
	return func(yield func([]byte, int64) bool) {
		for kv := range v.Prefix(prefix) {
			if !yield(kv.Value, kv.Mod) {
				return
			}
		}
	}
}

// View returns this peer's newest state. It does not wait, and may lag behind the
// leader's by the replication delay, or by more when this peer is cut off.
func (s *Store) View() View {
	at := s.current.Load()
	return View{at, at.root.Revision()}
}

// ViewAt returns the state as it was at revision rev. It fails with a
// *CompactedError or ErrFutureRevision.
func (s *Store) ViewAt(rev Revision) (View, error) {
	at := s.current.Load()
	switch {
	case rev < at.root.Horizon():
		return View{}, &CompactedError{Horizon: at.root.Horizon()}
	case rev > at.root.Revision():
		return View{}, ErrFutureRevision
	}
	return View{at, rev}, nil
}

// WaitRevision returns this peer's state once it has reached revision rev. It
// fails with ctx's error, or ErrClosed.
func (s *Store) WaitRevision(ctx context.Context, rev Revision) (View, error) {
	for {
		at := s.current.Load()
		if at.root.Revision() >= rev {
			return View{at, at.root.Revision()}, nil
		}
		select {
		case <-at.revised:
		case <-ctx.Done():
			return View{}, context.Cause(ctx)
		case <-s.stopped:
			return View{}, ErrClosed
		}
	}
}

// waitIndex is WaitRevision for an index of the log.
func (s *Store) waitIndex(ctx context.Context, index uint64) (View, error) {
	for {
		at := s.current.Load()
		if at.root.Index() >= index {
			return View{at, at.root.Revision()}, nil
		}
		select {
		case <-at.advanced:
		case <-ctx.Done():
			return View{}, context.Cause(ctx)
		case <-s.stopped:
			return View{}, ErrClosed
		}
	}
}
