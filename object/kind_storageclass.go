package object

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindStorageClass = define(Resource{Group: "storage.k8s.io", Version: "v1", Kind: "StorageClass", Plural: "storageclasses", Singular: "storageclass", ShortNames: []string{"sc"}},
	func() *storagev1.StorageClass { return new(storagev1.StorageClass) },
	rules[*storagev1.StorageClass]{
		supported: `
			provisioner
			parameters
			reclaimPolicy
			mountOptions
			allowVolumeExpansion
			volumeBindingMode
			allowedTopologies
		`,
		defaults: func(sc *storagev1.StorageClass) {
			setIfNil(&sc.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
			setIfNil(&sc.VolumeBindingMode, storagev1.VolumeBindingImmediate)
		},
		validate:       validateStorageClass,
		validateUpdate: validateStorageClassUpdate,
		columns:        columns("NAME", "PROVISIONER", "RECLAIMPOLICY", "VOLUMEBINDINGMODE", "ALLOWVOLUMEEXPANSION", "AGE"),
		row: func(sc *storagev1.StorageClass, now time.Time) []string {
			name := sc.Name
			if IsDefaultClass(sc) {
				name += " (default)"
			}
			return []string{name, sc.Provisioner, string(deref(sc.ReclaimPolicy)), string(deref(sc.VolumeBindingMode)), strconv.FormatBool(deref(sc.AllowVolumeExpansion)), ageOf(sc, now)}
		},
		describe: func(d *describer, sc *storagev1.StorageClass, _ []Object) { d.storageClass(sc) },
	})

// IsDefaultClass reports whether a StorageClass or IngressClass is the one that
// is meant where none is named.
func IsDefaultClass(class Object) bool {
	for _, key := range []string{"storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class", "ingressclass.kubernetes.io/is-default-class"} {
		group, _, _ := strings.Cut(key, ".")
		if class.GetAnnotations()[key] == "true" && group == ResourceOf(class).Singular {
			return true
		}
	}
	return false
}

func validateStorageClass(sc *storagev1.StorageClass) field.ErrorList {
	const maxParameters, maxParameterBytes = 512, 256 << 10
	var errs field.ErrorList
	at := field.NewPath("provisioner")
	if sc.Provisioner == "" {
		errs = append(errs, field.Required(at, "say what makes the volumes; kubernetes.io/no-provisioner for those that are made by hand"))
	} else {
		errs = append(errs, invalid(at, sc.Provisioner, validation.IsQualifiedName(strings.ToLower(sc.Provisioner)))...)
	}
	at = field.NewPath("parameters")
	size := 0
	for key, value := range sc.Parameters {
		size += len(key) + len(value)
		if key == "" {
			errs = append(errs, field.Invalid(at, key, "field can not be empty."))
		}
	}
	if len(sc.Parameters) > maxParameters {
		errs = append(errs, field.TooMany(at, len(sc.Parameters), maxParameters))
	} else if size > maxParameterBytes {
		errs = append(errs, field.TooLong(at, "", maxParameterBytes))
	}
	errs = append(errs, oneOf(deref(sc.ReclaimPolicy), []corev1.PersistentVolumeReclaimPolicy{corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain}, field.NewPath("reclaimPolicy"))...)
	errs = append(errs, oneOf(deref(sc.VolumeBindingMode), []storagev1.VolumeBindingMode{storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer}, field.NewPath("volumeBindingMode"))...)
	for i, term := range sc.AllowedTopologies {
		errs = append(errs, validateTopology(term, field.NewPath("allowedTopologies").Index(i))...)
	}
	return errs
}

func validateTopology(term corev1.TopologySelectorTerm, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	keys := map[string]bool{}
	for i, expr := range term.MatchLabelExpressions {
		at := path.Child("matchLabelExpressions").Index(i)
		errs = append(errs, validateQualifiedName(expr.Key, at.Child("key"))...)
		if keys[expr.Key] {
			errs = append(errs, field.Duplicate(at.Child("key"), expr.Key))
		}
		keys[expr.Key] = true
		if len(expr.Values) == 0 {
			errs = append(errs, field.Required(at.Child("values"), "name at least one value"))
		}
		for j, value := range expr.Values {
			if slices.Contains(expr.Values[:j], value) {
				errs = append(errs, field.Duplicate(at.Child("values").Index(j), value))
			}
		}
	}
	return errs
}

func validateStorageClassUpdate(sc, old *storagev1.StorageClass) field.ErrorList {
	var errs field.ErrorList
	for _, f := range []struct {
		name string
		same bool
	}{
		{"parameters", sameValue(sc.Parameters, old.Parameters)},
		{"provisioner", sc.Provisioner == old.Provisioner},
		{"reclaimPolicy", sameValue(sc.ReclaimPolicy, old.ReclaimPolicy)},
		{"volumeBindingMode", sameValue(sc.VolumeBindingMode, old.VolumeBindingMode)},
	} {
		if !f.same {
			errs = append(errs, field.Forbidden(field.NewPath(f.name), fmt.Sprintf("updates to %s are forbidden: volumes were made by it, so make another class", f.name)))
		}
	}
	return errs
}

func (d *describer) storageClass(sc *storagev1.StorageClass) {
	d.line(0, "Name:", sc.Name)
	d.line(0, "IsDefaultClass:", map[bool]string{true: "Yes", false: "No"}[IsDefaultClass(sc)])
	d.labels(sc)
	d.line(0, "Provisioner:", sc.Provisioner)
	var parameters []string
	for _, key := range sortedNames(sc.Parameters) {
		parameters = append(parameters, key+"="+sc.Parameters[key])
	}
	d.line(0, "Parameters:", orNone(strings.Join(parameters, ",")))
	expansion := "<unset>"
	if sc.AllowVolumeExpansion != nil {
		expansion = yesNo(*sc.AllowVolumeExpansion)
	}
	d.line(0, "AllowVolumeExpansion:", expansion)
	d.list(0, "MountOptions:", sc.MountOptions)
	d.line(0, "ReclaimPolicy:", string(deref(sc.ReclaimPolicy)))
	d.line(0, "VolumeBindingMode:", string(deref(sc.VolumeBindingMode)))
	if len(sc.AllowedTopologies) == 0 {
		return
	}
	d.line(0, "AllowedTopologies:")
	for i, term := range sc.AllowedTopologies {
		var parts []string
		for _, expr := range term.MatchLabelExpressions {
			parts = append(parts, fmt.Sprintf("%s in [%s]", expr.Key, strings.Join(expr.Values, ", ")))
		}
		d.line(1, fmt.Sprintf("Term %d:", i), orNone(strings.Join(parts, ", ")))
	}
}
