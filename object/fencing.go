package object

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// FencingAnnotation says on a pod, or on the template of one, whether it is fenced:
// "strict" or "none". A pod keeps what it was created with. StatefulSets' pods are
// strict unless the template says none.
//
// A fenced pod runs only while its node holds a lease. When the node has lost it for
// certain, the pod has been stopped, and its object is removed so that another can
// take its place.
const FencingAnnotation = "holdfast.dev/fencing"

const (
	FencingStrict = "strict"
	FencingNone   = "none"
)

// FencingTerm is how long a node's lease lasts from the moment in which the agent
// sent the heartbeat that renewed it. Agents and leaders must agree about it: it is
// part of the agents' protocol.
const FencingTerm = 10 * time.Second

// FencingBound is how long after a leader could last have renewed a node's lease
// nothing fenced runs on that node any more: the term by a clock that is slow by up
// to one in a hundred, and time to kill.
const FencingBound = FencingTerm + FencingTerm/100 + time.Second

// Fenced reports whether pod may run only under its node's lease. Pods from a folder of
// the node run without the cluster, and are not fenced.
func Fenced(pod *corev1.Pod) bool {
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return pod.Annotations[FencingAnnotation] == FencingStrict && !mirror
}

// NodeConvicted reports whether the cluster has given up a node: its lease is not
// renewed until it has been taken back.
func NodeConvicted(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool {
		return t.Key == corev1.TaintNodeUnreachable && t.Effect == corev1.TaintEffectNoExecute
	})
}

func validateFencing(annotations map[string]string, path *field.Path) field.ErrorList {
	switch value, ok := annotations[FencingAnnotation]; {
	case !ok, value == FencingStrict, value == FencingNone:
		return nil
	default:
		return field.ErrorList{field.NotSupported(path.Key(FencingAnnotation), value, []string{FencingStrict, FencingNone})}
	}
}

func fencingUpdate(pod, old *corev1.Pod) field.ErrorList {
	now, was := pod.Annotations[FencingAnnotation], old.Annotations[FencingAnnotation]
	if now == was {
		return nil
	}
	return field.ErrorList{field.Forbidden(field.NewPath("metadata", "annotations").Key(FencingAnnotation),
		fmt.Sprintf("a pod keeps what it was created with, here %q: its node has been told", was))}
}
