package object

import (
	coordinationv1 "k8s.io/api/coordination/v1"
)

var kindLease = define(Resource{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease", Plural: "leases", Singular: "lease", Namespaced: true},
	func() *coordinationv1.Lease { return new(coordinationv1.Lease) },
	rules[*coordinationv1.Lease]{
		supported: `
			spec
		`,
	})
