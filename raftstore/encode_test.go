package raftstore

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// TestEncodePut: what is encoded by hand is what package proto makes of it, to the byte;
// the rest goes the long way, with its errors.
func TestEncodePut(t *testing.T) {
	long := bytes.Repeat([]byte("v"), 100_000)
	for name, txn := range map[string]Txn{
		"plain":             {Then: []Op{Put("k", []byte("v"))}},
		"without a value":   {Then: []Op{Put("k", nil)}},
		"long, with all":    {Then: []Op{PutWith(strings.Repeat("k", MaxKeyBytes), long, PutOptions{Lease: 1 << 60})}, Actor: "admin/alice", Reason: "why", ID: []byte("once")},
		"a key of any byte": {Then: []Op{Put("\xff\x00", []byte{0})}},
	} {
		for _, term := range []uint64{0, 1, 1 << 40} {
			got, ok := txn.encodePut(term)
			want, err := proto.Marshal(&raftv1.Txn{Then: txn.Then, Term: term, Actor: txn.Actor, Reason: txn.Reason, Id: txn.ID})
			if err != nil {
				t.Fatal(err)
			}
			if !ok || !bytes.Equal(got, want) {
				t.Errorf("%s, term %d: %t, %.100x, want %.100x", name, term, ok, got, want)
			}
			if !new(mvcc.Screen).Plain(got) {
				t.Errorf("%s, term %d: is not plain", name, term)
			}
		}
	}
	for name, txn := range map[string]Txn{
		"two":              {Then: []Op{Put("a", nil), Put("b", nil)}},
		"a compare":        {If: []Compare{Absent("k")}, Then: []Op{Put("k", nil)}},
		"an else":          {Then: []Op{Put("k", nil)}, Else: []Op{Put("k", nil)}},
		"a delete":         {Then: []Op{Delete("k")}},
		"previous value":   {Then: []Op{PutWith("k", nil, PutOptions{PrevKV: true})}},
		"the value kept":   {Then: []Op{PutWith("k", nil, PutOptions{IgnoreValue: true})}},
		"the lease kept":   {Then: []Op{PutWith("k", nil, PutOptions{IgnoreLease: true})}},
		"no key":           {Then: []Op{Put("", nil)}},
		"too long a key":   {Then: []Op{Put(strings.Repeat("k", MaxKeyBytes+1), nil)}},
		"too long an id":   {Then: []Op{Put("k", nil)}, ID: make([]byte, MaxTxnID+1)},
		"too long a value": {Then: []Op{Put("k", make([]byte, MaxTxnBytes))}},
	} {
		if _, ok := txn.encodePut(0); ok {
			t.Errorf("%s: encoded as a plain put", name)
		}
	}
	if _, err := (Txn{Then: []Op{Put("", nil)}}).encode(0); !errors.Is(err, ErrInvalid) {
		t.Errorf("no key: %v", err)
	}
	for name, op := range map[string]Op{"a delete": Delete("k"), "the end of a lease": RevokeLease(7), "a read": Get("k")} {
		data, err := Txn{Then: []Op{op}}.encode(0)
		if err != nil || new(mvcc.Screen).Plain(data) {
			t.Errorf("%s is plain: %v", name, err)
		}
	}
	if new(mvcc.Screen).Plain([]byte{0xff}) {
		t.Error("damage is plain")
	}
}
