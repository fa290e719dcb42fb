package object

import (
	corev1 "k8s.io/api/core/v1"
)

var kindService = define(Resource{Version: "v1", Kind: "Service", Plural: "services", Singular: "service", ShortNames: []string{"svc"}, Namespaced: true, Categories: inAll, Status: true},
	func() *corev1.Service { return new(corev1.Service) },
	rules[*corev1.Service]{
		supported: `
			spec
			status
		`,
	})
