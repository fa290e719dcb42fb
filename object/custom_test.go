package object

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/internal/golden"
)

// definitions reads the CustomResourceDefinitions of a manifest and establishes
// them one after another.
func definitions(t *testing.T, data []byte) []*apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	var crds []*apiextensionsv1.CustomResourceDefinition
	for _, obj := range parseObjects(t, data) {
		Default(obj)
		if faults := Validate(obj); len(faults) > 0 {
			t.Fatal(faults)
		}
		crd := obj.(*apiextensionsv1.CustomResourceDefinition)
		EstablishCRD(crd, crds, now)
		crds = append(crds, crd)
	}
	return crds
}

// TestCustom runs testdata/custom/*.txtar: objects of the kinds that
// "definitions" define, as they are read, stored, shown and scaled.
func TestCustom(t *testing.T) {
	golden.Run(t, "testdata/custom/*.txtar", func(t *testing.T, in golden.Input) string {
		catalog := NewCatalog(definitions(t, in.File("definitions")))
		var out strings.Builder
		for _, r := range catalog.Versions() {
			if r.Custom {
				fmt.Fprintf(&out, "%s/%s %s: %s %s %v namespaced=%v status=%v scale=%v storage=%v\n", r, r.Version, r.Kind, r.Plural, r.Singular, append(r.ShortNames, r.Categories...), r.Namespaced, r.Status, r.Scale, r.Storage)
			}
		}
		docs, err := catalog.ParseManifests("objects", in.File("objects"))
		if err != nil {
			fmt.Fprintf(&out, "\n%v\n", err)
			return out.String()
		}
		var good []Object
		for _, d := range docs {
			if faults := d.Check(); len(faults) > 0 {
				fmt.Fprintf(&out, "\n%v\n", faults)
				continue
			}
			Default(d.Object)
			if len(good) == 0 || ResourceOf(d.Object).Version == ResourceOf(good[0]).Version {
				good = append(good, d.Object)
			}
			out.WriteString("\n--- " + string(KeyOf(d.Object)) + "\n")
			text, err := EncodeYAML(throughStorage(t, catalog, d.Object))
			if err != nil {
				t.Fatal(err)
			}
			out.Write(text)
			if scale, err := ScaleOf(d.Object); err == nil {
				fmt.Fprintf(&out, "scale: wants %d, has %d, selects %q\n", scale.Spec.Replicas, scale.Status.Replicas, scale.Status.Selector)
				scale.Spec.Replicas++
				if err := SetScale(d.Object, scale); err != nil {
					t.Fatal(err)
				}
				again, err := ScaleOf(d.Object)
				if err != nil || again.Spec.Replicas != scale.Spec.Replicas {
					t.Errorf("after SetScale to %d: %v, %v", scale.Spec.Replicas, again, err)
				}
			} else {
				fmt.Fprintln(&out, "scale:", err)
			}
		}
		if len(good) > 0 {
			table := Print(good, now)
			fmt.Fprintf(&out, "\n%s\n%s\n", layOut(table, false), layOut(table, true))
			out.WriteString(Describe(good[0], nil, nil, now))
		}
		return out.String()
	})
}

// throughStorage encodes and decodes obj, and checks that nothing is lost.
func throughStorage(t *testing.T, catalog *Catalog, obj Object) Object {
	t.Helper()
	data, err := Encode(obj)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := catalog.Decode(data, 7)
	if err != nil {
		t.Fatal(err)
	}
	if rv := stored.GetResourceVersion(); rv != "7" {
		t.Errorf("%s: resourceVersion is %q after storage, want 7", Title(obj), rv)
	}
	if !ResourceOf(stored).Storage {
		t.Errorf("%s: storage gives version %s, which is not the stored one", Title(obj), ResourceOf(stored).Version)
	}
	again, err := Encode(stored)
	if err != nil {
		t.Fatal(err)
	}
	if !ResourceOf(obj).Storage { // then the stored version's defaults are added
		back, err := Convert(stored, ResourceOf(obj))
		if err != nil {
			t.Fatal(err)
		}
		return back
	}
	if !bytes.Equal(data, again) {
		t.Errorf("%s: equal objects have different bytes:\n%q\n%q", Title(obj), data, again)
	}
	back, err := Convert(stored, ResourceOf(obj))
	if err != nil {
		t.Fatal(err)
	}
	back.SetResourceVersion("")
	text, err := EncodeJSON(back)
	if err != nil {
		t.Fatal(err)
	}
	want, err := EncodeJSON(obj)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text, want) {
		t.Errorf("%s: changed by storage:\n%s\n%s", Title(obj), want, text)
	}
	strict, err := catalog.Decode(text, 0)
	if err != nil {
		t.Fatalf("%s: what is written cannot be read: %v", Title(obj), err)
	}
	if diff := cmp.Diff(back.(interface{ UnstructuredContent() map[string]any }).UnstructuredContent(), strict.(*Custom).Object); diff != "" {
		t.Errorf("%s: changed by JSON:\n%s", Title(obj), diff)
	}
	return back
}

const widgetDefinition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  names: {plural: widgets, kind: Widget, shortNames: [wd]}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer, default: 3}}}}}}
`

func TestCatalog(t *testing.T) {
	crds := definitions(t, []byte(widgetDefinition))
	catalog := NewCatalog(crds)
	for _, c := range []struct{ word, want string }{
		{"wd", "widgets.example.com"},
		{"Widget", "widgets.example.com"},
		{"widgets.v1.example.com", "widgets.example.com"},
		{"widgets.v2.example.com", `resource type "widgets.v2.example.com" is unknown: did you mean widgets?`},
		{"widgetz", `resource type "widgetz" is unknown: did you mean widgets?`},
		{"hpa", "horizontalpodautoscalers.autoscaling"},
		{"pods.v1", "pods"},
	} {
		r, err := catalog.For(c.word)
		got := r.String()
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("For(%q) = %s, want %s", c.word, got, c.want)
		}
	}
	if _, err := catalog.ForKind("example.com", "v2", "Widget"); err == nil || err.Error() != "kind Widget is not served as apiVersion example.com/v2: use example.com/v1" {
		t.Errorf("another version: %v", err)
	}
	if _, ok := catalog.ForPlural("example.com", "v1", "widgets"); !ok {
		t.Error("ForPlural does not find widgets")
	}
	if _, ok := Builtin().ForPlural("example.com", "v1", "widgets"); ok {
		t.Error("the catalog of built-in kinds has widgets")
	}
	r, ns, name, ok := catalog.SplitKey("widgets.example.com/default/w")
	if !ok || r.Kind != "Widget" || ns != "default" || name != "w" {
		t.Errorf("SplitKey = %v %q %q %v", r, ns, name, ok)
	}
	widget := New(r)
	if widget.GetObjectKind().GroupVersionKind().String() != "example.com/v1, Kind=Widget" {
		t.Errorf("New is a %s", widget.GetObjectKind().GroupVersionKind())
	}
	if columns := PrintColumns(r); len(columns) != 2 || columns[0].Format != "name" || columns[1].Name != "AGE" {
		t.Errorf("columns of a kind without any: %v", columns)
	}
	if _, err := FieldSelector(r, "spec.size=3"); err == nil {
		t.Error("a field that the definition does not name can be selected by")
	}
	seen := map[string]bool{}
	for _, r := range catalog.Resources() {
		if seen[r.String()] {
			t.Errorf("Resources has %s twice", r)
		}
		seen[r.String()] = true
	}
	for _, r := range catalog.Versions() {
		if _, err := catalog.ForKind(r.Group, r.Version, r.Kind); err != nil {
			t.Error(err)
		}
		if again, ok := catalog.ForPlural(r.Group, r.Version, r.Plural); !ok || again.Kind != r.Kind {
			t.Errorf("ForPlural does not find %s %s", r, r.Version)
		}
	}
	for _, r := range catalog.InCategory("all") {
		if r.Kind == "ConfigMap" || r.Kind == "Secret" {
			t.Errorf("%s is in the category all", r)
		}
	}
	if crd := crds[0].DeepCopy(); true {
		crd.Status.Conditions = nil
		if got := NewCatalog([]*apiextensionsv1.CustomResourceDefinition{crd}); got != Builtin() {
			t.Error("a definition that is not established is served")
		}
	}
}

// TestDroppedVersions: the successor of a version that Kubernetes dropped is one
// that can be used, or the kind is named as one that is not there.
func TestDroppedVersions(t *testing.T) {
	for gvk, now := range dropped {
		group, version, ok := strings.Cut(now, "/")
		if !ok {
			group, version = "", now
		}
		if gvk.Kind == "Eviction" { // a subresource
			continue
		}
		if _, err := Builtin().ForKind(group, version, gvk.Kind); err != nil && !isNotYet(gvk.Kind) {
			t.Errorf("%s: %v", gvk, err)
		}
	}
	_, err := Builtin().ForKind("policy", "v1beta1", "PodSecurityPolicy")
	if want := "kind PodSecurityPolicy (policy/v1beta1) was dropped by Kubernetes: label namespaces with pod-security.kubernetes.io/enforce instead"; err == nil || err.Error() != want {
		t.Errorf("PodSecurityPolicy: %v, want %s", err, want)
	}
}

func TestCatalogCache(t *testing.T) {
	s := stored{}
	var cache CatalogCache
	if once := cache.Of(s); once != cache.Of(s) {
		t.Error("a catalog is made twice for one state")
	}
	crd := definitions(t, []byte(widgetDefinition))[0]
	data, err := Encode(crd)
	if err != nil {
		t.Fatal(err)
	}
	s[string(KeyOf(crd))] = data
	catalog := cache.Of(s)
	if _, err := catalog.For("widgets"); err != nil {
		t.Error(err)
	}
	if cache.Of(s) != catalog {
		t.Error("a catalog is made twice for one state")
	}
	widget := catalog.New(mustFor(t, catalog, "widgets"))
	widget.SetNamespace("default")
	widget.SetName("w")
	if data, err = Encode(widget); err != nil {
		t.Fatal(err)
	}
	s[string(KeyOf(widget))] = data
	for obj := range catalog.List(s, ResourceOf(widget), "") {
		if obj.GetName() != "w" || obj.GetResourceVersion() != "9" {
			t.Errorf("List yields %v", obj)
		}
	}
	if _, err := Decode(data, 0); err == nil || !strings.Contains(err.Error(), `kind "Widget" (example.com/v1) is unknown`) {
		t.Errorf("Decode without the definition: %v", err)
	}
	delete(s, string(KeyOf(crd)))
	if _, err := cache.Of(s).For("widgets"); err == nil {
		t.Error("a kind whose definition is gone is served")
	}
}

func mustFor(t *testing.T, c *Catalog, word string) Resource {
	t.Helper()
	r, err := c.For(word)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEstablish(t *testing.T) {
	crd := func(name, kind string, short ...string) *apiextensionsv1.CustomResourceDefinition {
		plural, group, _ := strings.Cut(name, ".")
		c := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: name}}
		c.Spec.Group, c.Spec.Names.Plural, c.Spec.Names.Kind, c.Spec.Names.ShortNames = group, plural, kind, short
		c.Spec.Versions = []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true}}
		Default(c)
		return c
	}
	status := func(c *apiextensionsv1.CustomResourceDefinition) string {
		names, established := crdCondition(c, apiextensionsv1.NamesAccepted), crdCondition(c, apiextensionsv1.Established)
		return fmt.Sprintf("%s %s: %s; %s %s; stored %v", names.Status, names.Reason, names.Message, established.Status, established.Reason, c.Status.StoredVersions)
	}
	first := crd("widgets.example.com", "Widget", "wd")
	if !EstablishCRD(first, nil, now) {
		t.Error("nothing changed by the first call")
	}
	if EstablishCRD(first, nil, now.Add(time.Hour)) {
		t.Error("a second call changed something")
	}
	if got, want := status(first), "True NoConflicts: no conflicts found; True InitialNamesAccepted; stored [v1]"; got != want {
		t.Errorf("the first: %s, want %s", got, want)
	}
	second := crd("wagons.example.com", "Widget", "wd")
	EstablishCRD(second, []*apiextensionsv1.CustomResourceDefinition{first}, now)
	if got, want := status(second), `False ListKindConflict: "wd" is already in use, "Widget" is already in use, "WidgetList" is already in use; False NotAccepted; stored [v1]`; !strings.HasPrefix(strings.ReplaceAll(got, `"widget" is already in use, `, ""), want) {
		t.Errorf("the second: %s, want %s", got, want)
	}
	if catalog := NewCatalog([]*apiextensionsv1.CustomResourceDefinition{first, second}); len(catalog.kinds) != len(builtin.kinds)+1 {
		t.Error("a definition with a conflict is served")
	}
	EstablishCRD(second, nil, now.Add(time.Minute))
	if got, want := status(second), "True NoConflicts: no conflicts found; True InitialNamesAccepted; stored [v1]"; got != want {
		t.Errorf("the second, alone: %s, want %s", got, want)
	}
	if at := crdCondition(second, apiextensionsv1.Established).LastTransitionTime; !at.Equal(new(metav1.NewTime(now.Add(time.Minute)))) {
		t.Errorf("established at %v, want when it was", at)
	}
	builtinName := crd("deployments.apps", "Deployment")
	EstablishCRD(builtinName, nil, now)
	if Established(builtinName) {
		t.Error("a definition takes the names of a built-in kind")
	}

	first.Spec.Versions = append(first.Spec.Versions, apiextensionsv1.CustomResourceDefinitionVersion{Name: "v2", Served: true, Storage: true})
	first.Spec.Versions[0].Storage = false
	EstablishCRD(first, nil, now)
	if got := fmt.Sprint(first.Status.StoredVersions); got != "[v1 v2]" {
		t.Errorf("stored versions are %s, want [v1 v2]", got)
	}
	if MarkDeleted(first, now, nil) {
		t.Error("a definition is gone while it may have objects")
	}
	if c := crdCondition(first, apiextensionsv1.Terminating); c == nil || c.Status != apiextensionsv1.ConditionTrue {
		t.Error("a deleted definition is not terminating")
	}
	if !DropCRDFinalizer(first) || held(first) {
		t.Error("without its finalizer the definition is held still")
	}
	if got, want := CRDPrefix(first), "widgets.example.com/"; got != want {
		t.Errorf("CRDPrefix is %s, want %s", got, want)
	}
}

// TestAutoscalerVersions: v1 is stored as v2, and what v1 cannot say survives it.
func TestAutoscalerVersions(t *testing.T) {
	v1 := mustFor(t, Builtin(), "hpa.v1.autoscaling")
	v2 := mustFor(t, Builtin(), "hpa")
	if v1.Storage || !v2.Storage || v2.Version != "v2" {
		t.Fatalf("storage version: v1 %v, v2 %v", v1.Storage, v2.Storage)
	}
	old := parseObjects(t, []byte(`{apiVersion: autoscaling/v1, kind: HorizontalPodAutoscaler, metadata: {name: a, namespace: default, annotations: {x: z}}, spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}, maxReplicas: 5, targetCPUUtilizationPercentage: 70}}`))[0]
	Default(old)
	if faults := Validate(old); len(faults) > 0 {
		t.Error(faults)
	}
	data, err := Encode(old)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := Decode(data, 0)
	if err != nil {
		t.Fatal(err)
	}
	hpa, ok := stored.(*autoscalingv2.HorizontalPodAutoscaler)
	if !ok || *hpa.Spec.Metrics[0].Resource.Target.AverageUtilization != 70 || KeyOf(old) != KeyOf(hpa) {
		t.Fatalf("stored as %v", stored)
	}
	back, err := Convert(hpa, v1)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(old, back); diff != "" {
		t.Errorf("v1 changed by storage:\n%s", diff)
	}

	full := filled(v2).(*autoscalingv2.HorizontalPodAutoscaler)
	for _, target := range []*autoscalingv2.MetricTarget{&full.Spec.Metrics[0].Object.Target, &full.Spec.Metrics[0].Pods.Target, &full.Spec.Metrics[0].Resource.Target, &full.Spec.Metrics[0].ContainerResource.Target, &full.Spec.Metrics[0].External.Target} {
		target.Type, target.Value, target.AverageUtilization = autoscalingv2.AverageValueMetricType, nil, nil
	}
	status := &full.Status.CurrentMetrics[0]
	status.Pods.Current = autoscalingv2.MetricValueStatus{AverageValue: status.Pods.Current.AverageValue}
	status.Resource.Current.Value, status.ContainerResource.Current.Value = nil, nil
	status.Object.Current.AverageUtilization, status.External.Current.AverageUtilization = nil, nil
	full.Spec.Metrics = append([]autoscalingv2.MetricSpec{cpuMetric(60)}, full.Spec.Metrics...)
	before := full.DeepCopy()
	asV1, err := Convert(full, v1)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, full); diff != "" {
		t.Errorf("Convert changed its argument:\n%s", diff)
	}
	if p := asV1.(*autoscalingv1.HorizontalPodAutoscaler).Spec.TargetCPUUtilizationPercentage; p == nil || *p != 60 {
		t.Errorf("v1 asks for %v %%, want 60", p)
	}
	again, err := Convert(asV1, v2)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Object(full), again); diff != "" {
		t.Errorf("v2 changed by way of v1:\n%s", diff)
	}
	if _, err := Convert(full, mustFor(t, Builtin(), "pods")); err == nil {
		t.Error("an autoscaler was converted to a pod")
	}

	broken := parseObjects(t, []byte(`{apiVersion: autoscaling/v1, kind: HorizontalPodAutoscaler, metadata: {name: a, namespace: default, annotations: {autoscaling.alpha.kubernetes.io/metrics: "{"}}, spec: {scaleTargetRef: {kind: Deployment, name: web}, maxReplicas: 5}}`))[0]
	if faults := Validate(broken); len(faults) == 0 || !strings.Contains(faults.Error(), "autoscaling.alpha.kubernetes.io/metrics") {
		t.Errorf("broken annotation: %v", faults)
	}
}

func TestScaleOfWorkloads(t *testing.T) {
	for _, text := range []string{
		`{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {replicas: 2, selector: {matchLabels: {a: b}}}, status: {replicas: 1}}`,
		`{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: a}, spec: {replicas: 2, selector: {matchLabels: {a: b}}}, status: {replicas: 1}}`,
		`{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: a}, spec: {replicas: 2, selector: {matchLabels: {a: b}}}, status: {replicas: 1}}`,
		`{apiVersion: v1, kind: ReplicationController, metadata: {name: a}, spec: {replicas: 2, selector: {a: b}}, status: {replicas: 1}}`,
	} {
		docs, _ := Builtin().parse("", []byte(text))
		obj := docs[0].Object
		scale, err := ScaleOf(obj)
		if err != nil {
			t.Fatal(err)
		}
		if scale.Spec.Replicas != 2 || scale.Status.Replicas != 1 || scale.Status.Selector != "a=b" {
			t.Errorf("%s: scale is %v", Title(obj), scale)
		}
		if !ResourceOf(obj).Scale {
			t.Errorf("%s: has a scale, says it has none", Title(obj))
		}
		scale.Spec.Replicas = 5
		if err := SetScale(obj, scale); err != nil {
			t.Fatal(err)
		}
		if again, _ := ScaleOf(obj); again.Spec.Replicas != 5 {
			t.Errorf("%s: wants %d after SetScale to 5", Title(obj), again.Spec.Replicas)
		}
		scale.Spec.Replicas = -1
		if err := SetScale(obj, scale); err == nil {
			t.Errorf("%s: was scaled to -1", Title(obj))
		}
	}
	if _, err := ScaleOf(&corev1.Pod{}); err == nil {
		t.Error("a pod has a scale")
	}
}

// TestColumns: each kind's columns begin with the name and have types that
// kubectl knows, and a row has a cell for each.
func TestColumns(t *testing.T) {
	for _, r := range Builtin().Versions() {
		columns := PrintColumns(r)
		table := Print([]Object{filled(r)}, now)
		if len(table.Rows[0]) != len(columns) {
			t.Errorf("%s: %d columns, %d cells", r.Kind, len(columns), len(table.Rows[0]))
		}
		for i, c := range columns {
			if (i == 0) != (c.Format == "name") && r.Kind != "Event" {
				t.Errorf("%s: column %s has format %q", r.Kind, c.Name, c.Format)
			}
			if !strings.Contains("string integer number boolean date", c.Type) || c.Type == "" {
				t.Errorf("%s: column %s has type %q", r.Kind, c.Name, c.Type)
			}
			if (c.Priority > 0) != c.Wide {
				t.Errorf("%s: column %s has priority %d, wide %v", r.Kind, c.Name, c.Priority, c.Wide)
			}
		}
	}
}

// TestInert holds the list of kinds that are only stored. A controller that makes
// one act takes it off.
func TestInert(t *testing.T) {
	var inert []string
	for _, r := range Builtin().Resources() {
		if Inert(New(r)) != "" {
			inert = append(inert, r.Kind)
		}
	}
	if len(inert) > 0 {
		t.Errorf("inert are %s, want none", strings.Join(inert, " "))
	}
}

// FuzzDecodeCustom: whatever is read as an object of a catalog with custom kinds,
// either has faults or survives being stored, read and written again.
func FuzzDecodeCustom(f *testing.F) {
	archives, err := filepath.Glob("testdata/custom/*.txtar")
	if err != nil || len(archives) == 0 {
		f.Fatal("no seeds: ", err)
	}
	var crds []*apiextensionsv1.CustomResourceDefinition
	for i, path := range archives {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			switch file.Name {
			case "definitions":
				docs, err := ParseManifests("", file.Data)
				if err != nil {
					f.Fatal(err)
				}
				for _, d := range docs {
					crd := d.Object.(*apiextensionsv1.CustomResourceDefinition)
					crd.Spec.Group = fmt.Sprintf("g%d.%s", i, crd.Spec.Group)
					Default(crd)
					crds = append(crds, crd)
					f.Add([]byte(file.Data))
				}
			case "objects":
				f.Add(bytes.ReplaceAll(file.Data, []byte("apiVersion: "), fmt.Appendf(nil, "apiVersion: g%d.", i)))
			}
		}
	}
	f.Add([]byte(`{apiVersion: autoscaling/v1, kind: HorizontalPodAutoscaler, metadata: {name: a}, spec: {maxReplicas: 3, targetCPUUtilizationPercentage: 70}}`))
	catalog := Builtin().With(crds...)
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := catalog.ParseManifests("", data)
		if err != nil {
			return
		}
		for _, d := range docs {
			if len(d.Check()) > 0 {
				continue
			}
			catalog := catalog
			obj := d.Object
			if c, ok := obj.(*Custom); ok && catalog.byKind[c.GroupVersionKind()] == nil {
				continue // defined by data itself
			}
			Default(obj)
			stored, err := Encode(obj)
			if err != nil {
				t.Fatalf("valid, but cannot be stored: %v\n%s", err, data)
			}
			back, err := catalog.Decode(stored, 3)
			if err != nil {
				t.Fatalf("stored, but cannot be read: %v\n%s", err, data)
			}
			if back, err = Convert(back, ResourceOf(obj)); err != nil {
				t.Fatalf("stored, but not to be had in its version: %v\n%s", err, data)
			}
			text, err := EncodeYAML(back)
			if err != nil {
				t.Fatal(err)
			}
			again, err := catalog.ParseManifests("", text)
			if err != nil {
				t.Fatalf("written, but cannot be read: %v\n%s", err, text)
			}
			twice, err := Encode(again[0].Object)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(stored, twice) && ResourceOf(obj).Storage {
				t.Fatalf("changed on the way:\n%q\n%q", stored, twice)
			}
			Print([]Object{back}, now)
			Describe(back, nil, nil, now)
			MatchesFields(back, nil)
			_, _ = ScaleOf(back)
		}
	})
}

// TestCustomConcurrently: a catalog and its rows are shared by everybody.
func TestCustomConcurrently(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/custom/crontab.txtar")
	if err != nil {
		t.Fatal(err)
	}
	catalog := NewCatalog(definitions(t, archive.Files[0].Data))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			docs, err := catalog.ParseManifests("", archive.Files[1].Data)
			if err != nil {
				t.Error(err)
				return
			}
			for _, d := range docs {
				d.Check()
				Default(d.Object)
				Print([]Object{d.Object}, now)
				Describe(d.Object, nil, nil, now)
				if _, err := Encode(d.Object); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
