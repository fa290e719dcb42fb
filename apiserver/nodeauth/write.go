package nodeauth

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/holdfast-io/holdfast/object"
)

// MayWrite returns why the node may not make next of was, "" if it may. was is nil for
// a new object, next for one that is to be deleted. sub is the subresource that is
// written. It is NodeRestriction's part: whether the object is the node's, by what
// stands in the state, Refusal says besides.
func (g Graph) MayWrite(next, was object.Object, sub string) string {
	switch obj := first(next, was).(type) {
	case *corev1.Node:
		return g.writesNode(next, was, sub)
	case *corev1.Pod:
		return g.writesPod(obj, next, was, sub)
	case *coordinationv1.Lease:
		if obj.Namespace != LeaseNamespace || obj.Name != g.Node {
			return fmt.Sprintf("a node has one Lease, %s/%s", LeaseNamespace, g.Node)
		}
		return ""
	default:
		return "a node may not write it"
	}
}

func first(objs ...object.Object) object.Object {
	for _, obj := range objs {
		if obj != nil {
			return obj
		}
	}
	return nil
}

func (g Graph) writesNode(next, was object.Object, sub string) string {
	if next == nil || was == nil {
		return "a node registers its Node object through its agent, and does not delete it"
	}
	to, from := next.(*corev1.Node), was.(*corev1.Node)
	switch {
	case to.Name != g.Node:
		return "it is not its own Node"
	case !equality.Semantic.DeepEqual(to.Spec.Taints, from.Spec.Taints):
		return "a node may not change its own taints"
	case !equality.Semantic.DeepEqual(to.Spec, from.Spec):
		return "a node may not change the spec of its Node"
	case !equality.Semantic.DeepEqual(to.OwnerReferences, from.OwnerReferences) || !slices.Equal(to.Finalizers, from.Finalizers):
		return "a node may not change owners and finalizers of its Node"
	case sub == "" && !maps.Equal(to.Annotations, from.Annotations) && changes(to.Annotations, from.Annotations, func(key string) bool { return ownDomain(domain(key)) }) != "":
		return "a node may not change annotation " + changes(to.Annotations, from.Annotations, func(key string) bool { return ownDomain(domain(key)) })
	}
	if label := changes(to.Labels, from.Labels, Protected); label != "" {
		return fmt.Sprintf("a node may not change its label %s: labels of that domain are the cluster's, by which pods are kept from nodes or drawn to them", label)
	}
	return ""
}

// changes returns the first key among those that of chooses under which a and b
// differ, "" if none.
func changes(a, b map[string]string, of func(key string) bool) string {
	keys := maps.Clone(a)
	if keys == nil {
		keys = make(map[string]string)
	}
	maps.Copy(keys, b)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		to, has := a[key]
		from, had := b[key]
		if of(key) && (has != had || to != from) {
			return key
		}
	}
	return ""
}

func (g Graph) writesPod(pod *corev1.Pod, next, was object.Object, sub string) string {
	switch {
	case was != nil && was.(*corev1.Pod).Spec.NodeName != g.Node:
		return "it does not run on this node"
	case next == nil:
		return ""
	case was != nil:
		if sub != "status" {
			return "a node changes only the status of its pods"
		}
		return ""
	case pod.Annotations[corev1.MirrorPodAnnotationKey] == "":
		return "a node makes no pods but mirrors of its static ones, which have the annotation " + corev1.MirrorPodAnnotationKey
	case pod.Spec.NodeName != g.Node:
		return "a mirror pod is on the node that makes it"
	case len(object.PodInputs(pod)) > 0, pod.Spec.ServiceAccountName != "", slices.ContainsFunc(pod.Spec.Volumes, usesToken):
		return "a mirror pod refers to nothing in the cluster: no service account, Secret, ConfigMap or claim"
	}
	return ""
}

func usesToken(v corev1.Volume) bool {
	return v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool { return s.ServiceAccountToken != nil })
}

// own are the labels in Kubernetes' domains that a node says of itself, as
// NodeRestriction lists them.
var own = []string{
	corev1.LabelHostname, corev1.LabelArchStable, corev1.LabelOSStable, corev1.LabelInstanceTypeStable, corev1.LabelInstanceType,
	corev1.LabelTopologyZone, corev1.LabelTopologyRegion, corev1.LabelFailureDomainBetaZone, corev1.LabelFailureDomainBetaRegion,
	"beta.kubernetes.io/arch", "beta.kubernetes.io/os",
}

// Protected reports whether a label of a Node is not for the node itself to set: all
// of the domains kubernetes.io, k8s.io and Holdfast's own but for those that say what
// the machine is. Above all node-restriction.kubernetes.io and
// node-role.kubernetes.io, by which people keep nodes apart.
func Protected(label string) bool {
	if slices.Contains(own, label) {
		return false
	}
	d := domain(label)
	switch {
	case d == "kubelet.kubernetes.io" || strings.HasSuffix(d, ".kubelet.kubernetes.io"),
		d == "node.kubernetes.io" || strings.HasSuffix(d, ".node.kubernetes.io"):
		return false
	}
	return in(d, "kubernetes.io") || in(d, "k8s.io") || ownDomain(d)
}

// ownDomain reports whether a domain is Holdfast's.
func ownDomain(d string) bool { return in(d, "holdfast.dev") || in(d, "holdfast.io") }

func in(d, parent string) bool { return d == parent || strings.HasSuffix(d, "."+parent) }

func domain(key string) string {
	d, _, ok := strings.Cut(key, "/")
	if !ok {
		return ""
	}
	return d
}
