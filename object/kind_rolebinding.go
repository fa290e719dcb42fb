package object

import (
	"time"

	rbacv1 "k8s.io/api/rbac/v1"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindRoleBinding = define(Resource{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding", Plural: "rolebindings", Singular: "rolebinding", Namespaced: true},
	func() *rbacv1.RoleBinding { return new(rbacv1.RoleBinding) },
	rules[*rbacv1.RoleBinding]{
		validName: segmentNames,
		supported: `
			subjects
			roleRef
		`,
		defaults: func(b *rbacv1.RoleBinding) {
			defaultRoleRef(&b.RoleRef)
			defaultSubjects(b.Subjects)
		},
		validate:       func(b *rbacv1.RoleBinding) field.ErrorList { return validateBinding(b.RoleRef, b.Subjects, true) },
		validateUpdate: func(b, old *rbacv1.RoleBinding) field.ErrorList { return sameRoleRef(b.RoleRef, old.RoleRef) },
		columns:        bindingColumns,
		row:            func(b *rbacv1.RoleBinding, now time.Time) []string { return bindingRow(b, b.RoleRef, b.Subjects, now) },
		describe:       func(d *describer, b *rbacv1.RoleBinding, _ []Object) { d.binding(b, b.RoleRef, b.Subjects) },
	})
