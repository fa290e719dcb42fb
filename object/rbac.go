package object

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What the four RBAC kinds share, and how their rules are read.

// AccessAttributes is one request as an authorizer sees it: for a resource, or
// for a path outside the API's resources if Path is set.
type AccessAttributes struct {
	Verb        string // "get", "list", "create", …; of a path "get", "post", …
	Group       string // "apps"; empty for the core group
	Resource    string // the plural: "deployments"
	Subresource string // "log", "scale"; empty for the object itself
	Name        string // empty where the request is for no single object
	Path        string // "/version"
}

// Allows reports whether any of rules allows the request. The rules are those of
// one scope: whether the request's namespace is the one that the rules hold in
// is for the caller to see to.
func Allows(rules []rbacv1.PolicyRule, attrs AccessAttributes) bool {
	return slices.ContainsFunc(rules, func(rule rbacv1.PolicyRule) bool { return allows(rule, attrs) })
}

func allows(rule rbacv1.PolicyRule, attrs AccessAttributes) bool {
	if !hasOrAll(rule.Verbs, attrs.Verb) {
		return false
	}
	if attrs.Path != "" {
		return slices.ContainsFunc(rule.NonResourceURLs, func(url string) bool {
			prefix, open := strings.CutSuffix(url, "*")
			return url == attrs.Path || open && strings.HasPrefix(attrs.Path, prefix)
		})
	}
	return hasOrAll(rule.APIGroups, attrs.Group) &&
		slices.ContainsFunc(rule.Resources, func(r string) bool { return resourceMatches(r, attrs.Resource, attrs.Subresource) }) &&
		(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, attrs.Name))
}

func hasOrAll(list []string, word string) bool {
	return slices.Contains(list, "*") || slices.Contains(list, word)
}

// resourceMatches reports whether "pods", "pods/log", "*/log" or "*" of a rule
// means the resource.
func resourceMatches(rule, resource, subresource string) bool {
	if rule == "*" {
		return true
	}
	ruleResource, ruleSub, _ := strings.Cut(rule, "/")
	return ruleSub == subresource && (ruleResource == resource || ruleResource == "*" && subresource != "")
}

// AggregateRules returns the rules that role has: its own, or, if it has an
// aggregationRule, those of all the cluster roles that its selectors select, by
// name, each rule once. role itself is never among them.
func AggregateRules(role *rbacv1.ClusterRole, all []*rbacv1.ClusterRole) []rbacv1.PolicyRule {
	if role.AggregationRule == nil {
		return role.Rules
	}
	var parts []*rbacv1.ClusterRole
	for _, other := range all {
		if other.Name != role.Name && slices.ContainsFunc(role.AggregationRule.ClusterRoleSelectors, func(s metav1.LabelSelector) bool {
			selector, err := metav1.LabelSelectorAsSelector(&s)
			return err == nil && selector.Matches(labels.Set(other.Labels))
		}) {
			parts = append(parts, other)
		}
	}
	slices.SortFunc(parts, func(a, b *rbacv1.ClusterRole) int { return cmp.Compare(a.Name, b.Name) })
	rules := []rbacv1.PolicyRule{}
	for _, part := range parts {
		for _, rule := range part.Rules {
			if !slices.ContainsFunc(rules, func(have rbacv1.PolicyRule) bool { return equality.Semantic.DeepEqual(have, rule) }) {
				rules = append(rules, *rule.DeepCopy())
			}
		}
	}
	return rules
}

// Defaults and validation

func defaultRoleRef(ref *rbacv1.RoleRef) { setIfZero(&ref.APIGroup, rbacv1.GroupName) }

func defaultSubjects(subjects []rbacv1.Subject) {
	for i := range subjects {
		if s := &subjects[i]; s.Kind == rbacv1.UserKind || s.Kind == rbacv1.GroupKind {
			setIfZero(&s.APIGroup, rbacv1.GroupName)
		}
	}
}

func validateRules(rules []rbacv1.PolicyRule, namespaced bool) field.ErrorList {
	var errs field.ErrorList
	for i, rule := range rules {
		at := field.NewPath("rules").Index(i)
		if len(rule.Verbs) == 0 {
			errs = append(errs, field.Required(at.Child("verbs"), "verbs must contain at least one value"))
		}
		if len(rule.NonResourceURLs) > 0 {
			urls := strings.Join(rule.NonResourceURLs, ", ")
			if namespaced {
				errs = append(errs, field.Invalid(at.Child("nonResourceURLs"), urls, "namespaced rules cannot apply to non-resource URLs: use a ClusterRole"))
			}
			if len(rule.APIGroups)+len(rule.Resources)+len(rule.ResourceNames) > 0 {
				errs = append(errs, field.Invalid(at.Child("nonResourceURLs"), urls, "rules cannot apply to both regular resources and non-resource URLs: make two rules"))
			}
			continue
		}
		if len(rule.APIGroups) == 0 {
			errs = append(errs, field.Required(at.Child("apiGroups"), `resource rules must supply at least one api group: "" is that of pods and services`))
		}
		if len(rule.Resources) == 0 {
			errs = append(errs, field.Required(at.Child("resources"), "resource rules must supply at least one resource"))
		}
	}
	return errs
}

func validateBinding(ref rbacv1.RoleRef, subjects []rbacv1.Subject, namespaced bool) field.ErrorList {
	var errs field.ErrorList
	at := field.NewPath("roleRef")
	if ref.APIGroup != rbacv1.GroupName {
		errs = append(errs, field.NotSupported(at.Child("apiGroup"), ref.APIGroup, []string{rbacv1.GroupName}))
	}
	kinds := []string{"ClusterRole"}
	if namespaced {
		kinds = []string{"Role", "ClusterRole"}
	}
	errs = append(errs, oneOf(ref.Kind, kinds, at.Child("kind"))...)
	if ref.Name == "" {
		errs = append(errs, field.Required(at.Child("name"), "name the role that the binding grants"))
	}
	for _, msg := range content.IsPathSegmentName(ref.Name) {
		errs = append(errs, field.Invalid(at.Child("name"), ref.Name, msg))
	}
	for i, subject := range subjects {
		errs = append(errs, validateSubject(subject, namespaced, field.NewPath("subjects").Index(i))...)
	}
	return errs
}

func validateSubject(s rbacv1.Subject, namespaced bool, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.Name == "" {
		errs = append(errs, field.Required(at.Child("name"), ""))
	}
	group := rbacv1.GroupName
	switch s.Kind {
	case rbacv1.ServiceAccountKind:
		group = ""
		if s.Name != "" {
			errs = append(errs, dnsSubdomain(s.Name, at.Child("name"))...)
		}
		if !namespaced && s.Namespace == "" {
			errs = append(errs, field.Required(at.Child("namespace"), "a service account belongs to a namespace: say which"))
		}
	case rbacv1.UserKind, rbacv1.GroupKind:
	default:
		return append(errs, oneOf(s.Kind, []string{rbacv1.ServiceAccountKind, rbacv1.UserKind, rbacv1.GroupKind}, at.Child("kind"))...)
	}
	if s.APIGroup != group {
		errs = append(errs, field.NotSupported(at.Child("apiGroup"), s.APIGroup, []string{group}))
	}
	return errs
}

func sameRoleRef(ref, old rbacv1.RoleRef) field.ErrorList {
	if ref == old {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("roleRef"), ref.Kind+"/"+ref.Name,
		fmt.Sprintf("cannot change roleRef, which is %s/%s: delete the binding and create it again", old.Kind, old.Name))}
}

// Tables and descriptions

var bindingColumns = columns("NAME", "ROLE", "AGE", "|", "USERS", "GROUPS", "SERVICEACCOUNTS")

func bindingRow(obj Object, ref rbacv1.RoleRef, subjects []rbacv1.Subject, now time.Time) []string {
	var users, groups, accounts []string
	for _, s := range subjects {
		switch s.Kind {
		case rbacv1.UserKind:
			users = append(users, s.Name)
		case rbacv1.GroupKind:
			groups = append(groups, s.Name)
		case rbacv1.ServiceAccountKind:
			accounts = append(accounts, s.Namespace+"/"+s.Name)
		}
	}
	return []string{obj.GetName(), ref.Kind + "/" + ref.Name, ageOf(obj, now), strings.Join(users, ", "), strings.Join(groups, ", "), strings.Join(accounts, ", ")}
}

// rules writes what rules allow, one line for each resource or path: rules about
// the same one are put together.
func (d *describer) rules(rules []rbacv1.PolicyRule) {
	d.line(0, "PolicyRule:")
	d.line(1, "Resources", "Non-Resource URLs", "Resource Names", "Verbs")
	d.line(1, "---------", "-----------------", "--------------", "-----")
	type target struct{ resource, url, name string }
	verbs := map[target][]string{}
	add := func(t target, more []string) {
		for _, verb := range more {
			if !slices.Contains(verbs[t], verb) {
				verbs[t] = append(verbs[t], verb)
			}
		}
	}
	for _, rule := range rules {
		for _, url := range rule.NonResourceURLs {
			add(target{url: url}, rule.Verbs)
		}
		names := rule.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				if group != "" {
					plural, sub, is := strings.Cut(resource, "/")
					resource = plural + "." + group
					if is {
						resource += "/" + sub
					}
				}
				for _, name := range names {
					add(target{resource: resource, name: name}, rule.Verbs)
				}
			}
		}
	}
	for _, t := range slices.SortedFunc(maps.Keys(verbs), func(a, b target) int {
		return cmp.Or(cmp.Compare(a.resource, b.resource), cmp.Compare(a.name, b.name), cmp.Compare(a.url, b.url))
	}) {
		d.line(1, t.resource, "["+t.url+"]", "["+t.name+"]", "["+strings.Join(verbs[t], " ")+"]")
	}
}

func (d *describer) binding(obj Object, ref rbacv1.RoleRef, subjects []rbacv1.Subject) {
	d.meta(obj)
	d.line(0, "Role:")
	d.line(1, "Kind:", ref.Kind)
	d.line(1, "Name:", ref.Name)
	d.line(0, "Subjects:")
	d.line(1, "Kind", "Name", "Namespace")
	d.line(1, "----", "----", "---------")
	for _, s := range subjects {
		d.line(1, s.Kind, s.Name, s.Namespace)
	}
}
