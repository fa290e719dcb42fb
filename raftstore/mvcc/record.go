package mvcc

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"

	"github.com/google/btree"
)

// record is one version of a key. It never changes once it is in a tree or in the
// event log: readers hold it without locks.
type record struct {
	key    string
	value  []byte // nil for a tombstone
	create int64
	mod    int64
	ver    int64 // writes since creation; 0 for a tombstone
	lease  int64
	sub    int64   // place among the changes of its revision
	sum    hash128 // of a live record, for the state hash
	prev   *record // the version before, nil when there is none or it is compacted
}

func (r *record) live() bool { return r != nil && r.ver > 0 }

// at returns the version of r's key that was current at revision rev: nil if the
// key did not exist then.
func (r *record) at(rev int64) *record {
	for r != nil && r.mod > rev {
		r = r.prev
	}
	if !r.live() {
		return nil
	}
	return r
}

func (r *record) keyValue() KeyValue {
	return KeyValue{Key: r.key, Value: r.value, Create: r.create, Mod: r.mod, Version: r.ver, Lease: r.lease}
}

// size is the memory that the version takes, near enough for bounds.
func (r *record) size() int64 { return int64(len(r.value)) + recordOverhead }

const recordOverhead = 128

// treeDegree gives nodes of up to 63 records: the width at which this tree was
// measured for lookups, copies on write and scans.
const treeDegree = 32

type tree = btree.BTreeG[*record]

func newTree() *tree {
	return btree.NewG(treeDegree, func(a, b *record) bool { return a.key < b.key })
}

// hash128 is an element of the group of integers modulo 2^128. The sum of the
// records' hashes is the state hash: it does not depend on their order, and a
// change costs one subtraction and one addition.
type hash128 struct{ hi, lo uint64 }

func (h hash128) add(o hash128) hash128 {
	lo, carry := bits.Add64(h.lo, o.lo, 0)
	hi, _ := bits.Add64(h.hi, o.hi, carry)
	return hash128{hi, lo}
}

func (h hash128) sub(o hash128) hash128 {
	lo, borrow := bits.Sub64(h.lo, o.lo, 0)
	hi, _ := bits.Sub64(h.hi, o.hi, borrow)
	return hash128{hi, lo}
}

func (h hash128) bytes() (b Hash) {
	binary.BigEndian.PutUint64(b[:8], h.hi)
	binary.BigEndian.PutUint64(b[8:], h.lo)
	return b
}

// hashKey separates these hashes from any other use of SHA-256. It is part of the
// format: replicas compare hashes, and snapshots carry them.
const hashKey = "holdfast/state/1\x00"

// sumOf hashes everything that a reader can see of a live record. The first half
// of SHA-256 is enough against corruption and bugs, which is what the state hash
// is for; it does not withstand somebody who chooses values to collide.
func sumOf(r *record) hash128 {
	var buf [512]byte
	b := append(buf[:0], hashKey...)
	b = binary.BigEndian.AppendUint64(b, uint64(len(r.key)))
	b = append(b, r.key...)
	for _, n := range [...]int64{r.create, r.mod, r.ver, r.lease} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	b = append(b, r.value...)
	d := sha256.Sum256(b)
	return hash128{binary.BigEndian.Uint64(d[:8]), binary.BigEndian.Uint64(d[8:16])}
}
