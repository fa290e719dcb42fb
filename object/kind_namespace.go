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
		selectable: func(ns *corev1.Namespace, set fields.Set) { set["status.phase"] = string(ns.Status.Phase) },
		columns:    columns("NAME", "STATUS", "AGE"),
		row: func(ns *corev1.Namespace, now time.Time) []string {
			return []string{ns.Name, string(ns.Status.Phase), ageOf(ns, now)}
		},
		describe: func(d *describer, ns *corev1.Namespace, _ []Object) {
			d.meta(ns)
			d.line(0, "Status:", string(ns.Status.Phase))
			for _, c := range ns.Status.Conditions {
				d.line(0, "Waits For:", c.Message)
			}
		},
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
