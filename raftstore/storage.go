package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/holdfast-io/holdfast/raftstore/seal"
)

// Files in a store's directory, beside the directory of snapshots.
const (
	identityFile = "identity.json"
	logFile      = "raft.db"
	votesName    = "votes"
	ringFile     = "keys.json"
	keyFile      = "kek"
	ballastFile  = "ballast"
)

// identity binds a directory to a peer: under another id or cluster its votes and
// entries would be lies.
type identity struct {
	Cluster string `json:"cluster"`
	Peer    string `json:"peer"`
}

// files is what a store's directory holds, open.
type files struct {
	cfg   Config
	bolt  *raftboltdb.BoltStore
	ring  *seal.Ring
	log   *sealedLog
	votes *votesFile
	snaps *sealedSnapshots

	mu       sync.Mutex
	damage   func(error) // what to do about a damaged snapshot, found while running
	rotating sync.Mutex
}

// openStorage opens dir for a peer, and makes what is missing. The files stay locked
// until closed. What is damaged is refused with an ErrDamaged that says what it is.
func openStorage(cfg Config) (*Storage, func() error, error) {
	if err := os.MkdirAll(filepath.Join(cfg.Dir, snapshotDir), 0o700); err != nil {
		return nil, nil, err
	}
	if err := checkIdentity(cfg, filepath.Join(cfg.Dir, logFile)); err != nil {
		return nil, nil, err
	}
	f := &files{cfg: cfg}
	err := f.open()
	if errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("%w. Nothing of %s is served. If the cluster has a majority without this peer: remove peer %s there, begin here with an empty directory, and join as a new peer; it gets everything from the others. If not, restore a backup", err, cfg.Dir, cfg.ID)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.close())
	}
	return &Storage{
		Logs: f.log, Stable: f.votes, Snapshots: f.snaps,
		Space: func() (Space, error) { return diskSpace(cfg.Dir) },
		files: f,
	}, f.close, nil
}

func (f *files) path(name string) string { return filepath.Join(f.cfg.Dir, name) }

func (f *files) close() (err error) {
	if f.votes != nil {
		err = f.votes.close()
	}
	if f.bolt != nil {
		err = errors.Join(err, f.bolt.Close())
	}
	return err
}

// open opens everything, in an order in which a crash of the first start can be
// repeated: keys, votes, the end of the log; what comes later proves that what comes
// before was there.
func (f *files) open() error {
	if now, err := diskSpace(f.cfg.Dir); err == nil && now.Free < scarce(now.Total) {
		dropBallast(f.cfg.Dir) // or nothing here can be written at all
	}
	_, votesErr := os.Stat(f.path(votesName))
	hasVotes := !errors.Is(votesErr, fs.ErrNotExist)
	if err := f.openBolt(hasVotes); err != nil {
		return err
	}
	if err := f.openRing(hasVotes); err != nil {
		return err
	}
	var err error
	if f.log, err = openSealedLog(f.bolt, f.ring); err != nil {
		return err
	}
	if err := f.openVotes(hasVotes); err != nil {
		return err
	}
	// Under the newest key, as everything that is written from now on.
	if err := f.log.establish(); err != nil {
		return fmt.Errorf("write %s: %w", f.path(logFile), err)
	}
	if err := f.votes.change(func(v *votes) { v.sealed = true }); err != nil {
		return err
	}
	f.snaps = &sealedSnapshots{
		dir: f.path(snapshotDir), ring: f.ring, log: f.cfg.Logger,
		space:   func() (Space, error) { return diskSpace(f.cfg.Dir) },
		visible: f.votes.raiseFloor,
		damage:  f.damaged,
	}
	if err := f.snaps.load(func(older, newest uint64) bool { return f.log.covers(older+1, newest) }); err != nil {
		return err
	}
	if err := f.snaps.adopt(); err != nil {
		return err
	}
	if err := f.agree(); err != nil {
		return err
	}
	return f.dropKeys()
}

// openBolt opens the database of the log.
func (f *files) openBolt(hasVotes bool) error {
	path := f.path(logFile)
	inUse := fmt.Errorf("%s is in use by another process: is holdfast running already?", path)
	if file, err := os.Open(path); err == nil {
		defer file.Close()
		if !tryLock(file) {
			return inUse
		}
		info, err := file.Stat()
		if err != nil {
			return err
		}
		if err = checkBolt(file); err != nil {
			if hasVotes || info.Size() > 16<<10 {
				return damaged(path, err)
			}
			// A crash while it was made: it never held an entry.
			if err := os.Remove(path); err != nil {
				return err
			}
		}
		if err := file.Close(); err != nil { // lets go of the lock
			return err
		}
	}
	err := guard(func() (err error) {
		f.bolt, err = raftboltdb.New(raftboltdb.Options{
			Path: path,
			BoltOptions: &bbolt.Options{
				Timeout: time.Second, // for the lock
				// The list of free pages grows large after a burst; writing all of it
				// with each commit is what made others' logs slow (bbolt#401). It is
				// rebuilt at start.
				NoFreelistSync: true,
				FreelistType:   bbolt.FreelistMapType,
			},
		})
		return err
	})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return inUse
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	return nil
}

// openRing opens the key ring, or makes one at the first start, and gives it a key
// that only this process seals with.
func (f *files) openRing(hasVotes bool) error {
	owner := seal.Owner{Cluster: f.cfg.ClusterID, Peer: f.cfg.ID}
	keys := f.cfg.Keys
	_, err := os.Stat(f.path(ringFile))
	if errors.Is(err, fs.ErrNotExist) {
		if hasVotes {
			return damaged(f.path(ringFile), errors.New("it is missing, and with it the keys to everything else here"))
		}
		if keys == nil {
			if keys, err = seal.KeyFile(f.path(keyFile)); errors.Is(err, fs.ErrNotExist) {
				keys, err = seal.MakeKeyFile(f.path(keyFile))
			}
			if err != nil {
				return err
			}
		}
		f.ring, err = seal.MakeRing(f.path(ringFile), owner, keys)
		return err
	}
	if keys == nil {
		if keys, err = seal.KeyFile(f.path(keyFile)); err != nil {
			return fmt.Errorf("open the keys of %s: %w", f.cfg.Dir, err)
		}
	}
	if f.ring, err = seal.OpenRing(f.path(ringFile), owner, keys); err != nil {
		if errors.Is(err, seal.ErrDamaged) {
			err = damaged("the keys", err)
		}
		return err
	}
	if err := f.ring.Rotate(); errors.Is(err, syscall.ENOSPC) {
		f.cfg.Logger.Warn("no room on the disk for a new key; going on with the last one", "err", err)
	} else if err != nil {
		return fmt.Errorf("make a new key: %w", err)
	}
	return nil
}

// openVotes opens the votes, or makes the file at the first start, out of what the
// format before kept in the log's database.
func (f *files) openVotes(exist bool) error {
	path := f.path(votesName)
	if !exist {
		if f.log.hasEnd() {
			return damaged(path, errors.New("it is missing: there is no telling how this peer has voted"))
		}
		first, err := votesIn(f.bolt)
		if err != nil {
			return fmt.Errorf("read the votes in %s: %w", f.path(logFile), err)
		}
		if last := f.log.last().Index; last > 0 && first.term == 0 {
			return damaged(path, fmt.Errorf("there is none, beside a log of %d entries: there is no telling how this peer has voted", last))
		}
		f.votes, err = makeVotes(path, f.ring, first)
		return err
	}
	var note string
	var err error
	if f.votes, note, err = openVotes(path, f.ring); err != nil {
		return err
	}
	if note != "" {
		f.cfg.Logger.Error("half of the votes file is damaged, or a crash interrupted a write; the other half is whole, and right", "file", path, "damage", note)
	}
	if f.votes.get().sealed && !f.log.hasEnd() {
		return damaged(f.path(logFile), errors.New("it is missing, or replaced by another: it does not have the entries that were written to it"))
	}
	return f.votes.rewrite()
}

// agree checks that log, votes and snapshots belong together: each may be whole, and
// still an older copy, or alone.
func (f *files) agree() error {
	v, snapshot, last := f.votes.get(), f.snaps.newest(), f.log.last().Index
	if snapshot.Index < v.floor && !f.log.covers(snapshot.Index+1, v.floor) {
		return damaged(f.path(snapshotDir), fmt.Errorf("a snapshot of index %d is missing; the newest here is of index %d, and the log does not fill the gap", v.floor, snapshot.Index))
	}
	if last > snapshot.Index && !f.log.covers(snapshot.Index+1, last) {
		return damaged(f.path(logFile), fmt.Errorf("it does not have all entries from %d, where the newest snapshot ends, to %d", snapshot.Index+1, last))
	}
	term := snapshot.Term
	if last > 0 {
		var entry raft.Log
		if err := f.log.GetLog(last, &entry); err != nil {
			return err
		}
		term = max(term, entry.Term)
	}
	if v.term < term {
		return damaged(f.path(votesName), fmt.Errorf("it knows of term %d, and the log of term %d: it is an older copy", v.term, term))
	}
	return nil
}

// rotate makes a new key and seals anew what is not going to be replaced by itself.
// When it returns nothing is being sealed with the key before, but for snapshots.
func (f *files) rotate(d *disk) error {
	f.rotating.Lock()
	defer f.rotating.Unlock()
	if err := f.ring.Rotate(); err != nil {
		return err
	}
	return d.write("seal with a new key", func() error { return errors.Join(f.votes.rewrite(), f.log.establish()) })
}

// dropKeys forgets the keys that nothing needs any more.
func (f *files) dropKeys() error {
	f.rotating.Lock()
	defer f.rotating.Unlock()
	needed := make(map[uint32]bool)
	f.log.addKeys(needed)
	f.votes.addKeys(needed)
	f.snaps.addKeys(needed)
	return f.ring.Keep(needed)
}

// damaged reports a snapshot that was found damaged while running.
func (f *files) damaged(err error) {
	f.mu.Lock()
	report := f.damage
	f.mu.Unlock()
	if report != nil {
		report(err)
	}
}

func (f *files) onDamage(report func(error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.damage = report
}

func checkIdentity(cfg Config, logPath string) error {
	path := filepath.Join(cfg.Dir, identityFile)
	want := identity{Cluster: cfg.ClusterID, Peer: cfg.ID}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(logPath); err == nil {
			return fmt.Errorf("%s holds a log, but not %s, which says whose it is: restore that file, or begin with an empty directory and join as a new peer", cfg.Dir, identityFile)
		}
		data, err := json.Marshal(want)
		if err != nil {
			return err
		}
		return seal.WriteFile(path, append(data, '\n'))
	}
	if err != nil {
		return err
	}
	var have identity
	if err := json.Unmarshal(data, &have); err != nil {
		return fmt.Errorf("%s is damaged: %w", path, err)
	}
	if have != want {
		return fmt.Errorf("%s belongs to peer %q of cluster %q, not to peer %q of cluster %q: use another data directory, or remove this one if its contents are no longer needed",
			cfg.Dir, have.Peer, have.Cluster, want.Peer, want.Cluster)
	}
	return nil
}
