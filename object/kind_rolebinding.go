package object

import (
	rbacv1 "k8s.io/api/rbac/v1"
)

var kindRoleBinding = define(Resource{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding", Plural: "rolebindings", Singular: "rolebinding", Namespaced: true},
	func() *rbacv1.RoleBinding { return new(rbacv1.RoleBinding) },
	rules[*rbacv1.RoleBinding]{
		supported: `
			subjects
			roleRef
		`,
	})
