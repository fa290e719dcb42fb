// Package etcd serves etcd's v3 gRPC API on the replicated store, so that etcdctl,
// go.etcd.io/etcd/client/v3 and what is built on them work unmodified. The messages
// are etcd's own (go.etcd.io/etcd/api/v3); the handlers are Connect's, which speak
// gRPC.
//
// # Keys
//
// Clients see the user keyspace and nothing else: each of their keys has
// [raftstore.UserKeyspace] put before it, as in the raw-store service, which shows
// the same keys. No request reaches an object.
//
// # Semantics
//
// They are etcd's, with its error texts and codes, on which clients match, and its
// limits: 128 operations, 1.5 MiB. What differs:
//
//   - Revisions are the whole store's, which changes for objects, too. So they have
//     gaps where only keys are looked at, and a new cluster does not begin at 1.
//   - Leases are the whole store's as well.
//   - A key has at most 1,020 bytes; transactions nest at most 8 deep and have at
//     most 512 compares and operations together.
//   - A write through a follower returns before that follower has it: a
//     serializable read there may lag, a linearizable one never does. etcd's member
//     waits until it has applied it.
//   - A serializable read at a revision that this peer has not reached asks the
//     others, where etcd refuses.
//   - Progress is notified every 5 s, not every 10 min, and history is kept for
//     minutes; the store compacts by itself.
//   - Members and users are Holdfast's business: such calls are refused, and say
//     what to use instead.
//
// # Who may call
//
// Administrators, by a client certificate of the cluster. All procedures of etcd's
// API are registered; those that are not served are refused with the reason.
package etcd
