package object

import (
	appsv1 "k8s.io/api/apps/v1"
)

var kindStatefulSet = define(Resource{Group: "apps", Version: "v1", Kind: "StatefulSet", Plural: "statefulsets", Singular: "statefulset", ShortNames: []string{"sts"}, Namespaced: true, Categories: inAll, Status: true, Scale: true},
	func() *appsv1.StatefulSet { return new(appsv1.StatefulSet) },
	rules[*appsv1.StatefulSet]{
		supported: `
			spec
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
	})
