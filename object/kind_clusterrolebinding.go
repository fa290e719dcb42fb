package object

import (
	rbacv1 "k8s.io/api/rbac/v1"
)

var kindClusterRoleBinding = define(Resource{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding", Plural: "clusterrolebindings", Singular: "clusterrolebinding"},
	func() *rbacv1.ClusterRoleBinding { return new(rbacv1.ClusterRoleBinding) },
	rules[*rbacv1.ClusterRoleBinding]{
		supported: `
			subjects
			roleRef
		`,
	})
