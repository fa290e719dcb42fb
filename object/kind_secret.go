package object

import (
	corev1 "k8s.io/api/core/v1"
)

var kindSecret = define(Resource{Version: "v1", Kind: "Secret", Plural: "secrets", Singular: "secret", Namespaced: true},
	func() *corev1.Secret { return new(corev1.Secret) },
	rules[*corev1.Secret]{
		supported: `
			immutable
			data
			stringData
			type
		`,
	})
