package rig

import (
	"testing"
	"time"
)

// TestSince: what runs beside a side is not foreign, and not its own.
func TestSince(t *testing.T) {
	at := time.Now()
	before := Usage{at: at, busy: 10 * time.Second, client: time.Second, members: map[int]time.Duration{1: 0, 2: 0, 3: 0}}
	after := Usage{
		at: at.Add(2 * time.Second), busy: 13 * time.Second, client: 1500 * time.Millisecond,
		members: map[int]time.Duration{1: time.Second, 2: 500 * time.Millisecond, 3: 600 * time.Millisecond},
	}
	got := after.Since(before, []int{1, 2}, 1) // 3 is the other store's
	want := Spent{Wall: 2 * time.Second, Servers: 1500 * time.Millisecond, Leader: time.Second, Client: 500 * time.Millisecond, Foreign: 0.2}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
