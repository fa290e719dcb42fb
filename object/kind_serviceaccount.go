package object

import (
	corev1 "k8s.io/api/core/v1"
)

var kindServiceAccount = define(Resource{Version: "v1", Kind: "ServiceAccount", Plural: "serviceaccounts", Singular: "serviceaccount", ShortNames: []string{"sa"}, Namespaced: true},
	func() *corev1.ServiceAccount { return new(corev1.ServiceAccount) },
	rules[*corev1.ServiceAccount]{
		supported: `
			secrets
			imagePullSecrets
			automountServiceAccountToken
		`,
	})
