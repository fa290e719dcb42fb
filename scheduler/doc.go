// Package scheduler binds pending pods to nodes. It runs on the leader only,
// under a context that ends with the leadership.
//
// # Decisions
//
// For each pod, filters say which nodes can take it, each with a reason when one
// cannot; scores order those that can: the emptiest first, and away from pods of
// the same owner. Equal scores go to the first name, so equal clusters give equal
// decisions. Nothing in it reads a clock, store or network: testdata states its
// whole behavior, and [Explain] gives the same answer from any view, on any peer.
//
// # Guarantees
//
//   - A pass places many pods from one view and counts each as soon as it is
//     placed, so pods of one pass do not overfill a node.
//   - Each binding is one transaction, conditional on the pod being as it was when
//     it was read, and on the leader's term. A pod is bound once.
//   - A pod that fits nowhere carries the reason in its condition PodScheduled,
//     written when it changes, and waits until something changes that could help.
//     An idle cluster appends nothing to its log.
//
// # Goroutines
//
// New starts nothing. [Scheduler.Run] decides on its own goroutine and commits on a
// bounded number of others; it returns once all have ended.
package scheduler
