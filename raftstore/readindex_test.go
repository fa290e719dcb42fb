package raftstore

import (
	"testing"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
)

// TestConfirms: who counts for a linearizable read, and how many are enough.
func TestConfirms(t *testing.T) {
	five := []string{"p1", "p2", "p3", "p4", "p5"}
	for _, test := range []struct {
		name   string
		voters []string
		terms  map[string]uint64
		want   bool
	}{
		{"majority", five, map[string]uint64{"p1": 7, "p2": 7, "p3": 7}, true},
		{"what was a majority when there were three voters", five, map[string]uint64{"p1": 7, "p3": 7}, false},
		{"one of them is in a later term", five, map[string]uint64{"p1": 7, "p2": 8, "p3": 7}, false},
		{"one of them is in an earlier term", five, map[string]uint64{"p1": 7, "p2": 6, "p3": 7}, false},
		{"a learner or removed peer does not count", five, map[string]uint64{"p1": 7, "p2": 7, "p9": 7}, false},
		{"half of an even number", five[:4], map[string]uint64{"p1": 7, "p2": 7}, false},
		{"more than half of an even number", five[:4], map[string]uint64{"p1": 7, "p2": 7, "p4": 7}, true},
		{"leader and reader of three", five[:3], map[string]uint64{"p1": 7, "p3": 7}, true},
		{"alone", five[:1], map[string]uint64{"p1": 7}, true},
		{"a leader that names no voters", nil, map[string]uint64{"p1": 7}, false},
	} {
		lead := &peerv1.ReadIndexResponse{Term: 7, Leader: true, Voters: test.voters}
		if got := confirms(lead, test.terms); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}
