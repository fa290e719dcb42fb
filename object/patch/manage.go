package patch

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/holdfast-io/holdfast/object"
)

// By is who writes, and what of the object.
type By struct {
	// Manager is the name under which fields are owned: "kubectl", "holdfast".
	Manager string
	// Subresource is "" for all but the status, "status" for that alone, "scale"
	// for the number of replicas.
	Subresource string
	// Now is stamped on what changes.
	Now time.Time
}

// Apply merges config, the object as by.Manager wants it, JSON or YAML, into
// old, which is nil if there is no such object. Fields that the manager applied
// before and that are no longer in config go, unless somebody else owns them too.
// force takes over the fields that others own; without it they make a
// [*ConflictError].
//
// The result has its defaults and is not validated. If config changes nothing,
// it is equal to old, times included. A uid or resourceVersion in config that is
// not old's is refused with [ErrPrecondition]. Faults of config have the lines of
// its text.
func Apply(kinds Kinds, old object.Object, config []byte, force bool, by By) (object.Object, error) {
	text, err := toJSON(config)
	if err != nil {
		return nil, err
	}
	if by.Subresource == scaleSubresource {
		if text, err = scaleConfig(old, text); err != nil {
			return nil, err
		}
		config = text
	}
	wanted, err := kinds.Decode(config, 0)
	if err != nil {
		return nil, err
	}
	// Not wanted itself: it no longer knows which fields were given.
	var fields map[string]any
	if err := utiljson.Unmarshal(text, &fields); err != nil {
		return nil, because(ErrMalformed, "%v", err)
	}
	return ApplyRead(old, wanted, fields, force, by)
}

// ApplyRead is [Apply] of what has been read: wanted, which was decoded from what was
// given, and the fields that were given, as JSON makes them of its text but for integers,
// which are int64. Both may be changed, and become parts of the result.
func ApplyRead(old, wanted object.Object, fields map[string]any, force bool, by By) (object.Object, error) {
	if by.Manager == "" {
		return nil, because(ErrMalformed, "a field manager is required to apply: say who owns the fields that are set")
	}
	if err := CheckManager(by.Manager); err != nil {
		return nil, err
	}
	if wanted.GetManagedFields() != nil {
		return nil, because(ErrMalformed, "metadata.managedFields cannot be applied: leave it out")
	}
	live := old
	if old == nil {
		live = object.New(object.ResourceOf(wanted))
		live.SetName(wanted.GetName())
		live.SetNamespace(wanted.GetNamespace())
	} else if wanted.GetNamespace() == "" {
		wanted.SetNamespace(old.GetNamespace())
	}
	if err := sameIdentity(live, wanted); err != nil {
		return nil, err
	}
	m, err := managerFor(live, by.Subresource)
	if err != nil {
		return nil, err
	}
	if old == nil && m.mergesIntoNothing(wanted) {
		return m.first(wanted, fields, by)
	}
	return m.merge(old, live, fields, force, by)
}

// merge merges fields into live, which is old or, without one, an empty object.
func (m *manager) merge(old, live object.Object, fields map[string]any, force bool, by By) (object.Object, error) {
	live, err := spelledOut(live)
	if err != nil {
		return nil, err
	}
	times := timesOf(live)
	out, err := m.fields.Apply(times.marked(live), &unstructured.Unstructured{Object: fields}, by.Manager, force)
	if err != nil {
		return nil, applyError(err)
	}
	next, err := m.typed(out)
	if err != nil {
		return nil, err
	}
	times.restore(next, by.Now)
	keepOrder(live, next)
	stampApplied(live, next, by)
	keep(live, next, by.Subresource)
	object.Default(next)
	if old != nil && sameButTimes(old, next) {
		return old.DeepCopyObject().(object.Object), nil
	}
	return next, nil
}

// mergesIntoNothing reports whether wanted, of which there is no object yet, is what
// comes out when it is merged. It is not if it carries what kubectl applied on the
// client's side, which merging brings up to date; of a custom kind and of a part of an
// object merging is left to say.
func (m *manager) mergesIntoNothing(wanted object.Object) bool {
	_, custom := wanted.(*object.Custom)
	_, applied := wanted.GetAnnotations()[corev1.LastAppliedConfigAnnotation]
	return !custom && !applied && m.subresource == ""
}

// first is merge where there is nothing to merge with: the object is wanted, and its
// manager owns what was given. It is much faster. fields are wanted as it was
// given; wanted becomes the result.
func (m *manager) first(wanted object.Object, fields map[string]any, by By) (object.Object, error) {
	owned, err := m.owned(fields)
	if err != nil {
		return nil, err
	}
	if owned != "" {
		now := metav1.NewTime(by.Now.UTC().Truncate(time.Second))
		wanted.SetManagedFields([]metav1.ManagedFieldsEntry{{
			Manager: by.Manager, Operation: metav1.ManagedFieldsOperationApply, APIVersion: m.gvk.GroupVersion().String(), Time: &now,
			FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(owned),
		}})
	}
	keep(m.empty, wanted, "")
	object.Default(wanted)
	return wanted, nil
}

// owned returns the fields that whoever gives them owns, as managed fields name them;
// "" if there are none. Objects of one shape, of which there often are many, have the
// same.
func (m *manager) owned(fields map[string]any) (string, error) {
	shape := shapeOf(fields)
	if text, ok := m.shapes.get(shape); ok {
		return text, nil
	}
	given, err := m.types.ObjectToTyped(&unstructured.Unstructured{Object: fields})
	if err != nil {
		name, _, _ := unstructured.NestedString(fields, "metadata", "name")
		return "", applyError(fmt.Errorf("failed to create typed patch object (%s): %w", name, err))
	}
	owned, err := given.ToFieldSet()
	if err != nil {
		return "", err
	}
	if m.filter != nil {
		owned = m.filter.Filter(owned)
	}
	if owned = owned.Difference(ownedByNobody); owned.Empty() {
		m.shapes.put(shape, "")
		return "", nil
	}
	text, err := owned.ToJSON()
	if err == nil {
		text, err = inOrder(text)
	}
	if err != nil {
		return "", err
	}
	m.shapes.put(shape, string(text))
	return string(text), nil
}

// inOrder returns a set of fields with its names in the order of text, as merging leaves
// them, which has it as a map: in the order of their values, 80 before 443, the next
// apply would look like a change.
func inOrder(text []byte) ([]byte, error) {
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		return nil, err
	}
	return json.Marshal(fields)
}

// ownedByNobody are the fields that apimachinery leaves out of managed fields.
var ownedByNobody = fieldpath.NewSet(
	fieldpath.MakePathOrDie("apiVersion"),
	fieldpath.MakePathOrDie("kind"),
	fieldpath.MakePathOrDie("metadata"),
	fieldpath.MakePathOrDie("metadata", "name"),
	fieldpath.MakePathOrDie("metadata", "namespace"),
	fieldpath.MakePathOrDie("metadata", "creationTimestamp"),
	fieldpath.MakePathOrDie("metadata", "selfLink"),
	fieldpath.MakePathOrDie("metadata", "uid"),
	fieldpath.MakePathOrDie("metadata", "clusterName"),
	fieldpath.MakePathOrDie("metadata", "generation"),
	fieldpath.MakePathOrDie("metadata", "managedFields"),
	fieldpath.MakePathOrDie("metadata", "resourceVersion"),
)

// Track notes in next.managedFields who owns the fields that it has not from
// old, which is nil if next is new. What next itself has in managedFields
// replaces what old has, as it does in Kubernetes: an empty list, or a list of
// one empty entry, ends the tracking of the object; none is as old's.
//
// An object that exists and has no managed fields is not tracked before somebody
// applies it. A new object's only owner is noted without its fields: see
// DESIGN.md for both. On an error next has old's managed fields.
func Track(old, next object.Object, by By) error {
	if err := CheckManager(by.Manager); err != nil {
		return err
	}
	if old == nil && ownerless(next) {
		next.SetManagedFields([]metav1.ManagedFieldsEntry{ownerOfAll(next, by)})
		return nil
	}
	if old != nil && len(old.GetManagedFields()) == 0 && len(next.GetManagedFields()) == 0 {
		next.SetManagedFields(nil)
		return nil
	}
	live := old
	if old == nil {
		live = object.New(object.ResourceOf(next))
	}
	if err := track(live, next, by); err != nil {
		next.SetManagedFields(live.GetManagedFields())
		return fmt.Errorf("managed fields of %s: %w", object.Title(next), err)
	}
	return nil
}

func track(old, next object.Object, by By) error {
	live, err := spelledOut(old)
	if err != nil {
		return err
	}
	if _, short := ownsAll(next); short || next.GetManagedFields() == nil {
		next.SetManagedFields(old.GetManagedFields())
		if live != old && sameButTimes(old, next) {
			return nil // nothing to spell out for
		}
		next.SetManagedFields(live.GetManagedFields())
	}
	m, err := managerFor(next, by.Subresource)
	if err != nil {
		return err
	}
	times := timesOf(live, next)
	out := times.marked(next)
	if _, err := m.fields.Update(times.marked(live), out, by.Manager); err != nil {
		return err
	}
	times.restore(out, by.Now)
	next.SetManagedFields(out.GetManagedFields())
	return nil
}

// ownerless reports whether no entry of managedFields says anything.
func ownerless(obj object.Object) bool {
	return !slices.ContainsFunc(obj.GetManagedFields(), func(e metav1.ManagedFieldsEntry) bool { return e.Manager != "" || e.FieldsV1 != nil })
}

// allFields stands for all fields of an object that has one owner: an entry of
// no fields, which nothing else makes.
const allFields = "{}"

// ownerOfAll is the entry of a new object's manager. What it owns follows from
// the object as long as nobody else writes it: [spelledOut] says it then.
func ownerOfAll(obj object.Object, by By) metav1.ManagedFieldsEntry {
	now := metav1.NewTime(by.Now.UTC().Truncate(time.Second))
	return metav1.ManagedFieldsEntry{
		Manager: cmp.Or(by.Manager, "unknown"), Operation: metav1.ManagedFieldsOperationUpdate,
		APIVersion: object.ResourceOf(obj).APIVersion(), Time: &now,
		FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(allFields),
	}
}

// ownsAll returns the entry if it is the only one and stands for all fields.
func ownsAll(obj object.Object) (metav1.ManagedFieldsEntry, bool) {
	entries := obj.GetManagedFields()
	if len(entries) != 1 || entries[0].Operation != metav1.ManagedFieldsOperationUpdate || entries[0].FieldsV1 == nil || entries[0].FieldsV1.GetRawString() != allFields {
		return metav1.ManagedFieldsEntry{}, false
	}
	return entries[0], true
}

// spelledOut returns obj with the fields of an owner of all, or obj itself if
// there is none.
func spelledOut(obj object.Object) (object.Object, error) {
	owner, ok := ownsAll(obj)
	if !ok {
		return obj, nil
	}
	m, err := managerFor(obj, "")
	if err != nil {
		return nil, err
	}
	out := obj.DeepCopyObject().(object.Object)
	out.SetManagedFields(nil)
	if _, err := m.fields.Update(m.empty, out, owner.Manager); err != nil {
		return nil, err
	}
	entries := out.GetManagedFields()
	for i := range entries {
		entries[i].Time = owner.Time
	}
	out.SetManagedFields(entries)
	return out, nil
}

// CheckManager returns an error if name cannot be that of a field manager.
func CheckManager(name string) error {
	if errs := metav1validation.ValidateFieldManager(name, field.NewPath("fieldManager")); len(errs) > 0 {
		return because(ErrMalformed, "%v", errs.ToAggregate())
	}
	return nil
}

// applyError makes an error of apimachinery's one of ours.
func applyError(err error) error {
	status, ok := errors.AsType[*apierrors.StatusError](err)
	if !ok || !apierrors.IsConflict(err) {
		// "failed to create typed patch object (default/web; /v1, Kind=Service): .spec.ports: …"
		_, text, found := strings.Cut(err.Error(), "): ")
		if !found {
			text = err.Error()
		}
		return because(ErrInapplicable, "%s", text)
	}
	conflict := &ConflictError{Message: status.ErrStatus.Message}
	for _, cause := range status.ErrStatus.Details.Causes {
		c := Conflict{Field: cause.Field, Message: cause.Message}
		if quoted, err := strconv.QuotedPrefix(strings.TrimPrefix(cause.Message, "conflict with ")); err == nil {
			c.Manager, _ = strconv.Unquote(quoted)
		}
		conflict.Conflicts = append(conflict.Conflicts, c)
	}
	// They come in any order of their managers; the message has them sorted.
	slices.SortStableFunc(conflict.Conflicts, func(a, b Conflict) int { return cmp.Compare(a.Message, b.Message) })
	return conflict
}

// times stands for the times of managed fields while apimachinery computes with
// them: it stamps what changes with its own clock. Each time is replaced by a mark
// far in the past, in the same order; what then has no mark was stamped.
type times []metav1.Time

func timesOf(objects ...object.Object) times {
	var all times
	for _, obj := range objects {
		for _, entry := range obj.GetManagedFields() {
			if entry.Time != nil {
				all = append(all, *entry.Time)
			}
		}
	}
	slices.SortFunc(all, func(a, b metav1.Time) int { return a.Compare(b.Time) })
	return slices.CompactFunc(all, func(a, b metav1.Time) bool { return a.Time.Equal(b.Time) })
}

// marked returns a copy of obj with the marks.
func (ts times) marked(obj object.Object) object.Object {
	out := obj.DeepCopyObject().(object.Object)
	entries := out.GetManagedFields()
	for i, entry := range entries {
		if entry.Time != nil {
			at, _ := slices.BinarySearchFunc(ts, *entry.Time, func(a, b metav1.Time) int { return a.Compare(b.Time) })
			mark := metav1.Unix(int64(at), 0)
			entries[i].Time = &mark
		}
	}
	if entries != nil {
		out.SetManagedFields(entries)
	}
	return out
}

// restore puts the times back, and now where there is no mark.
func (ts times) restore(obj object.Object, now time.Time) {
	entries := obj.GetManagedFields()
	for i, entry := range entries {
		if entry.Time == nil {
			continue
		}
		stamp := metav1.NewTime(now.UTC().Truncate(time.Second))
		if mark := entry.Time.Unix(); mark < int64(len(ts)) {
			stamp = ts[mark]
		}
		entries[i].Time = &stamp
	}
	slices.SortStableFunc(entries, compareEntries)
	obj.SetManagedFields(entries)
}

// keepOrder gives each entry of next whose fields are those of live's the text that live
// has of them. The order of the names in it depends on what apimachinery had to do: where
// the object changed it has them as a map, else in the order of their values, port 80
// before port 443.
func keepOrder(live, next object.Object) {
	entries := next.GetManagedFields()
	for i, is := range entries {
		for _, was := range live.GetManagedFields() {
			if was.Manager == is.Manager && was.Operation == is.Operation && was.Subresource == is.Subresource && was.APIVersion == is.APIVersion &&
				was.FieldsV1 != nil && is.FieldsV1 != nil && sameFields(was.FieldsV1.GetRawString(), is.FieldsV1.GetRawString()) {
				entries[i].FieldsV1 = was.FieldsV1
			}
		}
	}
	if entries != nil {
		next.SetManagedFields(entries)
	}
}

// sameFields reports whether two texts name the same fields, in whatever order.
func sameFields(a, b string) bool {
	if a == b || len(a) != len(b) {
		return a == b
	}
	var x, y fieldpath.Set
	return x.FromJSON(strings.NewReader(a)) == nil && y.FromJSON(strings.NewReader(b)) == nil && x.Equals(&y)
}

// stampApplied stamps the applier's entry if its fields are others than before.
// apimachinery does not, where the object itself stays as it is: the applier then
// shares fields with others, or gives them up to them.
func stampApplied(live, next object.Object, by By) {
	find := func(entries []metav1.ManagedFieldsEntry) *metav1.ManagedFieldsEntry {
		i := slices.IndexFunc(entries, func(e metav1.ManagedFieldsEntry) bool {
			return e.Operation == metav1.ManagedFieldsOperationApply && e.Manager == by.Manager && e.Subresource == by.Subresource
		})
		if i < 0 {
			return nil
		}
		return &entries[i]
	}
	entries := next.GetManagedFields()
	is, was := find(entries), find(live.GetManagedFields())
	if is == nil || was != nil && is.FieldsV1.GetRawString() == was.FieldsV1.GetRawString() {
		return
	}
	now := metav1.NewTime(by.Now.UTC().Truncate(time.Second))
	is.Time = &now
	slices.SortStableFunc(entries, compareEntries)
	next.SetManagedFields(entries)
}

// compareEntries orders managed fields as Kubernetes does: by operation, then by
// time.
func compareEntries(a, b metav1.ManagedFieldsEntry) int {
	seconds := func(t *metav1.Time) int64 {
		if t == nil {
			return 0
		}
		return t.Unix()
	}
	return cmp.Or(
		cmp.Compare(a.Operation, b.Operation),
		cmp.Compare(seconds(a.Time), seconds(b.Time)),
		cmp.Compare(a.Manager, b.Manager),
		cmp.Compare(a.APIVersion, b.APIVersion),
		cmp.Compare(a.Subresource, b.Subresource),
	)
}

// keep takes from live what a write to the subresource does not change: the
// status for a write of the object, all but the status for one of the status.
func keep(live, next object.Object, subresource string) {
	switch subresource {
	case "":
		if object.ResourceOf(live).Status {
			setStatus(next, statusOf(live))
		}
	case statusSubresource:
		status, entries := statusOf(next), next.GetManagedFields()
		become(next, live)
		setStatus(next, status)
		next.SetManagedFields(entries)
	}
}

// sameButTimes reports whether two objects are equal, the times of their managed
// fields aside.
func sameButTimes(a, b object.Object) bool {
	return apiequality.Semantic.DeepEqual(withoutTimes(a), withoutTimes(b))
}

func withoutTimes(obj object.Object) object.Object {
	out := obj.DeepCopyObject().(object.Object)
	entries := out.GetManagedFields()
	for i := range entries {
		entries[i].Time = nil
	}
	slices.SortFunc(entries, compareEntries)
	out.SetManagedFields(entries)
	return out
}

// scaleConfig makes a Scale that is applied the part of its object that it is.
func scaleConfig(old object.Object, text []byte) ([]byte, error) {
	if old == nil {
		return nil, because(ErrInapplicable, "there is no object to scale")
	}
	if object.ResourceOf(old).Custom {
		return nil, because(ErrInapplicable, "the scale of a custom kind cannot be applied: patch it, or apply the object")
	}
	var scale autoscalingv1.Scale
	if err := utiljson.Unmarshal(text, &scale); err != nil {
		return nil, because(ErrMalformed, "%v", err)
	}
	if scale.Kind != "Scale" || scale.APIVersion != autoscalingv1.SchemeGroupVersion.String() {
		return nil, because(ErrMalformed, "what is applied to the scale must be a Scale of autoscaling/v1, is %s %s", scale.APIVersion, scale.Kind)
	}
	r := object.ResourceOf(old)
	meta := map[string]any{"name": scale.Name, "namespace": scale.Namespace, "uid": scale.UID, "resourceVersion": scale.ResourceVersion}
	maps.DeleteFunc(meta, func(_ string, value any) bool { return reflect.ValueOf(value).IsZero() })
	return json.Marshal(map[string]any{
		"apiVersion": r.APIVersion(), "kind": r.Kind, "metadata": meta,
		"spec": map[string]any{"replicas": scale.Spec.Replicas},
	})
}
