package raftstore

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// hangLimit is how long a write to the log may take before this peer gives up its
// disk for dead. A peer with such a disk cannot be a good leader, and raft would
// keep it one: its heartbeats do not touch the disk (hashicorp/raft#503).
const hangLimit = 10 * time.Second

// disk watches over the writes of one peer's log and votes. After the first one
// that fails or hangs it lets none through any more: the kernel may have dropped
// the pages and call the next sync a success, and a write that comes late may land
// on a newer one. Only a new process may trust the files again, by reading them.
type disk struct {
	fail    func(error) // told once, of the first failure
	metrics *metrics
	base    time.Time
	since   atomic.Int64 // when the write in progress began, after base; 0: none
	dead    atomic.Pointer[error]
	done    chan struct{} // closed by stop
	once    sync.Once
	running atomic.Bool // raft's goroutines are
}

func newDisk(m *metrics, fail func(error)) *disk {
	return &disk{fail: fail, metrics: m, base: time.Now(), done: make(chan struct{})}
}

// stop lets go of what waits for the store to stop.
func (d *disk) stop() { d.once.Do(func() { close(d.done) }) }

// write runs fn, which must sync what it writes.
func (d *disk) write(what string, fn func() error) error {
	if dead := d.dead.Load(); dead != nil {
		return *dead
	}
	begin := time.Since(d.base)
	d.since.Store(int64(max(begin, 1)))
	hang := time.AfterFunc(hangLimit, func() {
		d.poison(fmt.Errorf("%s has taken more than %v: %w; stopping, so that another peer can lead", what, hangLimit, ErrDiskHangs))
	})
	err := fn()
	hang.Stop()
	d.since.Store(0)
	d.metrics.diskSeconds.Observe((time.Since(d.base) - begin).Seconds())
	if err != nil {
		d.poison(fmt.Errorf("%s: %w; stopping, since what the disk holds is uncertain", what, err))
	}
	if dead := d.dead.Load(); dead != nil {
		return *dead // also when it came back after having hung
	}
	return nil
}

// giveUp ends the calling goroutine, if it is one of raft's, once the store is
// stopping: raft would panic over what failed, and take the whole process along with
// whatever else it runs. The store knows of the failure already.
func (d *disk) giveUp() {
	if d.running.Load() {
		<-d.done
		runtime.Goexit()
	}
}

func (d *disk) poison(err error) {
	if d.dead.CompareAndSwap(nil, &err) {
		d.fail(err)
	}
}

// stalled reports whether the disk is dead or a write has been going on for longer
// than limit.
func (d *disk) stalled(limit time.Duration) bool {
	if d.dead.Load() != nil {
		return true
	}
	since := d.since.Load()
	return since != 0 && time.Since(d.base)-time.Duration(since) > limit
}

// logStore is raft's log over another LogStore, with a cache of the tail and the
// disk's latch. The cache is bounded by bytes: entries are up to 1.5 MiB.
type logStore struct {
	under raft.LogStore
	disk  *disk
	// before is called before an append of about so many bytes, unless nil.
	before func(bytes int64)
	// makeRoom is called when an append found no room, and reports whether it made some.
	// Nil: there is none to make.
	makeRoom func() bool

	mu    sync.RWMutex
	tail  []*raft.Log // consecutive, ending with the last entry
	bytes int64
	limit int64
}

func newLogStore(under raft.LogStore, d *disk, limit int64) *logStore {
	return &logStore{under: under, disk: d, limit: limit}
}

// FirstIndex implements raft.LogStore.
func (l *logStore) FirstIndex() (uint64, error) { return l.under.FirstIndex() }

// LastIndex implements raft.LogStore.
func (l *logStore) LastIndex() (uint64, error) { return l.under.LastIndex() }

// GetLog implements raft.LogStore.
func (l *logStore) GetLog(index uint64, entry *raft.Log) error {
	l.mu.RLock()
	if n := len(l.tail); n > 0 && index >= l.tail[0].Index && index <= l.tail[n-1].Index {
		*entry = *l.tail[index-l.tail[0].Index]
		l.mu.RUnlock()
		return nil
	}
	l.mu.RUnlock()
	err := l.under.GetLog(index, entry)
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
		// What cannot be read was perhaps acknowledged. This peer must neither go
		// on without it, nor vote as if it had it.
		l.disk.poison(fmt.Errorf("read the log: %w", err))
		l.disk.giveUp()
	}
	return err
}

// StoreLog implements raft.LogStore.
func (l *logStore) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore. It returns once the entries are on disk.
func (l *logStore) StoreLogs(entries []*raft.Log) error {
	if l.before != nil {
		size := int64(0)
		for _, e := range entries {
			size += cost(e)
		}
		l.before(size)
	}
	err := l.disk.write("append to the log", func() error {
		err := l.under.StoreLogs(entries)
		if noRoom(err) && l.makeRoom != nil && l.makeRoom() {
			err = l.under.StoreLogs(entries)
		}
		return err
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range entries {
		if n := len(l.tail); n > 0 && l.tail[n-1].Index+1 != e.Index {
			l.tail, l.bytes = nil, 0 // a gap, or an overwrite: begin again
		}
		// A copy: raft goes on to use its own.
		c := *e
		l.tail = append(l.tail, &c)
		l.bytes += cost(&c)
	}
	drop := 0
	for ; l.bytes > l.limit && drop < len(l.tail)-1; drop++ {
		l.bytes -= cost(l.tail[drop])
	}
	l.dropFront(drop)
	return nil
}

// noRoom reports whether a write, rather than a sync, found no room: the database has
// rolled its transaction back, none of it counts, and it can be tried again. Whatever
// a failed sync has left behind is uncertain.
func noRoom(err error) bool {
	failed, ok := errors.AsType[*fs.PathError](err)
	return ok && failed.Op == "write" && errors.Is(failed.Err, syscall.ENOSPC)
}

func cost(e *raft.Log) int64 { return int64(len(e.Data)) + 128 }

func (l *logStore) dropFront(n int) {
	clear(l.tail[:n]) // the array outlives the slice
	l.tail = l.tail[n:]
}

// DeleteRange implements raft.LogStore: a prefix when raft compacts, a suffix when
// a new leader's log differs.
func (l *logStore) DeleteRange(first, last uint64) error {
	l.mu.Lock()
	if n := len(l.tail); n > 0 && last >= l.tail[0].Index && first <= l.tail[n-1].Index {
		if first <= l.tail[0].Index && last < l.tail[n-1].Index {
			drop := int(last - l.tail[0].Index + 1)
			for _, e := range l.tail[:drop] {
				l.bytes -= cost(e)
			}
			l.dropFront(drop)
		} else if first > l.tail[0].Index {
			keep := int(first - l.tail[0].Index)
			for _, e := range l.tail[keep:] {
				l.bytes -= cost(e)
			}
			clear(l.tail[keep:])
			l.tail = l.tail[:keep]
		} else {
			l.tail, l.bytes = nil, 0
		}
	}
	l.mu.Unlock()
	return l.disk.write("discard from the log", func() error { return l.under.DeleteRange(first, last) })
}

// stableStore is raft's term and vote over another StableStore, under the disk's
// latch.
type stableStore struct {
	raft.StableStore
	disk *disk
}

// Set implements raft.StableStore.
func (s *stableStore) Set(key, value []byte) error {
	return s.disk.write("write the vote", func() error { return s.StableStore.Set(key, value) })
}

// SetUint64 implements raft.StableStore.
func (s *stableStore) SetUint64(key []byte, value uint64) error {
	err := s.disk.write("write the term", func() error { return s.StableStore.SetUint64(key, value) })
	if err != nil {
		s.disk.giveUp()
	}
	return err
}
