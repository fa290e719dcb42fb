// Package audit keeps who did what, with which outcome: in files of each peer, appended
// to and chained by hashes. Nothing of it is in the replicated store.
//
// # Files
//
// A file's first line names its format, the peer, the number of its first record and the
// hash before that. Each record is a line: its hash, a space, JSON. The hash is SHA-256
// over the hash before it and the JSON. A file that is full is followed by another one;
// the oldest goes when there are too many: together they take Config.MaxBytes at most.
//
// # What is promised
//
// A record that [Log.Append] has taken is with the operating system when it returns, and
// on disk a second later. [Log.Verify] finds a record that was changed, removed from
// between others, put elsewhere or added; the loss of the oldest files, unless that is
// what the bound demands; and, while the process runs, the loss of the newest. Whoever
// can write the files can make all of them anew, or cut them off while the peer is down:
// that is found by what others have written down. A peer's newest hash is recorded in the
// logs of the others ([Log.Witness]), each minute in which there was news; who compares
// them ([Compare]) finds any change up to there. What came after the last witness, nobody
// but the files knows of.
//
// # A full disk
//
// Records that cannot be written wait in memory, up to a bound. Beyond it [Log.Ready]
// says no, and calls that would have to be recorded are refused: nobody acts unseen by
// filling a disk. Reads that need no record go on.
package audit
