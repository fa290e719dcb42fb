//go:build race

package raftstore_test

// raceEnabled is whether the race detector watches: it makes a goroutine cost ten
// times the memory and the time.
const raceEnabled = true
