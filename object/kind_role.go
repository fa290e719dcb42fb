package object

import (
	"time"

	rbacv1 "k8s.io/api/rbac/v1"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindRole = define(Resource{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role", Plural: "roles", Singular: "role", Namespaced: true},
	func() *rbacv1.Role { return new(rbacv1.Role) },
	rules[*rbacv1.Role]{
		validName: segmentNames,
		supported: `
			rules
		`,
		validate: func(role *rbacv1.Role) field.ErrorList { return validateRules(role.Rules, true) },
		columns:  columns("NAME", "CREATED AT:date"),
		row:      func(role *rbacv1.Role, _ time.Time) []string { return []string{role.Name, createdAt(role)} },
		describe: func(d *describer, role *rbacv1.Role, _ []Object) {
			d.meta(role)
			d.rules(role.Rules)
		},
	})
