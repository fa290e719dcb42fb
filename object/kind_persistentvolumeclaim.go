package object

import (
	corev1 "k8s.io/api/core/v1"
)

var kindPersistentVolumeClaim = define(Resource{Version: "v1", Kind: "PersistentVolumeClaim", Plural: "persistentvolumeclaims", Singular: "persistentvolumeclaim", ShortNames: []string{"pvc"}, Namespaced: true, Status: true},
	func() *corev1.PersistentVolumeClaim { return new(corev1.PersistentVolumeClaim) },
	rules[*corev1.PersistentVolumeClaim]{
		supported: `
			spec
			status
		`,
	})
