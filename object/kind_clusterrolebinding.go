package object

import (
	"time"

	rbacv1 "k8s.io/api/rbac/v1"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindClusterRoleBinding = define(Resource{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding", Plural: "clusterrolebindings", Singular: "clusterrolebinding"},
	func() *rbacv1.ClusterRoleBinding { return new(rbacv1.ClusterRoleBinding) },
	rules[*rbacv1.ClusterRoleBinding]{
		validName: segmentNames,
		supported: `
			subjects
			roleRef
		`,
		defaults: func(b *rbacv1.ClusterRoleBinding) {
			defaultRoleRef(&b.RoleRef)
			defaultSubjects(b.Subjects)
		},
		validate: func(b *rbacv1.ClusterRoleBinding) field.ErrorList {
			return validateBinding(b.RoleRef, b.Subjects, false)
		},
		validateUpdate: func(b, old *rbacv1.ClusterRoleBinding) field.ErrorList { return sameRoleRef(b.RoleRef, old.RoleRef) },
		columns:        bindingColumns,
		row: func(b *rbacv1.ClusterRoleBinding, now time.Time) []string {
			return bindingRow(b, b.RoleRef, b.Subjects, now)
		},
		describe: func(d *describer, b *rbacv1.ClusterRoleBinding, _ []Object) { d.binding(b, b.RoleRef, b.Subjects) },
	})
