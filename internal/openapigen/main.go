// Command openapigen writes the schemas of Kubernetes' API types, as package
// object/openapi embeds them: "go run ./internal/openapigen -out FILE".
//
// The shape of a type comes from reflection over its Go struct, its words and
// marks (+listType=map, +optional, +enum) from the comments in its source,
// which lie in the module cache. So the text follows go.mod and nothing else.
//
// The rules by which a struct becomes a schema are those of kube-openapi's
// openapi-gen, which makes a Go file of 60,000 lines that another program must
// then be built with and print.
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// groups are the API groups whose kinds are written. Which of them a cluster
// serves, package openapi asks package object.
var groups = []func(*runtime.Scheme) error{
	corev1.AddToScheme,
	appsv1.AddToScheme,
	batchv1.AddToScheme,
	autoscalingv1.AddToScheme,
	autoscalingv2.AddToScheme,
	policyv1.AddToScheme,
	networkingv1.AddToScheme,
	discoveryv1.AddToScheme,
	storagev1.AddToScheme,
	coordinationv1.AddToScheme,
	rbacv1.AddToScheme,
	schedulingv1.AddToScheme,
	eventsv1.AddToScheme,
	apiextensionsv1.AddToScheme,
	authenticationv1.AddToScheme,
	authorizationv1.AddToScheme,
	addMetrics,
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("openapigen: ")
	out := flag.String("out", "", "file to write, compressed by gzip; nothing is written if it holds the same text already")
	flag.Parse()
	if *out == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	text, err := generate()
	if err != nil {
		log.Fatal(err)
	}
	if err := write(*out, text); err != nil {
		log.Fatal(err)
	}
}

// generate returns a line for each type: its name, a space, its schema as JSON.
func generate() ([]byte, error) {
	scheme := runtime.NewScheme()
	for _, add := range groups {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	kinds := map[reflect.Type][]schema.GroupVersionKind{}
	for gvk, t := range scheme.AllKnownTypes() {
		if gvk.Version != runtime.APIVersionInternal && t.PkgPath() != reflect.TypeFor[metav1.Status]().PkgPath() {
			kinds[t] = append(kinds[t], gvk)
		}
	}
	// What every group uses; the documents add the group.
	for _, t := range []reflect.Type{
		reflect.TypeFor[metav1.Status](),
		reflect.TypeFor[metav1.DeleteOptions](),
		reflect.TypeFor[metav1.Patch](),
		reflect.TypeFor[metav1.ListMeta](),
	} {
		kinds[t] = nil
	}

	g := generator{schemas: map[string]*typeSchema{}, sources: map[string]*source{}}
	for t, gvks := range kinds {
		if err := g.define(t); err != nil {
			return nil, err
		}
		slices.SortFunc(gvks, func(a, b schema.GroupVersionKind) int { return strings.Compare(a.String(), b.String()) })
		for _, gvk := range gvks {
			s := g.schemas[modelName(t)]
			s.Kinds = append(s.Kinds, groupVersionKind{gvk.Group, gvk.Kind, gvk.Version})
		}
	}
	var text bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(g.schemas)) {
		line, err := json.Marshal(g.schemas[name])
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&text, "%s %s\n", name, line)
	}
	return text.Bytes(), nil
}

// write compresses text into the file, unless it is there: another release of
// the compressor makes other bytes of the same text.
func write(path string, text []byte) error {
	if old, err := os.Open(path); err == nil {
		defer old.Close()
		if z, err := gzip.NewReader(old); err == nil {
			if have, err := io.ReadAll(z); err == nil && bytes.Equal(have, text) {
				return nil
			}
		}
	}
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := z.Write(text); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, packed.Bytes(), 0o644)
}
