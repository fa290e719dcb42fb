package object

import (
	corev1 "k8s.io/api/core/v1"
)

var kindLimitRange = define(Resource{Version: "v1", Kind: "LimitRange", Plural: "limitranges", Singular: "limitrange", ShortNames: []string{"limits"}, Namespaced: true},
	func() *corev1.LimitRange { return new(corev1.LimitRange) },
	rules[*corev1.LimitRange]{
		supported: `
			spec
		`,
	})
