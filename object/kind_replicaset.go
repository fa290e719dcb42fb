package object

import (
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindReplicaSet = define(Resource{Group: "apps", Version: "v1", Kind: "ReplicaSet", Plural: "replicasets", Singular: "replicaset", ShortNames: []string{"rs"}, Namespaced: true, Categories: inAll, Status: true, Scale: true},
	func() *appsv1.ReplicaSet { return new(appsv1.ReplicaSet) },
	rules[*appsv1.ReplicaSet]{
		supported: supportedPodTemplate + `
			spec.replicas
			spec.selector
			spec.minReadySeconds
			status
		`,
		defaults: func(rs *appsv1.ReplicaSet) {
			setIfNil(&rs.Spec.Replicas, 1)
			defaultPodSpec(&rs.Spec.Template.Spec)
		},
		validate: func(rs *appsv1.ReplicaSet) field.ErrorList {
			return validateReplicaSet(&rs.Spec, field.NewPath("spec"))
		},
		validateUpdate: func(rs, old *appsv1.ReplicaSet) field.ErrorList {
			return sameSelector(rs.Spec.Selector, old.Spec.Selector)
		},
		selectable: func(rs *appsv1.ReplicaSet, set fields.Set) { set["status.replicas"] = itoa(rs.Status.Replicas) },
		columns:    columns("NAME", "DESIRED:integer", "CURRENT:integer", "READY:integer", "AGE", "|", "CONTAINERS", "IMAGES", "SELECTOR"),
		row: func(rs *appsv1.ReplicaSet, now time.Time) []string {
			return append([]string{rs.Name, replicas(rs.Spec.Replicas), itoa(rs.Status.Replicas), itoa(rs.Status.ReadyReplicas), ageOf(rs, now)},
				templateCells(&rs.Spec.Template, rs.Spec.Selector)...)
		},
		describe: func(d *describer, rs *appsv1.ReplicaSet, related []Object) {
			d.replicaSet(rs, only[*corev1.Pod](related))
		},
	})

func validateReplicaSet(spec *appsv1.ReplicaSetSpec, path *field.Path) field.ErrorList {
	errs := notNegative(spec.Replicas, path.Child("replicas"))
	errs = append(errs, notNegative(&spec.MinReadySeconds, path.Child("minReadySeconds"))...)
	return append(errs, validateTemplate(spec.Selector, &spec.Template, path)...)
}

func (d *describer) replicaSet(rs *appsv1.ReplicaSet, pods []*corev1.Pod) {
	d.line(0, "Name:", rs.Name)
	d.line(0, "Namespace:", rs.Namespace)
	d.line(0, "Selector:", metav1.FormatLabelSelector(rs.Spec.Selector))
	d.labels(rs)
	d.controlledBy(rs)
	d.line(0, "Replicas:", fmt.Sprintf("%d current / %s desired", rs.Status.Replicas, replicas(rs.Spec.Replicas)))
	own := ownPods(rs, pods)
	if len(own) > 0 || rs.Status.Replicas == 0 {
		d.podsStatus(own)
	}
	d.template(&rs.Spec.Template)
	d.conditions(each(rs.Status.Conditions, func(c appsv1.ReplicaSetCondition) condition {
		return condition{string(c.Type), string(c.Status), c.Reason, c.Message}
	}))
	d.pods(own)
}
