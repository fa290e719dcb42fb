package object

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Object is a pointer to one of Kubernetes' API structs, such as *corev1.Pod, or
// a *Custom.
type Object interface {
	metav1.Object
	runtime.Object
}

// Key is the key under which an object is stored:
// "<plural>[.<group>]/[<namespace>/]<name>". For example "pods/default/web-1",
// "deployments.apps/default/web", "nodes/n1".
type Key string

// KeyOf returns the key of obj. It panics if obj is of a kind that is not
// served.
func KeyOf(obj Object) Key {
	return ResourceOf(obj).Key(obj.GetNamespace(), obj.GetName())
}

// New returns an empty object of the kind r, with its apiVersion and kind set.
// It panics if r came from no [Catalog] and is not built in.
func New(r Resource) Object { return r.kind().new() }

// Title names obj for people: "Deployment default/web", "Node n1".
func Title(obj Object) string {
	name := obj.GetName()
	if name == "" && obj.GetGenerateName() != "" {
		name = obj.GetGenerateName() + "*"
	}
	return title(ResourceOf(obj).Kind, obj.GetNamespace(), name)
}

func title(kind, namespace, name string) string {
	switch {
	case name == "":
		return kind
	case namespace == "":
		return kind + " " + name
	default:
		return kind + " " + namespace + "/" + name
	}
}
