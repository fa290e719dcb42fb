package main

import "testing"

func TestGCPercent(t *testing.T) {
	const mib = 1 << 20
	for _, tt := range []struct {
		live uint64 // MiB
		room uint64 // MiB for garbage, about
	}{
		{0, 64},
		{16, 64},
		{64, 64},
		{100, 100},
		{256, 256},
		{1280, 256},
		{4096, 512},
	} {
		live := max(tt.live, 1) * mib
		got := uint64(gcPercent(live)) * live / 100 / mib
		if got > tt.room || got+got/10+1 < tt.room {
			t.Errorf("%d MiB live: room for %d MiB of garbage, want %d", tt.live, got, tt.room)
		}
	}
}
