package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
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
	// others are what else a peer must not lose without its votes: which disk this
	// is, and which incarnation of the cluster it is part of.
	others map[string][]byte
}

const (
	voteSlot   = 4096
	maxVotes   = voteSlot - 4 - seal.RecordOverhead // bytes that fit into a slot
	voteFields = 25                                 // term, vote's term, floor, flags
)

// Raft's names of what a StableStore keeps.
const (
	keyTerm     = "CurrentTerm"
	keyVoteTerm = "LastVoteTerm"
	keyVoteCand = "LastVoteCand"
	// Names of ours begin with it.
	ownKeys      = "Holdfast"
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
	state := votes{
		term:     binary.BigEndian.Uint64(rec.Body),
		voteTerm: binary.BigEndian.Uint64(rec.Body[8:]),
		floor:    binary.BigEndian.Uint64(rec.Body[16:]),
		sealed:   rec.Body[24]&flagSealed != 0,
		others:   make(map[string][]byte),
	}
	rest, ok := rec.Body[voteFields:], true
	if state.candidate, rest, ok = cutString(rest); !ok {
		return seal.ErrDamaged
	}
	for len(rest) > 0 {
		var key, value []byte
		if key, rest, ok = cutString(rest); ok {
			value, rest, ok = cutString(rest)
		}
		if !ok {
			return seal.ErrDamaged
		}
		state.others[string(key)] = value
	}
	v.generation, v.key, v.state = rec.Time, sealed.Key, state
	return nil
}

// Strings in the file have their length, two bytes, before them.
func appendString(to, s []byte) []byte {
	return append(binary.BigEndian.AppendUint16(to, uint16(len(s))), s...)
}

func cutString(from []byte) (s, rest []byte, ok bool) {
	if len(from) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(from))
	if from = from[2:]; n > len(from) {
		return nil, nil, false
	}
	return from[:n:n], from[n:], true
}

// encode returns a slot. The generation is in the record's time, which is the
// writer's to use.
func (v *votesFile) encode(slot int, state *votes) ([]byte, error) {
	body := make([]byte, voteFields)
	binary.BigEndian.PutUint64(body, state.term)
	binary.BigEndian.PutUint64(body[8:], state.voteTerm)
	binary.BigEndian.PutUint64(body[16:], state.floor)
	if state.sealed {
		body[24] |= flagSealed
	}
	body = appendString(body, state.candidate)
	for _, key := range slices.Sorted(maps.Keys(state.others)) {
		body = appendString(appendString(body, []byte(key)), state.others[key])
	}
	if len(body) > maxVotes {
		return nil, fmt.Errorf("the vote, and what is kept with it, take %d bytes, and %d fit", len(body), maxVotes)
	}
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
	next.others = maps.Clone(next.others)
	if next.others == nil {
		next.others = make(map[string][]byte)
	}
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
	v.mu.Lock()
	defer v.mu.Unlock()
	if strings.HasPrefix(string(key), ownKeys) {
		return v.changeLocked(func(s *votes) { s.others[string(key)] = bytes.Clone(value) })
	}
	if string(key) != keyVoteCand {
		return fmt.Errorf("the votes file does not keep %q", key)
	}
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
	if strings.HasPrefix(string(key), ownKeys) {
		return v.Set(key, binary.BigEndian.AppendUint64(nil, value))
	}
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
	s := v.get()
	if value, ok := s.others[string(key)]; ok {
		return bytes.Clone(value), nil
	}
	if string(key) == keyVoteCand && len(s.candidate) > 0 {
		return bytes.Clone(s.candidate), nil
	}
	return nil, errStableAbsent
}

// GetUint64 implements raft.StableStore.
func (v *votesFile) GetUint64(key []byte) (uint64, error) {
	s := v.get()
	if other, ok := s.others[string(key)]; ok {
		if len(other) != 8 {
			return 0, fmt.Errorf("%s: %q is not a number", v.path, key)
		}
		return binary.BigEndian.Uint64(other), nil
	}
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
