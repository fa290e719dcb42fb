package controllers

import (
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore"
)

// TestDefaultAccounts: each namespace has the account of pods that name none, gets it
// again when somebody deletes it, and goes in the end.
func TestDefaultAccounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", UID: "uid-shop"}}
		b.put(ns)
		b.run()
		synctest.Wait()
		key := serviceAccountResource.Key("shop", "default")
		first, ok := object.Get[*corev1.ServiceAccount](b.store.View(), key)
		if !ok || first.UID == "" {
			t.Fatalf("the account is there: %v, %+v", ok, first)
		}
		if _, err := b.store.Txn(t.Context(), raftstore.Txn{Then: []raftstore.Op{raftstore.Delete(string(key))}}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		second, ok := object.Get[*corev1.ServiceAccount](b.store.View(), key)
		if !ok || second.UID == first.UID {
			t.Fatalf("deleted, the account is there again: %v, %+v", ok, second)
		}
		ns.DeletionTimestamp = new(metav1.NewTime(testNow))
		b.put(ns)
		synctest.Wait()
		if _, ok := b.store.View().Get(string(namespaceResource.Key("", "shop"))); ok {
			t.Error("the namespace does not go")
		}
		if _, ok := b.store.View().Get(string(key)); ok {
			t.Error("the account outlives its namespace")
		}
	})
}
