package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// A peer's heap is the store: what lives in it stays, and what comes and goes is
// small beside it. Go's rule, to collect when the heap has doubled, suits neither
// end: a small store is collected several times a second under load, and a large
// one takes twice the memory it needs. So the room that garbage gets is set in
// bytes.
const (
	leastGarbage = 64 << 20
	mostGarbage  = 256 << 20
	// Of a very large heap: each collection visits all that lives, so the room must
	// grow with it or collecting would be all that a peer does.
	mostGarbageShare = 8
)

// gcPercent returns the GOGC for a heap in which live bytes live.
func gcPercent(live uint64) int {
	live = max(live, 1<<20)
	room := min(max(live, leastGarbage), max(mostGarbage, live/mostGarbageShare))
	return int(100 * room / live)
}

// paceGC sets GOGC after each collection, as the heap is then. Whoever sets GOGC in
// the environment knows better.
func paceGC() {
	if os.Getenv("GOGC") != "" {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	current := 100
	type collected struct{ _ [16]byte } // a collection finalizes it, and another begins
	var watch func(*collected)
	watch = func(*collected) {
		metrics.Read(live)
		// Setting it stops the world for a moment: not for nothing.
		if want := gcPercent(live[0].Value.Uint64()); want*10 < current*9 || want*9 > current*10 {
			debug.SetGCPercent(want)
			current = want
		}
		runtime.SetFinalizer(new(collected), watch)
	}
	watch(nil)
}
