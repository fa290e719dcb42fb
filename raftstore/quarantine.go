package raftstore

import (
	"context"
	"fmt"
	"time"
)

// Memory can rot, and a bug can write where it should not. The state hash does not
// see that: it is kept up to date from what each change takes away and adds, not
// from what lies in memory. So each peer hashes its own keys again after changes,
// and compares. What it finds needs no vote: its state is not what its own log says.

const (
	// scrubEvery is how often, at most, while there are changes. An idle store is
	// not read.
	scrubEvery = 5 * time.Second
	// scrubRate is how much is hashed in a second, at most: a tenth of a core.
	scrubRate = 64 << 20
)

// scrub compares the state with its hash, until ctx ends.
func (s *Store) scrub(ctx context.Context) {
	for {
		at := s.current.Load()
		if have, done := at.root.Rehash(func(bytes int64) bool {
			return rest(ctx, time.Duration(bytes)*time.Second/scrubRate)
		}); done && have != at.root.Hash() {
			s.quarantine(fmt.Sprintf("its keys at entry %d hash to %x, and its log makes %x of them: memory was damaged, by hardware or a bug", at.root.Index(), have, at.root.Hash()))
			return
		}
		if !rest(ctx, scrubEvery) {
			return
		}
		select {
		case <-at.revised:
		case <-ctx.Done():
			return
		}
	}
}

// rest waits, and returns false when ctx ends before.
func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// quarantine makes this peer serve nothing from its state any more, nor put it on
// its disk, nor lead: as a leader it falls silent, and is deposed as one that died.
// Its log is not in doubt: it goes on to store and to
// acknowledge entries, and to vote, so that the cluster keeps its tolerance. A
// restart makes the state anew, from the last snapshot, whose hash is checked, and
// the log.
func (s *Store) quarantine(why string) {
	err := fmt.Errorf("%w: %s", ErrQuarantined, why)
	if !s.refuse(err) {
		return
	}
	s.alarms.raise("quarantined", why+". This peer serves nothing and does not lead. Restart it: it reads its state anew. If that happens again, replace the machine")
	s.log.Error("this peer is quarantined: restart it", "why", why)
}
