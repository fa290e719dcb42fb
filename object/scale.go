package object

import (
	"fmt"
	"math"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
)

// ScaleOf returns the subresource scale of obj. It fails for kinds that have
// none, and for a custom object that does not say how many replicas it wants.
func ScaleOf(obj Object) (*autoscalingv1.Scale, error) {
	scale := &autoscalingv1.Scale{
		TypeMeta: metav1.TypeMeta{APIVersion: "autoscaling/v1", Kind: "Scale"},
		ObjectMeta: metav1.ObjectMeta{
			Name: obj.GetName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(),
			ResourceVersion: obj.GetResourceVersion(), CreationTimestamp: obj.GetCreationTimestamp(),
		},
	}
	var selector *metav1.LabelSelector
	switch obj := obj.(type) {
	case *appsv1.Deployment:
		scale.Spec.Replicas, scale.Status.Replicas, selector = wantedReplicas(obj.Spec.Replicas), obj.Status.Replicas, obj.Spec.Selector
	case *appsv1.ReplicaSet:
		scale.Spec.Replicas, scale.Status.Replicas, selector = wantedReplicas(obj.Spec.Replicas), obj.Status.Replicas, obj.Spec.Selector
	case *appsv1.StatefulSet:
		scale.Spec.Replicas, scale.Status.Replicas, selector = wantedReplicas(obj.Spec.Replicas), obj.Status.Replicas, obj.Spec.Selector
	case *corev1.ReplicationController:
		scale.Spec.Replicas, scale.Status.Replicas = wantedReplicas(obj.Spec.Replicas), obj.Status.Replicas
		scale.Status.Selector = labels.SelectorFromSet(obj.Spec.Selector).String()
		return scale, nil
	case *Custom:
		return scale, obj.readScale(scale)
	default:
		return nil, noScale(obj)
	}
	if s, err := metav1.LabelSelectorAsSelector(selector); err == nil {
		scale.Status.Selector = s.String()
	}
	return scale, nil
}

// SetScale writes the replicas that scale wants into obj, and nothing else.
func SetScale(obj Object, scale *autoscalingv1.Scale) error {
	n := scale.Spec.Replicas
	if n < 0 {
		return Faults{{Object: Title(obj), Field: "spec.replicas", Message: fmt.Sprintf("Invalid value: %d: must be greater than or equal to 0", n)}}
	}
	switch obj := obj.(type) {
	case *appsv1.Deployment:
		obj.Spec.Replicas = &n
	case *appsv1.ReplicaSet:
		obj.Spec.Replicas = &n
	case *appsv1.StatefulSet:
		obj.Spec.Replicas = &n
	case *corev1.ReplicationController:
		obj.Spec.Replicas = &n
	case *Custom:
		if obj.row.scale == nil {
			return noScale(obj)
		}
		if err := unstructured.SetNestedField(obj.Object, int64(n), pathNames(obj.row.scale.SpecReplicasPath)...); err != nil {
			return fmt.Errorf("scale %s: %w", Title(obj), err)
		}
	default:
		return noScale(obj)
	}
	return nil
}

func noScale(obj Object) error {
	return fmt.Errorf("%s cannot be scaled: %s have no replicas", Title(obj), ResourceOf(obj).Plural)
}

// wantedReplicas is what a workload wants that does not say.
func wantedReplicas(replicas *int32) int32 {
	if replicas == nil {
		return 1
	}
	return *replicas
}

func (c *Custom) readScale(scale *autoscalingv1.Scale) error {
	paths := c.row.scale
	if paths == nil {
		return noScale(c)
	}
	n, ok, err := c.replicas(paths.SpecReplicasPath)
	if err != nil || !ok {
		return fmt.Errorf("%s cannot be scaled: %s is not set to a whole number", Title(c), paths.SpecReplicasPath)
	}
	scale.Spec.Replicas = n
	if scale.Status.Replicas, _, err = c.replicas(paths.StatusReplicasPath); err != nil {
		return fmt.Errorf("%s cannot be scaled: %s is not a whole number", Title(c), paths.StatusReplicasPath)
	}
	if p := paths.LabelSelectorPath; p != nil && *p != "" {
		scale.Status.Selector, _, _ = unstructured.NestedString(c.Object, pathNames(*p)...)
	}
	return nil
}

func (c *Custom) replicas(path string) (n int32, ok bool, err error) {
	value, ok, err := unstructured.NestedFieldNoCopy(c.Object, pathNames(path)...)
	if !ok || err != nil {
		return 0, false, err
	}
	i, isInt := value.(int64)
	if !isInt || i < 0 || i > math.MaxInt32 {
		return 0, false, fmt.Errorf("%s is not a number of replicas", path)
	}
	return int32(i), true, nil
}

// pathNames splits ".spec.replicas".
func pathNames(path string) []string { return strings.Split(strings.TrimPrefix(path, "."), ".") }
