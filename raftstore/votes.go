package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/holdfast-io/holdfast/raftstore/seal"
)

// The votes file holds raft's term and vote twice, in two slots of a page each. A
// write syncs the first slot, then the second, so that a crash or a damage can cost
// one of them at most, and the other one is right:
//
//   - The first slot was being written: the second has the state before, and nobody
//     was told of the new one yet.
//   - The second was being written: the first has the new state.
//   - A slot was damaged later: the other has the same state, or the one slot was
//     ahead by a write that nobody was told of.
//
// With both unreadable, or no file, there is no telling how this peer voted, and it
// must not vote again. Neither a file of which the newest of two versions counts (a
// damage then brings back the older vote, unseen), nor one that is replaced (which
// needs free space on the disk, and more syncs) is as good. Nothing on this machine
// can tell that both slots are an older copy, put back together; only a term below
// that of the log is found out.
type votesFile struct {
	file *os.File
	ring *seal.Ring
	path string

	mu         sync.Mutex
	state      votes
	generation int64
	key        uint32
	voteTerm   uint64 // set, and not yet written: raft sets the vote's term and its candidate in turn
	dead       error  // of the first write that failed
}

// votes is what the file says.
type votes struct {
	term      uint64
	voteTerm  uint64
	candidate []byte
	// floor is the index of the newest snapshot: this peer's state must not begin
	// before it again.
	floor uint64
	// sealed is set once the log is in its sealed format: one without an end is not
	// the log that was written.
	sealed bool
}

const (
	voteSlot = 4096
	// maxCandidate is the longest candidate that fits.
	maxCandidate = voteSlot - 4 - seal.RecordOverhead - voteFields
	voteFields   = 25 // term, vote's term, floor, flags
)

// Raft's names of what a StableStore keeps.
const (
	keyTerm      = "CurrentTerm"
	keyVoteTerm  = "LastVoteTerm"
	keyVoteCand  = "LastVoteCand"
	flagSealed   = 1
	stableAbsent = "not found" // the text that raft looks for
)

var errStableAbsent = errors.New(stableAbsent)

// makeVotes makes the file, which must not exist, with its first state.
func makeVotes(path string, ring *seal.Ring, first votes) (*votesFile, error) {
	v := &votesFile{ring: ring, path: path, state: first, generation: 1}
	var file []byte
	for slot := range 2 {
		data, err := v.encode(slot, &first)
		if err != nil {
			return nil, err
		}
		file = append(file, data...)
	}
	if err := seal.WriteFile(path, file); err != nil {
		return nil, err
	}
	var err error
	v.file, err = os.OpenFile(path, os.O_RDWR, 0)
	return v, err
}

// openVotes reads the file. Call rewrite before anything else: it mends a slot that
// is not readable. note says which one, and why; it is empty if both are.
func openVotes(path string, ring *seal.Ring) (v *votesFile, note string, err error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	v = &votesFile{file: file, ring: ring, path: path}
	var errs []error
	for slot := range 2 {
		data := make([]byte, voteSlot)
		_, err := file.ReadAt(data, int64(slot)*voteSlot)
		if err == nil {
			err = v.decode(slot, data)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("slot %d: %w", slot, err))
		}
	}
	switch len(errs) {
	case 0:
		return v, "", nil
	case 1:
		return v, errs[0].Error(), nil
	}
	return nil, "", damaged("the votes file", errors.Join(errs...))
}

// decode reads a slot, and takes it if it is newer than what is known.
func (v *votesFile) decode(slot int, data []byte) error {
	length := binary.BigEndian.Uint32(data)
	if length > voteSlot-4 {
		return seal.ErrDamaged
	}
	rec, sealed, err := v.ring.Open(data[4:4+length], seal.KindVotes, uint64(slot))
	if err != nil {
		return err
	}
	if len(rec.Body) < voteFields {
		return seal.ErrDamaged
	}
	if rec.Time <= v.generation {
		return nil
	}
	v.generation, v.key = rec.Time, sealed.Key
	v.state = votes{
		term:      binary.BigEndian.Uint64(rec.Body),
		voteTerm:  binary.BigEndian.Uint64(rec.Body[8:]),
		floor:     binary.BigEndian.Uint64(rec.Body[16:]),
		sealed:    rec.Body[24]&flagSealed != 0,
		candidate: rec.Body[voteFields:],
	}
	return nil
}

// encode returns a slot. The generation is in the record's time, which is the
// writer's to use.
func (v *votesFile) encode(slot int, state *votes) ([]byte, error) {
	if len(state.candidate) > maxCandidate {
		return nil, fmt.Errorf("a candidate of %d bytes is too long to vote for", len(state.candidate))
	}
	body := make([]byte, voteFields, voteFields+len(state.candidate))
	binary.BigEndian.PutUint64(body, state.term)
	binary.BigEndian.PutUint64(body[8:], state.voteTerm)
	binary.BigEndian.PutUint64(body[16:], state.floor)
	if state.sealed {
		body[24] |= flagSealed
	}
	body = append(body, state.candidate...)
	data, sealed, err := v.ring.Seal(&seal.Record{Kind: seal.KindVotes, Index: uint64(slot), Time: v.generation, Body: body})
	if err != nil {
		return nil, err
	}
	v.key = sealed.Key
	out := make([]byte, voteSlot)
	binary.BigEndian.PutUint32(out, uint32(len(data)))
	copy(out[4:], data)
	return out, nil
}

// change writes a new state. After the first write that failed none is tried again:
// what the file holds is uncertain.
func (v *votesFile) change(fn func(*votes)) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changeLocked(fn)
}

func (v *votesFile) changeLocked(fn func(*votes)) error {
	if v.dead != nil {
		return v.dead
	}
	next := v.state
	fn(&next)
	v.generation++
	for slot := range 2 {
		data, err := v.encode(slot, &next)
		if err == nil {
			_, err = v.file.WriteAt(data, int64(slot)*voteSlot)
		}
		if err == nil {
			err = syncData(v.file)
		}
		if err != nil {
			v.dead = fmt.Errorf("write %s: %w", v.path, err)
			return v.dead
		}
	}
	v.state = next
	return nil
}

// rewrite writes the state again: whole, and under the current key.
func (v *votesFile) rewrite() error { return v.change(func(*votes) {}) }

// raiseFloor notes that there is a snapshot up to index.
func (v *votesFile) raiseFloor(index uint64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if index <= v.state.floor {
		return nil
	}
	return v.changeLocked(func(s *votes) { s.floor = index })
}

func (v *votesFile) get() votes {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.state
}

func (v *votesFile) addKeys(needed map[uint32]bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	needed[v.key] = true
}

// Set implements raft.StableStore.
func (v *votesFile) Set(key, value []byte) error {
	if string(key) != keyVoteCand {
		return fmt.Errorf("the votes file does not keep %q", key)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changeLocked(func(s *votes) {
		if v.voteTerm != 0 {
			s.voteTerm = v.voteTerm
		}
		s.candidate = append([]byte(nil), value...)
	})
}

// SetUint64 implements raft.StableStore. The term of a vote is only kept with the
// candidate that raft sets next: half a vote is none.
func (v *votesFile) SetUint64(key []byte, value uint64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch string(key) {
	case keyVoteTerm:
		v.voteTerm = value
		return v.dead
	case keyTerm:
		if value == v.state.term {
			return v.dead // raft sets it at each start, and each time it becomes a follower
		}
		return v.changeLocked(func(s *votes) { s.term = value })
	}
	return fmt.Errorf("the votes file does not keep %q", key)
}

// Get implements raft.StableStore.
func (v *votesFile) Get(key []byte) ([]byte, error) {
	if s := v.get(); string(key) == keyVoteCand && len(s.candidate) > 0 {
		return append([]byte(nil), s.candidate...), nil
	}
	return nil, errStableAbsent
}

// GetUint64 implements raft.StableStore.
func (v *votesFile) GetUint64(key []byte) (uint64, error) {
	s := v.get()
	value := map[string]uint64{keyTerm: s.term, keyVoteTerm: s.voteTerm}[string(key)]
	if value == 0 {
		return 0, errStableAbsent
	}
	return value, nil
}

func (v *votesFile) close() error { return v.file.Close() }

// votesIn returns what another StableStore keeps, as the format before did.
func votesIn(stable raft.StableStore) (v votes, err error) {
	number := func(key string) uint64 {
		n, e := stable.GetUint64([]byte(key))
		if e != nil && e.Error() != stableAbsent {
			err = errors.Join(err, e)
		}
		return n
	}
	v.term, v.voteTerm = number(keyTerm), number(keyVoteTerm)
	var e error
	if v.candidate, e = stable.Get([]byte(keyVoteCand)); e != nil && e.Error() != stableAbsent {
		err = errors.Join(err, e)
	}
	return v, err
}
