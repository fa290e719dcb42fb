package raftstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/hashicorp/raft"
)

// An incarnation is one life of a cluster. It begins when the cluster is made, and
// anew when an operator restores a backup or gives up a lost majority. Members of an
// earlier one may return at any time and still be a majority among themselves; so
// each message of raft, and each answer that a read rests on, carries the number,
// and those of another incarnation are not listened to. A peer that learns of a
// higher one has been left behind: it stops, and begins anew in that one, with its
// old directory set aside.

// Keys of the stable store, beside raft's own: what a peer is part of must not get
// lost without its votes, nor the other way round.
var (
	keyIncarnation = []byte("HoldfastIncarnation")
	// keySuperseded holds the higher incarnation that was met, until the directory
	// is set aside.
	keySuperseded = []byte("HoldfastSuperseded")
	// keyRecoverAs and keyRecoverTerm are set while a recovery is under way.
	keyRecoverAs   = []byte("HoldfastRecoverAs")
	keyRecoverTerm = []byte("HoldfastRecoverTerm")
	keyRaftTerm    = []byte("CurrentTerm") // raft's own
)

// firstIncarnation is that of a new cluster. Later ones are numbers of seconds since
// 1970, or the highest one seen plus one: above what anybody can have seen, who is
// not there to be asked.
const firstIncarnation = 1

// ErrRestart is returned by Run when the store has to be made anew, with New, over
// the same directory: it will be in another incarnation of the cluster then.
var ErrRestart = errors.New("the store must be opened again")

// Incarnation returns the number of the cluster's incarnation that this peer is
// part of, 0 if it is in none yet: an empty store takes that of the first peer that
// it hears from.
func (s *Store) Incarnation() uint64 { return s.incarnation.Load() }

// Rejoins reports whether the store is empty because it was left behind in an
// earlier incarnation of the cluster, and not because a disk was lost.
func (s *Store) Rejoins() bool { return s.Incarnation() != 0 && !s.HasState() }

// readStable returns an integer of the stable store, 0 if it is not there.
func readStable(stable raft.StableStore, key []byte) (uint64, error) {
	n, err := stable.GetUint64(key)
	if err != nil && err.Error() == "not found" { // raft's contract
		return 0, nil
	}
	return n, err
}

// writeStable writes an integer under the disk's latch, and not as raft does it:
// there is no goroutine of raft's to end when it fails.
func (s *Store) writeStable(what string, key []byte, n uint64) error {
	return s.disk.write(what, func() error { return s.stable.StableStore.SetUint64(key, n) })
}

// loadIncarnation finds out which incarnation the opened storage is in.
func (s *Store) loadIncarnation() error {
	n, err := readStable(s.stable, keyIncarnation)
	if err != nil {
		return fmt.Errorf("read the incarnation in %s: %w", s.place(), err)
	}
	switch {
	case n != 0:
	case s.HasState():
		n = firstIncarnation // written before incarnations were
	case s.cfg.Incarnation != 0:
		n = s.cfg.Incarnation
		if err := s.writeStable("write the incarnation", keyIncarnation, n); err != nil {
			return err
		}
	}
	s.incarnation.Store(n)
	return nil
}

// openCurrent opens cfg.Dir. One that was left behind by a later incarnation is set
// aside first, under a name that says so, and an empty one takes its place.
func openCurrent(cfg Config) (*Storage, func() error, error) {
	fresh := cfg.Dir + ".new"
	if _, err := os.Stat(cfg.Dir); errors.Is(err, fs.ErrNotExist) {
		// Perhaps the power failed between the two renames below.
		if err := os.Rename(fresh, cfg.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
	}
	storage, closeFiles, err := openStorage(cfg)
	if err != nil {
		return nil, nil, err
	}
	by, err := readStable(storage.Stable, keySuperseded)
	if err != nil || by == 0 {
		if err != nil {
			err = errors.Join(fmt.Errorf("read %s: %w", cfg.Dir, err), closeFiles())
			return nil, nil, err
		}
		return storage, closeFiles, nil
	}
	was, err := readStable(storage.Stable, keyIncarnation)
	if err := errors.Join(err, closeFiles()); err != nil {
		return nil, nil, err
	}
	if err := os.RemoveAll(fresh); err != nil {
		return nil, nil, err
	}
	next := cfg
	next.Dir = fresh
	storage, closeFiles, err = openStorage(next)
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(storage.Stable.SetUint64(keyIncarnation, by), closeFiles()); err != nil {
		return nil, nil, err
	}
	aside := freeName(fmt.Sprintf("%s.incarnation-%d", cfg.Dir, max(was, firstIncarnation)))
	if err := errors.Join(os.Rename(cfg.Dir, aside), os.Rename(fresh, cfg.Dir)); err != nil {
		return nil, nil, fmt.Errorf("set %s aside: %w", cfg.Dir, err)
	}
	cfg.Logger.Warn("the cluster began a new incarnation without this peer: what it had is set aside, it begins anew", "incarnation", by, "was", was, "kept", aside)
	return openStorage(cfg)
}

// freeName returns path, or path with a number behind it if that exists.
func freeName(path string) string {
	for n, name := 2, path; ; n++ {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return name
		}
		name = fmt.Sprintf("%s.%d", path, n)
	}
}

// superseded ends Run because incarnation by has begun without this peer.
func (s *Store) superseded(by uint64) {
	was := s.Incarnation()
	if by <= was {
		return
	}
	err := fmt.Errorf("%w: the cluster was recovered, or restored, without this peer, and is in incarnation %d; this peer is of incarnation %d. It is fenced off, and joins anew when it is started again", ErrRestart, by, was)
	if !s.refuse(err) {
		return // refused before
	}
	if werr := s.writeStable("write that this peer is left behind", keySuperseded, by); werr != nil {
		return // the disk's latch ends Run
	}
	s.fail(err)
}

// refuse makes this peer answer no reads and take no writes any more, nor speak as
// leader or candidate, and reports whether it did before.
func (s *Store) refuse(err error) (first bool) {
	if !s.refusal.CompareAndSwap(nil, &err) {
		return false
	}
	close(s.refused)
	return true
}

// Refusal returns why this peer serves neither reads nor writes, nil while it does:
// it is quarantined, or fenced off. What Get, View and Watch of such a peer return
// may be wrong, and whoever serves them to others must ask before.
func (s *Store) Refusal() error {
	if err := s.refusal.Load(); err != nil {
		return *err
	}
	return nil
}

// Refused returns a channel that is closed when Refusal begins to return an error.
func (s *Store) Refused() <-chan struct{} { return s.refused }

// Each message of raft is stamped with the sender's incarnation, in the envelope that
// transport puts into its header: so it works over any transport, and for each
// message by itself. Raft's transports carry errors as text, and so what a peer of
// another incarnation is told is fencedText and the number that it has met.
const fencedText = "fenced: this peer is in incarnation "

// stamp adds this peer's incarnation to a sealed header.
func (s *Store) stamp(header raft.RPCHeader) raft.RPCHeader {
	header.Addr = strconv.AppendUint(append(header.Addr, envelopeMark...), s.Incarnation(), 10)
	return header
}

func incarnationOf(stamp string) uint64 {
	n, err := strconv.ParseUint(stamp, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// checkStamp returns an error for a message from another incarnation.
func (s *Store) checkStamp(stamp string) error {
	theirs, ours := incarnationOf(stamp), s.Incarnation()
	if theirs == ours || ours == 0 {
		return nil
	}
	s.superseded(theirs)
	return fmt.Errorf("%s%d, the message is of %d", fencedText, ours, theirs)
}

// adopt takes the incarnation of a message, if this peer has none yet: before its
// first vote or entry, and on its disk first.
func (s *Store) adopt(stamp string) error {
	theirs := incarnationOf(stamp)
	if theirs == 0 || s.Incarnation() != 0 {
		return nil
	}
	if err := s.writeStable("write the incarnation", keyIncarnation, theirs); err != nil {
		return err
	}
	s.incarnation.Store(theirs)
	return nil
}

// heed looks whether the answer to a message says that there is a later incarnation.
func (s *Store) heed(err error) {
	if err == nil {
		return
	}
	if _, rest, ok := strings.Cut(err.Error(), fencedText); ok {
		digits, _, _ := strings.Cut(rest, ",")
		s.superseded(incarnationOf(digits))
	}
}
