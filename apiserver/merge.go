package apiserver

import (
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

// stampNew gives a new object what the system owns. What a caller has put there
// is overwritten.
func (s *Server) stampNew(obj object.Object) {
	stampNew(obj, s.cfg.NewUID(), s.cfg.Now())
}

func stampNew(obj object.Object, uid string, now time.Time) {
	obj.SetUID(types.UID(uid))
	obj.SetCreationTimestamp(metav1.NewTime(now.Truncate(time.Second)))
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	obj.SetResourceVersion("")
	obj.SetGeneration(0)
	if hasSpec(obj) {
		obj.SetGeneration(1)
	}
	copyStatus(obj, nil)
	switch obj := obj.(type) {
	case *corev1.Pod:
		obj.Status.Phase = corev1.PodPending
	case *corev1.Namespace:
		obj.Status.Phase = corev1.NamespaceActive
	}
}

// updated makes obj, a caller's wish, what may follow old: status and what the
// system owns are old's. exact says that the caller named the resourceVersion,
// so it has seen old's finalizers and owners and means what it says about them.
func updated(obj, old object.Object, exact bool) {
	keepSystemFields(obj, old)
	copyStatus(obj, old)
	if !exact {
		obj.SetFinalizers(slices.Clone(old.GetFinalizers()))
		obj.SetOwnerReferences(slices.Clone(old.GetOwnerReferences()))
	}
	setGeneration(obj, old)
}

// keepSystemFields gives obj, which is to follow old, what the system owns of old,
// but for the status.
func keepSystemFields(obj, old object.Object) {
	obj.SetUID(old.GetUID())
	obj.SetCreationTimestamp(old.GetCreationTimestamp())
	obj.SetDeletionTimestamp(old.GetDeletionTimestamp())
	obj.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	obj.SetGenerateName(old.GetGenerateName())
	obj.SetResourceVersion("")
	switch obj := obj.(type) {
	case *batchv1.Job:
		object.Stamp(obj)
	case *corev1.Pod:
		before := old.(*corev1.Pod)
		if obj.Spec.NodeName == "" {
			obj.Spec.NodeName = before.Spec.NodeName
		}
		// As the pod's class had it when the pod was created.
		if obj.Spec.PriorityClassName == "" {
			obj.Spec.PriorityClassName = before.Spec.PriorityClassName
		}
		if obj.Spec.Priority == nil {
			obj.Spec.Priority = before.Spec.Priority
		}
		if obj.Spec.PreemptionPolicy == nil {
			obj.Spec.PreemptionPolicy = before.Spec.PreemptionPolicy
		}
	case *corev1.Node:
		// The node controller's and the agent's, whoever writes the manifest.
		before := old.(*corev1.Node)
		if obj.Spec.PodCIDR == "" && len(obj.Spec.PodCIDRs) == 0 {
			obj.Spec.PodCIDR, obj.Spec.PodCIDRs = before.Spec.PodCIDR, slices.Clone(before.Spec.PodCIDRs)
		}
		for _, taint := range before.Spec.Taints {
			system := isSystemKey(taint.Key)
			same := func(t corev1.Taint) bool { return t.Key == taint.Key && t.Effect == taint.Effect }
			if system && !slices.ContainsFunc(obj.Spec.Taints, same) {
				obj.Spec.Taints = append(obj.Spec.Taints, taint)
			}
		}
	case *corev1.Namespace:
		obj.Spec = *old.(*corev1.Namespace).Spec.DeepCopy()
	}
}

// setGeneration counts changes of the spec.
func setGeneration(obj, old object.Object) {
	obj.SetGeneration(old.GetGeneration())
	if hasSpec(obj) && !sameSpec(obj, old) {
		obj.SetGeneration(old.GetGeneration() + 1)
	}
}

// isSystemKey reports whether a label, annotation or taint is under a prefix of
// Kubernetes or Holdfast: "node.kubernetes.io/unreachable".
func isSystemKey(key string) bool {
	prefix, _, ok := strings.Cut(key, "/")
	if !ok {
		return false
	}
	for _, domain := range []string{"kubernetes.io", "k8s.io", "holdfast.io"} {
		if prefix == domain || strings.HasSuffix(prefix, "."+domain) {
			return true
		}
	}
	return false
}

// sameObject reports whether nothing that is stored differs between a and b.
func sameObject(a, b object.Object) bool {
	a, b = bare(a), bare(b)
	return equality.Semantic.DeepEqual(a, b)
}

func bare(obj object.Object) object.Object {
	obj = obj.DeepCopyObject().(object.Object)
	obj.SetResourceVersion("")
	obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	return obj
}

// nameFrom completes obj's generateName to a name, as Kubernetes does.
func nameFrom(obj object.Object) {
	const (
		suffix   = 5
		longest  = 63 - suffix
		alphabet = "bcdfghjklmnpqrstvwxz2456789" // no vowels: no words
	)
	base := obj.GetGenerateName()
	base = base[:min(len(base), longest)]
	var b [suffix]byte
	for i := range b {
		b[i] = alphabet[rand.IntN(len(alphabet))]
	}
	obj.SetName(base + string(b[:]))
}

// Spec and Status are fields of that name in every built-in kind that has them. Of
// a custom object the status is its field of that name, if its kind has that
// subresource, and all that is neither status nor metadata is spec.

func field(obj object.Object, name string) reflect.Value {
	return reflect.ValueOf(obj).Elem().FieldByName(name)
}

func hasSpec(obj object.Object) bool {
	if _, ok := obj.(*object.Custom); ok {
		return true
	}
	return field(obj, "Spec").IsValid()
}

// sameSpec reports whether two objects of a kind want the same.
func sameSpec(a, b object.Object) bool {
	custom, ok := a.(*object.Custom)
	if !ok {
		return equality.Semantic.DeepEqual(field(a, "Spec").Interface(), field(b, "Spec").Interface())
	}
	spec := func(c *object.Custom) map[string]any {
		fields := maps.Clone(c.Object)
		delete(fields, "metadata")
		if object.ResourceOf(c).Status {
			delete(fields, "status")
		}
		return fields
	}
	return equality.Semantic.DeepEqual(spec(custom), spec(b.(*object.Custom)))
}

// copyStatus gives to a copy of from's status, or, without from, none.
func copyStatus(to, from object.Object) {
	if from != nil {
		from = from.DeepCopyObject().(object.Object)
	}
	custom, ok := to.(*object.Custom)
	switch {
	case ok && !object.ResourceOf(to).Status:
	case ok:
		delete(custom.Object, "status")
		if from != nil {
			if status, there := from.(*object.Custom).Object["status"]; there {
				custom.Object["status"] = status
			}
		}
	case !field(to, "Status").IsValid():
	case from == nil:
		field(to, "Status").SetZero()
	default:
		field(to, "Status").Set(field(from, "Status"))
	}
}
