// Package rbac decides who may do what by Kubernetes' roles and bindings: pure
// functions of these objects. What is not allowed is denied, and no rule denies.
package rbac

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/holdfast-io/holdfast/object"
)

// Masters is the group that may do everything, whatever the roles say: the way
// back in for administrators whose roles went wrong.
const Masters = "system:masters"

// Who is a caller as authorization sees it.
type Who struct {
	Name   string
	Groups []string
}

// Wish is what a caller wants to do.
type Wish struct {
	object.AccessAttributes
	// Namespace is empty for objects outside of namespaces, for those of all
	// namespaces together, and for paths: only cluster-wide rights count there.
	Namespace string
}

// Policy is the roles and bindings of a cluster at one moment. Immutable, safe for
// concurrent use.
type Policy struct {
	clusterRoles map[string]*rbacv1.ClusterRole // rules aggregated
	roles        map[name]*rbacv1.Role
	bindings     []binding
	bySubject    map[string][]int // places in bindings
}

type name struct{ namespace, name string }

// binding is a RoleBinding or, without a namespace, a ClusterRoleBinding.
type binding struct {
	name
	ref      rbacv1.RoleRef
	subjects []rbacv1.Subject
	rules    []rbacv1.PolicyRule // of the role as it is; none if it is missing
}

// title names a binding as an answer does.
func (b binding) title() string {
	if b.namespace == "" {
		return "ClusterRoleBinding " + b.name.name
	}
	return "RoleBinding " + b.namespace + "/" + b.name.name
}

// New makes the policy of some objects, which nobody may change any more.
func New(clusterRoles []*rbacv1.ClusterRole, roles []*rbacv1.Role, clusterBindings []*rbacv1.ClusterRoleBinding, bindings []*rbacv1.RoleBinding) *Policy {
	p := &Policy{clusterRoles: map[string]*rbacv1.ClusterRole{}, roles: map[name]*rbacv1.Role{}, bySubject: map[string][]int{}}
	for _, role := range clusterRoles {
		p.clusterRoles[role.Name] = role
		if role.AggregationRule != nil { // not as the object says, which may lag behind
			role = role.DeepCopy()
			role.Rules = object.AggregateRules(role, clusterRoles)
			p.clusterRoles[role.Name] = role
		}
	}
	for _, role := range roles {
		p.roles[name{role.Namespace, role.Name}] = role
	}
	for _, b := range clusterBindings {
		p.bindings = append(p.bindings, binding{name{"", b.Name}, b.RoleRef, b.Subjects, nil})
	}
	for _, b := range bindings {
		p.bindings = append(p.bindings, binding{name{b.Namespace, b.Name}, b.RoleRef, b.Subjects, nil})
	}
	slices.SortFunc(p.bindings, func(a, b binding) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name.name, b.name.name))
	})
	for i := range p.bindings {
		b := &p.bindings[i]
		b.rules, _ = p.RulesOf(b.ref, b.namespace)
		for _, s := range b.subjects {
			key := subjectKey(s, b.namespace)
			if had := p.bySubject[key]; len(had) == 0 || had[len(had)-1] != i {
				p.bySubject[key] = append(had, i)
			}
		}
	}
	return p
}

func userKey(name string) string  { return "u:" + name }
func groupKey(name string) string { return "g:" + name }

// subjectKey is under which callers that a subject means find it. A service account
// without a namespace is of the binding's.
func subjectKey(s rbacv1.Subject, namespace string) string {
	switch s.Kind {
	case rbacv1.GroupKind:
		return groupKey(s.Name)
	case rbacv1.ServiceAccountKind:
		return userKey("system:serviceaccount:" + cmp.Or(s.Namespace, namespace) + ":" + s.Name)
	default:
		return userKey(s.Name)
	}
}

// RulesOf returns the rules of a role that a binding in namespace refers to, false
// if there is no such role.
func (p *Policy) RulesOf(ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, bool) {
	if ref.Kind == "Role" {
		role, ok := p.roles[name{namespace, ref.Name}]
		if !ok {
			return nil, false
		}
		return role.Rules, true
	}
	role, ok := p.clusterRoles[ref.Name]
	if !ok {
		return nil, false
	}
	return role.Rules, true
}

// of calls f with the bindings that mean who and count in namespace, until it
// returns false.
func (p *Policy) of(who Who, namespace string, f func(binding) bool) {
	in := func(key string) bool {
		for _, i := range p.bySubject[key] {
			if b := p.bindings[i]; (b.namespace == "" || b.namespace == namespace && namespace != "") && !f(b) {
				return false
			}
		}
		return true
	}
	if !in(userKey(who.Name)) {
		return
	}
	for _, group := range who.Groups {
		if !in(groupKey(group)) {
			return
		}
	}
}

// Allows returns whether who may do it, and by what.
func (p *Policy) Allows(who Who, wish Wish) (by string, ok bool) {
	if slices.Contains(who.Groups, Masters) {
		return "group " + Masters, true
	}
	p.of(who, wish.Namespace, func(b binding) bool {
		if object.Allows(b.rules, wish.AccessAttributes) {
			by, ok = b.title(), true
		}
		return !ok
	})
	return by, ok
}

// Rules returns all that who may do in namespace, or cluster-wide if it is empty.
// Rules that several bindings give come once.
func (p *Policy) Rules(who Who, namespace string) []rbacv1.PolicyRule {
	if slices.Contains(who.Groups, Masters) {
		return slices.Clone(everything)
	}
	var rules []rbacv1.PolicyRule
	seen := map[string]bool{}
	p.of(who, namespace, func(b binding) bool {
		for _, rule := range b.rules {
			if text := rule.String(); !seen[text] {
				seen[text] = true
				rules = append(rules, rule)
			}
		}
		return true
	})
	return rules
}

var everything = []rbacv1.PolicyRule{
	{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
	{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}},
}

// Can returns the subjects that may do it, each with the binding that lets it, but
// for Masters, who always may. By name of the binding.
func (p *Policy) Can(wish Wish) (can []Grant) {
	for _, b := range p.bindings {
		if b.namespace != "" && b.namespace != wish.Namespace || !object.Allows(b.rules, wish.AccessAttributes) {
			continue
		}
		for _, s := range b.subjects {
			if s.Kind == rbacv1.ServiceAccountKind {
				s.Namespace = cmp.Or(s.Namespace, b.namespace)
			}
			can = append(can, Grant{s, b.title(), b.ref.Kind + " " + b.ref.Name})
		}
	}
	return can
}

// Grant says who may do something, and why.
type Grant struct {
	Subject rbacv1.Subject
	Binding string // "RoleBinding default/web"
	Role    string // "ClusterRole edit"
}

// Remedy returns a command that would allow who to do it: it binds the least of the
// roles for people that has the right, or makes one.
func (p *Policy) Remedy(who Who, wish Wish) string {
	subject := "--user=" + who.Name
	short := who.Name
	if account, ok := strings.CutPrefix(who.Name, "system:serviceaccount:"); ok {
		subject, short = "--serviceaccount="+account, account[strings.LastIndexByte(account, ':')+1:]
	}
	for _, role := range []string{"view", "edit", "admin"} {
		if r, ok := p.clusterRoles[role]; ok && object.Allows(r.Rules, wish.AccessAttributes) {
			if wish.Namespace == "" {
				return "holdfast create clusterrolebinding " + short + "-" + role + " --clusterrole=" + role + " " + subject
			}
			return "holdfast create rolebinding " + short + "-" + role + " -n " + wish.Namespace + " --clusterrole=" + role + " " + subject
		}
	}
	if wish.Path != "" {
		return "holdfast create clusterrole NAME --verb=" + wish.Verb + " --non-resource-url=" + wish.Path + ", and bind it with " + subject
	}
	resource := wish.Resource
	if wish.Group != "" {
		resource += "." + wish.Group
	}
	if wish.Subresource != "" {
		resource += "/" + wish.Subresource
	}
	if wish.Namespace == "" {
		return "holdfast create clusterrole NAME --verb=" + wish.Verb + " --resource=" + resource + ", and bind it with " + subject
	}
	return "holdfast create role NAME -n " + wish.Namespace + " --verb=" + wish.Verb + " --resource=" + resource + ", and bind it with " + subject
}

// Aggregated returns the cluster roles that collect others' rules, with those that
// they have, by name.
func (p *Policy) Aggregated() map[string][]rbacv1.PolicyRule {
	all := map[string][]rbacv1.PolicyRule{}
	for name, role := range maps.All(p.clusterRoles) {
		if role.AggregationRule != nil {
			all[name] = role.Rules
		}
	}
	return all
}
