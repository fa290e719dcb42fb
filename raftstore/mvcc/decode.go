package mvcc

import (
	"math"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// Almost all entries are batches of transactions that compare and put keys. Those
// are read from the wire without a message for each part, which costs more than
// applying them. What is not such a batch to the letter, fields in ascending order
// and none twice as every encoder writes them, is left to package proto; both ways
// mean the same (FuzzApply).

// request is a transaction of a batch: full, or plain if full is nil, that is to put
// puts if all conditions hold. It points into the entry's data.
type request struct {
	full       *raftv1.Txn
	conditions []condition
	puts       []plainPut
	term       uint64
	id         []byte
}

// Screen tells plain transactions from others. The zero Screen is ready; it is for one
// goroutine at a time, and worth keeping for the next.
type Screen struct{ d decoder }

// Plain reports whether an encoded transaction certainly does no more than to compare
// and put keys. Check has nothing against it then, and Apply takes the short way.
func (s *Screen) Plain(txn []byte) bool {
	d := &s.d
	d.requests, d.conditions, d.puts = d.requests[:0], d.conditions[:0], d.puts[:0]
	ok := d.txn(txn)
	// What points into txn would keep it.
	clear(d.requests)
	clear(d.conditions)
	clear(d.puts)
	return ok
}

// condition is a raftv1.Compare.
type condition struct {
	key, end string
	target   raftv1.CompareTarget
	result   raftv1.CompareResult
	number   int64
	value    []byte
}

func conditionOf(c *raftv1.Compare) condition {
	return condition{c.GetKey(), c.GetRangeEnd(), c.GetTarget(), c.GetResult(), c.GetNumber(), c.GetValue()}
}

type plainPut struct {
	key   string
	value []byte
	lease int64
}

// decoder reads batches. It keeps its memory from one to the next.
type decoder struct {
	requests   []request
	conditions []condition
	puts       []plainPut
}

// field is one field of a message: a number, or bytes.
type field struct {
	num   protowire.Number
	bytes []byte // nil for a number
	n     uint64
}

// next reads the first field of b and returns the rest; ok is false when it is of
// another form than entries have, or damaged.
func next(b []byte) (f field, rest []byte, ok bool) {
	num, kind, n := protowire.ConsumeTag(b)
	if n < 0 {
		return f, nil, false
	}
	f.num, b = num, b[n:]
	switch kind {
	case protowire.VarintType:
		f.n, n = protowire.ConsumeVarint(b)
	case protowire.BytesType:
		f.bytes, n = protowire.ConsumeBytes(b)
	default:
		return f, nil, false
	}
	if n < 0 {
		return f, nil, false
	}
	return f, b[n:], true
}

// command reads an entry that is a plain batch, and when it was proposed. ok is false
// for all others. The result is good until the next call, or the end of data.
func (d *decoder) command(data []byte) (requests []request, proposed int64, ok bool) {
	d.requests, d.conditions, d.puts = d.requests[:0], d.conditions[:0], d.puts[:0]
	var batch, stamp []byte
	for len(data) > 0 {
		var f field
		if f, data, ok = next(data); !ok || f.bytes == nil {
			return nil, 0, false
		}
		// In either order: encoders write fields of a oneof where they like.
		switch {
		case f.num == 1 && batch == nil:
			batch = f.bytes
		case f.num == 15 && stamp == nil:
			stamp = f.bytes
		default:
			return nil, 0, false
		}
	}
	if batch == nil {
		return nil, 0, false
	}
	for len(batch) > 0 {
		var txn field
		if txn, batch, ok = next(batch); !ok || txn.num != 1 || txn.bytes == nil || !d.txn(txn.bytes) {
			return nil, 0, false
		}
	}
	proposed, ok = timestamp(stamp)
	return d.requests, proposed, ok
}

// timestamp reads a google.protobuf.Timestamp, in milliseconds.
func timestamp(b []byte) (_ int64, ok bool) {
	var seconds, nanos int64
	for last := protowire.Number(0); len(b) > 0; {
		f, rest, ok := next(b)
		if !ok || f.bytes != nil || f.num <= last || f.num > 2 {
			return 0, false
		}
		last, b = f.num, rest
		if f.num == 1 {
			seconds = int64(f.n)
		} else {
			nanos = int64(int32(f.n))
		}
	}
	return millis(seconds, nanos), true
}

func millis(seconds, nanos int64) int64 { return seconds*1000 + nanos/1e6 }

func (d *decoder) txn(b []byte) bool {
	var r request
	conditions, puts := len(d.conditions), len(d.puts)
	for last := protowire.Number(1); len(b) > 0; {
		f, rest, ok := next(b)
		if !ok || f.num < last || f.num == last && f.num > 2 || (f.bytes == nil) != (f.num == 4) {
			return false
		}
		last, b = f.num, rest
		switch f.num {
		case 1:
			ok = d.condition(f.bytes)
		case 2:
			ok = d.put(f.bytes)
		case 4:
			r.term = f.n
		case 5, 6: // actor and reason are for the log's readers
		case 7:
			r.id = f.bytes
			ok = len(r.id) <= MaxTxnID
		default:
			ok = false
		}
		if !ok {
			return false
		}
	}
	// The lists may still move as they grow; what a request has of them stays as
	// it is.
	r.conditions, r.puts = d.conditions[conditions:], d.puts[puts:]
	d.requests = append(d.requests, r)
	return true
}

func (d *decoder) condition(b []byte) bool {
	var c condition
	for last := protowire.Number(0); len(b) > 0; {
		f, rest, ok := next(b)
		if !ok || f.num <= last || (f.bytes == nil) != (f.num >= 2 && f.num <= 4) {
			return false
		}
		last, b = f.num, rest
		switch f.num {
		case 1:
			c.key = stringOf(f.bytes)
		case 2:
			c.target = raftv1.CompareTarget(min(f.n, math.MaxInt32))
		case 3:
			c.result = raftv1.CompareResult(min(f.n, math.MaxInt32))
		case 4:
			c.number = int64(f.n)
		case 5:
			c.value = f.bytes
		case 6:
			c.end = stringOf(f.bytes)
		default:
			return false
		}
	}
	d.conditions = append(d.conditions, c)
	return knownTarget(c.target) && knownResult(c.result)
}

// put reads an operation that is a put of no more than key, value and lease.
func (d *decoder) put(b []byte) bool {
	op, rest, ok := next(b)
	if !ok || op.num != 1 || op.bytes == nil || len(rest) > 0 {
		return false
	}
	var p plainPut
	b = op.bytes
	for last := protowire.Number(0); len(b) > 0; {
		f, rest, ok := next(b)
		if !ok || f.num <= last || (f.bytes == nil) != (f.num == 3) {
			return false
		}
		last, b = f.num, rest
		switch f.num {
		case 1:
			p.key = stringOf(f.bytes)
		case 2:
			p.value = f.bytes
		case 3:
			p.lease = int64(f.n)
		default:
			return false
		}
	}
	d.puts = append(d.puts, p)
	return true
}

// stringOf returns b as a string without a copy. It must not outlive b.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
