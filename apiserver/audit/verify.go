package audit

import (
	"context"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
)

// Verdict is what was found of one log.
type Verdict struct {
	First, Last uint64
	Faults      []string
	// Heads are those of other peers that are written down here.
	Heads []Witnessed
	// Hashes are those of the kept records whose numbers were asked for.
	Hashes map[uint64][hashSize]byte
}

// Witnessed is another peer's head.
type Witnessed struct {
	Peer string
	Head
}

// maxFaults bounds a verdict: one cut spoils what comes after it, once.
const maxFaults = 20

// Verify reads all that is kept, and tells what is not as it was written. wanted are
// numbers of records of which others have written down the hashes.
func (l *Log) Verify(ctx context.Context, wanted map[uint64]bool) (Verdict, error) {
	l.mu.Lock()
	l.flush()
	expected, head, waiting := slices.Clone(l.first), l.head, len(l.pending) > 0
	l.mu.Unlock()
	first, err := list(l.cfg.Dir)
	if err != nil {
		return Verdict{Faults: []string{"the records cannot be read: " + err.Error()}}, nil
	}
	v := Verdict{Hashes: make(map[uint64][hashSize]byte)}
	fault := func(format string, args ...any) {
		if len(v.Faults) < maxFaults {
			v.Faults = append(v.Faults, fmt.Sprintf(format, args...))
		}
	}
	l.mu.Lock()
	kept := slices.Clone(l.first)
	l.mu.Unlock()
	for _, n := range expected {
		if !slices.Contains(first, n) && slices.Contains(kept, n) {
			fault("the file that begins with record %d was removed", n)
		}
	}
	if len(first) > 0 && first[0] > 1 && len(first) < files {
		fault("the records before %d are missing, and not for want of room: %d files are kept of %d", first[0], len(first), files)
	}
	var at Head
	for i, n := range first {
		path := filepath.Join(l.cfg.Dir, fileName(n))
		line := 0
		err := eachLine(path, func(text []byte) error {
			if line++; line == 1 {
				begin, prev, ok := parseHeader(string(text), l.cfg.Peer)
				switch {
				case !ok || begin != n:
					fault("%s: the first line is not this log's", fileName(n))
				case i > 0 && begin != at.Sequence+1:
					fault("records %d to %d are missing", at.Sequence+1, begin-1)
				case i > 0 && prev != at.Hash:
					fault("%s: does not follow from the file before it", fileName(n))
				case n == 1 && prev != [hashSize]byte{}:
					fault("%s: something was before the first record", fileName(n))
				}
				at = Head{n - 1, prev}
				return nil
			}
			hash, body, r, ok := parseLine(text)
			switch {
			case !ok:
				fault("%s, line %d: is no record", fileName(n), line)
				return nil
			case r.Sequence != at.Sequence+1:
				fault("%s, line %d: record %d follows %d: some are missing, or in another order", fileName(n), line, r.Sequence, at.Sequence)
			case hash != chain(at.Hash, body):
				fault("%s, line %d: record %d, or the one before it, was changed", fileName(n), line, r.Sequence)
			}
			at = Head{r.Sequence, hash}
			if v.First == 0 {
				v.First = r.Sequence
			}
			if wanted[r.Sequence] {
				v.Hashes[r.Sequence] = hash
			}
			if r.Verb == VerbWitness {
				w := Witnessed{Peer: r.Peer, Head: Head{Sequence: r.Seen}}
				if _, err := hex.Decode(w.Hash[:], []byte(r.Hash)); err == nil && len(r.Hash) == 2*hashSize {
					v.Heads = append(v.Heads, w)
				}
			}
			return ctx.Err()
		})
		if err != nil {
			fault("%s: %v", fileName(n), err)
		}
	}
	v.Last = at.Sequence
	switch {
	case at.Sequence < head.Sequence && !waiting:
		fault("records %d to %d were cut off at the end", at.Sequence+1, head.Sequence)
	case at.Sequence == head.Sequence && at.Hash != head.Hash:
		fault("record %d, the newest, is not the one that was written", at.Sequence)
	}
	return v, nil
}

// Compare returns what is wrong with a peer's verified log by what others have written
// down of it: heads that it does not have, or has otherwise. Those of before its first
// record say nothing.
func Compare(v Verdict, heads []Head) (faults []string) {
	for _, h := range heads {
		hash, ok := v.Hashes[h.Sequence]
		switch {
		case h.Sequence < v.First && v.First > 0:
		case h.Sequence > v.Last:
			faults = append(faults, fmt.Sprintf("records %d to %d were cut off at the end: another peer has seen them", v.Last+1, h.Sequence))
		case !ok || hash != h.Hash:
			faults = append(faults, fmt.Sprintf("record %d is not the one that another peer has seen: the log was made anew", h.Sequence))
		}
		if len(faults) >= maxFaults {
			break
		}
	}
	return faults
}
