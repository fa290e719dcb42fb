package eventlog

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Change is a change of what the log shows. An event that changed several times
// since a watcher last looked comes once, as it is.
type Change struct {
	Event    *corev1.Event
	Added    bool // since the watcher last looked; with neither flag, modified
	Deleted  bool // the event comes as it last was
	Position int64
}

// Get returns the event of that name. The caller may change it.
func (l *Log) Get(namespace, name string) (*corev1.Event, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.events[namespace+"/"+name]
	if !ok {
		return nil, false
	}
	return e.object(l), true
}

// List returns the events of a namespace (empty: of all), ordered by namespace
// and name, and the position that they show. The caller may change them.
func (l *Log) List(namespace string) (events []*corev1.Event, position int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if namespace == "" || e.namespace == namespace {
			events = append(events, e.object(l))
		}
	}
	slices.SortFunc(events, func(a, b *corev1.Event) int {
		if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return events, l.position(l.counter)
}

// Changed returns a channel that is closed once the log shows something else
// than when Changed was called. Take it before looking.
func (l *Log) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// Since returns the changes in a namespace (empty: in all) after position, in
// order, and the position that they lead to. It returns ErrCompacted when it
// cannot tell them all.
func (l *Log) Since(namespace string, position int64) (changes []Change, upTo int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	after := position >> epochBits
	if position&(1<<epochBits-1) != l.epoch || after > l.counter || after < l.horizon {
		return nil, 0, ErrCompacted
	}
	for at := l.order.Back(); at != nil; at = at.Prev() {
		e := at.Value.(*event)
		if e.changed <= after {
			break
		}
		if namespace == "" || e.namespace == namespace {
			changes = append(changes, Change{Event: e.object(l), Added: e.created > after, Position: l.position(e.changed)})
		}
	}
	for _, t := range slices.Backward(l.gone) {
		if t.position <= after {
			break
		}
		if namespace == "" || t.event.Namespace == namespace {
			changes = append(changes, Change{Event: t.event.DeepCopy(), Deleted: true, Position: l.position(t.position)})
		}
	}
	slices.SortFunc(changes, func(a, b Change) int { return int(a.Position>>epochBits - b.Position>>epochBits) })
	return changes, l.position(l.counter), nil
}
