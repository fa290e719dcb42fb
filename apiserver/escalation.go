package apiserver

import (
	"connectrpc.com/connect/v2"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/holdfast-io/holdfast/apiserver/rbac"
	"github.com/holdfast-io/holdfast/object"
)

// mayCreate returns PermissionDenied if the caller may change obj, but not make it:
// whoever applies needs both.
func (p *plan) mayCreate(obj object.Object) error {
	if p.caller == nil {
		return nil
	}
	a := attributes("create", object.ResourceOf(obj), "", obj.GetNamespace(), "")
	_, remedy, ok, err := p.Allowed(*p.caller, a)
	if err != nil || ok {
		return err
	}
	return connect.Errorf(connect.CodePermissionDenied, "%s may not %s: no role allows it; to allow it: %s", p.caller.Name, a, remedy)
}

// mayGrant returns PermissionDenied if next, a role or a binding, would give somebody
// rights that the caller does not have and may not give: Kubernetes' guard against
// giving oneself more.
func (p *plan) mayGrant(next, was object.Object) error {
	if p.caller == nil {
		return nil
	}
	who := rbac.Who{Name: p.caller.Name, Groups: p.caller.Groups}
	policy, _ := p.rights.current()
	var why, allow string
	switch next := next.(type) {
	case *rbacv1.Role:
		if old, ok := was.(*rbacv1.Role); !ok || !equality.Semantic.DeepEqual(old.Rules, next.Rules) {
			why, allow = policy.MayGrant(who, "roles", next.Namespace, next.Name, next.Rules), "escalate"
		}
	case *rbacv1.ClusterRole:
		old, ok := was.(*rbacv1.ClusterRole)
		if !ok || !equality.Semantic.DeepEqual(old.Rules, next.Rules) {
			why, allow = policy.MayGrant(who, "clusterroles", "", next.Name, next.Rules), "escalate"
		}
		if why == "" && next.AggregationRule != nil && (!ok || !equality.Semantic.DeepEqual(old.AggregationRule, next.AggregationRule)) {
			why, allow = policy.MayGrant(who, "clusterroles", "", next.Name, rbac.All()), "escalate"
		}
	case *rbacv1.RoleBinding:
		if old, ok := was.(*rbacv1.RoleBinding); !ok || !equality.Semantic.DeepEqual(old.Subjects, next.Subjects) {
			why, allow = policy.MayBind(who, next.RoleRef, next.Namespace), "bind"
		}
	case *rbacv1.ClusterRoleBinding:
		if old, ok := was.(*rbacv1.ClusterRoleBinding); !ok || !equality.Semantic.DeepEqual(old.Subjects, next.Subjects) {
			why, allow = policy.MayBind(who, next.RoleRef, ""), "bind"
		}
	}
	if why == "" {
		return nil
	}
	return connect.Errorf(connect.CodePermissionDenied, "%s may not write %s: %s; an administrator may, or who has the verb %q on the role",
		p.caller.Name, object.Title(next), why, allow)
}
