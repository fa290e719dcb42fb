// Package probe asks containers how they are, and does what their hooks say.
//
// [State] is the rule: which outcome follows from the answers so far. It is pure.
// [Handler] gives one answer: it runs a command, or talks HTTP, TCP or gRPC.
// [Set] is the thin loop between them, for one pod: a goroutine for each probe,
// so that one which hangs delays no other, and [Limits] on what is under way on
// the whole node at the same time.
package probe
