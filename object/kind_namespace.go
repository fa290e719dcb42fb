package object

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindNamespace = define(Resource{Version: "v1", Kind: "Namespace", Plural: "namespaces", Singular: "namespace", ShortNames: []string{"ns"}, Status: true},
	func() *corev1.Namespace { return new(corev1.Namespace) },
	rules[*corev1.Namespace]{
		supported: `
			spec.finalizers
			status
		`,
		validName: labelNames,
		defaults:  defaultNamespace,
		validate: func(ns *corev1.Namespace) field.ErrorList {
			return apivalidation.ValidateFinalizers(finalizerNames(ns.Spec.Finalizers), field.NewPath("spec", "finalizers"))
		},
		selectable: func(ns *corev1.Namespace, set fields.Set) {
			set["status.phase"] = string(ns.Status.Phase)
			set["name"] = ns.Name // as in Kubernetes
		},
		columns: columns("NAME", "STATUS", "AGE"),
		row: func(ns *corev1.Namespace, now time.Time) []string {
			return []string{ns.Name, string(ns.Status.Phase), ageOf(ns, now)}
		},
		describe: func(d *describer, ns *corev1.Namespace, related []Object) { d.namespace(ns, related) },
	})

func defaultNamespace(ns *corev1.Namespace) {
	if ns.Name != "" {
		if ns.Labels == nil {
			ns.Labels = map[string]string{}
		}
		ns.Labels[corev1.LabelMetadataName] = ns.Name // selectors rely on it: always so
	}
	setIfZero(&ns.Status.Phase, corev1.NamespaceActive)
	// It holds the namespace until what is in it is gone: see MarkDeleted.
	if !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		ns.Spec.Finalizers = append(ns.Spec.Finalizers, corev1.FinalizerKubernetes)
	}
}

func finalizerNames(finalizers []corev1.FinalizerName) []string {
	names := make([]string, len(finalizers))
	for i, f := range finalizers {
		names[i] = string(f)
	}
	return names
}

// namespace writes a namespace with the quotas and limits in it, as far as related
// has them.
func (d *describer) namespace(ns *corev1.Namespace, related []Object) {
	d.meta(ns)
	d.line(0, "Status:", string(ns.Status.Phase))
	for _, c := range ns.Status.Conditions {
		d.line(0, "Waits For:", c.Message)
	}
	quotas := slices.DeleteFunc(only[*corev1.ResourceQuota](related), func(q *corev1.ResourceQuota) bool { return q.Namespace != ns.Name })
	if len(quotas) > 0 {
		d.line(0, "")
		d.line(0, "Resource Quotas")
	}
	for _, q := range quotas {
		d.line(1, "Name:", q.Name)
		d.quota(1, q)
	}
	limits := slices.DeleteFunc(only[*corev1.LimitRange](related), func(r *corev1.LimitRange) bool { return r.Namespace != ns.Name })
	if len(limits) > 0 {
		d.line(0, "")
		d.line(0, "Resource Limits")
		d.limits(1, limits...)
		d.line(0, "")
	}
}
