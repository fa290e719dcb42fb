package object

import (
	"time"

	rbacv1 "k8s.io/api/rbac/v1"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindClusterRole = define(Resource{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole", Plural: "clusterroles", Singular: "clusterrole"},
	func() *rbacv1.ClusterRole { return new(rbacv1.ClusterRole) },
	rules[*rbacv1.ClusterRole]{
		validName: segmentNames,
		supported: `
			rules
			aggregationRule
		`,
		validate: validateClusterRole,
		columns:  columns("NAME", "CREATED AT:date"),
		row:      func(role *rbacv1.ClusterRole, _ time.Time) []string { return []string{role.Name, createdAt(role)} },
		describe: func(d *describer, role *rbacv1.ClusterRole, related []Object) {
			d.meta(role)
			rules := role.Rules
			if a := role.AggregationRule; a != nil {
				var selectors []string
				for _, s := range a.ClusterRoleSelectors {
					selectors = append(selectors, metav1.FormatLabelSelector(&s))
				}
				d.list(0, "Aggregates:", selectors)
				if others := only[*rbacv1.ClusterRole](related); len(others) > 0 {
					rules = AggregateRules(role, others)
				}
			}
			d.rules(rules)
		},
	})

func validateClusterRole(role *rbacv1.ClusterRole) field.ErrorList {
	errs := validateRules(role.Rules, false)
	if role.AggregationRule == nil {
		return errs
	}
	at := field.NewPath("aggregationRule", "clusterRoleSelectors")
	if len(role.AggregationRule.ClusterRoleSelectors) == 0 {
		errs = append(errs, field.Required(at, "at least one clusterRoleSelector required if aggregationRule is non-nil"))
	}
	for i := range role.AggregationRule.ClusterRoleSelectors {
		errs = append(errs, validateSelector(&role.AggregationRule.ClusterRoleSelectors[i], at.Index(i))...)
	}
	return errs
}
