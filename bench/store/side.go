package main

import (
	"context"

	"github.com/holdfast-io/holdfast/bench/rig"
)

// side is one of the two stores: three members, and how to reach them.
type side interface {
	// start makes a new cluster and returns once it serves.
	start(ctx context.Context) error
	// stop ends all members and removes their data.
	stop()
	// pids are those of the members that run.
	pids() []int
	// leader returns the leading member's number.
	leader(ctx context.Context) (int, error)
	// restart starts a member that has ended.
	restart(ctx context.Context, member int) error
	// member returns a member's process.
	member(i int) *rig.Process
	// dial connects to members, in order of preference. One call is one
	// connection. The way is one of those that the side knows.
	dial(ctx context.Context, way string, members ...int) (conn, error)
}

const members = rig.Members

// Ways to call.
const (
	unary   = "unary"
	session = "session"
)

// pair is a key and its value.
type pair struct{ key, value []byte }

// conn is a client with one connection. Its methods may be called by many at once.
type conn interface {
	put(ctx context.Context, p pair) error
	// putAll puts all in one transaction.
	putAll(ctx context.Context, pairs []pair) error
	// get reads one key, linearizable or whatever the member has.
	get(ctx context.Context, key []byte, linearizable bool) error
	// watch begins to watch a key and returns once the member has begun. It calls
	// event with the value of each change until ctx ends.
	watch(ctx context.Context, key []byte, event func(value []byte)) error
	// list reads all keys with a prefix in pages, at one revision.
	list(ctx context.Context, prefix []byte) (keys int, err error)
	// backup reads the whole store from one member and returns its size.
	backup(ctx context.Context) (bytes int64, err error)
	close()
}

// pageSize is how many keys a list reads at once.
const pageSize = 1000
