package seal

import (
	"encoding/binary"
	"fmt"
	"io"
)

// A sealed record is, with integers big endian:
//
//	 0  magic, version   4 bytes; the first is 0, which begins no protobuf message
//	 4  kind             1
//	 5  key              4
//	 9  index            8
//	17  previous index   8
//	25  previous tag    16
//	41  term             8
//	49  type             1
//	50  time             8
//	58  extra            4
//	62  nonce           12
//	74  body, sealed; then the tag, 16
//
// All before the nonce, and the owner, is authenticated with the body.
const (
	recordMagic  = "\x00hf\x01"
	recordNonce  = 62
	recordHeader = recordNonce + nonceSize
)

// RecordOverhead is by how much a sealed record is longer than its body.
const RecordOverhead = recordHeader + tagSize

// Kind says what a record is, so that one cannot stand for another.
type Kind uint8

// The kinds of records. Numbers are for ever.
const (
	KindEntry Kind = 1 // of a log
	KindEnd   Kind = 2 // of a log's chain
	KindVotes Kind = 3
)

// Tag is the end of a sealed record: the authentication code of everything in it.
// Without the key nobody can make another record with the same tag.
type Tag [tagSize]byte

// Link names a record: where it stands, and which it is.
type Link struct {
	Index uint64
	Tag   Tag
}

// Record is what is sealed. Only Body is secret.
type Record struct {
	Kind  Kind
	Index uint64
	// Prev is the record before this one; its zero value: there is none.
	Prev Link
	// Term, Type, Time and Extra are the caller's, who may have them for anything.
	Term  uint64
	Type  uint8
	Time  int64
	Extra uint32
	Body  []byte
}

// Sealed is what is known of a sealed record: its link, and the key it needs.
type Sealed struct {
	Link Link
	Key  uint32
}

// IsRecord reports whether data begins as a sealed record of any version does.
func IsRecord(data []byte) bool {
	return len(data) >= 3 && string(data[:3]) == recordMagic[:3]
}

// Seal seals a record under the current key.
func (r *Ring) Seal(rec *Record) ([]byte, Sealed, error) {
	k, err := r.sealer(len(rec.Body) + RecordOverhead)
	if err != nil {
		return nil, Sealed{}, err
	}
	out := make([]byte, recordHeader, len(rec.Body)+RecordOverhead)
	copy(out, recordMagic)
	out[4] = byte(rec.Kind)
	binary.BigEndian.PutUint32(out[5:], k.id)
	binary.BigEndian.PutUint64(out[9:], rec.Index)
	binary.BigEndian.PutUint64(out[17:], rec.Prev.Index)
	copy(out[25:], rec.Prev.Tag[:])
	binary.BigEndian.PutUint64(out[41:], rec.Term)
	out[49] = rec.Type
	binary.BigEndian.PutUint64(out[50:], uint64(rec.Time))
	binary.BigEndian.PutUint32(out[58:], rec.Extra)
	nonce := out[recordNonce:recordHeader]
	if _, err := io.ReadFull(r.random, nonce); err != nil {
		return nil, Sealed{}, err
	}
	out = k.aead.Seal(out, nonce, rec.Body, r.authenticated(out[:recordNonce]))
	return out, Sealed{Link{rec.Index, Tag(out[len(out)-tagSize:])}, k.id}, nil
}

// Open opens a sealed record that must be of kind and index. It decrypts in place:
// data is overwritten, and the record's Body is part of it. Errors are ErrDamaged,
// or ErrNoKey.
func (r *Ring) Open(data []byte, kind Kind, index uint64) (Record, Sealed, error) {
	if len(data) < RecordOverhead || !IsRecord(data) {
		return Record{}, Sealed{}, fmt.Errorf("%w: it is no sealed record", ErrDamaged)
	}
	if data[3] != recordMagic[3] {
		return Record{}, Sealed{}, fmt.Errorf("%w: it has version %d, this program knows version %d", ErrDamaged, data[3], recordMagic[3])
	}
	rec := Record{
		Kind: Kind(data[4]), Index: binary.BigEndian.Uint64(data[9:]),
		Prev: Link{binary.BigEndian.Uint64(data[17:]), Tag(data[25:41])},
		Term: binary.BigEndian.Uint64(data[41:]), Type: data[49],
		Time: int64(binary.BigEndian.Uint64(data[50:])), Extra: binary.BigEndian.Uint32(data[58:]),
	}
	if rec.Kind != kind || rec.Index != index {
		return Record{}, Sealed{}, fmt.Errorf("%w: it is record %d of kind %d, in the place of %d of kind %d", ErrDamaged, rec.Index, rec.Kind, index, kind)
	}
	k, err := r.opener(binary.BigEndian.Uint32(data[5:]))
	if err != nil {
		return Record{}, Sealed{}, err
	}
	sealed := Sealed{Link{index, Tag(data[len(data)-tagSize:])}, k.id}
	body := data[recordHeader:]
	if rec.Body, err = k.aead.Open(body[:0], data[recordNonce:recordHeader], body, r.authenticated(data[:recordNonce])); err != nil {
		return Record{}, Sealed{}, fmt.Errorf("%w: it does not open", ErrDamaged)
	}
	if uint64(rec.Extra) > uint64(len(rec.Body)) {
		return Record{}, Sealed{}, fmt.Errorf("%w: its parts are longer than the whole", ErrDamaged)
	}
	return rec, sealed, nil
}

// authenticated is what a record's tag covers beside its body.
func (r *Ring) authenticated(header []byte) []byte {
	return append(r.bound[:len(r.bound):len(r.bound)], header...)
}
