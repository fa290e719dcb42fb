// Package client talks to a cluster: to any of its peers, over one connection,
// with failover. The CLI and the agent use it.
//
// # Connections
//
// A [Client] keeps one HTTP/2 connection to one peer, in TLS 1.3 with the
// client's certificate, and stays with it. It moves to another peer when that
// one dies, stops answering pings, cannot serve ([connect.CodeUnavailable]) or
// when told to ([Client.Switch]). A new connection is tried with the last good
// peer first and, a quarter of a second apart, with the others; the first that
// answers wins. Streams that are open on a connection when the client moves
// stay there until they end.
//
// # Guarantees for unary calls
//
//   - A call that was not executed is retried on other peers: no peer could be
//     reached, the connection broke before the call was sent, the peer refused
//     it with Unavailable, which says that nothing was proposed.
//   - A call that may have been executed is retried only if repeating it does no
//     harm: the reads and the idempotent calls in retry.go's table. Any other one
//     fails with [connect.CodeUnknown]: read before trying again.
//   - Unknown from a peer is never retried: it means that a write's outcome
//     cannot be told.
//   - Retries end with the context or after 10 s, whichever is first; but each
//     peer is asked once within 30 s, since a peer without a leader takes up to
//     10 s to say so.
//
// Streams are opened on another peer if the first cannot be reached; once open,
// they are not retried: only their reader knows where to go on.
//
// # Lists
//
// A peer answers with 64 MiB at most. [Client.List] and [ListAll] read a list in
// pages, all of the same revision.
//
// # Also here
//
// [Join] trades a token for credentials. [LoadConfig] reads the file with the
// clusters that a person works with, each a [Context].
//
// # Goroutines
//
// New starts nothing. A connection has one goroutine, of package net/http, and
// ends with [Client.Close] or when the peer goes. All methods are safe for
// concurrent use.
package client
