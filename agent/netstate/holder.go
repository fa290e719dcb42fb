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
func (h *Holder) Set(s *State) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state = s
	close(h.changed)
	h.changed = make(chan struct{})
}
