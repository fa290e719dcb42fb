package object

import (
	rbacv1 "k8s.io/api/rbac/v1"
)

var kindRole = define(Resource{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role", Plural: "roles", Singular: "role", Namespaced: true},
	func() *rbacv1.Role { return new(rbacv1.Role) },
	rules[*rbacv1.Role]{
		supported: `
			rules
		`,
	})
