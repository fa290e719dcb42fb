// Package history checks what a cluster did against what a store promises.
//
// While a test runs, its clients, watchers and peers write into a [Recorder]: each
// call with its beginning and end, each answer of a watch, each entry that a peer
// applies. [Recorder.Check] then replays the committed log on a naive twin of the
// state machine (a map, copied from nothing of ours) and compares all of it:
//
//   - P1: each answer is the log's, at the log's place, and that place lies between
//     the call and its end (strict serializability); porcupine says the same of the
//     same history without being told the order
//   - P2: what was acknowledged is in the log, once; what was refused is not
//   - P3: revisions never go back
//   - P4: a watch is exactly the log's events, each revision whole, up to where it
//     says, over all peers that served it
//   - P6, P7: all peers applied the same entries and had the same state hash, at
//     each index
//
// Order is that of the recorder's lock, not of a clock: many things happen at one
// moment of virtual time.
package history
