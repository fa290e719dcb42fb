package object

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindConfigMap = define(Resource{Version: "v1", Kind: "ConfigMap", Plural: "configmaps", Singular: "configmap", ShortNames: []string{"cm"}, Namespaced: true},
	func() *corev1.ConfigMap { return new(corev1.ConfigMap) },
	rules[*corev1.ConfigMap]{
		supported: `
			data
			binaryData
			immutable
		`,
		validate:       validateConfigMap,
		validateUpdate: validateConfigMapUpdate,
		columns:        columns("NAME", "DATA", "AGE"),
		row: func(cm *corev1.ConfigMap, now time.Time) []string {
			return []string{cm.Name, strconv.Itoa(len(cm.Data) + len(cm.BinaryData)), ageOf(cm, now)}
		},
		describe: func(d *describer, cm *corev1.ConfigMap, _ []Object) { d.configMap(cm) },
	})

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

func (d *describer) configMap(cm *corev1.ConfigMap) {
	d.meta(cm)
	if cm.Immutable != nil && *cm.Immutable {
		d.line(0, "Immutable:", "true")
	}
	d.line(0, "")
	d.line(0, "Data")
	d.line(0, "====")
	for _, key := range slices.Sorted(maps.Keys(cm.Data)) {
		d.line(0, key+":")
		d.line(0, "----")
		for line := range strings.SplitSeq(strings.TrimSuffix(cm.Data[key], "\n"), "\n") {
			d.line(0, strings.ReplaceAll(line, "\t", "    "))
		}
		d.line(0, "")
	}
	d.line(0, "BinaryData")
	d.line(0, "====")
	for _, key := range slices.Sorted(maps.Keys(cm.BinaryData)) {
		d.line(0, fmt.Sprintf("%s: %d bytes", key, len(cm.BinaryData[key])))
	}
	d.line(0, "")
}
