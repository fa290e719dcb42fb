package raftstore

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-io/holdfast/raftstore/seal"
)

// endIndex is where the end of the chain lies in the database: behind every entry,
// and so on the page that an append writes anyway.
const endIndex = math.MaxUint64

// sealedLog is a LogStore over another, with each entry sealed and bound to the one
// before it, and a record that names the last one, written in the transaction that
// appends it. Followed from that end backwards, the chain tells every entry that is
// missing, damaged, old, or another peer's. Where each entry stands and which it is
// lies in memory, so an entry that changes later is noticed as well.
//
// Entries of the format before, which are not sealed, stay readable until raft cuts
// them off.
type sealedLog struct {
	under raft.LogStore
	ring  *seal.Ring

	writing sync.Mutex // held by appends and cuts at the end

	mu     sync.RWMutex
	chain  []seal.Sealed // by index; what is not sealed has key 0
	plain  uint64        // last index of the format before, which had gaps
	endKey uint32        // what the end was sealed with; 0: there is none yet
}

// openSealedLog reads the whole log and checks it.
func openSealedLog(under raft.LogStore, ring *seal.Ring) (*sealedLog, error) {
	l := &sealedLog{under: under, ring: ring}
	var first uint64
	err := guard(func() (err error) { first, err = under.FirstIndex(); return err })
	if err != nil {
		return nil, damaged("the log", err)
	}
	var raw raft.Log
	switch err := guard(func() error { return under.GetLog(endIndex, &raw) }); {
	case errors.Is(err, raft.ErrLogNotFound):
		return l, l.adopt(first)
	case err != nil:
		return nil, damaged("the end of the log", err)
	}
	end, sealed, err := ring.Open(raw.Data, seal.KindEnd, endIndex)
	if err != nil {
		return nil, damaged("the end of the log", err)
	}
	l.plain, l.endKey = end.Term, sealed.Key
	return l, l.follow(end.Prev, first)
}

// adopt takes a log that has no end yet: a new one, or one of the format before.
func (l *sealedLog) adopt(first uint64) error {
	var last uint64
	if err := guard(func() (err error) { last, err = l.under.LastIndex(); return err }); err != nil {
		return damaged("the log", err)
	}
	l.plain = last
	for index := first; index <= last && last > 0; index++ {
		sealed, _, err := l.load(index, new(raft.Log))
		if errors.Is(err, raft.ErrLogNotFound) {
			continue // as after an installed snapshot
		}
		if err != nil {
			return damaged(fmt.Sprintf("log entry %d", index), err)
		}
		if sealed.Key != 0 {
			return damaged("the log", errors.New("its entries are sealed, but the record that names the last one is missing"))
		}
		l.chain = append(l.chain, sealed)
	}
	return nil
}

// follow reads the chain backwards from link, as far as the log goes.
func (l *sealedLog) follow(link seal.Link, first uint64) error {
	var entry raft.Log
	for link.Index >= first && link.Index > 0 {
		sealed, prev, err := l.load(link.Index, &entry)
		if errors.Is(err, raft.ErrLogNotFound) && link.Index <= l.plain {
			link = seal.Link{Index: link.Index - 1} // as after an installed snapshot
			continue
		}
		if err != nil {
			return damaged(fmt.Sprintf("log entry %d", link.Index), err)
		}
		// Unsealed entries do not know the one before.
		if sealed.Link.Tag != link.Tag && link.Tag != (seal.Tag{}) {
			return damaged(fmt.Sprintf("log entry %d", link.Index), errors.New("it is not the one that the entry after it follows: an older write, or another log's"))
		}
		if sealed.Key != 0 && prev.Index >= link.Index {
			return damaged(fmt.Sprintf("log entry %d", link.Index), errors.New("it claims to follow a later one"))
		}
		l.chain = append(l.chain, sealed)
		link = prev
	}
	slices.Reverse(l.chain)
	return nil
}

// hasEnd reports whether the log is in this format yet. Until then, establish.
func (l *sealedLog) hasEnd() bool { return l.endKey != 0 }

// establish writes the end of a log that has none, or seals it anew.
func (l *sealedLog) establish() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.writeEnd(l.last())
}

// damaged says that the peer's own data is not what it wrote.
func damaged(what string, err error) error { return fmt.Errorf("%w: %s: %w", ErrDamaged, what, err) }

// guard runs fn, which reads a file that may be damaged: the database panics, or
// reads past the file's end, when its pages make no sense.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the database's pages make no sense: %v", p)
		}
	}()
	return fn()
}

// load reads an entry, whatever the chain says of it. prev is the link that it was
// bound to; of an unsealed entry only the index.
func (l *sealedLog) load(index uint64, entry *raft.Log) (sealed seal.Sealed, prev seal.Link, err error) {
	var raw raft.Log
	if err := guard(func() error { return l.under.GetLog(index, &raw) }); err != nil {
		return seal.Sealed{}, seal.Link{}, err
	}
	if raw.Term != 0 || !seal.IsRecord(raw.Data) {
		// One that was never sealed, or none: the chain knows.
		if raw.Index != index || raw.Term == 0 {
			return seal.Sealed{}, seal.Link{}, fmt.Errorf("%w: it is not sealed", seal.ErrDamaged)
		}
		*entry = raw
		return seal.Sealed{Link: seal.Link{Index: index, Tag: plainTag(&raw)}}, seal.Link{Index: index - 1}, nil
	}
	rec, sealed, err := l.ring.Open(raw.Data, seal.KindEntry, index)
	if err != nil {
		return seal.Sealed{}, seal.Link{}, err
	}
	*entry = raft.Log{Index: index, Term: rec.Term, Type: raft.LogType(rec.Type)}
	data := len(rec.Body) - int(rec.Extra)
	entry.Data = rec.Body[:data:data]
	if rec.Extra > 0 {
		entry.Extensions = rec.Body[data:]
	}
	if rec.Time != 0 {
		entry.AppendedAt = time.Unix(0, rec.Time)
	}
	return sealed, rec.Prev, nil
}

// plainTag stands for the tag of an entry that is not sealed.
func plainTag(e *raft.Log) seal.Tag {
	h := sha256.New()
	var head [33]byte
	binary.BigEndian.PutUint64(head[0:], e.Index)
	binary.BigEndian.PutUint64(head[8:], e.Term)
	binary.BigEndian.PutUint64(head[16:], uint64(len(e.Data)))
	binary.BigEndian.PutUint64(head[24:], uint64(len(e.Extensions)))
	head[32] = byte(e.Type)
	h.Write(head[:])
	h.Write(e.Data)
	h.Write(e.Extensions)
	return seal.Tag(h.Sum(nil)[:16])
}

// FirstIndex implements raft.LogStore.
func (l *sealedLog) FirstIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.chain) == 0 {
		return 0, nil
	}
	return l.chain[0].Link.Index, nil
}

// LastIndex implements raft.LogStore.
func (l *sealedLog) LastIndex() (uint64, error) { return l.last().Index, nil }

func (l *sealedLog) last() seal.Link {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.chain) == 0 {
		return seal.Link{}
	}
	return l.chain[len(l.chain)-1].Link
}

// place returns where an index is in the chain, or would be.
func place(chain []seal.Sealed, index uint64) (int, bool) {
	return slices.BinarySearchFunc(chain, index, func(s seal.Sealed, index uint64) int {
		switch {
		case s.Link.Index < index:
			return -1
		case s.Link.Index > index:
			return 1
		}
		return 0
	})
}

func (l *sealedLog) link(index uint64) (seal.Link, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if i, ok := place(l.chain, index); ok {
		return l.chain[i].Link, true
	}
	return seal.Link{}, false
}

// covers reports whether the log has each entry from first to last.
func (l *sealedLog) covers(first, last uint64) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if last < first {
		return true
	}
	i, ok := place(l.chain, first)
	j, also := place(l.chain, last)
	return ok && also && uint64(j-i) == last-first
}

// GetLog implements raft.LogStore. An error other than raft.ErrLogNotFound is an
// ErrDamaged.
func (l *sealedLog) GetLog(index uint64, entry *raft.Log) error {
	want, ok := l.link(index)
	for ok {
		have, _, err := l.load(index, entry)
		if err == nil && have.Link == want {
			return nil
		}
		// It may have been cut off, or another put in its place, since.
		now, still := l.link(index)
		if now == want && still {
			if err == nil {
				err = errors.New("it is not the one that was last written there")
			}
			return damaged(fmt.Sprintf("log entry %d", index), err)
		}
		want, ok = now, still
	}
	return raft.ErrLogNotFound
}

// StoreLog implements raft.LogStore.
func (l *sealedLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore.
func (l *sealedLog) StoreLogs(entries []*raft.Log) error {
	if len(entries) == 0 {
		return nil
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	if last := l.last(); entries[0].Index <= last.Index {
		// Raft cuts before it overwrites; what comes after would follow an entry
		// that is gone.
		if err := l.cutEnd(entries[0].Index, last.Index); err != nil {
			return err
		}
	}
	rows := make([]*raft.Log, 0, len(entries)+1)
	added := make([]seal.Sealed, 0, len(entries))
	prev := l.last()
	for _, e := range entries {
		if e.Index <= prev.Index || e.Index == endIndex {
			return fmt.Errorf("log entry %d cannot follow %d", e.Index, prev.Index)
		}
		rec := seal.Record{
			Kind: seal.KindEntry, Index: e.Index, Prev: prev,
			Term: e.Term, Type: uint8(e.Type), Extra: uint32(len(e.Extensions)), Body: e.Data,
		}
		if len(e.Extensions) > 0 {
			rec.Body = append(e.Data[:len(e.Data):len(e.Data)], e.Extensions...)
		}
		if !e.AppendedAt.IsZero() {
			rec.Time = e.AppendedAt.UnixNano()
		}
		data, sealed, err := l.ring.Seal(&rec)
		if err != nil {
			return err
		}
		rows = append(rows, &raft.Log{Index: e.Index, Data: data})
		added = append(added, sealed)
		prev = sealed.Link
	}
	end, endKey, err := l.end(prev)
	if err != nil {
		return err
	}
	if err := guard(func() error { return l.under.StoreLogs(append(rows, end)) }); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.chain = append(l.chain, added...)
	l.endKey = endKey
	return nil
}

// end returns the record that names the last entry.
func (l *sealedLog) end(last seal.Link) (*raft.Log, uint32, error) {
	data, sealed, err := l.ring.Seal(&seal.Record{Kind: seal.KindEnd, Index: endIndex, Prev: last, Term: l.plain})
	return &raft.Log{Index: endIndex, Data: data}, sealed.Key, err
}

func (l *sealedLog) writeEnd(last seal.Link) error {
	end, key, err := l.end(last)
	if err != nil {
		return err
	}
	if err := guard(func() error { return l.under.StoreLog(end) }); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endKey = key
	return nil
}

// DeleteRange implements raft.LogStore: a prefix, when raft compacts, which may run
// beside an append; or a suffix, when a new leader's log differs.
func (l *sealedLog) DeleteRange(first, last uint64) error {
	begin, _ := l.FirstIndex()
	end := l.last()
	switch {
	case begin == 0 || first > end.Index || last < begin || last < first:
		return nil
	case last >= end.Index:
		l.writing.Lock()
		defer l.writing.Unlock()
		return l.cutEnd(first, last)
	case first > begin:
		return fmt.Errorf("entries %d to %d cannot be removed from the middle of the log", first, last)
	}
	// From 0: a crash in cutEnd may have left something there.
	if err := guard(func() error { return l.under.DeleteRange(0, last) }); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i, found := place(l.chain, last)
	if found {
		i++
	}
	l.chain = slices.Clone(l.chain[i:]) // let go of the array
	return nil
}

// cutEnd removes the entries from first on. The end of the chain moves first: what a
// crash in between leaves behind it is nobody's, until it is written over or cut off.
func (l *sealedLog) cutEnd(first, last uint64) error {
	l.mu.RLock()
	i, _ := place(l.chain, first)
	var keep seal.Link
	if i > 0 {
		keep = l.chain[i-1].Link
	}
	l.mu.RUnlock()
	if err := l.writeEnd(keep); err != nil {
		return err
	}
	if err := guard(func() error { return l.under.DeleteRange(first, min(last, endIndex-1)) }); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i, _ = place(l.chain, first) // a prefix may have gone meanwhile
	l.chain = slices.Clip(l.chain[:i])
	return nil
}

// addKeys adds the keys that the log needs.
func (l *sealedLog) addKeys(needed map[uint32]bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	needed[l.endKey] = true
	for _, s := range l.chain {
		needed[s.Key] = true
	}
}
