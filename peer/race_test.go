//go:build race

package peer_test

// raceDetector tells that it watches.
const raceDetector = true
