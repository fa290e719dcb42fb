package object

import (
	"encoding/binary"
	"hash/fnv"
	"iter"

	networkingv1 "k8s.io/api/networking/v1"
)

// IngressNodeLabel is on the nodes that serve Ingresses, with any value but
// "false". Such a node is told the Secrets that Ingresses name, so an
// administrator puts it on the Node: an agent cannot give it to itself.
const IngressNodeLabel = "holdfast.dev/ingress"

// NodeNetworkAnnotation is on a Node and says what other nodes' agents have to know to
// reach its pods, in words of theirs. Written by the node's agent, when it registers.
const NodeNetworkAnnotation = "holdfast.dev/node-network"

const (
	// IngressController is what an IngressClass names to be served by the nodes with
	// IngressNodeLabel.
	IngressController = "holdfast.dev/ingress"
	// IngressDefaultClass is served by them if there is no IngressClass of that name.
	IngressDefaultClass = "holdfast"
)

// ServesIngress reports whether an Ingress is one for IngressController, given all
// classes: by its class, or if it has none by the default class, or if there are no
// classes at all.
func ServesIngress(ing *networkingv1.Ingress, classes iter.Seq[*networkingv1.IngressClass]) bool {
	class := ing.Annotations[ingressClassAnnotation]
	if ing.Spec.IngressClassName != nil {
		class = *ing.Spec.IngressClassName
	}
	found := false
	var chosen *networkingv1.IngressClass
	for of := range classes {
		found = true
		switch {
		case class != "" && of.Name == class:
			return of.Spec.Controller == IngressController
		case class != "" || !IsDefaultClass(of):
		case chosen == nil || of.CreationTimestamp.After(chosen.CreationTimestamp.Time),
			of.CreationTimestamp.Equal(&chosen.CreationTimestamp) && of.Name < chosen.Name:
			chosen = of // of several defaults the youngest, as in Kubernetes
		}
	}
	if class == "" {
		return chosen != nil && chosen.Spec.Controller == IngressController || !found
	}
	return class == IngressDefaultClass
}

// RevisionSum is an object's part of a hash over many objects: the sum of all parts
// says whether two have the same objects at the same revisions, whatever the order in
// which they heard of them.
func RevisionSum(key string, revision int64) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(key))
	_, _ = h.Write(binary.BigEndian.AppendUint64([]byte{0}, uint64(revision)))
	return h.Sum64()
}
