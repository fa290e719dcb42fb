// Package apiserver answers the API of one peer: objects, pods' logs and exec,
// the cluster itself, joining machines, agents, and other peers.
//
// # What is where
//
//   - [Server.Handler] is everything over HTTP: the Connect services, health,
//     metrics and profiles. Who calls is told by the TLS certificate alone; one
//     table (auth.go) says which role may call which procedure, and what is not
//     in it is refused.
//   - Reads come from the local state (read.go), made linearizable by
//     raftstore.Store.Read unless the caller asks for less. Stored bytes go out as
//     they are; an object is decoded only when a selector or JSON needs it.
//   - Each verb of objects has its file. What writes have in common is a plan
//     (plan.go) on one view: compare-and-swap transactions (transact.go), tried
//     again after a conflict when the caller named no resourceVersion. What the
//     cluster decides about an object is in admission.go, what becomes of its
//     fields and their owners in fields.go. Identity and time (uid,
//     creationTimestamp) are stamped here, before proposing: applying an entry must
//     give the same bytes everywhere.
//   - Who may do what is asked in authorize.go, how much at once in limits.go.
//     Callers in this process get no shorter way: inprocess.go.
//   - Agents' streams are served from the local state of whichever peer they
//     called (desired.go), so that an election is invisible to them.
//   - Errors get their Connect code in one place, errors.go.
//
// # Goroutines
//
// New starts nothing. [Server.Run] owns three loops: the index that agents'
// streams are fed from, the relay of heartbeats to the leader, and the exchange
// of events with other peers. Streams end, with Unavailable, when Run does; a
// handler's reader of a client's messages ends with its call.
package apiserver
