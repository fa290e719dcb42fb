package apiserver

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// maxAttempts bounds how often a write is planned anew after a conflict.
	maxAttempts = 10
	// maxNameAttempts bounds how often a generated name that is taken is replaced.
	maxNameAttempts = 8
	// settlePause is the pause before the store is asked again what became of a write.
	settlePause = 100 * time.Millisecond
)

// change is what a write wants: operations under conditions. Without operations
// there is nothing to do, and nothing is written.
type change struct {
	conditions []raftstore.Compare
	ops        []raftstore.Op
}

// put writes obj under its key, as a change of what stands there at revision, 0
// if nothing may. It returns obj as it is stored.
func (c *change) put(obj object.Object, revision int64) ([]byte, error) {
	key := string(object.KeyOf(obj))
	data, err := object.Encode(obj)
	if err != nil {
		return nil, err
	}
	c.putRaw(key, data, revision)
	return data, nil
}

// putRaw is put for what is no object.
func (c *change) putRaw(key string, data []byte, revision int64) {
	c.unchanged(key, revision)
	c.ops = append(c.ops, raftstore.Put(key, data))
}

// remove deletes what stands under key at revision.
func (c *change) remove(key string, revision int64) {
	c.unchanged(key, revision)
	c.ops = append(c.ops, raftstore.Delete(key))
}

func (c *change) unchanged(key string, revision int64) {
	if revision == 0 {
		c.conditions = append(c.conditions, raftstore.Absent(key))
		return
	}
	c.conditions = append(c.conditions, raftstore.ModIs(key, revision))
}

// transact calls plan with a view and commits what it wants, from the start again
// after each conflict. A plan that must not be repeated on newer state, because the
// caller named the state, fails by itself. The revision returned is the change's
// own, or the view's when there was nothing to do.
//
// The view is linearizable, so that "not found", "unchanged" and every fault are
// true. early allows to begin with what this peer has: a change is as good on it,
// since it happens under the conditions that it rests on, and needs a round to a
// majority less. What is not a change counts only on a linearizable view.
//
// Each transaction has an id, so that the store asks again by itself when the
// leader is lost on the way: most elections cost a write nothing but time.
func (s *Server) transact(ctx context.Context, what, reason string, early bool, plan func(view raftstore.View) (change, error)) (revision int64, err error) {
	for attempt := 0; attempt < maxAttempts; {
		view := s.store.View()
		if !early {
			if view, err = s.sync(ctx); err != nil {
				return 0, err
			}
			attempt++
		}
		c, err := plan(view)
		if early && (err != nil || len(c.ops) == 0) {
			early = false
			continue
		}
		if err != nil {
			return 0, err
		}
		if len(c.ops) == 0 {
			return view.Revision(), nil
		}
		result, err := s.settle(ctx, raftstore.Txn{If: c.conditions, Then: c.ops, Actor: actor(ctx), Reason: reason, ID: newTxnID()})
		if err == nil {
			auditingOf(ctx).changed(result.Revision)
			return result.Revision, nil
		}
		if !errors.Is(err, raftstore.ErrConflict) {
			return 0, storeError(what, err)
		}
		early = false
	}
	return 0, connect.Errorf(connect.CodeAborted, "%s: it changed %d times while this was tried; retry", what, maxAttempts)
}

// settle commits t, which has an id, and asks what became of it until that is known or
// the call's time is up. The store itself asks for as long as an election takes; beyond
// that its "outcome unknown" would be the end for who could have waited.
func (s *Server) settle(ctx context.Context, t raftstore.Txn) (raftstore.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	result, err := s.store.Txn(ctx, t)
	for unknown := err; errors.Is(unknown, raftstore.ErrOutcomeUnknown); {
		if ctx.Err() != nil || errors.Is(err, raftstore.ErrClosed) || s.store.Refusal() != nil {
			return result, unknown
		}
		select {
		case <-time.After(settlePause): // a busy leader refuses at once
		case <-ctx.Done():
		}
		result, err = s.store.Txn(ctx, t)
		if err == nil || errors.Is(err, raftstore.ErrConflict) {
			return result, err // that of the first attempt, if it was committed
		}
		// Whatever refuses the repetition says nothing of the first.
	}
	return result, err
}

// newTxnID returns an id that no other transaction has.
func newTxnID() []byte {
	id := binary.LittleEndian.AppendUint64(nil, rand.Uint64())
	return binary.LittleEndian.AppendUint64(id, rand.Uint64())
}
