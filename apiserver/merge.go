package apiserver

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// removedAnnotation is on a terminating pod of which its node has reported that
// nothing is left, while finalizers still hold the object.
const removedAnnotation = "holdfast.io/removed-from-node"

// decoded is an object of a request.
type decoded struct {
	obj      object.Object
	resource object.Resource
	revision int64 // the resourceVersion that the caller named; 0: none
}

// decodeObject reads an object of a request, in protobuf or JSON, and brings the
// message's own fields and the object's metadata together. index is its place
// in the request, for the faults.
func decodeObject(in *holdfastv1.Object, index int) (decoded, object.Faults) {
	fault := func(field, format string, args ...any) (decoded, object.Faults) {
		title := ""
		if in.GetName() != "" {
			title = strings.TrimSpace(in.GetKind().GetKind() + " " + joinName(in.GetNamespace(), in.GetName()))
		}
		return decoded{}, object.Faults{{Object: title, Field: field, Message: fmt.Sprintf(format, args...), Index: index}}
	}
	if len(in.GetData()) == 0 {
		return fault("", "the object is empty")
	}
	obj, err := object.Decode(in.GetData(), 0)
	if faults, ok := errors.AsType[object.Faults](err); ok {
		for i := range faults {
			faults[i].Index = index
		}
		return decoded{}, faults
	}
	if err != nil {
		return fault("", "%v", err)
	}
	d := decoded{obj: obj, resource: object.ResourceOf(obj)}
	if k := in.GetKind(); k != nil && (k.GetKind() != d.resource.Kind || k.GetGroup() != d.resource.Group || k.GetVersion() != d.resource.Version) {
		return fault("kind", "the object is a %s (%s), but the request says %s", d.resource.Kind, d.resource.APIVersion(), k.GetKind())
	}
	if in.GetName() != "" {
		if obj.GetName() != "" && obj.GetName() != in.GetName() {
			return fault("metadata.name", "is %q, but the request says %q", obj.GetName(), in.GetName())
		}
		obj.SetName(in.GetName())
	}
	if in.GetNamespace() != "" {
		if obj.GetNamespace() != "" && obj.GetNamespace() != in.GetNamespace() {
			return fault("metadata.namespace", "is %q, but the request says %q", obj.GetNamespace(), in.GetNamespace())
		}
		obj.SetNamespace(in.GetNamespace())
	}
	switch {
	case d.resource.Namespaced && obj.GetNamespace() == "":
		obj.SetNamespace(metav1.NamespaceDefault)
	case !d.resource.Namespaced && obj.GetNamespace() != "":
		return fault("metadata.namespace", "is %q, but a %s lives outside namespaces", obj.GetNamespace(), d.resource.Kind)
	}
	if rv := obj.GetResourceVersion(); rv != "" {
		if d.revision, err = strconv.ParseInt(rv, 10, 64); err != nil || d.revision < 0 {
			return fault("metadata.resourceVersion", "is %q: want the resourceVersion that was read, or none", rv)
		}
	}
	if in.GetRevision() > 0 {
		d.revision = in.GetRevision()
	}
	obj.SetResourceVersion("")
	obj.SetManagedFields(nil)
	obj.SetSelfLink("")
	return d, nil
}

// precondition returns Aborted when old is not what the caller has read.
func (d decoded) precondition(old object.Object, revision int64) error {
	if d.revision > 0 && d.revision != revision {
		return connect.Errorf(connect.CodeAborted, "%s has changed: its resourceVersion is %d, not %d; read it again, then retry",
			object.Title(old), revision, d.revision)
	}
	if uid := d.obj.GetUID(); uid != "" && uid != old.GetUID() {
		return connect.Errorf(connect.CodeAborted, "%s has uid %s, not %s: it was replaced by another of the same name",
			object.Title(old), old.GetUID(), uid)
	}
	return nil
}

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
	if hasField(obj, "Spec") {
		obj.SetGeneration(1)
	}
	clearField(obj, "Status")
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
	if !exact {
		obj.SetFinalizers(slices.Clone(old.GetFinalizers()))
		obj.SetOwnerReferences(slices.Clone(old.GetOwnerReferences()))
	}
	setGeneration(obj, old)
}

// applied makes obj, a manifest, what may follow old. Labels and annotations are
// the manifest's, except that those under Kubernetes' and Holdfast's own prefixes,
// which controllers and agents write, stay unless it names them.
func applied(obj, old object.Object) {
	keepSystemFields(obj, old)
	obj.SetFinalizers(slices.Clone(old.GetFinalizers()))
	obj.SetOwnerReferences(slices.Clone(old.GetOwnerReferences()))
	obj.SetLabels(withSystemKeys(obj.GetLabels(), old.GetLabels()))
	obj.SetAnnotations(withSystemKeys(obj.GetAnnotations(), old.GetAnnotations()))
	setGeneration(obj, old)
}

func keepSystemFields(obj, old object.Object) {
	obj.SetUID(old.GetUID())
	obj.SetCreationTimestamp(old.GetCreationTimestamp())
	obj.SetDeletionTimestamp(old.GetDeletionTimestamp())
	obj.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	obj.SetGenerateName(old.GetGenerateName())
	obj.SetResourceVersion("")
	copyField(obj, old, "Status")
	switch obj := obj.(type) {
	case *corev1.Pod:
		if obj.Spec.NodeName == "" {
			obj.Spec.NodeName = old.(*corev1.Pod).Spec.NodeName
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
	if hasField(obj, "Spec") && !equality.Semantic.DeepEqual(field(obj, "Spec").Interface(), field(old, "Spec").Interface()) {
		obj.SetGeneration(old.GetGeneration() + 1)
	}
}

func withSystemKeys(wanted, before map[string]string) map[string]string {
	merged := maps.Clone(wanted)
	for key, value := range before {
		if _, named := wanted[key]; named || !isSystemKey(key) {
			continue
		}
		if merged == nil {
			merged = make(map[string]string)
		}
		merged[key] = value
	}
	return merged
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

// finished reports whether a terminating object, as it would be written, has
// nothing left that holds it.
func finished(obj object.Object) bool {
	if !object.Deleting(obj) || len(obj.GetFinalizers()) > 0 {
		return false
	}
	switch obj := obj.(type) {
	case *corev1.Pod:
		return obj.Spec.NodeName == "" || obj.Annotations[removedAnnotation] != ""
	case *corev1.Namespace:
		return len(obj.Spec.Finalizers) == 0
	}
	return true
}

// needNamespaces adds to c the conditions that the namespaces of objs exist, and
// creates the default one if it does not. Namespaces among objs count. It
// returns a fault for each object whose namespace is missing or on its way out.
func (s *Server) needNamespaces(view raftstore.View, c *change, objs []object.Object) object.Faults {
	coming := make(map[string]bool)
	for _, obj := range objs {
		if ns, ok := obj.(*corev1.Namespace); ok {
			coming[ns.Name] = true
		}
	}
	checked := make(map[string]string) // namespace -> what is wrong with it
	var faults object.Faults
	for i, obj := range objs {
		name := obj.GetNamespace()
		if name == "" || coming[name] {
			continue
		}
		wrong, ok := checked[name]
		if !ok {
			wrong = s.needNamespace(view, c, name)
			checked[name] = wrong
		}
		if wrong != "" {
			faults = append(faults, object.Fault{Object: object.Title(obj), Field: "metadata.namespace", Message: wrong, Index: i})
		}
	}
	return faults
}

func (s *Server) needNamespace(view raftstore.View, c *change, name string) (wrong string) {
	key := object.ResourceOf(&corev1.Namespace{}).Key("", name)
	ns, ok := object.Get[*corev1.Namespace](view, key)
	switch {
	case ok && object.Deleting(ns):
		return fmt.Sprintf("namespace %q is being deleted; wait until it is gone", name)
	case ok:
		c.conditions = append(c.conditions, raftstore.Present(string(key)))
		return ""
	case name != corev1.NamespaceDefault:
		return fmt.Sprintf("namespace %q does not exist; create it, or apply it together with the object", name)
	}
	if err := c.put(s.newNamespace(name), 0); err != nil {
		return err.Error()
	}
	return ""
}

func (s *Server) newNamespace(name string) *corev1.Namespace {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	object.Default(ns)
	s.stampNew(ns)
	return ns
}

// emptyNamespace returns FailedPrecondition if obj is a namespace with objects
// in it, which would lose their home.
func (s *Server) emptyNamespace(view raftstore.View, obj object.Object) error {
	ns, ok := obj.(*corev1.Namespace)
	if !ok {
		return nil
	}
	var left []string
	for _, r := range object.Resources() {
		if !r.Namespaced {
			continue
		}
		count := 0
		for range view.Prefix(r.Prefix(ns.Name)) {
			count++
		}
		if count > 0 {
			left = append(left, fmt.Sprintf("%d %s", count, r.Plural))
		}
	}
	if len(left) == 0 {
		return nil
	}
	return connect.Errorf(connect.CodeFailedPrecondition, "namespace %s is not empty: it has %s; delete them first", ns.Name, strings.Join(left, ", "))
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

// Spec and Status are fields of that name in every kind that has them.

func field(obj object.Object, name string) reflect.Value {
	return reflect.ValueOf(obj).Elem().FieldByName(name)
}

func hasField(obj object.Object, name string) bool { return field(obj, name).IsValid() }

func clearField(obj object.Object, name string) {
	if f := field(obj, name); f.IsValid() {
		f.SetZero()
	}
}

// copyField sets a field of to, to a deep copy of from's. Both are of one type.
func copyField(to, from object.Object, name string) {
	if f := field(to, name); f.IsValid() {
		f.Set(field(from.DeepCopyObject().(object.Object), name))
	}
}
