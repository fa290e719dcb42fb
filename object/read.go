package object

import (
	"fmt"
	"iter"
	"reflect"
)

// Reader is anything that holds encoded objects by key: a view of the store, a
// test's map. Its methods neither block nor fail.
type Reader interface {
	// Value returns the value under key and the revision of its last change.
	Value(key string) (value []byte, revision int64, ok bool)
	// Values yields the values whose keys begin with prefix, in key order, each
	// with the revision of its last change.
	Values(prefix string) iter.Seq2[[]byte, int64]
}

// Get returns the object under key, of which the caller may do what it likes:
// it is the caller's own. It panics, naming the key, if the bytes cannot be
// decoded or are of another kind: stored objects were valid when they were
// written.
func Get[T Object](r Reader, key Key) (T, bool) {
	var none T
	value, revision, ok := r.Value(string(key))
	if !ok {
		return none, false
	}
	return mustDecode[T](value, revision, string(key)), true
}

// List returns the objects of T's kind in namespace, in key order; an empty
// namespace means all of them. It panics as [Get] does.
func List[T Object](r Reader, namespace string) []T {
	prefix := kindOfType(reflect.TypeFor[T]()).resource.Prefix(namespace)
	var all []T
	for value, revision := range r.Values(prefix) {
		all = append(all, mustDecode[T](value, revision, prefix+"…"))
	}
	return all
}

func mustDecode[T Object](value []byte, revision int64, key string) T {
	obj, err := Decode(value, revision)
	if err != nil {
		panic(fmt.Sprintf("object: value under %s at revision %d: %v", key, revision, err))
	}
	typed, ok := obj.(T)
	if !ok {
		panic(fmt.Sprintf("object: value under %s at revision %d is a %T, not a %v", key, revision, obj, reflect.TypeFor[T]()))
	}
	return typed
}
