package rbac

import (
	"fmt"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// parse reads manifests into a policy.
func parse(t *testing.T, data []byte) *Policy {
	t.Helper()
	docs, err := object.ParseManifests("objects.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	var clusterRoles []*rbacv1.ClusterRole
	var roles []*rbacv1.Role
	var clusterBindings []*rbacv1.ClusterRoleBinding
	var bindings []*rbacv1.RoleBinding
	for _, doc := range docs {
		object.Default(doc.Object)
		switch obj := doc.Object.(type) {
		case *rbacv1.ClusterRole:
			clusterRoles = append(clusterRoles, obj)
		case *rbacv1.Role:
			roles = append(roles, obj)
		case *rbacv1.ClusterRoleBinding:
			clusterBindings = append(clusterBindings, obj)
		case *rbacv1.RoleBinding:
			bindings = append(bindings, obj)
		}
	}
	return New(clusterRoles, roles, clusterBindings, bindings)
}

// question is a line: "alice,dev,ops get pods/log web-1 -n shop": a name with its
// groups, then a wish.
func question(t *testing.T, line string) (Who, Wish) {
	t.Helper()
	words := strings.Fields(line)
	who := strings.Split(words[0], ",")
	wish := Wish{}
	rest := words[1:]
	if n := len(rest); n > 2 && rest[n-2] == "-n" {
		wish.Namespace, rest = rest[n-1], rest[:n-2]
	}
	wish.Verb = rest[0]
	if strings.HasPrefix(rest[1], "/") {
		wish.Path = rest[1]
	} else {
		resource, sub, _ := strings.Cut(rest[1], "/")
		wish.Resource, wish.Group, _ = strings.Cut(resource, ".")
		wish.Subresource = sub
	}
	if len(rest) > 2 {
		wish.Name = rest[2]
	}
	return Who{Name: who[0], Groups: who[1:]}, wish
}

func optional(in golden.Input, name string) string {
	data, _ := in.Lookup(name)
	return string(data)
}

// TestPolicy runs testdata/*.txtar: what each line of "ask" is answered, who may what
// the lines of "who" say, and whether the first of "grant" may write a role or binding
// of the same name in "grant.yaml".
func TestPolicy(t *testing.T) {
	golden.Run(t, "testdata/*.txtar", func(t *testing.T, in golden.Input) string {
		p := parse(t, in.File("objects.yaml"))
		var out strings.Builder
		for line := range strings.Lines(string(in.File("ask"))) {
			line = strings.TrimSpace(line)
			who, wish := question(t, line)
			if by, ok := p.Allows(who, wish); ok {
				fmt.Fprintf(&out, "%s: yes, %s\n", line, by)
			} else {
				fmt.Fprintf(&out, "%s: no; %s\n", line, p.Remedy(who, wish))
			}
		}
		for line := range strings.Lines(optional(in, "who")) {
			_, wish := question(t, "? "+line)
			fmt.Fprintf(&out, "who can %s:\n", strings.TrimSpace(line))
			for _, g := range p.Can(wish) {
				fmt.Fprintf(&out, "  %s %s by %s (%s)\n", g.Subject.Kind, strings.TrimPrefix(g.Subject.Namespace+"/"+g.Subject.Name, "/"), g.Binding, g.Role)
			}
		}
		if who := strings.TrimSpace(optional(in, "grant")); who != "" {
			docs, err := object.ParseManifests("grant.yaml", in.File("grant.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			words := strings.Split(who, ",")
			caller := Who{Name: words[0], Groups: words[1:]}
			for _, doc := range docs {
				object.Default(doc.Object)
				var why string
				switch obj := doc.Object.(type) {
				case *rbacv1.ClusterRole:
					why = p.MayGrant(caller, "clusterroles", "", obj.Name, obj.Rules)
				case *rbacv1.Role:
					why = p.MayGrant(caller, "roles", obj.Namespace, obj.Name, obj.Rules)
				case *rbacv1.ClusterRoleBinding:
					why = p.MayBind(caller, obj.RoleRef, "")
				case *rbacv1.RoleBinding:
					why = p.MayBind(caller, obj.RoleRef, obj.Namespace)
				}
				if why == "" {
					why = "yes"
				}
				fmt.Fprintf(&out, "%s may write %s: %s\n", who, object.Title(doc.Object), why)
			}
		}
		return out.String()
	})
}
