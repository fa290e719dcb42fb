package apiserver

import (
	"fmt"
	"strings"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore"
)

// admit holds next, an object as it will be, against the rest of the cluster, and
// fills in what the cluster decides about it. was is nil for a new object. What is
// wrong becomes faults, what the caller should know warnings; what it was decided
// on becomes conditions.
func (p *plan) admit(next, was object.Object, index int) {
	if was == nil {
		p.needNamespace(next, index)
	}
}

// needNamespace holds a new object against its namespace, which must be there and
// stay; the default one is made when it is first needed.
func (p *plan) needNamespace(obj object.Object, index int) {
	name := obj.GetNamespace()
	if name == "" || p.coming[name] {
		return
	}
	wrong, ok := p.checked[name]
	if !ok {
		wrong = p.checkNamespace(name)
		if p.checked == nil {
			p.checked = make(map[string]object.Fault)
		}
		p.checked[name] = wrong
	}
	if wrong.Message != "" {
		wrong.Object, wrong.Field, wrong.Index = object.Title(obj), "metadata.namespace", index
		p.faults = append(p.faults, wrong)
	}
}

var namespaceResource = object.ResourceOf(&corev1.Namespace{})

func (p *plan) checkNamespace(name string) (wrong object.Fault) {
	key := string(namespaceResource.Key("", name))
	kv, ok := p.view.Get(key)
	if !ok && name == metav1.NamespaceDefault {
		if _, err := p.add(p.newNamespace(name)); err != nil {
			return object.Fault{Message: err.Error()}
		}
		return object.Fault{}
	}
	if !ok {
		return object.Fault{Message: fmt.Sprintf("namespace %q does not exist; create it, or apply it together with the object", name)}
	}
	ns, err := p.decode(kv)
	if err != nil {
		return object.Fault{Message: err.Error()}
	}
	if object.Deleting(ns.obj) {
		return object.Fault{Message: fmt.Sprintf("namespace %q is being deleted; wait until it is gone", name)}
	}
	p.unchanged(key, kv.Mod)
	return object.Fault{}
}

func (s *Server) newNamespace(name string) *corev1.Namespace {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	object.Default(ns)
	s.stampNew(ns)
	return ns
}

// emptyNamespace returns FailedPrecondition if obj is a namespace with objects
// in it, which would lose their home.
func (s *Server) emptyNamespace(view raftstore.View, obj object.Object) error {
	ns, ok := obj.(*corev1.Namespace)
	if !ok {
		return nil
	}
	var left []string
	for _, r := range s.catalog(view).Resources() {
		if !r.Namespaced {
			continue
		}
		count := 0
		for range view.Prefix(r.Prefix(ns.Name)) {
			count++
		}
		if count > 0 {
			left = append(left, fmt.Sprintf("%d %s", count, r.Plural))
		}
	}
	if len(left) == 0 {
		return nil
	}
	return connect.Errorf(connect.CodeFailedPrecondition, "namespace %s is not empty: it has %s; delete them first", ns.Name, strings.Join(left, ", "))
}
