package mvcc

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"math/bits"
	"unsafe"

	"github.com/google/btree"
)

// record is one version of a key. It never changes once a root holds it: readers
// have no locks. Its size is a class of the allocator's, exactly: see TestSizes.
type record struct {
	key    string
	value  string // bytes; a string's header is a word shorter than a slice's
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
	return KeyValue{Key: r.key, Value: r.bytes(), Create: r.create, Mod: r.mod, Version: r.ver, Lease: r.lease}
}

// bytes returns the value, nil for a tombstone only. It is shared, not copied:
// nobody may write to it.
func (r *record) bytes() []byte {
	switch {
	case !r.live():
		return nil
	case r.value == "":
		return []byte{}
	}
	return bytesOf(r.value)
}

func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// size is the memory that the version takes, near enough for bounds.
func (r *record) size() int64 { return int64(len(r.value)) + recordOverhead }

const recordOverhead = 128

// treeDegree gives nodes of up to 63 records: the width at which this tree was
// measured for lookups, copies on write and scans.
const treeDegree = 32

// cow is a tree of which a snapshot costs nothing while it does not change.
type cow[T any] struct {
	tree   *btree.BTreeG[T]
	shared *btree.BTreeG[T] // a clone of tree as it is, or nil
}

func newCow[T any](less btree.LessFunc[T]) cow[T] {
	return cow[T]{tree: btree.NewG(treeDegree, less)}
}

// change returns the tree to write to.
func (c *cow[T]) change() *btree.BTreeG[T] {
	c.shared = nil
	return c.tree
}

// snapshot returns the tree as it is, to read from only.
func (c *cow[T]) snapshot() *btree.BTreeG[T] {
	if c.shared == nil {
		c.shared = c.tree.Clone()
	}
	return c.shared
}

func byKey(a, b *record) bool { return a.key < b.key }

// byLease orders the records that live by a lease.
func byLease(a, b *record) bool {
	if a.lease != b.lease {
		return a.lease < b.lease
	}
	return a.key < b.key
}

// hash128 is an element of the group of integers modulo 2^128. The sum over all
// parts of the state is the core of the state hash: it does not depend on their
// order, and a change costs one subtraction and one addition.
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

// These separate the hashes of a state's parts from each other, and from any other
// use of SHA-256. They are part of the format: replicas compare hashes, and
// snapshots carry them.
const (
	recordHashKey = "holdfast/state/1\x00"
	leaseHashKey  = "holdfast/lease/1\x00"
	txnIDHashKey  = "holdfast/txnid/1\x00"
	wholeHashKey  = "holdfast/whole/1\x00"
)

// hasher computes the hashes of a state's parts without allocating. Not safe for
// concurrent use.
type hasher struct {
	sha hash.Hash
	buf []byte
	out [sha256.Size]byte
}

func newHasher() *hasher { return &hasher{sha: sha256.New()} }

// record hashes everything that a reader can see of a live record.
func (h *hasher) record(r *record) hash128 {
	b := append(h.buf[:0], recordHashKey...)
	b = binary.BigEndian.AppendUint64(b, uint64(len(r.key)))
	b = append(b, r.key...)
	for _, n := range [...]int64{r.create, r.mod, r.ver, r.lease} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	h.buf = b
	return h.sum(b, bytesOf(r.value))
}

func (h *hasher) lease(l Lease) hash128 {
	b := append(h.buf[:0], leaseHashKey...)
	for _, n := range [...]int64{l.ID, l.TTL, l.Remaining} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	h.buf = b
	return h.sum(b, nil)
}

func (h *hasher) txnID(t txnID) hash128 {
	b := append(h.buf[:0], txnIDHashKey...)
	for _, n := range [...]uint64{t.index, uint64(t.revision), uint64(t.refusal)} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	if t.succeeded {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = append(b, t.id...)
	h.buf = b
	return h.sum(b, nil)
}

// whole returns the state hash.
func (h *hasher) whole(m *meta) hash128 {
	b := append(h.buf[:0], wholeHashKey...)
	for _, n := range [...]uint64{m.sum.hi, m.sum.lo, uint64(m.revision), uint64(m.horizon)} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	h.buf = b
	return h.sum(b, nil)
}

// sum is the first half of SHA-256. That is enough against corruption and bugs,
// which is what the state hash is for; it does not withstand somebody who chooses
// values to collide.
func (h *hasher) sum(head, tail []byte) hash128 {
	h.sha.Reset()
	h.sha.Write(head)
	h.sha.Write(tail)
	d := h.sha.Sum(h.out[:0])
	return hash128{binary.BigEndian.Uint64(d[:8]), binary.BigEndian.Uint64(d[8:16])}
}
