package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// A peer with a full disk cannot append to its log, so it must exit; and what would
// make room in the store, a delete, needs an append. So a peer never lets it come to
// that by its own work: below a watermark it gives up the leadership to a voter that
// has room, and if there is none admits only what does not make the store grow. What
// others put on the disk meanwhile is held against by a ballast file, which is given
// up so that the log can go on for a while.

// Space is the room on a disk, in bytes.
type Space struct{ Free, Total int64 }

const (
	roomPeriod = time.Second
	// handOverPeriod is how often a leader without room asks whether another voter
	// has some.
	handOverPeriod = 3 * time.Second

	minLowSpace = 1 << 30
	maxLowSpace = 4 << 30
	maxBallast  = 64 << 20

	alarmLowSpace = "low-space"
)

// lowSpace returns the watermark: a tenth of the disk, but 1 to 4 GiB, which is some
// snapshots and logs, and not more than a quarter.
func (cfg *Config) lowSpace(total int64) int64 {
	if cfg.LowSpace > 0 {
		return cfg.LowSpace
	}
	return min(max(total/10, minLowSpace), maxLowSpace, total/4)
}

// ballastSize returns the size of the ballast on a disk of the given size.
func ballastSize(total int64) int64 { return min(maxBallast, total/16) }

// scarce returns the free space below which the ballast is given up.
func scarce(total int64) int64 { return ballastSize(total) / 4 }

// room watches the space on the disk.
type room struct {
	store *Store
	space func() (Space, error) // nil: not watched
	dir   string                // of the ballast; empty: none

	low      atomic.Bool // below the watermark
	refusing atomic.Bool // and leads: it takes what fits into reserve, and deletes
	// reserve is what was free when the leader began to hand over, less what it has
	// taken since; 0 once nobody else can lead.
	reserve atomic.Int64
	asked   time.Time // when the others were last asked
}

// admit refuses, on the leader while it lacks room, transactions that make the store
// grow. txn is encoded.
func (r *room) admit(txn []byte) error {
	if !r.refusing.Load() || r.store.leader.Load().id != r.store.cfg.ID {
		return nil
	}
	t := new(raftv1.Txn)
	if err := proto.Unmarshal(txn, t); err == nil && !grows(t) {
		return nil
	}
	if r.reserve.Add(-footprint(len(txn))) >= 0 {
		return nil
	}
	return ErrNoSpace
}

// footprint is about the room that a transaction of so many bytes takes, alone in its
// entry: pages of the log, and of the tree above them.
func footprint(bytes int) int64 { return 4*int64(bytes) + 4096 }

// grows reports whether a transaction may make the store larger: whether there is
// anything in it but deletes, revoked leases, reads, and the times of leases.
func grows(t *raftv1.Txn) bool {
	for _, ops := range [][]*raftv1.Op{t.GetThen(), t.GetOtherwise()} {
		for _, op := range ops {
			switch op.GetOp().(type) {
			case *raftv1.Op_Delete, *raftv1.Op_Range, *raftv1.Op_LeaseRevoke, *raftv1.Op_LeaseCheckpoint:
			case *raftv1.Op_Txn:
				if grows(op.GetTxn()) {
					return true
				}
			default:
				return true
			}
		}
	}
	return false
}

// run looks at the disk once a second until ctx ends.
func (r *room) run(ctx context.Context) {
	if r.space == nil {
		return
	}
	tick := time.NewTicker(roomPeriod)
	defer tick.Stop()
	for {
		r.look(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (r *room) look(ctx context.Context) {
	s := r.store
	now, err := r.space()
	if err != nil {
		if !errors.Is(err, errors.ErrUnsupported) {
			s.log.Warn("free space on the disk is not known", "err", err)
		}
		return
	}
	limit := s.cfg.lowSpace(now.Total)
	was := r.low.Load()
	if was {
		limit += limit / 10 // so that it does not come and go
	}
	low := now.Free < limit
	r.low.Store(low)
	switch {
	case low:
		text := fmt.Sprintf("%s of %s are free on the disk of %s; below %s the peer does not lead if another can, and takes only deletes if none can; make room", bytesText(now.Free), bytesText(now.Total), s.place(), bytesText(limit))
		if s.alarms.raise(alarmLowSpace, text) {
			s.log.Error("low on space", "free", now.Free, "limit", limit)
		}
	case was:
		s.alarms.clear(alarmLowSpace)
		s.log.Info("there is room on the disk again", "free", now.Free)
	}
	if now.Free < scarce(now.Total) {
		dropBallast(r.dir)
		if more, err := r.space(); err == nil {
			now = more
		}
	} else if !low && now.Free > limit+2*ballastSize(now.Total) {
		if err := makeBallast(r.dir, ballastSize(now.Total)); err != nil {
			s.log.Warn("no ballast on the disk", "err", err)
		}
	}
	r.refuseOrLeave(ctx, low, now)
}

// refuseOrLeave decides what a leader without room does. Until it knows whether
// anybody else can lead it takes writes as before, as far as there is room for them.
func (r *room) refuseOrLeave(ctx context.Context, low bool, now Space) {
	s := r.store
	if !low || s.leader.Load().id != s.cfg.ID {
		r.refusing.Store(false)
		r.asked = time.Time{}
		return
	}
	if !r.asked.IsZero() && time.Since(r.asked) < handOverPeriod {
		return
	}
	r.asked = time.Now()
	first := !r.refusing.Load()
	if first {
		r.reserve.Store(now.Free)
		r.refusing.Store(true)
	}
	err := r.leave(ctx)
	if err == nil {
		s.log.Info("handed the leadership to a peer whose disk has room")
		r.refusing.Store(false)
		return
	}
	r.reserve.Store(0)
	if first {
		s.log.Error("only deletes are taken until there is room on the disk", "err", err)
	}
}

// leave hands the leadership to a voter that has room.
func (r *room) leave(ctx context.Context) error {
	s := r.store
	ctx, cancel := context.WithTimeout(ctx, 2*s.cfg.HeartbeatTimeout+roundTimeout)
	defer cancel()
	var errs []error
	for _, server := range s.configuration().Servers {
		id := string(server.ID)
		if server.Suffrage != raft.Voter || id == s.cfg.ID {
			continue
		}
		err := r.leaveTo(ctx, server)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("peer %s: %w", id, err))
	}
	if len(errs) == 0 {
		return errors.New("there is no other voter")
	}
	return errors.Join(errs...)
}

func (r *room) leaveTo(ctx context.Context, server raft.Server) error {
	s := r.store
	client, err := s.cfg.Remote(string(server.ID))
	if err != nil {
		return err
	}
	ask, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	resp, err := client.ReadIndex(ask, &peerv1.ReadIndexRequest{})
	if err != nil {
		return err
	}
	if resp.GetLowSpace() {
		return errors.New("low on space, too")
	}
	return s.TransferLeadership(ctx, string(server.ID))
}

// beforeAppend gives up the ballast if an append of about so many bytes might not
// fit otherwise.
func (r *room) beforeAppend(bytes int64) {
	if r.dir == "" {
		return
	}
	// A commit of the database writes some pages more than the entries.
	if now, err := r.space(); err == nil && now.Free < scarce(now.Total)+4*bytes {
		dropBallast(r.dir)
	}
}

// dropBallast gives up the ballast in dir, and reports whether there was one.
func dropBallast(dir string) bool {
	return dir != "" && os.Remove(filepath.Join(dir, ballastFile)) == nil
}

// makeBallast makes the ballast in dir, unless it is there.
func makeBallast(dir string, size int64) (err error) {
	if dir == "" || size <= 0 {
		return nil
	}
	path := filepath.Join(dir, ballastFile)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	err = allocate(f, size)
	if errors.Is(err, errors.ErrUnsupported) {
		zeros := make([]byte, 1<<20)
		for err = nil; err == nil && size > 0; size -= int64(len(zeros)) {
			_, err = f.Write(zeros[:min(size, int64(len(zeros)))])
		}
	}
	return err
}

// bytesText says a number of bytes as people do.
func bytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d bytes", n)
}
