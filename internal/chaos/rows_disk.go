//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/internal/devcluster"
	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

// smallDisk is the room of a peer in row 11.
const smallDisk = 96 << 20

// playFull takes all room on the leader's disk: another one leads. Then on all disks:
// nothing grows, but reads and deletions work; and with room again all goes on
// without a restart.
func playFull(ctx context.Context, e *experiment) error {
	leader, err := e.leader(ctx)
	if err != nil {
		return err
	}
	mark := e.load.mark()
	if err := leader.fill(); err != nil {
		return err
	}
	e.strike(1, "no room on the disk of the leader "+leader.name())
	if err := e.writes(ctx, mark, progressWithin, "gap_leader_full"); err != nil {
		return err
	}
	err = eventually(ctx, progressWithin, "other leader", func(ctx context.Context) error {
		now, err := e.leader(ctx)
		if err == nil && now == leader {
			err = errors.New("it leads still")
		}
		return err
	})
	if err != nil {
		return err
	}
	e.measure("leader_full_handed_over", time.Since(mark.at))
	mark = e.load.mark()
	if err := e.writes(ctx, mark, progressWithin, "gap_after_hand_over"); err != nil {
		return err
	}
	if err := leader.unfill(); err != nil {
		return err
	}
	sleep(ctx, e.opts.seconds/3)

	for _, m := range e.all() {
		if err := m.fill(); err != nil {
			return err
		}
	}
	e.strike(len(e.all()), "no room on any disk")
	any := e.dial(e.all()...)
	defer any.Close()
	store := storev1connect.NewStoreServiceClient(any.Connect())
	err = eventually(ctx, progressWithin, "refusal of writes", func(ctx context.Context) error {
		_, err := store.Put(ctx, &storev1.PutRequest{Key: []byte("full/x"), Value: []byte("nobody's")})
		if connect.CodeOf(err) == connect.CodeResourceExhausted {
			return nil
		}
		return fmt.Errorf("a write is answered with %v", err)
	})
	if err != nil {
		return err
	}
	// Half a minute would be no disk's end: what is there must do.
	err = eventually(ctx, liveWithin, "read and deletion on full disks", func(ctx context.Context) error {
		if _, err := store.Range(ctx, &storev1.RangeRequest{Key: []byte(hotPrefix), RangeEnd: endOf(hotPrefix)}); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		_, err := store.Delete(ctx, &storev1.DeleteRequest{Key: []byte("full/x")})
		return err
	})
	if err != nil {
		return err
	}
	sleep(ctx, e.opts.seconds/3)
	for _, m := range e.all() {
		if !m.running() {
			e.fail("%s has ended on a full disk: it should refuse what makes the store grow, and wait", m.name())
		}
		if err := m.unfill(); err != nil {
			return err
		}
	}
	mark = e.load.mark()
	return e.writes(ctx, mark, progressWithin, "gap_after_room")
}

// serves starts the process and reports whether it serves; an error is neither.
func (m *machine) serves(ctx context.Context) (bool, error) {
	err := m.restart(ctx)
	if err != nil && !m.running() && ctx.Err() == nil {
		return false, nil
	}
	return err == nil, err
}

// playRot flips a bit in a file of a stopped follower: it refuses to start and says
// so, or what it lost was nothing. In the end its log is gone, and another peer takes
// its place.
func playRot(ctx context.Context, e *experiment) error {
	var detected, harmless int
	err := e.turns(ctx, func(n int) error {
		leader, err := e.leader(ctx)
		if err != nil {
			return err
		}
		m := e.others(leader)[n%2]
		if err := m.kill(); err != nil {
			return err
		}
		name := []string{"raft.db", "votes", "keys.json", "raft.db"}[n%4]
		path := filepath.Join(m.data(), "raft", name)
		good, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		bad := slices.Clone(good)
		var used []int // a hole of a file is nobody's
		for i, b := range bad {
			if b != 0 {
				used = append(used, i)
			}
		}
		at := used[e.rand.IntN(len(used))]
		bad[at] ^= 1 << e.rand.IntN(8)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			return err
		}
		serves, err := m.serves(ctx)
		if err != nil {
			return err
		}
		if serves {
			harmless++
			e.note("a bit of %s of %s at %d is flipped: it serves", name, m.name(), at)
			sleep(ctx, time.Second)
			return nil
		}
		detected++
		e.strike(1, fmt.Sprintf("a bit of %s of %s at %d is flipped: it does not start", name, m.name(), at))
		if err := os.WriteFile(path, good, 0o600); err != nil {
			return err
		}
		return m.restart(ctx)
	})
	if err != nil {
		return err
	}
	e.values = append(e.values, value{"flips_refused", float64(detected), "flips"}, value{"flips_of_nothing", float64(harmless), "flips"})
	leader, err := e.leader(ctx)
	if err != nil {
		return err
	}
	m := e.others(leader)[0]
	if err := m.kill(); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(m.data(), "raft", "raft.db")); err != nil {
		return err
	}
	serves, err := m.serves(ctx)
	if err != nil {
		return err
	}
	if serves {
		e.fail("P2: %s serves without the log it had", m.name())
	}
	e.strike(1, "the log of "+m.name()+" is gone: it does not start")
	if err := e.remove(ctx, m); err != nil {
		return err
	}
	if _, err := e.grow(ctx, 1); err != nil {
		return err
	}
	return e.settle(ctx, 3)
}

// What a follower must miss so that it is sent a snapshot: up to 64 MiB until the
// leader takes one, 64 MiB until the next, behind which as much of the log is kept.
const (
	missedBytes = 140 << 20
	// anotherBytes bring about one snapshot more.
	anotherBytes = 70 << 20
)

// playSnapshot lets a follower miss more than the log keeps, and kills it while it
// takes the snapshot. Twice at most: a witness remembers all that was written.
func playSnapshot(ctx context.Context, e *experiment) error {
	for n, end := 0, time.Now().Add(e.opts.seconds); n < 2 && (n == 0 || time.Now().Before(end)); n++ {
		leader, err := e.leader(ctx)
		if err != nil {
			return err
		}
		m := e.others(leader)[n%2]
		if err := m.kill(); err != nil {
			return err
		}
		if err := e.bulk(ctx, missedBytes); err != nil {
			return err
		}
		e.note("%s missed %d MiB", m.name(), missedBytes>>20)
		crashed := 0
		for range 3 {
			if err := m.begin(devcluster.Boot{}); err != nil {
				return err
			}
			installed, err := m.receiving(ctx)
			if err != nil {
				return err
			}
			if installed {
				e.note("%s was faster than the kill", m.name())
				break
			}
			sleep(ctx, time.Duration(e.rand.IntN(200))*time.Millisecond)
			if err := m.kill(); err != nil {
				return err
			}
			crashed++
			e.strike(1, m.name()+" is killed while it receives a snapshot")
		}
		if crashed == 0 {
			e.fail("P11: %s was not killed in the middle of a snapshot", m.name())
		}
		begin := time.Now()
		if !m.running() {
			if err := m.restart(ctx); err != nil {
				return err
			}
		}
		target := e.load.floorAt(time.Now())
		err = eventually(ctx, caughtUpWithin, "snapshot and catching up of "+m.name(), func(ctx context.Context) error {
			all, err := m.metrics(ctx)
			if err != nil {
				return err
			}
			if all["holdfast_store_snapshots_installed_total"] == 0 {
				return errors.New("it has installed none")
			}
			if at := int64(all["holdfast_store_revision"]); at < target {
				return fmt.Errorf("it is at revision %d of %d", at, target)
			}
			return nil
		})
		if err != nil {
			return err
		}
		e.measure("until_caught_up", time.Since(begin))
		e.strike(1, m.name()+" has installed a snapshot")
		if err := e.bulk(ctx, anotherBytes); err != nil { // a second snapshot close by
			return err
		}
	}
	return nil
}

// receiving returns once the machine has begun to receive a snapshot, and whether it
// has installed it already.
func (m *machine) receiving(ctx context.Context) (installed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	for {
		all, err := m.metrics(ctx)
		if all["holdfast_store_snapshots_installed_total"] > 0 {
			return true, nil
		}
		if all["holdfast_store_snapshots_received_total"] > 0 {
			return false, nil
		}
		if sleep(ctx, 5*time.Millisecond); ctx.Err() != nil {
			return false, fmt.Errorf("P11: %s is sent no snapshot (%w)", m.name(), errors.Join(err, context.Cause(ctx)))
		}
	}
}

// bulk writes so many bytes.
func (e *experiment) bulk(ctx context.Context, total int) error {
	const each = 48 << 10 // many entries: the log keeps a thousand, whatever their size
	l := e.load
	w := &worker{load: l, name: "bulk", peer: "any", rand: e.rand, client: e.dial(e.all()...)}
	defer w.client.Close()
	w.store = storev1connect.NewStoreServiceClient(w.client.Connect())
	filler := make([]byte, each)
	for i := 0; i < total/each && ctx.Err() == nil; i++ {
		key := fmt.Sprintf("bulk/%d", i%16)
		_, _ = rand.Read(filler) // of which a snapshot is as large as it was
		var value []byte
		err := w.write(ctx, func(id string) *raftv1.Txn {
			value = append([]byte(id+" "), filler...)
			return &raftv1.Txn{Then: []*raftv1.Op{putOp(key, value)}}
		}, func(ctx context.Context, _ string) (raftstore.Result, error) {
			res, err := w.store.Put(ctx, &storev1.PutRequest{Key: []byte(key), Value: value})
			return raftstore.Result{Revision: res.GetHeader().GetRevision(), Succeeded: true, Ops: []*raftv1.OpResult{putResult(res)}}, err
		})
		if err != nil {
			i--
			sleep(ctx, 100*time.Millisecond)
		}
	}
	return nil
}
