package controllers

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
)

// TestDefaultRoles demands that the defaults can be stored, that the roles for people
// hold each other, and that none of them lets one look into secrets who may only view.
func TestDefaultRoles(t *testing.T) {
	var roles []*rbacv1.ClusterRole
	for key, obj := range defaultRoles() {
		if faults := object.Validate(obj); len(faults) > 0 {
			t.Errorf("%s: %v", key, faults)
		}
		if role, ok := obj.(*rbacv1.ClusterRole); ok {
			roles = append(roles, role)
		}
	}
	// As the controller comes by them, one after the other.
	for range 3 {
		for i, role := range roles {
			if next := planRole(role, role, roles); next != nil {
				roles[i] = next.(*rbacv1.ClusterRole)
			}
		}
	}
	allows := func(role, verb, group, resource, sub string) bool {
		i := slices.IndexFunc(roles, func(r *rbacv1.ClusterRole) bool { return r.Name == role })
		return object.Allows(roles[i].Rules, object.AccessAttributes{Verb: verb, Group: group, Resource: resource, Subresource: sub})
	}
	var got strings.Builder
	for _, wish := range []string{
		"get pods", "get pods/log", "create pods", "create pods/exec", "create pods/eviction", "get secrets", "delete deployments.apps", "update deployments.apps/scale",
		"create rolebindings.rbac.authorization.k8s.io", "bind clusterroles.rbac.authorization.k8s.io", "get nodes", "update resourcequotas",
	} {
		verb, what, _ := strings.Cut(wish, " ")
		what, sub, _ := strings.Cut(what, "/")
		resource, group, _ := strings.Cut(what, ".")
		fmt.Fprintf(&got, "%s:", wish)
		for _, role := range []string{"view", "edit", "admin", "cluster-admin"} {
			if allows(role, verb, group, resource, sub) {
				fmt.Fprintf(&got, " %s", role)
			}
		}
		got.WriteByte('\n')
	}
	want := `get pods: view edit admin cluster-admin
get pods/log: view edit admin cluster-admin
create pods: edit admin cluster-admin
create pods/exec: edit admin cluster-admin
create pods/eviction: edit admin cluster-admin
get secrets: edit admin cluster-admin
delete deployments.apps: edit admin cluster-admin
update deployments.apps/scale: edit admin cluster-admin
create rolebindings.rbac.authorization.k8s.io: admin cluster-admin
bind clusterroles.rbac.authorization.k8s.io: cluster-admin
get nodes: cluster-admin
update resourcequotas: cluster-admin
`
	if got.String() != want {
		t.Errorf("got:\n%swant:\n%s", got.String(), want)
	}
}

// TestPlanRole: what a default lacks comes back, what was added stays, and one that
// says so is left alone.
func TestPlanRole(t *testing.T) {
	get := rbacv1.PolicyRule{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"pods"}}
	list := rbacv1.PolicyRule{Verbs: []string{"list"}, APIGroups: []string{""}, Resources: []string{"pods"}}
	role := func(auto string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "r", Annotations: map[string]string{autoupdateAnnotation: auto}}, Rules: rules}
	}
	rules := func(obj object.Object) string {
		if obj == nil {
			return "nothing to write"
		}
		var words []string
		for _, rule := range obj.(*rbacv1.ClusterRole).Rules {
			words = append(words, rule.Verbs...)
		}
		return strings.Join(words, " ")
	}
	want := role("true", get)
	for _, test := range []struct {
		name string
		was  object.Object
		want string
	}{
		{"missing", nil, "get"},
		{"as it is", role("true", get), "nothing to write"},
		{"emptied", role("true"), "get"},
		{"replaced", role("true", list), "list get"},
		{"more", role("true", get, list), "nothing to write"},
		{"left alone", role("false"), "nothing to write"},
	} {
		if got := rules(planRole(want, test.was, nil)); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	collects := role("true")
	collects.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"a": "b"}}}}
	part := role("true", list)
	part.Name, part.Labels = "part", map[string]string{"a": "b"}
	if got := rules(planRole(nil, collects, []*rbacv1.ClusterRole{part, collects})); got != "list" {
		t.Errorf("a role that collects has %s, want list", got)
	}
}
