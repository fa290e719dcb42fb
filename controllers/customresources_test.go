package controllers

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

func definition(name, kind string) *apiextensionsv1.CustomResourceDefinition {
	plural, group, _ := strings.Cut(name, ".")
	crd := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
	crd.Spec.Group, crd.Spec.Scope = group, apiextensionsv1.NamespaceScoped
	crd.Spec.Names.Plural, crd.Spec.Names.Kind = plural, kind
	crd.Spec.Versions = []apiextensionsv1.CustomResourceDefinitionVersion{{
		Name: "v1", Served: true, Storage: true,
		Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object"}},
	}}
	object.Default(crd)
	return crd
}

func (s *sim) keys() string {
	var keys []string
	for _, prefix := range []string{"customresourcedefinitions", "widgets", "configmaps", "namespaces"} {
		for kv := range s.view().Prefix(prefix) {
			keys = append(keys, strings.TrimPrefix(kv.Key, "customresourcedefinitions.apiextensions.k8s.io/"))
		}
	}
	return strings.Join(keys, " ")
}

// TestDefinitions: a definition gets its names when they are free; when it is
// deleted its objects go first, waiting for finalizers, and what they own with
// them; and a namespace that goes takes custom objects along.
func TestDefinitions(t *testing.T) {
	s := newSim(t, 1)
	widgets, wagons := definition("widgets.example.com", "Widget"), definition("wagons.example.com", "Widget")
	object.EstablishCRD(widgets, nil, s.now)
	s.put(widgets)
	object.EstablishCRD(wagons, []*apiextensionsv1.CustomResourceDefinition{widgets}, s.now)
	s.put(wagons)
	catalog := object.NewCatalog([]*apiextensionsv1.CustomResourceDefinition{widgets})
	r, err := catalog.For("widgets")
	if err != nil {
		t.Fatal(err)
	}
	widget := func(namespace, name string, finalizers ...string) object.Object {
		w := object.New(r)
		w.SetNamespace(namespace)
		w.SetName(name)
		w.SetUID(types.UID(name))
		w.SetFinalizers(finalizers)
		return w
	}
	s.put(widget("default", "a"))
	held := widget("default", "b", "example.com/keep")
	s.put(held)
	yes := true
	s.put(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "of-a", UID: "of-a", OwnerReferences: []metav1.OwnerReference{
		{APIVersion: "example.com/v1", Kind: "Widget", Name: "a", UID: "a", Controller: &yes},
	}}})
	shop := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", UID: "shop"}}
	object.Default(shop)
	s.put(shop)
	s.put(widget("shop", "c"))
	s.settle()
	if got, want := s.keys(), "wagons.example.com widgets.example.com widgets.example.com/default/a widgets.example.com/default/b widgets.example.com/shop/c configmaps/default/of-a namespaces/shop"; got != want {
		t.Fatalf("before anything is deleted:\n%s, want\n%s", got, want)
	}

	s.delete(shop)
	s.settle()
	if got := s.keys(); strings.Contains(got, "shop") {
		t.Errorf("a namespace that is deleted leaves %s", got)
	}

	stored, _ := object.Get[*apiextensionsv1.CustomResourceDefinition](s.view(), object.KeyOf(widgets))
	s.delete(stored)
	s.settle()
	if got, want := s.keys(), "wagons.example.com widgets.example.com widgets.example.com/default/b"; got != want {
		t.Errorf("while a finalizer holds an object:\n%s, want\n%s", got, want)
	}
	s.erase(held)
	s.settle()
	if got, want := s.keys(), "wagons.example.com"; got != want {
		t.Errorf("in the end there is %s, want %s", got, want)
	}
	stored, _ = object.Get[*apiextensionsv1.CustomResourceDefinition](s.view(), object.KeyOf(wagons))
	if !object.Established(stored) {
		t.Error("the names are free, and the definition that waits does not get them")
	}
	if len(s.r.index.unsettled) > 0 || len(s.r.index.catalog.Resources()) != len(object.Resources())+1 {
		t.Errorf("the index has unsettled %v, and %d kinds", s.r.index.unsettled, len(s.r.index.catalog.Resources()))
	}

	again := &runner{log: s.r.log, metrics: s.r.metrics, controllers: []*controller{newDefinitions()}}
	again.load(s.view(), s.now)
	if got, want := fmt.Sprint(len(again.index.entries)), fmt.Sprint(len(s.r.index.entries)); got != want {
		t.Errorf("loaded anew, the index has %s entries, want %s", got, want)
	}
}

// TestPlanDefinitionInParts: many objects take several passes.
func TestPlanDefinitionInParts(t *testing.T) {
	crd := definition("widgets.example.com", "Widget")
	object.EstablishCRD(crd, nil, testNow)
	var objects []object.Object
	for i := range maxWrites + 5 {
		objects = append(objects, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i)}})
	}
	if plan := planDefinition(crd, nil, objects, testNow); len(plan.remove) > 0 || plan.changed {
		t.Errorf("a definition that stays: %v", plan)
	}
	object.MarkDeleted(crd, testNow, nil)
	if plan := planDefinition(crd, nil, objects, testNow); len(plan.remove) != maxWrites || !plan.more || plan.gone || plan.changed {
		t.Errorf("first pass: removes %d, more %v, gone %v", len(plan.remove), plan.more, plan.gone)
	}
	if plan := planDefinition(crd, nil, nil, testNow.Add(time.Minute)); !plan.gone {
		t.Error("without objects the definition stays")
	}
}
