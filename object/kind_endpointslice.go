package object

import (
	discoveryv1 "k8s.io/api/discovery/v1"
)

var kindEndpointSlice = define(Resource{Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice", Plural: "endpointslices", Singular: "endpointslice", Namespaced: true},
	func() *discoveryv1.EndpointSlice { return new(discoveryv1.EndpointSlice) },
	rules[*discoveryv1.EndpointSlice]{
		supported: `
			addressType
			endpoints
			ports
		`,
	})
