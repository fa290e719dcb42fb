package object

import (
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindReplicationController = define(Resource{Version: "v1", Kind: "ReplicationController", Plural: "replicationcontrollers", Singular: "replicationcontroller", ShortNames: []string{"rc"}, Namespaced: true, Categories: inAll, Status: true, Scale: true},
	func() *corev1.ReplicationController { return new(corev1.ReplicationController) },
	rules[*corev1.ReplicationController]{
		supported: supportedPodTemplate + `
			spec.replicas
			spec.selector
			spec.minReadySeconds
			status
		`,
		defaults: defaultReplicationController,
		validate: func(rc *corev1.ReplicationController) field.ErrorList {
			return validateReplicationController(&rc.Spec, field.NewPath("spec"))
		},
		selectable: func(rc *corev1.ReplicationController, set fields.Set) {
			set["status.replicas"] = itoa(rc.Status.Replicas)
		},
		columns: columns("NAME", "DESIRED:integer", "CURRENT:integer", "READY:integer", "AGE", "|", "CONTAINERS", "IMAGES", "SELECTOR"),
		row: func(rc *corev1.ReplicationController, now time.Time) []string {
			template := rc.Spec.Template
			if template == nil {
				template = &corev1.PodTemplateSpec{}
			}
			return append([]string{rc.Name, replicas(rc.Spec.Replicas), itoa(rc.Status.Replicas), itoa(rc.Status.ReadyReplicas), ageOf(rc, now)},
				templateCells(template, &metav1.LabelSelector{MatchLabels: rc.Spec.Selector})...)
		},
		describe: func(d *describer, rc *corev1.ReplicationController, related []Object) {
			d.replicationController(rc, only[*corev1.Pod](related))
		},
	})

// defaultReplicationController takes selector and labels from the template, as
// Kubernetes' oldest API does.
func defaultReplicationController(rc *corev1.ReplicationController) {
	setIfNil(&rc.Spec.Replicas, 1)
	template := rc.Spec.Template
	if template == nil {
		return
	}
	if len(rc.Spec.Selector) == 0 {
		rc.Spec.Selector = maps.Clone(template.Labels)
	}
	if len(rc.Labels) == 0 {
		rc.Labels = maps.Clone(template.Labels)
	}
	defaultPodSpec(&template.Spec)
}

func validateReplicationController(spec *corev1.ReplicationControllerSpec, path *field.Path) field.ErrorList {
	errs := notNegative(spec.Replicas, path.Child("replicas"))
	errs = append(errs, notNegative(&spec.MinReadySeconds, path.Child("minReadySeconds"))...)
	if spec.Template == nil {
		return append(errs, field.Required(path.Child("template"), "describe the pods to run"))
	}
	var selector *metav1.LabelSelector
	if len(spec.Selector) > 0 {
		selector = &metav1.LabelSelector{MatchLabels: spec.Selector}
	}
	for _, err := range validateTemplate(selector, spec.Template, path) {
		// Its selector is the bare map.
		if rest, below := cutPath(err.Field, path.Child("selector", "matchLabels").String()); below {
			err.Field = path.Child("selector").String() + rest
		}
		errs = append(errs, err)
	}
	return errs
}

// cutPath returns what follows parent in path, if path lies below it.
func cutPath(path, parent string) (rest string, below bool) {
	if !within(path, parent) {
		return "", false
	}
	return path[len(parent):], true
}

func (d *describer) replicationController(rc *corev1.ReplicationController, pods []*corev1.Pod) {
	d.line(0, "Name:", rc.Name)
	d.line(0, "Namespace:", rc.Namespace)
	d.line(0, "Selector:", labels.FormatLabels(rc.Spec.Selector))
	d.labels(rc)
	d.line(0, "Replicas:", fmt.Sprintf("%d current / %s desired", rc.Status.Replicas, replicas(rc.Spec.Replicas)))
	own := ownPods(rc, pods)
	d.podsStatus(own)
	if rc.Spec.Template != nil {
		d.template(rc.Spec.Template)
	}
	d.conditions(each(rc.Status.Conditions, func(c corev1.ReplicationControllerCondition) condition {
		return condition{string(c.Type), string(c.Status), c.Reason, c.Message}
	}))
	d.pods(own)
}
