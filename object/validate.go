package object

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Validate returns everything wrong with obj, whose defaults are filled in and
// whose name is generated: what Kubernetes refuses, and fields that have no
// behavior in Holdfast yet. Status is the system's own and not looked at. The
// rules and the form of the messages are Kubernetes'.
func Validate(obj Object) Faults {
	errs := refineRefusals(unsupported(obj))
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
	add(kindOfObject(obj).validate(obj))
	return faultsOf(obj, errs)
}

// Metadata

func validateMetadata(obj Object) field.ErrorList {
	var errs field.ErrorList
	k, path := kindOfObject(obj), field.NewPath("metadata")
	r := k.resource

	if name := obj.GetGenerateName(); name != "" {
		for _, msg := range k.validName(name, true) {
			errs = append(errs, field.Invalid(path.Child("generateName"), name, msg))
		}
	}
	if name := obj.GetName(); name == "" {
		errs = append(errs, field.Required(path.Child("name"), "give the object a name"))
	} else {
		for _, msg := range k.validName(name, false) {
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

// Numbers

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

// invalid makes an error of each message about a value.
func invalid(path *field.Path, value any, messages []string) field.ErrorList {
	var errs field.ErrorList
	for _, msg := range messages {
		errs = append(errs, field.Invalid(path, value, msg))
	}
	return errs
}

// validateSelector checks a selector in itself; nil is fine.
func validateSelector(selector *metav1.LabelSelector, path *field.Path) field.ErrorList {
	if selector == nil {
		return nil
	}
	errs := validateLabels(selector.MatchLabels, path.Child("matchLabels"))
	for i, expr := range selector.MatchExpressions {
		errs = append(errs, metavalidation.ValidateLabelSelectorRequirement(expr, metavalidation.LabelSelectorValidationOptions{}, path.Child("matchExpressions").Index(i))...)
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

// Updates

// ValidateUpdate returns what is wrong with obj as the successor of old, an
// object of the same kind: changes of what cannot change. Whether obj is valid
// in itself is for [Validate] to say, which a caller asks too. A uid,
// creationTimestamp or deletionTimestamp that obj leaves out counts as
// unchanged.
func ValidateUpdate(obj, old Object) Faults {
	errs := append(validateMetadataUpdate(obj, old), kindOfObject(obj).validateUpdate(obj, old)...)
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
