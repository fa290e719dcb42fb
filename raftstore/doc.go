// Package raftstore holds the cluster's state: a revisioned, in-memory key-value
// store with history that hashicorp/raft keeps identical on every peer.
//
// # Data model
//
// A key is a path built by package object, such as "pods/default/web-7f2". A
// value is an encoded object, opaque here. Each transaction that changes something
// has the next [Revision]; many of them can share one log entry. Package mvcc has
// the particulars.
//
// # Guarantees
//
//   - [Store.Txn], on any peer, applies all of its writes or none, in log order.
//     What it has acknowledged is on the disks of a majority.
//   - [Store.View] is a local, immutable snapshot, stale by the replication lag.
//   - [Store.Sync], on any peer, is a snapshot that holds everything acknowledged
//     before the call: a linearizable read, without clocks.
//   - [Store.Watch] yields every later change once, in revision order, all of a
//     revision together, or ends with [ErrCompacted], after which the caller lists
//     again. A slow reader costs its cursor and slows nobody.
//   - [Store.Lead] runs the leader's work under a context that ends with the
//     leadership, and what [Leader.Txn] writes is refused once it has ended.
//   - An idle store appends nothing to its log.
//
// # Goroutines
//
// New opens files and starts nothing. [Store.Run] owns raft's goroutines and its
// own; it returns once all of them have ended. A disk that fails or hangs ends it
// with an error: the process must exit, since a file that could not be synced once
// cannot be trusted again.
//
// # Out of scope
//
// Nothing here knows what a pod is: defaults and validation belong to package
// object, placement to package scheduler. Who may connect is for the caller's
// StreamLayer and server to decide.
package raftstore
