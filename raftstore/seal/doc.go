// Package seal keeps a peer's data unreadable and unforgeable at rest: records,
// each bound to the one before it, and streams, such as snapshots.
//
// # Keys
//
// A [Ring] holds data keys by number; the newest seals, all of them open. Its file
// holds them wrapped by [Keys], which is a file of mode 0600 beside it ([KeyFile])
// or whatever the caller has: a KMS, a TPM. A ring is told which keys are still
// needed and forgets the others.
//
// # Nonces
//
// Records are sealed by AES-256-GCM with nonces of 96 random bits. A key seals at
// most [MaxRecords] of them: that two nonces of one key are equal has a chance
// below 2^-40. A counter would need a state on disk that must never go back, and
// disks do go back: a restored image of a virtual machine would seal two records
// with one nonce, and give away the key of their authenticity. Each stream has a
// key of its own, derived from the data key and 256 random bits, under which its
// chunks are counted.
//
// # What is promised
//
// What opens was sealed by a holder of the key, for the same cluster and peer, as
// a thing of the same kind, at the same index. Whoever follows the links of a chain
// from its end finds each record that is missing, old, or in another's place. That
// the end is the newest that ever was, nothing here can know.
//
// # Out of scope
//
// Nothing here knows raft, or what the records say. Formats have a version and only
// ever grow: see the golden files under testdata.
package seal
