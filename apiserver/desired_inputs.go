package apiserver

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
)

// inputIndex is the part of the desired index about what pods name: every
// ConfigMap, Secret, claim and volume as it is stored, none of them decoded but
// claims, and the nodes whose pods name each. The values are the store's own
// bytes. The desired index's lock guards it.
type inputIndex struct {
	objects map[object.Key]input
	// volume leads from a claim to the volume that it names, claims back.
	volume map[object.Key]object.Key
	claims map[object.Key][]object.Key
	named  map[object.Key]map[string]int // by node: how many of its pods name it
}

// input is an object that pods may name.
type input struct {
	revision int64
	value    []byte // immutable
}

var (
	claimPrefix    = object.ResourceOf(&corev1.PersistentVolumeClaim{}).Prefix("")
	volumeResource = object.ResourceOf(&corev1.PersistentVolume{})
	inputPrefixes  = []string{
		object.ResourceOf(&corev1.ConfigMap{}).Prefix(""), object.ResourceOf(&corev1.Secret{}).Prefix(""), claimPrefix, volumeResource.Prefix(""),
	}
)

func isInput(key string) bool {
	return slices.ContainsFunc(inputPrefixes, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
}

func newInputIndex() inputIndex {
	return inputIndex{
		objects: make(map[object.Key]input), volume: make(map[object.Key]object.Key),
		claims: make(map[object.Key][]object.Key), named: make(map[object.Key]map[string]int),
	}
}

// set takes in an object that is new or has changed.
func (x *inputIndex) set(key object.Key, value []byte, revision int64) {
	x.objects[key] = input{revision: revision, value: value}
	if !strings.HasPrefix(string(key), claimPrefix) {
		return
	}
	obj, err := object.Decode(value, revision)
	if err != nil {
		panic(fmt.Sprintf("apiserver: stored object %s: %v", key, err)) // it was valid when it was written
	}
	x.bind(key, obj.(*corev1.PersistentVolumeClaim).Spec.VolumeName)
}

func (x *inputIndex) remove(key object.Key) {
	delete(x.objects, key)
	x.bind(key, "")
}

// bind notes the volume that a claim names; "": none.
func (x *inputIndex) bind(claim object.Key, name string) {
	if before, ok := x.volume[claim]; ok {
		delete(x.volume, claim)
		x.claims[before] = slices.DeleteFunc(x.claims[before], func(c object.Key) bool { return c == claim })
		if len(x.claims[before]) == 0 {
			delete(x.claims, before)
		}
	}
	if name != "" {
		volume := volumeResource.Key("", name)
		x.volume[claim] = volume
		x.claims[volume] = append(x.claims[volume], claim)
	}
}

// count notes that a pod of the node names keys, or with -1 that one no longer
// does.
func (x *inputIndex) count(node string, keys []object.Key, by int) {
	for _, key := range keys {
		nodes := x.named[key]
		if nodes == nil {
			nodes = make(map[string]int)
			x.named[key] = nodes
		}
		if nodes[node] += by; nodes[node] == 0 {
			delete(nodes, node)
		}
		if len(nodes) == 0 {
			delete(x.named, key)
		}
	}
}

// users returns the nodes that are told of the object under key.
func (x *inputIndex) users(key object.Key) map[string]bool {
	nodes := make(map[string]bool)
	for _, k := range append([]object.Key{key}, x.claims[key]...) {
		for node := range x.named[k] {
			nodes[node] = true
		}
	}
	return nodes
}

// of returns what the pods name, as far as it exists.
func (x *inputIndex) of(pods map[string]pod) map[object.Key]input {
	found := make(map[object.Key]input)
	add := func(key object.Key) {
		if in, ok := x.objects[key]; ok {
			found[key] = in
		}
	}
	for _, p := range pods {
		for _, key := range p.names {
			add(key)
			if volume, ok := x.volume[key]; ok {
				add(volume)
			}
		}
	}
	return found
}
