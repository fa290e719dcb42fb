package object

import (
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindStatefulSet = define(Resource{Group: "apps", Version: "v1", Kind: "StatefulSet", Plural: "statefulsets", Singular: "statefulset", ShortNames: []string{"sts"}, Namespaced: true, Categories: inAll, Status: true, Scale: true},
	func() *appsv1.StatefulSet { return new(appsv1.StatefulSet) },
	rules[*appsv1.StatefulSet]{
		supported: supportedPodTemplate + `
			spec.replicas
			spec.selector
			spec.serviceName
			spec.podManagementPolicy
			spec.updateStrategy
			spec.revisionHistoryLimit
			spec.minReadySeconds
			spec.persistentVolumeClaimRetentionPolicy
			spec.ordinals
			spec.volumeClaimTemplates[].apiVersion
			spec.volumeClaimTemplates[].kind
			spec.volumeClaimTemplates[].metadata.name
			spec.volumeClaimTemplates[].metadata.labels
			spec.volumeClaimTemplates[].metadata.annotations
			spec.volumeClaimTemplates[].spec
			spec.volumeClaimTemplates[].status
			status
		`,
		// Kubernetes' protobuf has no apiVersion and kind inside an object; its API
		// shows them here all the same.
		read: func(set *appsv1.StatefulSet) {
			for i := range set.Spec.VolumeClaimTemplates {
				claim := &set.Spec.VolumeClaimTemplates[i]
				setIfZero(&claim.APIVersion, "v1")
				setIfZero(&claim.Kind, "PersistentVolumeClaim")
			}
		},
		defaults: func(s *appsv1.StatefulSet) { defaultStatefulSet(&s.Spec) },
		validate: func(s *appsv1.StatefulSet) field.ErrorList {
			return validateStatefulSet(s, field.NewPath("spec"))
		},
		validateUpdate: validateStatefulSetUpdate,
		columns:        columns("NAME", "READY", "AGE", "|", "CONTAINERS", "IMAGES"),
		row: func(s *appsv1.StatefulSet, now time.Time) []string {
			return append([]string{s.Name, itoa(s.Status.ReadyReplicas) + "/" + replicas(s.Spec.Replicas), ageOf(s, now)},
				templateCells(&s.Spec.Template, s.Spec.Selector)[:2]...)
		},
		describe: func(d *describer, s *appsv1.StatefulSet, related []Object) {
			d.statefulSet(s, only[*corev1.Pod](related))
		},
	})

func defaultStatefulSet(spec *appsv1.StatefulSetSpec) {
	setIfNil(&spec.Replicas, 1)
	setIfNil(&spec.RevisionHistoryLimit, 10)
	setIfZero(&spec.PodManagementPolicy, appsv1.OrderedReadyPodManagement)
	setIfZero(&spec.UpdateStrategy.Type, appsv1.RollingUpdateStatefulSetStrategyType)
	if spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
		if spec.UpdateStrategy.RollingUpdate == nil {
			spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{}
		}
		setIfNil(&spec.UpdateStrategy.RollingUpdate.Partition, 0)
		setIfNil(&spec.UpdateStrategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
	}
	setIfNil(&spec.PersistentVolumeClaimRetentionPolicy, appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{})
	setIfZero(&spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	setIfZero(&spec.PersistentVolumeClaimRetentionPolicy.WhenScaled, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	for i := range spec.VolumeClaimTemplates {
		claim := &spec.VolumeClaimTemplates[i]
		// What it is can be nothing else: a manifest that says it is no other than one
		// that does not.
		claim.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"}
		setIfNil(&claim.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
		setIfZero(&claim.Status.Phase, corev1.ClaimPending)
	}
	defaultPodSpec(&spec.Template.Spec)
}

func validateStatefulSet(s *appsv1.StatefulSet, path *field.Path) field.ErrorList {
	spec := &s.Spec
	errs := notNegative(spec.Replicas, path.Child("replicas"))
	for _, err := range validateTemplate(spec.Selector, withClaims(spec), path) {
		if !ofClaim(err, spec, path.Child("template", "spec", "volumes")) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, oneOf(spec.PodManagementPolicy, []appsv1.PodManagementPolicyType{appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement}, path.Child("podManagementPolicy"))...)
	errs = append(errs, notNegative(&spec.MinReadySeconds, path.Child("minReadySeconds"))...)
	errs = append(errs, notNegative(spec.RevisionHistoryLimit, path.Child("revisionHistoryLimit"))...)
	if spec.Ordinals != nil {
		errs = append(errs, notNegative(&spec.Ordinals.Start, path.Child("ordinals", "start"))...)
	}
	if spec.ServiceName != "" {
		errs = append(errs, invalid(path.Child("serviceName"), spec.ServiceName, validation.IsDNS1035Label(spec.ServiceName))...)
	}
	if policy := spec.PersistentVolumeClaimRetentionPolicy; policy != nil {
		at := path.Child("persistentVolumeClaimRetentionPolicy")
		kinds := []appsv1.PersistentVolumeClaimRetentionPolicyType{appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType}
		errs = append(errs, oneOf(policy.WhenDeleted, kinds, at.Child("whenDeleted"))...)
		errs = append(errs, oneOf(policy.WhenScaled, kinds, at.Child("whenScaled"))...)
	}
	errs = append(errs, validateStatefulStrategy(&spec.UpdateStrategy, path.Child("updateStrategy"))...)
	return append(errs, validateClaims(s, path.Child("volumeClaimTemplates"))...)
}

func validateStatefulStrategy(strategy *appsv1.StatefulSetUpdateStrategy, path *field.Path) field.ErrorList {
	errs := oneOf(strategy.Type, []appsv1.StatefulSetUpdateStrategyType{appsv1.RollingUpdateStatefulSetStrategyType, appsv1.OnDeleteStatefulSetStrategyType}, path.Child("type"))
	rolling, at := strategy.RollingUpdate, path.Child("rollingUpdate")
	switch {
	case rolling == nil:
	case strategy.Type != appsv1.RollingUpdateStatefulSetStrategyType:
		errs = append(errs, field.Forbidden(at, fmt.Sprintf("only allowed for updateStrategy '%s'", appsv1.RollingUpdateStatefulSetStrategyType)))
	default:
		errs = append(errs, notNegative(rolling.Partition, at.Child("partition"))...)
		wrong := intOrPercent(rolling.MaxUnavailable, at.Child("maxUnavailable"))
		if u := rolling.MaxUnavailable; u != nil && len(wrong) == 0 {
			switch {
			case isZero(u):
				wrong = append(wrong, field.Invalid(at.Child("maxUnavailable"), u, "cannot be 0: no pod could ever be replaced"))
			case percent(u) > 100:
				wrong = append(wrong, field.Invalid(at.Child("maxUnavailable"), u, "must not be greater than 100%"))
			}
		}
		errs = append(errs, wrong...)
	}
	return errs
}

// withClaims returns the template with the volumes that each pod gets from its
// claims; a claim goes before a volume of the same name.
func withClaims(spec *appsv1.StatefulSetSpec) *corev1.PodTemplateSpec {
	if len(spec.VolumeClaimTemplates) == 0 {
		return &spec.Template
	}
	template := spec.Template
	template.Spec.Volumes = slices.Clone(template.Spec.Volumes)
	for i := range spec.VolumeClaimTemplates {
		name := spec.VolumeClaimTemplates[i].Name
		if name == "" {
			continue
		}
		claim := corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}
		if at := slices.IndexFunc(template.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == name }); at >= 0 {
			template.Spec.Volumes[at] = claim
		} else {
			template.Spec.Volumes = append(template.Spec.Volumes, claim)
		}
	}
	return &template
}

// ofClaim reports whether err is about a volume that withClaims made: the claim
// is where that is to be said.
func ofClaim(err *field.Error, spec *appsv1.StatefulSetSpec, volumes *field.Path) bool {
	for i, v := range withClaims(spec).Spec.Volumes {
		made := i >= len(spec.Template.Spec.Volumes) || v.PersistentVolumeClaim != spec.Template.Spec.Volumes[i].PersistentVolumeClaim
		if made && within(err.Field, volumes.Index(i).String()) {
			return true
		}
	}
	return false
}

// validateClaims checks the claims that each pod gets, named <claim>-<set>-<n>.
func validateClaims(s *appsv1.StatefulSet, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	taken := map[string]bool{}
	for i := range s.Spec.VolumeClaimTemplates {
		claim, at := &s.Spec.VolumeClaimTemplates[i], path.Index(i)
		meta := at.Child("metadata")
		switch {
		case claim.Name == "":
			errs = append(errs, field.Required(meta.Child("name"), "give the claim the name by which containers mount it"))
		case taken[claim.Name]:
			errs = append(errs, field.Duplicate(meta.Child("name"), claim.Name))
		default:
			// Each pod has a volume of that name.
			errs = append(errs, invalid(meta.Child("name"), claim.Name, apivalidation.NameIsDNSLabel(claim.Name, false))...)
		}
		taken[claim.Name] = true
		errs = append(errs, validateLabels(claim.Labels, meta.Child("labels"))...)
		errs = append(errs, validateAnnotations(claim.Annotations, meta.Child("annotations"))...)
		errs = append(errs, validateClaimSpec(&claim.Spec, at.Child("spec"))...)
	}
	return errs
}

func validateStatefulSetUpdate(s, old *appsv1.StatefulSet) field.ErrorList {
	now := s.Spec
	now.Replicas, now.Ordinals, now.Template, now.UpdateStrategy = old.Spec.Replicas, old.Spec.Ordinals, old.Spec.Template, old.Spec.UpdateStrategy
	now.RevisionHistoryLimit, now.MinReadySeconds = old.Spec.RevisionHistoryLimit, old.Spec.MinReadySeconds
	now.PersistentVolumeClaimRetentionPolicy = old.Spec.PersistentVolumeClaimRetentionPolicy
	return fixedFields(now, old.Spec, "spec", "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', "+
		"'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden: delete the set without its pods (--cascade=orphan) and create it again")
}

func (d *describer) statefulSet(s *appsv1.StatefulSet, pods []*corev1.Pod) {
	d.line(0, "Name:", s.Name)
	d.line(0, "Namespace:", s.Namespace)
	d.line(0, "CreationTimestamp:", d.time(s.CreationTimestamp))
	d.line(0, "Selector:", metav1.FormatLabelSelector(s.Spec.Selector))
	d.labels(s)
	if s.Spec.ServiceName != "" {
		d.line(0, "Service Name:", s.Spec.ServiceName)
	}
	d.line(0, "Replicas:", fmt.Sprintf("%s desired | %d total", replicas(s.Spec.Replicas), s.Status.Replicas))
	d.line(0, "Update Strategy:", string(s.Spec.UpdateStrategy.Type))
	if rolling := s.Spec.UpdateStrategy.RollingUpdate; rolling != nil {
		if rolling.Partition != nil {
			d.line(1, "Partition:", itoa(*rolling.Partition))
		}
		if rolling.MaxUnavailable != nil {
			d.line(1, "MaxUnavailable:", rolling.MaxUnavailable.String())
		}
	}
	own := ownPods(s, pods)
	d.podsStatus(own)
	d.template(&s.Spec.Template)
	d.claims(s.Spec.VolumeClaimTemplates)
	d.conditions(each(s.Status.Conditions, func(c appsv1.StatefulSetCondition) condition {
		return condition{string(c.Type), string(c.Status), c.Reason, c.Message}
	}))
	d.pods(own)
}

func (d *describer) claims(claims []corev1.PersistentVolumeClaim) {
	if len(claims) == 0 {
		d.line(0, "Volume Claims:", "<none>")
		return
	}
	d.line(0, "Volume Claims:")
	for i := range claims {
		c := &claims[i]
		d.line(1, "Name:", c.Name)
		d.line(1, "StorageClass:", valueOr(c.Spec.StorageClassName, "<default>"))
		d.pairs(1, "Labels:", "=", c.Labels)
		d.pairs(1, "Annotations:", ": ", c.Annotations)
		size := "<default>"
		if q, ok := c.Spec.Resources.Requests[corev1.ResourceStorage]; ok {
			size = q.String()
		}
		d.line(1, "Capacity:", size)
		d.line(1, "Access Modes:", accessModesText(c.Spec.AccessModes))
	}
}
