package controllers

import (
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/auth/rbac/validation"

	"github.com/holdfast-io/holdfast/object"
)

var clusterRoleResource = object.ResourceOf(&rbacv1.ClusterRole{})

//go:embed roles/default.yaml
var defaultRolesYAML []byte

const (
	bootstrappingLabel   = "kubernetes.io/bootstrapping"
	bootstrappingValue   = "rbac-defaults"
	autoupdateAnnotation = "rbac.authorization.kubernetes.io/autoupdate"
)

// defaultRoles are the roles and bindings that every cluster has, by key. It panics if
// the file that is built in is wrong, which a test would see.
func defaultRoles() map[object.Key]object.Object {
	docs, err := object.ParseManifests("roles/default.yaml", defaultRolesYAML)
	if err != nil {
		panic(err)
	}
	all := make(map[object.Key]object.Object, len(docs))
	for _, doc := range docs {
		obj := doc.Object
		labels := obj.GetLabels()
		if labels == nil {
			labels = make(map[string]string)
		}
		labels[bootstrappingLabel] = bootstrappingValue
		obj.SetLabels(labels)
		obj.SetAnnotations(map[string]string{autoupdateAnnotation: "true"})
		object.Default(obj)
		all[object.KeyOf(obj)] = obj
	}
	return all
}

// planRole brings a role or binding up to date: want is the default of its name, if
// there is one, and was what is stored; nil if there is none. all are the cluster
// roles, for one that collects their rules. It is pure, and returns nil if there is
// nothing to write.
//
// A default gets the rules and subjects that it lacks, and keeps what was added, as
// Kubernetes has it; not if its annotation says that it is nobody else's business.
func planRole(want, was object.Object, all []*rbacv1.ClusterRole) object.Object {
	if was == nil {
		if role, ok := want.(*rbacv1.ClusterRole); ok && role.AggregationRule != nil {
			role = role.DeepCopy()
			role.Rules = object.AggregateRules(role, all)
			return role
		}
		if want == nil {
			return nil
		}
		return want.DeepCopyObject().(object.Object)
	}
	next := was.DeepCopyObject().(object.Object)
	if want != nil && was.GetAnnotations()[autoupdateAnnotation] != "false" {
		switch next := next.(type) {
		case *rbacv1.ClusterRole:
			if _, missing := validation.Covers(next.Rules, want.(*rbacv1.ClusterRole).Rules); len(missing) > 0 {
				next.Rules = append(next.Rules, missing...)
			}
		case *rbacv1.ClusterRoleBinding:
			for _, s := range want.(*rbacv1.ClusterRoleBinding).Subjects {
				if !slices.Contains(next.Subjects, s) {
					next.Subjects = append(next.Subjects, s)
				}
			}
		}
	}
	if role, ok := next.(*rbacv1.ClusterRole); ok && role.AggregationRule != nil {
		role.Rules = object.AggregateRules(role, all)
	}
	if equality.Semantic.DeepEqual(was, next) {
		return nil
	}
	return next
}

// newRoles returns the controller that sees to it that the default roles are there when
// a leader begins, and writes into roles that collect others' rules what these are. What
// is allowed does not wait for the latter: package rbac collects by itself.
func newRoles(newUID func() string) *controller {
	defaults := defaultRoles()
	return &controller{
		name: "roles",
		all: func(s state) []object.Key {
			keys := slices.AppendSeq(slices.Collect(maps.Keys(defaults)), maps.Keys(s.index.collecting))
			slices.Sort(keys)
			return slices.Compact(keys)
		},
		affected: func(x *index, c change) []object.Key {
			if !isKind(c.before.resource, clusterRoleResource) && !isKind(c.now.resource, clusterRoleResource) {
				return nil
			}
			return x.collecting.sorted() // defaults that are gone stay so until the next leader
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			was, _ := get(s, key)
			next := planRole(defaults[key], was, object.List[*rbacv1.ClusterRole](s, ""))
			var o outcome
			switch {
			case next == nil:
			case was == nil:
				next.SetUID(types.UID(newUID()))
				next.SetCreationTimestamp(metav1.NewTime(now).Rfc3339Copy())
				o.txn.Reason = fmt.Sprintf("default %s", object.Title(next))
				o.create(next)
			default:
				o.txn.Reason = fmt.Sprintf("rules of %s", object.Title(next))
				o.update(next)
			}
			return o
		},
	}
}
