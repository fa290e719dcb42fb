// Package eventlog keeps the cluster's Events (core/v1): what the scheduler, the
// controllers and the agents have to say about objects, for people to read.
//
// Events are not in the replicated store: a crash-looping pod must not cost a
// raft entry for each of its restarts, and losing an event breaks nothing. Each
// peer has a [Log] of what was recorded on it, and holds a copy of the other
// peers' logs besides, so that any peer shows all of them.
//
// # Data model
//
// The same thing said again about the same object (reason, message, type and
// source) is one event: its count grows and its last time moves. What one log
// knows of one event is a record; the event that users see adds up the records
// of all logs, which makes the order in which they arrive irrelevant.
//
// Each change of what this Log shows has a position, which serves as the event's
// resourceVersion. Positions order the changes of one Log since its process
// started and mean nothing to another: [Log.Since] answers [ErrCompacted] to
// those that it did not give out itself.
//
// # Bounds
//
// Records are kept in segment files, appended and never rewritten. Past
// Config.MaxBytes the oldest segment goes, with the events whose last record it
// holds; events go Config.MaxAge after they were last recorded. An event that
// repeats is written at intervals that grow with its age, from one second to one
// minute, so that one noisy pod does not push out everything else.
//
// A record survives the death of the process as soon as it is written, and a
// power loss as the file system pleases: nothing is synced.
package eventlog
