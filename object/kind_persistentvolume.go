package object

import (
	corev1 "k8s.io/api/core/v1"
)

var kindPersistentVolume = define(Resource{Version: "v1", Kind: "PersistentVolume", Plural: "persistentvolumes", Singular: "persistentvolume", ShortNames: []string{"pv"}, Status: true},
	func() *corev1.PersistentVolume { return new(corev1.PersistentVolume) },
	rules[*corev1.PersistentVolume]{
		supported: `
			spec
			status
		`,
	})
