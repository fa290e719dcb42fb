//go:build !race

package raftstore_test

// raceEnabled is whether the race detector watches.
const raceEnabled = false
