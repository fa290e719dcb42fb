package nodeauth

import (
	"fmt"
	"iter"
	"slices"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
)

// LeaseNamespace is where nodes' Leases are, each under its node's name.
const LeaseNamespace = corev1.NamespaceNodeLease

// Ask is what a node wants to do, in the words of Kubernetes' authorization.
type Ask struct {
	Verb            string // "get", "list", "watch", "create", "update", "patch", "delete"
	Group, Resource string // "", "pods"
	Subresource     string // "status"
	Namespace       string
	Name            string // also the one that a field selector metadata.name demands
	// BoundTo is the node that a field selector spec.nodeName demands.
	BoundTo string
}

// Graph is what one node is concerned with in one state.
type Graph struct {
	// View is the state.
	View object.Reader
	// Node is the node's name.
	Node string
	// Pods yields keys of pods among which all of the node's are. Others may be among
	// them: whose a pod is, View says. Nil: all pods of View.
	Pods iter.Seq[object.Key]
}

var (
	podResource       = object.ResourceOf(&corev1.Pod{})
	nodeResource      = object.ResourceOf(&corev1.Node{})
	claimResource     = object.ResourceOf(&corev1.PersistentVolumeClaim{})
	volumeResource    = object.ResourceOf(&corev1.PersistentVolume{})
	accountResource   = object.ResourceOf(&corev1.ServiceAccount{})
	secretResource    = object.ResourceOf(&corev1.Secret{})
	configMapResource = object.ResourceOf(&corev1.ConfigMap{})
	leaseResource     = object.ResourceOf(&coordinationv1.Lease{})
)

// Refusal returns why the node may not do what a says, "" if it may. Writes are
// judged again, by what they change: [Graph.MayWrite].
func (g Graph) Refusal(a Ask) string {
	is := func(r object.Resource) bool { return a.Group == r.Group && a.Resource == r.Plural }
	reads := a.Verb == "get" || a.Verb == "list" || a.Verb == "watch"
	changes := a.Verb == "update" || a.Verb == "patch"
	switch {
	case is(nodeResource):
		switch {
		case !reads && !changes:
			return "a node may read and update its Node object, and register it through its agent"
		case a.Subresource != "" && a.Subresource != "status":
			return "of a Node a node has no more than the status"
		case a.Name != g.Node:
			return "it is not its own Node; to list or watch, select it: metadata.name=" + g.Node
		}
		return ""
	case is(podResource):
		return g.pods(a, reads, changes)
	case is(leaseResource):
		if a.Namespace != LeaseNamespace || a.Name != g.Node && a.Verb != "create" || a.Verb == "deletecollection" {
			return fmt.Sprintf("a node has one Lease, %s/%s", LeaseNamespace, g.Node)
		}
		return ""
	case is(accountResource) && a.Subresource == "token" && a.Verb == "create":
		if !g.runs(func(p *corev1.Pod) bool { return p.Namespace == a.Namespace && accountOf(p) == a.Name }) {
			return "no pod on this node runs as that service account"
		}
		return ""
	}
	inputs := is(secretResource) || is(configMapResource) || is(claimResource) || is(volumeResource) || is(accountResource)
	switch {
	case !inputs:
		return "a node has no business with " + a.Resource
	case !reads || a.Subresource != "":
		return "a node may only read it"
	case a.Name == "":
		return "a node may read those that its pods name, one by one: name it, or select metadata.name="
	case !g.Reaches(a):
		return "no pod on this node names it"
	}
	return ""
}

func (g Graph) pods(a Ask, reads, changes bool) string {
	switch {
	case a.Verb == "list", a.Verb == "watch" && a.Name == "":
		if a.BoundTo != g.Node {
			return "a node may list and watch its own pods only: select spec.nodeName=" + g.Node
		}
		return ""
	case a.Verb == "create" && a.Subresource == "":
		return "a node makes no pods but mirrors of its static ones, through its agent"
	case a.Subresource != "" && a.Subresource != "status":
		return "of its pods a node has no more than the status"
	case changes && a.Subresource == "":
		return "a node changes only the status of its pods"
	case !reads && !changes && a.Verb != "delete":
		return "a node may read its pods, report their status and delete them"
	case a.Name == "":
		return "name the pod"
	}
	if a.Verb == "watch" && a.BoundTo == g.Node {
		return ""
	}
	if pod, ok := object.Get[*corev1.Pod](g.View, podResource.Key(a.Namespace, a.Name)); !ok || pod.Spec.NodeName != g.Node {
		return "it does not run on this node"
	}
	return ""
}

// Reaches reports whether one of the node's pods names the object, or a claim that
// is bound to it.
func (g Graph) Reaches(a Ask) bool {
	switch a.Resource {
	case accountResource.Plural:
		return g.runs(func(p *corev1.Pod) bool { return p.Namespace == a.Namespace && accountOf(p) == a.Name })
	case volumeResource.Plural:
		return g.reachesVolume(a.Name)
	}
	var key object.Key
	for _, r := range []object.Resource{secretResource, configMapResource, claimResource} {
		if r.Plural == a.Resource {
			key = r.Key(a.Namespace, a.Name)
		}
	}
	return key != "" && g.runs(func(p *corev1.Pod) bool { return slices.Contains(object.PodInputs(p), key) })
}

// reachesVolume reports whether a volume lies on the node, or is bound to a claim of
// one of its pods.
func (g Graph) reachesVolume(name string) bool {
	pv, ok := object.Get[*corev1.PersistentVolume](g.View, volumeResource.Key("", name))
	if !ok {
		return false
	}
	if object.LocalVolumeNode(pv) == g.Node {
		return true
	}
	ref := pv.Spec.ClaimRef
	if ref == nil {
		return false
	}
	claim, ok := object.Get[*corev1.PersistentVolumeClaim](g.View, claimResource.Key(ref.Namespace, ref.Name))
	// Both must say so: else a claim that names any volume would open it.
	if !ok || claim.Spec.VolumeName != name || ref.UID != "" && ref.UID != claim.UID {
		return false
	}
	return g.runs(func(p *corev1.Pod) bool { return slices.Contains(object.PodInputs(p), object.KeyOf(claim)) })
}

// runs reports whether one of the node's pods is as match says. Pods that have ended
// need nothing any more.
func (g Graph) runs(match func(*corev1.Pod) bool) bool {
	mine := func(p *corev1.Pod) bool {
		return p.Spec.NodeName == g.Node && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed && match(p)
	}
	if g.Pods == nil {
		return slices.ContainsFunc(object.List[*corev1.Pod](g.View, ""), mine)
	}
	for key := range g.Pods {
		if p, ok := object.Get[*corev1.Pod](g.View, key); ok && mine(p) {
			return true
		}
	}
	return false
}

// accountOf returns the name of the service account that a pod runs as.
func accountOf(p *corev1.Pod) string {
	if p.Spec.ServiceAccountName == "" {
		return "default"
	}
	return p.Spec.ServiceAccountName
}
