// Package mvcc is the store's state machine: a revisioned key-value map with
// history, changed by log entries alone.
//
// # Data model
//
// A key has versions. Each mutating transaction takes the next revision and gives
// every key that it changes a new version at that revision; a deletion is a
// version too, a tombstone. Versions older than the horizon, which Compact entries
// move, are forgotten; the newest at or below the horizon stays. Keys are any bytes
// but none. A key can live by a [Lease], which an entry ends together with its keys.
// Transactions, their compares and their nesting mean what they mean in etcd.
//
// # Guarantees
//
//   - Equal entries give equal states: [State.Apply] reads no clock, draws no
//     random number and starts no goroutine. Equal index means equal [Root.Hash].
//   - A transaction that changes nothing, by its compares or its operations, uses
//     up no revision; nor do leases that are granted. One that is refused changes
//     nothing at all. One with an id takes effect once, as long as that is remembered.
//   - [State.Root] is an immutable snapshot at the cost of a few words. What it
//     holds stays readable while the state goes on.
//   - [Root.Events] is the history as a log: every change after the horizon once,
//     in revision order.
//
// # Concurrency
//
// One goroutine owns a [State]. Roots, and what is read from them, may be used by
// any number of goroutines; values must never be modified.
//
// # Out of scope
//
// Who may write, when to compact, where entries come from: package raftstore.
package mvcc
