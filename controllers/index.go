package controllers

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

// index says which keys belong together: what an owner owns, what runs on a
// node, which objects nobody controls. It holds keys and a few facts, not
// objects: those are read from the view of the same revision, so there is
// nothing here that could be stale. It is not safe for concurrent use.
type index struct {
	catalog     *object.Catalog // the kinds there are
	entries     map[object.Key]entry
	dependents  map[types.UID]keySet                      // by the uid of any owner
	orphans     map[string]keySet                         // pods, replica sets and revisions without controller, by their prefix in the namespace
	onNode      map[string]keySet                         // pods, by node
	selecting   map[string]map[object.Key]labels.Selector // owners that adopt, budgets and quotas, by their prefix in the namespace
	nodes       map[string]nodeFacts                      // by name
	terminating map[string]bool                           // namespaces that are being deleted
	waiting     map[types.UID]object.Key                  // what is being deleted and waits for its dependents
	unsettled   map[string]bool                           // definitions of custom kinds that are being deleted, or wait for a name
	claimUsers  map[object.Key]keySet                     // pods that have not finished, by the claims they use
	unbound     keySet                                    // claims that name no volume
	collecting  keySet                                    // cluster roles that collect others' rules
	podsIn      map[string]keySet                         // pods, by namespace
}

type keySet map[object.Key]struct{}

// sorted returns the keys in order, so that equal states give equal plans.
func (s keySet) sorted() []object.Key { return slices.Sorted(maps.Keys(s)) }

// entry is what the index remembers of one object, to find it again and to see
// what a change changed.
type entry struct {
	resource   object.Resource
	namespace  string
	uid        types.UID
	controller object.Key  // empty: nobody controls it
	owners     []types.UID // all owners
	waitsFor   string      // see waitsFor
	node       string      // a pod's
	labels     labels.Set  // of what can be adopted
	// volumes are the claims of a pod that has not finished, the volume that a claim
	// names, the claim that a volume names.
	volumes []object.Key
}

// nodeFacts is what plans about all nodes need to know of each.
type nodeFacts struct {
	name     string
	evicting bool // carries unreachable:NoExecute: convicted, by this leader or one before it
	noExec   bool // carries any taint NoExecute
	podCIDR  netip.Prefix
	labels   map[string]string
	taints   []corev1.Taint
}

// change is what happened to one object. before is the zero entry if it is new,
// after nil if it is gone.
type change struct {
	key    object.Key
	before entry
	after  object.Object
	now    entry // of after
	// placement: a node came or went, or is for other pods than it was.
	placement bool
}

func newIndex() *index {
	return &index{
		catalog:     object.Builtin(),
		entries:     map[object.Key]entry{},
		dependents:  map[types.UID]keySet{},
		orphans:     map[string]keySet{},
		onNode:      map[string]keySet{},
		selecting:   map[string]map[object.Key]labels.Selector{},
		nodes:       map[string]nodeFacts{},
		terminating: map[string]bool{},
		waiting:     map[types.UID]object.Key{},
		unsettled:   map[string]bool{},
		collecting:  keySet{},
		claimUsers:  map[object.Key]keySet{},
		unbound:     keySet{},
		podsIn:      map[string]keySet{},
	}
}

// put notes that obj is under key now.
func (x *index) put(key object.Key, obj object.Object) change {
	_, name, _ := strings.Cut(string(key), "/")
	facts := x.nodes[name]
	before := x.forget(key)
	now := x.entryOf(obj)
	placement := false
	x.entries[key] = now
	for _, uid := range now.owners {
		add(x.dependents, uid, key)
	}
	if now.node != "" {
		add(x.onNode, now.node, key)
	}
	if now.waitsFor != "" {
		x.waiting[now.uid] = key
	}
	switch obj := obj.(type) {
	case *corev1.Pod:
		add(x.podsIn, now.namespace, key)
		for _, claim := range now.volumes {
			add(x.claimUsers, claim, key)
		}
	case *corev1.PersistentVolumeClaim:
		if obj.Spec.VolumeName == "" {
			x.unbound[key] = struct{}{}
		}
	case *rbacv1.ClusterRole:
		if obj.AggregationRule != nil {
			x.collecting[key] = struct{}{}
		}
	}
	if now.labels != nil && now.controller == "" {
		add(x.orphans, now.resource.Prefix(now.namespace), key)
	}
	if selector := selectorOf(obj); selector != nil {
		prefix := now.resource.Prefix(now.namespace)
		if x.selecting[prefix] == nil {
			x.selecting[prefix] = map[object.Key]labels.Selector{}
		}
		x.selecting[prefix][key] = selector
	}
	switch obj := obj.(type) {
	case *corev1.Node:
		x.nodes[obj.Name] = factsOf(obj)
		placement = !samePlacement(facts, x.nodes[obj.Name])
	case *corev1.Namespace:
		if object.Deleting(obj) {
			x.terminating[obj.Name] = true
		}
	case *apiextensionsv1.CustomResourceDefinition:
		if object.Established(obj) {
			x.catalog = x.catalog.With(obj)
		}
		if object.Deleting(obj) || !object.NamesAccepted(obj) {
			x.unsettled[obj.Name] = true
		}
	}
	return change{key: key, before: before, after: obj, now: now, placement: placement}
}

// remove notes that nothing is under key any more.
func (x *index) remove(key object.Key) change {
	before := x.forget(key)
	return change{key: key, before: before, placement: isKind(before.resource, nodeResource)}
}

func (x *index) forget(key object.Key) entry {
	old, ok := x.entries[key]
	if !ok {
		return entry{}
	}
	delete(x.entries, key)
	for _, uid := range old.owners {
		drop(x.dependents, uid, key)
	}
	drop(x.onNode, old.node, key)
	if old.waitsFor != "" {
		delete(x.waiting, old.uid)
	}
	for _, claim := range old.volumes {
		drop(x.claimUsers, claim, key)
	}
	delete(x.unbound, key)
	delete(x.collecting, key)
	drop(x.podsIn, old.namespace, key)
	prefix := old.resource.Prefix(old.namespace)
	drop(x.orphans, prefix, key)
	if owners := x.selecting[prefix]; owners != nil {
		if delete(owners, key); len(owners) == 0 {
			delete(x.selecting, prefix)
		}
	}
	_, name, _ := strings.Cut(string(key), "/")
	switch {
	case isKind(old.resource, nodeResource):
		delete(x.nodes, name)
	case isKind(old.resource, namespaceResource):
		delete(x.terminating, name)
	case isKind(old.resource, definitionResource):
		delete(x.unsettled, name)
		x.catalog = x.catalog.Without(name)
	}
	return old
}

// isKind reports whether r is of the same kind as of. A custom kind may have the
// name of a built-in one.
func isKind(r, of object.Resource) bool { return r.Kind == of.Kind && r.Group == of.Group }

func add[K comparable](m map[K]keySet, k K, key object.Key) {
	if m[k] == nil {
		m[k] = keySet{}
	}
	m[k][key] = struct{}{}
}

func drop[K comparable](m map[K]keySet, k K, key object.Key) {
	if set := m[k]; set != nil {
		if delete(set, key); len(set) == 0 {
			delete(m, k)
		}
	}
}

// adopters returns the owners of kind r that would adopt the orphan e.
func (x *index) adopters(r object.Resource, e entry) []object.Key {
	var keys []object.Key
	for key, selector := range x.selecting[r.Prefix(e.namespace)] {
		if selector.Matches(e.labels) {
			keys = append(keys, key)
		}
	}
	return keys
}

// sortedNodes returns the facts of all nodes, by name.
func (x *index) sortedNodes() []nodeFacts {
	return slices.SortedFunc(maps.Values(x.nodes), func(a, b nodeFacts) int { return cmp.Compare(a.name, b.name) })
}

func (x *index) entryOf(obj object.Object) entry {
	e := entry{resource: object.ResourceOf(obj), namespace: obj.GetNamespace(), uid: obj.GetUID(), waitsFor: waitsFor(obj)}
	for _, ref := range obj.GetOwnerReferences() {
		e.owners = append(e.owners, ref.UID)
	}
	if ref := object.ControllerOf(obj); ref != nil {
		if key, ok := x.ownerKey(e.namespace, *ref); ok {
			e.controller = key
		} else {
			e.controller = object.Key(ref.Kind + "/" + ref.Name) // of a kind we do not serve: leads nowhere, but is a controller
		}
	}
	switch obj := obj.(type) {
	case *corev1.Pod:
		e.node = obj.Spec.NodeName
		e.volumes = claimsOf(obj)
		e.labels = labels.Set(nonNil(obj.Labels))
	case *appsv1.ReplicaSet, *appsv1.ControllerRevision:
		e.labels = labels.Set(nonNil(obj.GetLabels()))
	case *corev1.PersistentVolumeClaim:
		if obj.Spec.VolumeName != "" {
			e.volumes = []object.Key{pvResource.Key("", obj.Spec.VolumeName)}
		}
	case *corev1.PersistentVolume:
		if ref := obj.Spec.ClaimRef; ref != nil {
			e.volumes = []object.Key{pvcResource.Key(ref.Namespace, ref.Name)}
		}
	}
	return e
}

// claimsOf returns the claims that a pod uses, none once it has finished.
func claimsOf(pod *corev1.Pod) []object.Key {
	if object.PodPhaseFinal(pod) {
		return nil
	}
	var keys []object.Key
	for i := range pod.Spec.Volumes {
		if name := object.ClaimName(pod, &pod.Spec.Volumes[i]); name != "" {
			keys = append(keys, pvcResource.Key(pod.Namespace, name))
		}
	}
	return keys
}

func nonNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

// selectorOf returns the selector of an owner that adopts, or of what watches over
// objects of its namespace, nil for anything else, and for one whose selector cannot
// be used.
func selectorOf(obj object.Object) labels.Selector {
	var of *metav1.LabelSelector
	switch obj := obj.(type) {
	case *appsv1.Deployment:
		of = obj.Spec.Selector
	case *appsv1.ReplicaSet:
		of = obj.Spec.Selector
	case *appsv1.StatefulSet:
		of = obj.Spec.Selector
	case *appsv1.DaemonSet:
		of = obj.Spec.Selector
	case *batchv1.Job:
		of = obj.Spec.Selector
	case *corev1.ReplicationController:
		of = &metav1.LabelSelector{MatchLabels: obj.Spec.Selector}
	case *corev1.Service:
		of = &metav1.LabelSelector{MatchLabels: obj.Spec.Selector}
	case *policyv1.PodDisruptionBudget: // an empty one selects all, none nothing
		if selector, err := metav1.LabelSelectorAsSelector(obj.Spec.Selector); err == nil {
			return selector
		}
		return nil
	case *corev1.ResourceQuota:
		return labels.Everything()
	default:
		return nil
	}
	return usable(of)
}

// usable returns the selector if it selects anything at all; an empty one would
// adopt the whole namespace.
func usable(of *metav1.LabelSelector) labels.Selector {
	if of == nil {
		return nil
	}
	selector, err := metav1.LabelSelectorAsSelector(of)
	if err != nil || selector.Empty() {
		return nil
	}
	return selector
}

// ownerKey returns the key of the object that ref means. ok is false if its kind
// is not served: nothing can be said of it then.
func (x *index) ownerKey(namespace string, ref metav1.OwnerReference) (object.Key, bool) {
	group, version, found := strings.Cut(ref.APIVersion, "/")
	if !found {
		group, version = "", ref.APIVersion
	}
	r, err := x.catalog.ForKind(group, version, ref.Kind)
	if err != nil {
		return "", false
	}
	return r.Key(namespace, ref.Name), true
}

// state is what a plan may read: the objects and their index, of one revision.
type state struct {
	object.Reader
	*index
}

// ownedBy returns the objects of T's kind that owner controls, by name.
func ownedBy[T object.Object](s state, owner object.Object) []T {
	var owned []T
	want := reflect.TypeFor[T]()
	for _, key := range s.dependents[owner.GetUID()].sorted() {
		if obj, ok := get(s, key); ok && reflect.TypeOf(obj) == want && metav1.IsControlledBy(obj, owner) {
			owned = append(owned, obj.(T))
		}
	}
	return owned
}

// orphansFor returns the objects of T's kind in the namespace that nobody
// controls and that selector selects, by name.
func orphansFor[T object.Object](s state, prefix string, selector labels.Selector) []T {
	var found []T
	for _, key := range s.orphans[prefix].sorted() {
		if !selector.Matches(s.entries[key].labels) {
			continue
		}
		if obj, ok := object.Get[T](s, key); ok {
			found = append(found, obj)
		}
	}
	return found
}

// podsOn returns the pods that are bound to the node, by key.
func podsOn(s state, node string) []*corev1.Pod {
	var pods []*corev1.Pod
	for _, key := range s.onNode[node].sorted() {
		if pod, ok := object.Get[*corev1.Pod](s, key); ok {
			pods = append(pods, pod)
		}
	}
	return pods
}

// get reads an object of any kind.
func get(s state, key object.Key) (object.Object, bool) {
	value, revision, ok := s.Value(string(key))
	if !ok {
		return nil, false
	}
	obj, err := s.catalog.Decode(value, revision)
	if err != nil {
		panic(fmt.Sprintf("controllers: value under %s at revision %d: %v", key, revision, err))
	}
	return obj, true
}
