//go:build race

package peer_test

// raceEnabled tells that it watches.
const raceEnabled = true
