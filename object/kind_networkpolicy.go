package object

import (
	networkingv1 "k8s.io/api/networking/v1"
)

var kindNetworkPolicy = define(Resource{Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy", Plural: "networkpolicies", Singular: "networkpolicy", ShortNames: []string{"netpol"}, Namespaced: true},
	func() *networkingv1.NetworkPolicy { return new(networkingv1.NetworkPolicy) },
	rules[*networkingv1.NetworkPolicy]{
		supported: `
			spec
		`,
	})
