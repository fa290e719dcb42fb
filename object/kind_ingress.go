package object

import (
	networkingv1 "k8s.io/api/networking/v1"
)

var kindIngress = define(Resource{Group: "networking.k8s.io", Version: "v1", Kind: "Ingress", Plural: "ingresses", Singular: "ingress", ShortNames: []string{"ing"}, Namespaced: true, Status: true},
	func() *networkingv1.Ingress { return new(networkingv1.Ingress) },
	rules[*networkingv1.Ingress]{
		supported: `
			spec
			status
		`,
	})
