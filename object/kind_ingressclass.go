package object

import (
	networkingv1 "k8s.io/api/networking/v1"
)

var kindIngressClass = define(Resource{Group: "networking.k8s.io", Version: "v1", Kind: "IngressClass", Plural: "ingressclasses", Singular: "ingressclass"},
	func() *networkingv1.IngressClass { return new(networkingv1.IngressClass) },
	rules[*networkingv1.IngressClass]{
		supported: `
			spec
		`,
	})
