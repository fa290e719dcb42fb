package rbac

import (
	"fmt"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/component-helpers/auth/rbac/validation"

	"github.com/holdfast-io/holdfast/object"
)

// MayGrant returns "" if who may write rules into a role of that resource ("roles",
// "clusterroles") in namespace: he has them himself, or the right to escalate. It
// returns what he lacks otherwise. Kubernetes' check against giving oneself rights.
func (p *Policy) MayGrant(who Who, resource, namespace, role string, rules []rbacv1.PolicyRule) string {
	escalate := Wish{object.AccessAttributes{Verb: "escalate", Group: rbacv1.GroupName, Resource: resource, Name: role}, namespace}
	if _, ok := p.Allows(who, escalate); ok {
		return ""
	}
	return p.lacks(who, namespace, rules)
}

// MayBind returns "" if who may write a binding to a role in namespace: he has all its
// rights himself, or may bind it. It returns why not otherwise.
func (p *Policy) MayBind(who Who, ref rbacv1.RoleRef, namespace string) string {
	resource := "clusterroles"
	if ref.Kind == "Role" {
		resource = "roles"
	}
	bind := Wish{object.AccessAttributes{Verb: "bind", Group: rbacv1.GroupName, Resource: resource, Name: ref.Name}, namespace}
	if _, ok := p.Allows(who, bind); ok {
		return ""
	}
	rules, ok := p.RulesOf(ref, namespace)
	if !ok {
		return fmt.Sprintf("there is no %s %s: who has no right to bind any role can only bind what is there", ref.Kind, ref.Name)
	}
	return p.lacks(who, namespace, rules)
}

// lacks says which of rules who does not have, "" if none.
func (p *Policy) lacks(who Who, namespace string, rules []rbacv1.PolicyRule) string {
	covered, missing := validation.Covers(p.Rules(who, namespace), rules)
	if covered {
		return ""
	}
	const most = 5
	var words []string
	for i, rule := range missing {
		if i == most {
			words = append(words, fmt.Sprintf("and %d more", len(missing)-most))
			break
		}
		words = append(words, describe(rule))
	}
	return "it gives rights that " + who.Name + " does not have: " + strings.Join(words, "; ")
}

// All are the rules that allow everything: who writes a role that collects others'
// rules must have them, since what will be collected is not known.
func All() []rbacv1.PolicyRule { return everything }

// describe writes a rule: "get, list deployments.apps".
func describe(rule rbacv1.PolicyRule) string {
	verbs := strings.Join(rule.Verbs, ", ")
	if len(rule.NonResourceURLs) > 0 {
		return verbs + " " + strings.Join(rule.NonResourceURLs, ", ")
	}
	var resources []string
	for _, resource := range rule.Resources {
		for _, group := range rule.APIGroups {
			if group == "" {
				resources = append(resources, resource)
			} else {
				resources = append(resources, resource+"."+group)
			}
		}
	}
	text := verbs + " " + strings.Join(resources, ", ")
	if len(rule.ResourceNames) > 0 {
		text += " named " + strings.Join(rule.ResourceNames, ", ")
	}
	return text
}
