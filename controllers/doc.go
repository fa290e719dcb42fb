// Package controllers moves the cluster from what was declared toward what is:
// every kind that owns pods, the life of nodes, the deletion of namespaces, and
// the removal of objects whose owner is gone. It runs on the leader only, under
// a context that ends with the leadership.
//
// # Plans and the loop
//
// Every decision is a pure function of objects and a time, one file each:
// [planDeployment], [planReplicaSet], [planNode], [judge], [planNamespace],
// [planCollection]. They read no clock, store or network, so the files under
// testdata state their whole behavior. One loop ([runner]) does the rest for
// all of them: it notices which objects may need a look, calls the plan, and
// commits what it decided in one transaction, conditional on everything that the
// plan has read and changes.
//
// # Guarantees
//
//   - A plan sees every write that an earlier plan for the same object made. The
//     leader applies before it answers, so no cache of expectations is needed.
//   - Nothing is written when nothing changes: an idle cluster appends nothing
//     to its log. Heartbeats stay in memory; only transitions are written.
//   - A write carries the leader's term. A deposed leader changes nothing.
//   - One object's failure, even a panic, delays only that object. It is tried
//     again with a growing, randomized delay, and an event says so.
//   - Pods that a ReplicaSet owns never outnumber its status.replicas, and a
//     rolling update counts that number. So the pods of a Deployment exceed
//     replicas + maxSurge at no revision, unless a person lowers the bound.
//
// # Health
//
// A node is lost when its heartbeats have been silent for a lease and gossip
// does not see it alive either. Silence counts only while this leader listened:
// not before it began to lead, and not while it was itself paused. When more
// than a third of three or more nodes fall silent together, none is evicted.
// A fenced pod of a lost node is replaced after its node's lease has ended for
// certain. See DESIGN.md.
//
// # Goroutines
//
// New starts nothing. [Controllers.Run] plans on its own goroutine, one plan at a
// time, and commits on a bounded number of others; it returns once all have.
package controllers
