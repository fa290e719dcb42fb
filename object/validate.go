package object

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Validate returns everything wrong with obj, whose defaults are filled in and
// whose name is generated: what Kubernetes refuses, and fields that have no
// behavior in Holdfast yet. Status is the system's own and not looked at. The
// rules and the form of the messages are Kubernetes'.
func Validate(obj Object) Faults {
	errs := unsupported(obj)
	covered := len(errs)
	add := func(more field.ErrorList) {
		for _, err := range more {
			// One fault for one field: "not supported yet" says all there is to say.
			if !slices.ContainsFunc(errs[:covered], func(u *field.Error) bool { return within(err.Field, u.Field) }) {
				errs = append(errs, err)
			}
		}
	}
	add(validateMetadata(obj))
	switch obj := obj.(type) {
	case *corev1.Namespace:
		add(apivalidation.ValidateFinalizers(finalizerNames(obj.Spec.Finalizers), field.NewPath("spec", "finalizers")))
	case *corev1.Node:
		add(validateNode(obj))
	case *corev1.Pod:
		add(validatePodSpec(&obj.Spec, field.NewPath("spec")))
	case *appsv1.ReplicaSet:
		add(validateReplicaSet(&obj.Spec, field.NewPath("spec")))
	case *appsv1.Deployment:
		add(validateDeployment(&obj.Spec, field.NewPath("spec")))
	case *corev1.ConfigMap:
		add(validateConfigMap(obj))
	case *corev1.Event:
		add(validateEvent(obj))
	}
	return faultsOf(obj, errs)
}

// Metadata

// validName returns what is wrong with an object's name.
func validName(r Resource, name string, prefix bool) []string {
	if r.Kind == "Namespace" {
		return apivalidation.NameIsDNSLabel(name, prefix)
	}
	return apivalidation.NameIsDNSSubdomain(name, prefix)
}

func validateMetadata(obj Object) field.ErrorList {
	var errs field.ErrorList
	r, path := ResourceOf(obj), field.NewPath("metadata")

	if name := obj.GetGenerateName(); name != "" {
		for _, msg := range validName(r, name, true) {
			errs = append(errs, field.Invalid(path.Child("generateName"), name, msg))
		}
	}
	if name := obj.GetName(); name == "" {
		errs = append(errs, field.Required(path.Child("name"), "give the object a name"))
	} else {
		for _, msg := range validName(r, name, false) {
			errs = append(errs, field.Invalid(path.Child("name"), name, msg))
		}
	}
	switch ns := obj.GetNamespace(); {
	case r.Namespaced && ns == "":
		errs = append(errs, field.Required(path.Child("namespace"), "say which namespace the object belongs to"))
	case r.Namespaced:
		for _, msg := range apivalidation.ValidateNamespaceName(ns, false) {
			errs = append(errs, field.Invalid(path.Child("namespace"), ns, msg))
		}
	case ns != "":
		errs = append(errs, field.Forbidden(path.Child("namespace"), fmt.Sprintf("a %s lives outside namespaces: leave it out", r.Kind)))
	}
	if g := obj.GetGeneration(); g < 0 {
		errs = append(errs, field.Invalid(path.Child("generation"), g, "must not be negative"))
	}
	errs = append(errs, validateLabels(obj.GetLabels(), path.Child("labels"))...)
	errs = append(errs, validateAnnotations(obj.GetAnnotations(), path.Child("annotations"))...)
	errs = append(errs, apivalidation.ValidateOwnerReferences(obj.GetOwnerReferences(), path.Child("ownerReferences"))...)
	errs = append(errs, apivalidation.ValidateFinalizers(obj.GetFinalizers(), path.Child("finalizers"))...)
	errs = append(errs, metavalidation.ValidateManagedFields(obj.GetManagedFields(), path.Child("managedFields"))...)
	return errs
}

// validateLabels is apimachinery's, but for the order, which is fixed, and the
// path, which names the label.
func validateLabels(set map[string]string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, key := range slices.Sorted(maps.Keys(set)) {
		for _, msg := range validation.IsQualifiedName(key) {
			errs = append(errs, field.Invalid(path.Key(key), key, msg))
		}
		for _, msg := range validation.IsValidLabelValue(set[key]) {
			errs = append(errs, field.Invalid(path.Key(key), set[key], msg))
		}
	}
	return errs
}

func validateAnnotations(set map[string]string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, key := range slices.Sorted(maps.Keys(set)) {
		for _, msg := range validation.IsQualifiedName(strings.ToLower(key)) { // case matters in the name only
			errs = append(errs, field.Invalid(path.Key(key), key, msg))
		}
	}
	if apivalidation.ValidateAnnotationsSize(set) != nil {
		errs = append(errs, field.TooLong(path, "", apivalidation.TotalAnnotationSizeLimitB))
	}
	return errs
}

func finalizerNames(finalizers []corev1.FinalizerName) []string {
	names := make([]string, len(finalizers))
	for i, f := range finalizers {
		names[i] = string(f)
	}
	return names
}

// Workloads

func validateReplicaSet(spec *appsv1.ReplicaSetSpec, path *field.Path) field.ErrorList {
	errs := notNegative(spec.Replicas, path.Child("replicas"))
	errs = append(errs, notNegative(&spec.MinReadySeconds, path.Child("minReadySeconds"))...)
	return append(errs, validateTemplate(spec.Selector, &spec.Template, path)...)
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

// validateTemplate checks a selector and the template whose pods it must select.
func validateTemplate(selector *metav1.LabelSelector, template *corev1.PodTemplateSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	at, meta := path.Child("selector"), path.Child("template", "metadata")
	switch {
	case selector == nil:
		errs = append(errs, field.Required(at, "say which pods belong to it, by labels that the template sets"))
	case len(selector.MatchLabels)+len(selector.MatchExpressions) == 0:
		errs = append(errs, field.Invalid(at, field.OmitValueType{}, "an empty selector would take every pod of the namespace: name labels that the template sets"))
	default:
		wrong := validateLabels(selector.MatchLabels, at.Child("matchLabels"))
		for i, expr := range selector.MatchExpressions {
			wrong = append(wrong, metavalidation.ValidateLabelSelectorRequirement(expr, metavalidation.LabelSelectorValidationOptions{}, at.Child("matchExpressions").Index(i))...)
		}
		errs = append(errs, wrong...)
		if len(wrong) > 0 {
			break
		}
		s, err := metav1.LabelSelectorAsSelector(selector)
		switch {
		case err != nil:
			errs = append(errs, field.Invalid(at, selector, err.Error()))
		case !s.Matches(labels.Set(template.Labels)):
			errs = append(errs, field.Invalid(meta.Child("labels"), labels.Set(template.Labels).String(),
				fmt.Sprintf("the selector (%s) does not match these labels: the pods would not be its own", s)))
		}
	}
	errs = append(errs, validateLabels(template.Labels, meta.Child("labels"))...)
	errs = append(errs, validateAnnotations(template.Annotations, meta.Child("annotations"))...)
	errs = append(errs, apivalidation.ValidateFinalizers(template.Finalizers, meta.Child("finalizers"))...)
	spec := path.Child("template", "spec")
	errs = append(errs, validatePodSpec(&template.Spec, spec)...)
	if p := template.Spec.RestartPolicy; p == corev1.RestartPolicyOnFailure || p == corev1.RestartPolicyNever {
		errs = append(errs, field.NotSupported(spec.Child("restartPolicy"), p, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	return errs
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
		at := path.Child("rollingUpdate")
		errs = append(errs, intOrPercent(rolling.MaxUnavailable, at.Child("maxUnavailable"))...)
		errs = append(errs, intOrPercent(rolling.MaxSurge, at.Child("maxSurge"))...)
		if len(errs) > 0 {
			break
		}
		if u := rolling.MaxUnavailable; u != nil && percent(u) > 100 {
			errs = append(errs, field.Invalid(at.Child("maxUnavailable"), u, "must not be greater than 100%"))
		}
		if isZero(rolling.MaxUnavailable) && isZero(rolling.MaxSurge) {
			errs = append(errs, field.Invalid(at.Child("maxUnavailable"), rolling.MaxUnavailable, "may not be 0 when `maxSurge` is 0: no pod could ever be replaced"))
		}
	default:
		errs = append(errs, field.NotSupported(path.Child("type"), strategy.Type,
			[]appsv1.DeploymentStrategyType{appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType}))
	}
	return errs
}

func intOrPercent(v *intstr.IntOrString, path *field.Path) field.ErrorList {
	switch {
	case v == nil:
		return nil
	case v.Type == intstr.String:
		var errs field.ErrorList
		for _, msg := range validation.IsValidPercent(v.StrVal) {
			errs = append(errs, field.Invalid(path, v, msg))
		}
		return errs
	case v.IntVal < 0:
		return field.ErrorList{field.Invalid(path, v.IntVal, apivalidation.IsNegativeErrorMsg)}
	}
	return nil
}

// percent returns the percentage that v states, 0 for a number.
func percent(v *intstr.IntOrString) int {
	if v == nil || v.Type != intstr.String {
		return 0
	}
	p, _ := intstr.GetScaledValueFromIntOrPercent(v, 100, true) // valid: checked before
	return p
}

func isZero(v *intstr.IntOrString) bool {
	return v == nil || v.Type == intstr.Int && v.IntVal == 0 || v.Type == intstr.String && percent(v) == 0
}

func notNegative(v *int32, path *field.Path) field.ErrorList {
	if v == nil || *v >= 0 {
		return nil
	}
	return field.ErrorList{field.Invalid(path, *v, apivalidation.IsNegativeErrorMsg)}
}

// Nodes

func validateNode(node *corev1.Node) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("spec")
	errs = append(errs, validateTaints(node.Spec.Taints, path.Child("taints"))...)
	seen := map[string]bool{}
	for i, cidr := range node.Spec.PodCIDRs {
		at := path.Child("podCIDRs").Index(i)
		if prefix, err := netip.ParsePrefix(cidr); err != nil || prefix != prefix.Masked() {
			errs = append(errs, field.Invalid(at, cidr, `must be a network such as "10.244.1.0/24"`))
		}
		if seen[cidr] {
			errs = append(errs, field.Duplicate(at, cidr))
		}
		seen[cidr] = true
	}
	if first := node.Spec.PodCIDR; first != "" && (len(node.Spec.PodCIDRs) == 0 || node.Spec.PodCIDRs[0] != first) {
		errs = append(errs, field.Invalid(path.Child("podCIDR"), first, "must be the first of podCIDRs"))
	}
	return errs
}

var taintEffects = []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}

func validateTaints(taints []corev1.Taint, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := map[string]bool{}
	for i, taint := range taints {
		at := path.Index(i)
		errs = append(errs, validateQualifiedName(taint.Key, at.Child("key"))...)
		for _, msg := range validation.IsValidLabelValue(taint.Value) {
			errs = append(errs, field.Invalid(at.Child("value"), taint.Value, msg))
		}
		errs = append(errs, oneOf(taint.Effect, taintEffects, at.Child("effect"))...)
		id := taint.Key + ":" + string(taint.Effect)
		if seen[id] {
			errs = append(errs, field.Duplicate(at, id))
		}
		seen[id] = true
	}
	return errs
}

func validateQualifiedName(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	for _, msg := range validation.IsQualifiedName(name) {
		errs = append(errs, field.Invalid(path, name, msg))
	}
	return errs
}

// oneOf checks an enumeration.
func oneOf[T ~string](got T, allowed []T, path *field.Path) field.ErrorList {
	switch {
	case got == "":
		words := make([]string, len(allowed))
		for i, w := range allowed {
			words[i] = string(w)
		}
		return field.ErrorList{field.Required(path, "must be one of "+strings.Join(words, ", "))}
	case !slices.Contains(allowed, got):
		return field.ErrorList{field.NotSupported(path, got, allowed)}
	}
	return nil
}

// ConfigMaps and events

// maxConfigMapSize bounds the keys and values of a ConfigMap, in bytes.
const maxConfigMapSize = 1 << 20

func validateConfigMap(cm *corev1.ConfigMap) field.ErrorList {
	var errs field.ErrorList
	size := 0
	for _, key := range slices.Sorted(maps.Keys(cm.Data)) {
		at := field.NewPath("data").Key(key)
		for _, msg := range validation.IsConfigMapKey(key) {
			errs = append(errs, field.Invalid(at, key, msg))
		}
		if _, twice := cm.BinaryData[key]; twice {
			errs = append(errs, field.Invalid(at, key, "is a key of binaryData too: a key may be in one of them only"))
		}
		size += len(key) + len(cm.Data[key])
	}
	for _, key := range slices.Sorted(maps.Keys(cm.BinaryData)) {
		for _, msg := range validation.IsConfigMapKey(key) {
			errs = append(errs, field.Invalid(field.NewPath("binaryData").Key(key), key, msg))
		}
		size += len(key) + len(cm.BinaryData[key])
	}
	if size > maxConfigMapSize {
		errs = append(errs, &field.Error{
			Type: field.ErrorTypeTooLong, Field: "data",
			Detail: fmt.Sprintf("keys and values have %d bytes, may have %d: split the ConfigMap", size, maxConfigMapSize),
		})
	}
	return errs
}

func validateEvent(event *corev1.Event) field.ErrorList {
	var errs field.ErrorList
	if ns := event.InvolvedObject.Namespace; ns != "" && ns != event.Namespace {
		errs = append(errs, field.Invalid(field.NewPath("involvedObject", "namespace"), ns, fmt.Sprintf("must be the event's own namespace, %s", event.Namespace)))
	}
	return errs
}

// Updates

// ValidateUpdate returns what is wrong with obj as the successor of old, an
// object of the same kind: changes of what cannot change. Whether obj is valid
// in itself is for [Validate] to say, which a caller asks too. A uid,
// creationTimestamp or deletionTimestamp that obj leaves out counts as
// unchanged.
func ValidateUpdate(obj, old Object) Faults {
	errs := validateMetadataUpdate(obj, old)
	switch obj := obj.(type) {
	case *corev1.Node:
		errs = append(errs, validateNodeUpdate(obj, old.(*corev1.Node))...)
	case *corev1.Pod:
		errs = append(errs, validatePodUpdate(obj, old.(*corev1.Pod))...)
	case *appsv1.ReplicaSet:
		errs = append(errs, sameSelector(obj.Spec.Selector, old.(*appsv1.ReplicaSet).Spec.Selector)...)
	case *appsv1.Deployment:
		errs = append(errs, sameSelector(obj.Spec.Selector, old.(*appsv1.Deployment).Spec.Selector)...)
	case *corev1.ConfigMap:
		errs = append(errs, validateConfigMapUpdate(obj, old.(*corev1.ConfigMap))...)
	}
	return faultsOf(obj, errs)
}

// immutable is the error about a field that cannot change.
func immutable(path *field.Path, value any) *field.Error {
	return field.Invalid(path, value, "field is immutable: to change it, delete the object and create it again")
}

func validateMetadataUpdate(obj, old Object) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("metadata")
	if obj.GetName() != old.GetName() {
		errs = append(errs, immutable(path.Child("name"), obj.GetName()))
	}
	if obj.GetNamespace() != old.GetNamespace() {
		errs = append(errs, immutable(path.Child("namespace"), obj.GetNamespace()))
	}
	if uid := obj.GetUID(); uid != "" && uid != old.GetUID() {
		errs = append(errs, field.Invalid(path.Child("uid"), uid, fmt.Sprintf("the object of that name is another one, with uid %s: read it again", old.GetUID())))
	}
	if t, was := obj.GetCreationTimestamp(), old.GetCreationTimestamp(); !t.IsZero() && !t.Equal(&was) {
		errs = append(errs, field.Invalid(path.Child("creationTimestamp"), t, "field is immutable: leave it out"))
	}
	if t := obj.GetDeletionTimestamp(); t != nil && !t.Equal(old.GetDeletionTimestamp()) {
		errs = append(errs, field.Invalid(path.Child("deletionTimestamp"), t, "field is immutable: to delete the object, use delete"))
	}
	if Deleting(old) {
		errs = append(errs, apivalidation.ValidateNoNewFinalizers(obj.GetFinalizers(), old.GetFinalizers(), path.Child("finalizers"))...)
	}
	return errs
}

func sameSelector(selector, old *metav1.LabelSelector) field.ErrorList {
	if sameValue(selector, old) {
		return nil
	}
	return field.ErrorList{immutable(field.NewPath("spec", "selector"), metav1.FormatLabelSelector(selector))}
}

func validateNodeUpdate(node, old *corev1.Node) field.ErrorList {
	path := field.NewPath("spec", "podCIDRs")
	if len(old.Spec.PodCIDRs) > 0 && !slices.Equal(node.Spec.PodCIDRs, old.Spec.PodCIDRs) {
		return field.ErrorList{field.Forbidden(path, fmt.Sprintf("a node keeps its pod network for life, here %s", strings.Join(old.Spec.PodCIDRs, ", ")))}
	}
	return nil
}

func validateConfigMapUpdate(cm, old *corev1.ConfigMap) field.ErrorList {
	if old.Immutable == nil || !*old.Immutable {
		return nil
	}
	var errs field.ErrorList
	const why = "field is immutable when `immutable` is set: delete the ConfigMap and create it again"
	if cm.Immutable == nil || !*cm.Immutable {
		errs = append(errs, field.Forbidden(field.NewPath("immutable"), why))
	}
	if !sameValue(cm.Data, old.Data) {
		errs = append(errs, field.Forbidden(field.NewPath("data"), why))
	}
	if !sameValue(cm.BinaryData, old.BinaryData) {
		errs = append(errs, field.Forbidden(field.NewPath("binaryData"), why))
	}
	return errs
}

// differences returns the paths at which two values of a type differ: of
// single fields where possible, of a list when its length changed, of a map as a
// whole.
func differences(a, b reflect.Value, path string) []string {
	if sameValue(a.Interface(), b.Interface()) {
		return nil
	}
	switch a.Kind() {
	case reflect.Pointer:
		if !a.IsNil() && !b.IsNil() {
			return differences(a.Elem(), b.Elem(), path)
		}
	case reflect.Struct:
		info := infoOf(a.Type())
		var paths []string
		for _, name := range info.names {
			index := info.fields[name]
			paths = append(paths, differences(a.FieldByIndex(index), b.FieldByIndex(index), join(path, name))...)
		}
		if len(paths) > 0 {
			return paths
		}
	case reflect.Slice:
		if a.Len() == b.Len() {
			var paths []string
			for i := range a.Len() {
				paths = append(paths, differences(a.Index(i), b.Index(i), fmt.Sprintf("%s[%d]", path, i))...)
			}
			return paths
		}
	}
	return []string{path}
}
