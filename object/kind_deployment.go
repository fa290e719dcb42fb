package object

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindDeployment = define(Resource{Group: "apps", Version: "v1", Kind: "Deployment", Plural: "deployments", Singular: "deployment", ShortNames: []string{"deploy"}, Namespaced: true, Categories: inAll, Status: true, Scale: true},
	func() *appsv1.Deployment { return new(appsv1.Deployment) },
	rules[*appsv1.Deployment]{
		supported: supportedPodTemplate + `
			spec.replicas
			spec.selector
			spec.strategy
			spec.minReadySeconds
			spec.revisionHistoryLimit
			spec.progressDeadlineSeconds
			spec.paused
			status
		`,
		defaults: func(d *appsv1.Deployment) { defaultDeployment(&d.Spec) },
		validate: func(d *appsv1.Deployment) field.ErrorList { return validateDeployment(&d.Spec, field.NewPath("spec")) },
		validateUpdate: func(d, old *appsv1.Deployment) field.ErrorList {
			return sameSelector(d.Spec.Selector, old.Spec.Selector)
		},
		columns: columns("NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "|", "CONTAINERS", "IMAGES", "SELECTOR"),
		row: func(d *appsv1.Deployment, now time.Time) []string {
			return append([]string{
				d.Name, itoa(d.Status.ReadyReplicas) + "/" + replicas(d.Spec.Replicas), itoa(d.Status.UpdatedReplicas),
				itoa(d.Status.AvailableReplicas), ageOf(d, now),
			}, templateCells(&d.Spec.Template, d.Spec.Selector)...)
		},
		describe: func(d *describer, dep *appsv1.Deployment, related []Object) {
			d.deployment(dep, only[*appsv1.ReplicaSet](related))
		},
	})

func defaultDeployment(spec *appsv1.DeploymentSpec) {
	setIfNil(&spec.Replicas, 1)
	setIfNil(&spec.RevisionHistoryLimit, 10)
	setIfNil(&spec.ProgressDeadlineSeconds, 600)
	setIfZero(&spec.Strategy.Type, appsv1.RollingUpdateDeploymentStrategyType)
	if spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		if spec.Strategy.RollingUpdate == nil {
			spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{}
		}
		setIfNil(&spec.Strategy.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
		setIfNil(&spec.Strategy.RollingUpdate.MaxSurge, intstr.FromString("25%"))
	}
	defaultPodSpec(&spec.Template.Spec)
}

func validateDeployment(spec *appsv1.DeploymentSpec, path *field.Path) field.ErrorList {
	errs := notNegative(spec.Replicas, path.Child("replicas"))
	errs = append(errs, validateTemplate(spec.Selector, &spec.Template, path)...)
	errs = append(errs, validateStrategy(&spec.Strategy, path.Child("strategy"))...)
	errs = append(errs, notNegative(&spec.MinReadySeconds, path.Child("minReadySeconds"))...)
	errs = append(errs, notNegative(spec.RevisionHistoryLimit, path.Child("revisionHistoryLimit"))...)
	deadline := notNegative(spec.ProgressDeadlineSeconds, path.Child("progressDeadlineSeconds"))
	if p := spec.ProgressDeadlineSeconds; len(deadline) == 0 && p != nil && *p <= spec.MinReadySeconds {
		deadline = append(deadline, field.Invalid(path.Child("progressDeadlineSeconds"), *p, fmt.Sprintf("must be greater than minReadySeconds (%d)", spec.MinReadySeconds)))
	}
	return append(errs, deadline...)
}

func validateStrategy(strategy *appsv1.DeploymentStrategy, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch strategy.Type {
	case appsv1.RecreateDeploymentStrategyType:
		if strategy.RollingUpdate != nil {
			errs = append(errs, field.Forbidden(path.Child("rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'"))
		}
	case appsv1.RollingUpdateDeploymentStrategyType:
		rolling := strategy.RollingUpdate
		if rolling == nil {
			errs = append(errs, field.Required(path.Child("rollingUpdate"), ""))
			break
		}
		errs = append(errs, rollout(rolling.MaxUnavailable, rolling.MaxSurge, path.Child("rollingUpdate"))...)
	default:
		errs = append(errs, field.NotSupported(path.Child("type"), strategy.Type,
			[]appsv1.DeploymentStrategyType{appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType}))
	}
	return errs
}

func (d *describer) deployment(dep *appsv1.Deployment, sets []*appsv1.ReplicaSet) {
	d.line(0, "Name:", dep.Name)
	d.line(0, "Namespace:", dep.Namespace)
	d.line(0, "CreationTimestamp:", d.time(dep.CreationTimestamp))
	d.labels(dep)
	d.line(0, "Selector:", metav1.FormatLabelSelector(dep.Spec.Selector))
	s := dep.Status
	d.line(0, "Replicas:", fmt.Sprintf("%s desired | %d updated | %d total | %d available | %d unavailable",
		replicas(dep.Spec.Replicas), s.UpdatedReplicas, s.Replicas, s.AvailableReplicas, s.UnavailableReplicas))
	d.line(0, "StrategyType:", string(dep.Spec.Strategy.Type))
	d.line(0, "MinReadySeconds:", itoa(dep.Spec.MinReadySeconds))
	if r := dep.Spec.Strategy.RollingUpdate; r != nil {
		d.line(0, "RollingUpdateStrategy:", fmt.Sprintf("%s max unavailable, %s max surge", r.MaxUnavailable.String(), r.MaxSurge.String()))
	}
	if dep.Spec.Paused {
		d.line(0, "Paused:", "True")
	}
	d.template(&dep.Spec.Template)
	d.conditions(each(s.Conditions, func(c appsv1.DeploymentCondition) condition {
		return condition{string(c.Type), string(c.Status), c.Reason, c.Message}
	}))
	var current *appsv1.ReplicaSet
	var old []*appsv1.ReplicaSet
	for _, rs := range sets {
		if !controls(dep, rs) {
			continue
		}
		if rs.Annotations[revisionAnnotation] == dep.Annotations[revisionAnnotation] && current == nil {
			current = rs
		} else if rs.Status.Replicas > 0 || rs.Spec.Replicas != nil && *rs.Spec.Replicas > 0 {
			old = append(old, rs)
		}
	}
	slices.SortFunc(old, func(a, b *appsv1.ReplicaSet) int { return cmp.Compare(a.Name, b.Name) })
	var oldTexts []string
	for _, rs := range old {
		oldTexts = append(oldTexts, setText(rs))
	}
	d.line(0, "OldReplicaSets:", orNone(strings.Join(oldTexts, ", ")))
	if current != nil {
		d.line(0, "NewReplicaSet:", setText(current))
	} else {
		d.line(0, "NewReplicaSet:", "<none>")
	}
}

func setText(rs *appsv1.ReplicaSet) string {
	return fmt.Sprintf("%s (%d/%s replicas created)", rs.Name, rs.Status.Replicas, replicas(rs.Spec.Replicas))
}
