package object

import (
	rbacv1 "k8s.io/api/rbac/v1"
)

var kindClusterRole = define(Resource{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole", Plural: "clusterroles", Singular: "clusterrole"},
	func() *rbacv1.ClusterRole { return new(rbacv1.ClusterRole) },
	rules[*rbacv1.ClusterRole]{
		supported: `
			rules
			aggregationRule
		`,
	})
