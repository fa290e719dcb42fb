package netstate

import "sync"

// Holder hands the newest state to those who follow it. Safe for concurrent use.
type Holder struct {
	mu      sync.Mutex
	state   *State
	changed chan struct{}
}

// NewHolder returns a holder of s.
func NewHolder(s *State) *Holder {
	return &Holder{state: s, changed: make(chan struct{})}
}

// Get returns the newest state, and a channel that is closed once there is a newer
// one.
func (h *Holder) Get() (*State, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state, h.changed
}

// Set makes s the newest state.
func (h *Holder) Set(s *State) { h.Update(func(*State) *State { return s }) }

// Update makes what f returns of the newest state the newest state. Nobody else does
// meanwhile; f must not call the holder.
func (h *Holder) Update(f func(*State) *State) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state = f(h.state)
	close(h.changed)
	h.changed = make(chan struct{})
}
