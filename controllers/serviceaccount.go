package controllers

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

// defaultAccount is the account of pods that name none.
const defaultAccount = "default"

var serviceAccountResource = object.ResourceOf(&corev1.ServiceAccount{})

// newServiceAccounts returns the controller that gives each namespace its account
// "default", also after somebody has deleted it.
func newServiceAccounts(newUID func() string) *controller {
	return &controller{
		name: "serviceaccount",
		all:  func(s state) []object.Key { return keysOf(s.index, namespaceResource) },
		affected: func(_ *index, c change) []object.Key {
			if e := c.before; c.after == nil && c.key == serviceAccountResource.Key(e.namespace, defaultAccount) && isKind(e.resource, serviceAccountResource) {
				return []object.Key{namespaceResource.Key("", e.namespace)}
			}
			return affectsItself(namespaceResource, c)
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			var o outcome
			ns, ok := object.Get[*corev1.Namespace](s, key)
			if !ok || object.Deleting(ns) {
				return o
			}
			if _, _, ok := s.Value(string(serviceAccountResource.Key(ns.Name, defaultAccount))); ok {
				return o
			}
			account := &corev1.ServiceAccount{
				TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
				ObjectMeta: metav1.ObjectMeta{Name: defaultAccount, Namespace: ns.Name, UID: types.UID(newUID()), Generation: 1, CreationTimestamp: metav1.NewTime(now.Truncate(time.Second))},
			}
			object.Default(account)
			o.txn.Reason = "the account of pods of namespace " + ns.Name + " that name none"
			o.create(account)
			o.unchanged(ns) // nothing is made in a namespace that goes
			return o
		},
	}
}
