package raftstore_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// TestSingleStoreLeadsAtOnce covers the first start of a cluster: nobody has to be
// waited for, so no timeout may be.
func TestSingleStoreLeadsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		store := storetest.New(t)
		if took := time.Since(begin); took > 200*time.Millisecond {
			t.Errorf("store led after %v, want at most 200 ms", took)
		}
		leader := storetest.Leader(t, store)
		res, err := leader.Txn(t.Context(), raftstore.Txn{
			If:   []raftstore.Compare{raftstore.Absent("pods/default/web")},
			Then: []raftstore.Op{raftstore.Put("pods/default/web", []byte("v1"))},
		})
		if err != nil || res.Revision != 1 || !res.Succeeded {
			t.Fatalf("first transaction: %+v, %v, want revision 1", res, err)
		}
		kv, ok := leader.View().Get("pods/default/web")
		if !ok || string(kv.Value) != "v1" || kv.Create != 1 || kv.Mod != 1 || kv.Version != 1 {
			t.Fatalf("after the first transaction: %+v, %v", kv, ok)
		}
		_, err = store.Txn(t.Context(), raftstore.Txn{
			If:   []raftstore.Compare{raftstore.Absent("pods/default/web")},
			Then: []raftstore.Op{raftstore.Put("pods/default/web", []byte("v2"))},
		})
		conflict, ok := errors.AsType[*raftstore.ConflictError](err)
		if !ok || !errors.Is(err, raftstore.ErrConflict) || len(conflict.Keys) != 1 || string(conflict.Keys[0].Value) != "v1" {
			t.Fatalf("conflicting transaction: %v, want a ConflictError with the key as it is", err)
		}
		if rev := store.View().Revision(); rev != 1 {
			t.Errorf("revision %d after a failed transaction, want 1", rev)
		}
	})
}
