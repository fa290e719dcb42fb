package raftstore

import (
	"maps"
	"slices"
	"sync"
)

// alarms are the conditions that an operator must know of: each has a name, and a
// sentence that says what is wrong and what to do. They are this peer's own, and
// last until cleared.
type alarms struct {
	mu  sync.Mutex
	set map[string]string
}

// raise sets the alarm called name and reports whether it was not set before.
func (a *alarms) raise(name, text string) (fresh bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.set == nil {
		a.set = make(map[string]string)
	}
	_, had := a.set[name]
	a.set[name] = text
	return !had
}

func (a *alarms) clear(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.set, name)
}

// list returns the alarms as "name: text", by name.
func (a *alarms) list() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, name := range slices.Sorted(maps.Keys(a.set)) {
		out = append(out, name+": "+a.set[name])
	}
	return out
}
