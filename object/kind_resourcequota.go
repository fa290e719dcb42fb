package object

import (
	corev1 "k8s.io/api/core/v1"
)

var kindResourceQuota = define(Resource{Version: "v1", Kind: "ResourceQuota", Plural: "resourcequotas", Singular: "resourcequota", ShortNames: []string{"quota"}, Namespaced: true, Status: true},
	func() *corev1.ResourceQuota { return new(corev1.ResourceQuota) },
	rules[*corev1.ResourceQuota]{
		supported: `
			spec
			status
		`,
	})
