package apiserver

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
)

// inputIndex is the part of the desired index about what pods name: every
// ConfigMap, Secret, claim and volume as it is stored, ConfigMaps and Secrets
// not decoded, and the nodes whose pods name each. The values are the store's own
// bytes. The desired index's lock guards it.
type inputIndex struct {
	objects map[object.Key]input
	// volume leads from a claim to the volume that it names, claims back.
	volume map[object.Key]object.Key
	claims map[object.Key][]object.Key
	named  map[object.Key]map[string]int // by node: how many of its pods name it
	// remove are the local volumes of which a node is to remove the data, by node,
	// and the node of each.
	removals map[string]map[object.Key]bool
	removeBy map[object.Key]string
}

// input is an object that pods may name.
type input struct {
	revision int64
	value    []byte // immutable
}

var (
	claimPrefix    = object.ResourceOf(&corev1.PersistentVolumeClaim{}).Prefix("")
	volumeResource = object.ResourceOf(&corev1.PersistentVolume{})
	volumePrefix   = volumeResource.Prefix("")
	inputPrefixes  = []string{
		object.ResourceOf(&corev1.ConfigMap{}).Prefix(""), object.ResourceOf(&corev1.Secret{}).Prefix(""), claimPrefix, volumePrefix,
	}
)

func isInput(key string) bool {
	return slices.ContainsFunc(inputPrefixes, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
}

func newInputIndex() inputIndex {
	return inputIndex{
		objects: make(map[object.Key]input), volume: make(map[object.Key]object.Key),
		claims: make(map[object.Key][]object.Key), named: make(map[object.Key]map[string]int),
		removals: make(map[string]map[object.Key]bool), removeBy: make(map[object.Key]string),
	}
}

// set takes in an object that is new or has changed.
func (x *inputIndex) set(key object.Key, value []byte, revision int64) {
	x.objects[key] = input{revision: revision, value: value}
	isClaim, isVolume := strings.HasPrefix(string(key), claimPrefix), strings.HasPrefix(string(key), volumePrefix)
	if !isClaim && !isVolume {
		return
	}
	obj, err := object.Decode(value, revision)
	if err != nil {
		panic(fmt.Sprintf("apiserver: stored object %s: %v", key, err)) // it was valid when it was written
	}
	switch obj := obj.(type) {
	case *corev1.PersistentVolumeClaim:
		x.bind(key, obj.Spec.VolumeName)
	case *corev1.PersistentVolume:
		node := ""
		if object.LocalVolumeToRemove(obj) {
			node = object.LocalVolumeNode(obj)
		}
		x.toRemove(key, node)
	}
}

func (x *inputIndex) remove(key object.Key) {
	delete(x.objects, key)
	x.bind(key, "")
	x.toRemove(key, "")
}

// toRemove notes the node that is to remove the data of a volume; "": none.
func (x *inputIndex) toRemove(volume object.Key, node string) {
	if before, ok := x.removeBy[volume]; ok {
		delete(x.removeBy, volume)
		if delete(x.removals[before], volume); len(x.removals[before]) == 0 {
			delete(x.removals, before)
		}
	}
	if node != "" {
		x.removeBy[volume] = node
		if x.removals[node] == nil {
			x.removals[node] = make(map[object.Key]bool)
		}
		x.removals[node][volume] = true
	}
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
	if node, ok := x.removeBy[key]; ok {
		nodes[node] = true
	}
	return nodes
}

// of returns what the node's pods name, as far as it exists, and the volumes whose
// data it is to remove.
func (x *inputIndex) of(node string, pods map[string]pod) map[object.Key]input {
	found := make(map[object.Key]input)
	add := func(key object.Key) {
		if in, ok := x.objects[key]; ok {
			found[key] = in
		}
	}
	for key := range x.removals[node] {
		add(key)
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
