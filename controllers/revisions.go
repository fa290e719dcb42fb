package controllers

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

var revisionResource = object.ResourceOf(&appsv1.ControllerRevision{})

// revisions are the templates that a StatefulSet or DaemonSet has had, as
// ControllerRevisions. The form of their data is Kubernetes', so that its tools
// show them and go back to them.
type revisions struct {
	all     []*appsv1.ControllerRevision // by number
	update  *appsv1.ControllerRevision   // of the template that is wanted now; nil: its name is taken
	create  bool                         // update is new
	touched []*appsv1.ControllerRevision // adopted, or numbered anew
	remove  []*appsv1.ControllerRevision // beyond the history limit
}

// revisionsOf finds or makes the revision of owner's template among owned and
// orphans, and numbers it after all others: to go back to an old template makes it
// the newest. taken reports whether a revision has a name.
func revisionsOf(owner metav1.Object, kind schema.GroupVersionKind, template *corev1.PodTemplateSpec, owned, orphans []*appsv1.ControllerRevision,
	collisions *int32, taken func(string) bool, newUID func() types.UID, now time.Time,
) revisions {
	var r revisions
	for _, rev := range orphans {
		if !object.Deleting(rev) {
			rev.OwnerReferences = append(rev.OwnerReferences, *metav1.NewControllerRef(owner, kind))
			r.touched = append(r.touched, rev)
		}
	}
	r.all = slices.DeleteFunc(slices.Concat(owned, r.touched), func(rev *appsv1.ControllerRevision) bool { return object.Deleting(rev) })
	slices.SortFunc(r.all, func(a, b *appsv1.ControllerRevision) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), oldestFirst(a, b))
	})
	newest := int64(0)
	if n := len(r.all); n > 0 {
		newest = r.all[n-1].Revision
	}
	for i, rev := range slices.Backward(r.all) {
		held, err := revisionTemplate(rev)
		if err != nil || !sameTemplate(held, template) {
			continue
		}
		r.update = rev
		if i < len(r.all)-1 {
			rev.Revision = newest + 1
			r.touch(rev)
			r.all = append(slices.Delete(r.all, i, i+1), rev)
		}
		return r
	}
	hash := templateHash(template, collisions)
	name := owner.GetName()[:min(len(owner.GetName()), 223)] + "-" + hash
	if taken(name) {
		return r
	}
	labels := maps.Clone(template.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels["controller.kubernetes.io/hash"] = hash
	r.create = true
	r.update = &appsv1.ControllerRevision{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "ControllerRevision"},
		ObjectMeta: metav1.ObjectMeta{
			Name:              name,
			Namespace:         owner.GetNamespace(),
			UID:               newUID(),
			CreationTimestamp: metav1.NewTime(now.Truncate(time.Second)),
			Labels:            labels,
			Annotations:       revisionAnnotations(owner),
			OwnerReferences:   []metav1.OwnerReference{*metav1.NewControllerRef(owner, kind)},
		},
		Data:     runtime.RawExtension{Raw: templatePatch(template)},
		Revision: newest + 1,
	}
	r.all = append(r.all, r.update)
	return r
}

// revisionAnnotations are those of the owner that tell of the revision: its change
// cause above all.
func revisionAnnotations(owner metav1.Object) map[string]string {
	annotations := maps.Clone(owner.GetAnnotations())
	delete(annotations, lastAppliedAnnotation)
	return annotations
}

func (r *revisions) touch(rev *appsv1.ControllerRevision) {
	if !slices.Contains(r.touched, rev) {
		r.touched = append(r.touched, rev)
	}
}

// named returns the revision of that name, nil if there is none.
func (r *revisions) named(name string) *appsv1.ControllerRevision {
	for _, rev := range r.all {
		if rev.Name == name {
			return rev
		}
	}
	return nil
}

// prune removes the oldest revisions that nothing uses, beyond limit of them.
func (r *revisions) prune(limit *int32, inUse func(*appsv1.ControllerRevision) bool) {
	keep := 10
	if limit != nil {
		keep = int(*limit)
	}
	var idle []*appsv1.ControllerRevision
	for _, rev := range r.all {
		if rev != r.update && !inUse(rev) {
			idle = append(idle, rev)
		}
	}
	r.remove = idle[:max(len(idle)-keep, 0)]
}

// write puts the changes into o.
func (r *revisions) write(o *outcome) {
	if r.create {
		o.create(r.update)
	}
	for _, rev := range r.touched {
		if !slices.Contains(r.remove, rev) {
			o.update(rev)
		}
	}
	for _, rev := range r.remove {
		o.delete(rev)
	}
}

// templatePatch writes a template as the patch that brings an object back to it.
func templatePatch(template *corev1.PodTemplateSpec) []byte {
	data, err := json.Marshal(template)
	var fields map[string]any
	if err == nil {
		err = json.Unmarshal(data, &fields)
	}
	if err == nil {
		fields["$patch"] = "replace"
		data, err = json.Marshal(map[string]any{"spec": map[string]any{"template": fields}})
	}
	if err != nil {
		panic(fmt.Sprintf("controllers: encode pod template: %v", err)) // a struct of plain values
	}
	return data
}

// revisionTemplate returns the template that a revision keeps.
func revisionTemplate(rev *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var data struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(rev.Data.Raw, &data); err != nil {
		return nil, fmt.Errorf("ControllerRevision %s: %w", rev.Name, err)
	}
	return &data.Spec.Template, nil
}
