//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
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
