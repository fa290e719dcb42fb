package object

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/internal/golden"
)

// now is the present of all tests.
var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// parseObjects reads the objects of a manifest that has no faults.
func parseObjects(t *testing.T, data []byte) []Object {
	t.Helper()
	docs, err := ParseManifests("", data)
	if err != nil {
		t.Fatal(err)
	}
	objs := make([]Object, len(docs))
	for i, d := range docs {
		objs[i] = d.Object
	}
	return objs
}

// TestManifests runs testdata/manifest/*.txtar: what a manifest becomes, with
// defaults, or everything that is wrong with it. A file is read as "apply" reads
// it, decoding faults first, then the rest.
func TestManifests(t *testing.T) {
	golden.Run(t, "testdata/manifest/*.txtar", func(t *testing.T, in golden.Input) string {
		var out strings.Builder
		for _, name := range in.Names() {
			docs, err := ParseManifests(name, in.File(name))
			if err != nil {
				fmt.Fprintln(&out, err)
				continue
			}
			for i, d := range docs {
				if faults := d.Check(); len(faults) > 0 {
					fmt.Fprintln(&out, faults)
					continue
				}
				Default(d.Object)
				text, err := EncodeYAML(d.Object)
				if err != nil {
					t.Fatal(err)
				}
				if i > 0 {
					out.WriteString("---\n")
				}
				out.Write(text)
			}
		}
		return out.String()
	})
}

// TestUpdates runs testdata/update/*.txtar: the first object of "old" becomes
// the first of "new", the second the second, and so on.
func TestUpdates(t *testing.T) {
	golden.Run(t, "testdata/update/*.txtar", func(t *testing.T, in golden.Input) string {
		var out strings.Builder
		old := parseObjects(t, in.File("old"))
		for i, obj := range parseObjects(t, in.File("new")) {
			Default(obj)
			Default(old[i])
			if faults := ValidateUpdate(obj, old[i]); len(faults) > 0 {
				fmt.Fprintln(&out, faults)
			} else {
				fmt.Fprintf(&out, "%s: fine\n", Title(obj))
			}
		}
		return out.String()
	})
}

// TestTables runs testdata/table/*.txtar: the tables of "objects", narrow and
// wide.
func TestTables(t *testing.T) {
	golden.Run(t, "testdata/table/*.txtar", func(t *testing.T, in golden.Input) string {
		table := Print(parseObjects(t, in.File("objects")), now)
		return layOut(table, false) + "\n" + layOut(table, true)
	})
}

// layOut writes a table with | between the cells.
func layOut(table Table, wide bool) string {
	var b strings.Builder
	line := func(cell func(i int) string) {
		var cells []string
		for i, c := range table.Columns {
			if wide || !c.Wide {
				cells = append(cells, cell(i))
			}
		}
		b.WriteString(strings.Join(cells, " | ") + "\n")
	}
	line(func(i int) string { return table.Columns[i].Name })
	for _, row := range table.Rows {
		line(func(i int) string { return row[i] })
	}
	return b.String()
}

// TestDescribe runs testdata/describe/*.txtar: the first of "objects" is
// described, with the others around it.
func TestDescribe(t *testing.T) {
	golden.Run(t, "testdata/describe/*.txtar", func(t *testing.T, in golden.Input) string {
		objs := parseObjects(t, in.File("objects"))
		return Describe(objs[0], objs[1:], only[*corev1.Event](objs[1:]), now)
	})
}

// TestDescribeEveryKind: there is a description to look at for every kind.
func TestDescribeEveryKind(t *testing.T) {
	for _, r := range Builtin().Versions() {
		name := strings.ToLower(r.Kind)
		if r.Kind == "HorizontalPodAutoscaler" && r.Version == "v1" {
			name += "_v1"
		}
		data, err := os.ReadFile("testdata/describe/" + name + ".txtar")
		if err != nil || !strings.Contains(string(data), "\nkind: "+r.Kind+"\n") {
			t.Errorf("%s %s: testdata/describe/%s.txtar does not describe one (%v)", r.APIVersion(), r.Kind, name, err)
		}
	}
}

func TestTableWithNamespaces(t *testing.T) {
	objs := []Object{
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "x"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "b", Name: "y"}},
	}
	got := layOut(Print(objs, now).WithNamespaces(objs), false)
	if want := "NAMESPACE | NAME | DATA | AGE\na | x | 0 | <unknown>\nb | y | 0 | <unknown>\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if table := Print(nil, now); len(table.Columns) != 0 || len(table.Rows) != 0 {
		t.Errorf("no objects give %v, want no table", table)
	}
}

func TestResourceFor(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"po", "pods"},
		{"pods", "pods"},
		{"Pod", "pods"},
		{"PODS", "pods"},
		{"deploy", "deployments.apps"},
		{"deployments.apps", "deployments.apps"},
		{"deployments.v1.apps", "deployments.apps"},
		{"rs", "replicasets.apps"},
		{"no", "nodes"},
		{"cm", "configmaps"},
		{"ev", "events"},
		{"ns", "namespaces"},
		{"deployments.batch", `resource type "deployments.batch" is unknown: did you mean deployments?`},
		{"deplyoment", `resource type "deplyoment" is unknown: did you mean deployment?`},
		{"podz", `resource type "podz" is unknown: did you mean pods?`},
		{"svc", "services"},
		{"networkpolicies", "networkpolicies.networking.k8s.io"},
		{"ep", `resource type "ep" (Endpoints) is not supported yet: see "holdfast api-resources"`},
		{"runtimeclasses", `resource type "runtimeclasses" (RuntimeClass) is not supported yet: see "holdfast api-resources"`},
		{"zebra", `resource type "zebra" is unknown: see "holdfast api-resources"`},
		{"", `no resource type given: see "holdfast api-resources"`},
	} {
		r, err := ResourceFor(c.name)
		got := r.String()
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("ResourceFor(%q) = %s, want %s", c.name, got, c.want)
		}
	}
}

func TestResourceForKind(t *testing.T) {
	for _, c := range []struct{ group, version, kind, want string }{
		{"", "v1", "Pod", "pods"},
		{"apps", "v1", "Deployment", "deployments.apps"},
		{"extensions", "v1beta1", "Deployment", "apiVersion extensions/v1beta1 of Deployment was dropped by Kubernetes: use apps/v1"},
		{"apps", "v1beta2", "ReplicaSet", "apiVersion apps/v1beta2 of ReplicaSet was dropped by Kubernetes: use apps/v1"},
		{"batch", "v1beta1", "CronJob", "apiVersion batch/v1beta1 of CronJob was dropped by Kubernetes: use batch/v1"},
		{"storage.k8s.io", "v1beta1", "CSINode", "apiVersion storage.k8s.io/v1beta1 of CSINode was dropped by Kubernetes: use storage.k8s.io/v1 (CSINode itself is not supported yet)"},
		{"", "v1", "Deployment", "kind Deployment is not served as apiVersion v1: use apps/v1"},
		{"events.k8s.io", "v1", "Event", "kind Event is not served as apiVersion events.k8s.io/v1: use v1"},
		{"", "v1", "Endpoints", "kind Endpoints (v1) is not supported yet"},
		{"node.k8s.io", "v3", "RuntimeClass", "kind RuntimeClass (node.k8s.io/v3) is not supported yet"},
		{"apps", "v3", "StatefulSet", "kind StatefulSet is not served as apiVersion apps/v3: use apps/v1"},
		{"", "v1", "pods", `kind "pods" is unknown: did you mean Pod (v1)?`},
		{"apps", "v1", "Deploymnet", `kind "Deploymnet" is unknown: did you mean Deployment?`},
		{"example.com", "v1", "Widget", `kind "Widget" (example.com/v1) is unknown: see "holdfast api-resources"`},
	} {
		r, err := ResourceForKind(c.group, c.version, c.kind)
		got := r.String()
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("ResourceForKind(%q, %q, %q) = %s, want %s", c.group, c.version, c.kind, got, c.want)
		}
	}
}

// TestKeys holds the form of keys, which is part of the stored format.
func TestKeys(t *testing.T) {
	for _, c := range []struct {
		obj  Object
		want Key
	}{
		{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1"}}, "pods/default/web-1"},
		{&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}, "deployments.apps/shop/web"},
		{&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, "nodes/n1"},
		{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: "ignored"}}, "namespaces/default"},
	} {
		key := KeyOf(c.obj)
		if key != c.want {
			t.Errorf("KeyOf(%s) = %s, want %s", Title(c.obj), key, c.want)
		}
		r, ns, name, ok := SplitKey(key)
		if !ok || r.Key(ns, name) != key || r.Kind != ResourceOf(c.obj).Kind {
			t.Errorf("SplitKey(%s) = %v, %q, %q, %v: does not lead back", key, r, ns, name, ok)
		}
	}
	for _, bad := range []Key{"", "pods", "pods/", "pods/default", "pods/default/", "pods//x", "pods/default/a/b", "nodes/", "nodes/a/b", "holdfast/cluster", "endpoints/default/x"} {
		if r, ns, name, ok := SplitKey(bad); ok {
			t.Errorf("SplitKey(%q) = %v, %q, %q: want no object", bad, r, ns, name)
		}
	}
	pods := ResourceOf(&corev1.Pod{})
	for got, want := range map[string]string{pods.Prefix(""): "pods/", pods.Prefix("default"): "pods/default/", ResourceOf(&corev1.Node{}).Prefix("x"): "nodes/"} {
		if got != want {
			t.Errorf("prefix is %q, want %q", got, want)
		}
	}
}

// filled returns an object of each kind in which everything that can be set is
// set: lists and maps have an entry, numbers and texts are not zero.
func filled(r Resource) Object {
	obj := New(r)
	fill(reflect.ValueOf(obj).Elem())
	obj.GetObjectKind().SetGroupVersionKind(r.groupVersionKind())
	obj.SetName("x")
	obj.SetNamespace("")
	if r.Namespaced {
		obj.SetNamespace("default")
	}
	obj.SetResourceVersion("7")
	if set, ok := obj.(*appsv1.StatefulSet); ok { // the one place where objects have a type inside
		set.Spec.VolumeClaimTemplates[0].TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"}
	}
	return obj
}

func fill(v reflect.Value) {
	switch special := v.Addr().Interface().(type) {
	case *metav1.Time:
		*special = metav1.NewTime(now)
		return
	case *metav1.MicroTime:
		*special = metav1.NewMicroTime(now)
		return
	case *resource.Quantity:
		*special = resource.MustParse("3")
		return
	case *intstr.IntOrString:
		*special = intstr.FromString("3%")
		return
	case *apiextensionsv1.JSON:
		special.Raw = []byte(`{"x":"y"}`)
		return
	case *apiextensionsv1.JSONSchemaProps: // has itself inside
		special.Type, special.Description = "x", "x"
		fill(reflect.ValueOf(&special.Maximum).Elem())
		fill(reflect.ValueOf(&special.Default).Elem())
		fill(reflect.ValueOf(&special.Enum).Elem())
		special.Properties = map[string]apiextensionsv1.JSONSchemaProps{"x": {Type: "x"}}
		special.Items = &apiextensionsv1.JSONSchemaPropsOrArray{Schema: &apiextensionsv1.JSONSchemaProps{Type: "x"}}
		special.AdditionalProperties = &apiextensionsv1.JSONSchemaPropsOrBool{Allows: true, Schema: &apiextensionsv1.JSONSchemaProps{Type: "x"}}
		fill(reflect.ValueOf(&special.XPreserveUnknownFields).Elem())
		fill(reflect.ValueOf(&special.XListMapKeys).Elem())
		return
	case *runtime.RawExtension:
		special.Raw = []byte(`{"x":"y"}`)
		return
	case *metav1.FieldsV1:
		if err := special.UnmarshalJSON([]byte(`{"f:x":{}}`)); err != nil {
			panic(err)
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i))
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key)
		fill(value)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32, reflect.Int64, reflect.Int:
		v.SetInt(3)
	case reflect.Uint8:
		v.SetUint(3)
	case reflect.Float64:
		v.SetFloat(3)
	}
}

// TestStoredForm: every field of every kind survives storage, the bytes are
// Kubernetes' envelope without a resourceVersion, and encoding changes nothing.
func TestStoredForm(t *testing.T) {
	for _, r := range Resources() {
		obj := filled(r)
		before := obj.DeepCopyObject()
		data, err := Encode(obj)
		if err != nil {
			t.Fatal(err)
		}
		if !sameValue(obj, before) {
			t.Errorf("%s: Encode changed its argument", r.Kind)
		}
		if !bytes.HasPrefix(data, []byte("k8s\x00")) {
			t.Errorf("%s: stored form begins with %q, want Kubernetes' envelope", r.Kind, data[:4])
		}
		bare, err := Decode(data, 0)
		if err != nil {
			t.Fatal(err)
		}
		if rv := bare.GetResourceVersion(); rv != "" {
			t.Errorf("%s: stored with resourceVersion %q, want none", r.Kind, rv)
		}
		back, err := Decode(data, 7)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(obj, back); diff != "" {
			t.Errorf("%s: changed by storage (-before +after):\n%s", r.Kind, diff)
		}
		again, err := Encode(back)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(data, again) {
			t.Errorf("%s: equal objects have different bytes", r.Kind)
		}

		text, err := EncodeJSON(obj)
		if err != nil {
			t.Fatal(err)
		}
		fromJSON, err := Decode(text, 0)
		if err != nil {
			t.Fatalf("%s: %v", r.Kind, err)
		}
		if !sameValue(obj, fromJSON) {
			t.Errorf("%s: changed by JSON:\n%s", r.Kind, cmp.Diff(obj, fromJSON))
		}
	}
}

func TestDecodeFaults(t *testing.T) {
	for _, c := range []struct{ name, data, want string }{
		{"garbage after the mark", "k8s\x00\xff\xff", "decode object: "},
		{"truncated", "k8s\x00\x0a\x10", "decode object: unexpected EOF"},
		{"kind that is not served", "k8s\x00\x0a\x0f\x0a\x02v1\x12\x09Endpoints", "decode object: kind Endpoints (v1) is not supported yet"},
		{"empty", "", "must be one object, there are 0"},
		{"unknown field", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"image":"b"}}`, `line 1: Pod a: spec.image: unknown field`},
		{"two objects", `{"apiVersion":"v1","kind":"Node"} {"apiVersion":"v1","kind":"Node"}`, "must be one object, there are 2"},
	} {
		_, err := Decode([]byte(c.data), 1)
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want %s…", c.name, err, c.want)
		}
	}
}

// stored is a Reader over a map.
type stored map[string][]byte

func (s stored) Value(key string) ([]byte, int64, bool) {
	v, ok := s[key]
	return v, 9, ok
}

func (s stored) Values(prefix string) iter.Seq2[[]byte, int64] {
	return func(yield func([]byte, int64) bool) {
		for _, key := range slices.Sorted(maps.Keys(s)) {
			if strings.HasPrefix(key, prefix) && !yield(s[key], 9) {
				return
			}
		}
	}
}

func TestGetAndList(t *testing.T) {
	s := stored{}
	for _, name := range []string{"b/2", "a/1", "b/1"} {
		ns, name, _ := strings.Cut(name, "/")
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
		data, err := Encode(pod)
		if err != nil {
			t.Fatal(err)
		}
		s[string(KeyOf(pod))] = data
	}
	s["podsecurity/x"] = []byte("not a pod: must not be read")

	pod, ok := Get[*corev1.Pod](s, "pods/b/1")
	if !ok || pod.Name != "1" || pod.ResourceVersion != "9" || pod.Kind != "Pod" {
		t.Errorf("Get = %v, %v: want pod b/1 with kind and resourceVersion 9", pod, ok)
	}
	if _, ok := Get[*corev1.Pod](s, "pods/b/3"); ok {
		t.Error("Get found a pod that is not there")
	}
	names := func(pods []*corev1.Pod) (out []string) {
		for _, p := range pods {
			out = append(out, p.Namespace+"/"+p.Name)
		}
		return out
	}
	if got, want := names(List[*corev1.Pod](s, "")), []string{"a/1", "b/1", "b/2"}; !slices.Equal(got, want) {
		t.Errorf("List of all namespaces = %v, want %v", got, want)
	}
	if got, want := names(List[*corev1.Pod](s, "b")), []string{"b/1", "b/2"}; !slices.Equal(got, want) {
		t.Errorf("List of namespace b = %v, want %v", got, want)
	}

	defer func() {
		if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "pods/b/1") {
			t.Errorf("Get of another kind panicked with %v, want the key", p)
		}
	}()
	Get[*corev1.Node](s, "pods/b/1")
}

func TestFieldSelectors(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       corev1.PodSpec{NodeName: "n1", RestartPolicy: corev1.RestartPolicyAlways},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: "default", Name: "e"},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "web", UID: "u1"},
		Reason:         "Started", Type: "Normal",
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{Unschedulable: true}}
	for _, c := range []struct {
		obj      Object
		selector string
		want     string
	}{
		{pod, "", "true"},
		{pod, "metadata.name=web,metadata.namespace=default", "true"},
		{pod, "metadata.name!=web", "false"},
		{pod, "spec.nodeName=n1,status.phase=Running", "true"},
		{pod, "spec.nodeName=n2", "false"},
		{pod, "status.phase!=Succeeded,status.phase!=Failed", "true"},
		{pod, "spec.restartPolicy=Never", "false"},
		{event, "involvedObject.kind=Pod,involvedObject.name=web,involvedObject.uid=u1", "true"},
		{event, "reason=Killing", "false"},
		{event, "type=Normal", "true"},
		{node, "spec.unschedulable=true", "true"},
		{node, "metadata.namespace=x", `field selector "metadata.namespace=x": nodes cannot be selected by metadata.namespace: did you mean metadata.name?`},
		{pod, "spec.nodename=n1", `field selector "spec.nodename=n1": pods cannot be selected by spec.nodename: did you mean spec.nodeName?`},
		{node, "colour=red", `field selector "colour=red": nodes cannot be selected by colour: possible are metadata.name, spec.unschedulable`},
	} {
		selector, err := FieldSelector(ResourceOf(c.obj), c.selector)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = fmt.Sprint(MatchesFields(c.obj, selector))
		}
		if got != c.want {
			t.Errorf("%s by %q: %s, want %s", Title(c.obj), c.selector, got, c.want)
		}
	}
}

func TestMarkDeleted(t *testing.T) {
	seconds := func(s int) *time.Duration { d := time.Duration(s) * time.Second; return &d }
	pod := func(node string, grace int64) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", Generation: 1},
			Spec:       corev1.PodSpec{NodeName: node, TerminationGracePeriodSeconds: &grace},
		}
	}
	deleting := func(obj Object, in time.Duration) Object {
		at := metav1.NewTime(now.Add(in))
		obj.SetDeletionTimestamp(&at)
		return obj
	}
	final := func(obj Object) Object { obj.SetFinalizers([]string{"example.com/x"}); return obj }
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	Default(namespace)
	for _, c := range []struct {
		name  string
		obj   Object
		grace *time.Duration
		want  string // gone, or seconds until the kill and the generation after
	}{
		{"a pod without a node is gone", pod("", 30), nil, "gone"},
		{"a pod on a node terminates, in its own time", pod("n1", 40), nil, "40s, generation 2"},
		{"or in the time given", pod("n1", 40), seconds(5), "5s, generation 2"},
		{"with no time it still waits for its node", pod("n1", 40), seconds(0), "0s, generation 2"},
		{"part of a second counts as a whole", pod("n1", 40), func() *time.Duration { d := 1500 * time.Millisecond; return &d }(), "2s, generation 2"},
		{"again: sooner is taken", deleting(pod("n1", 40), 30*time.Second), seconds(5), "5s, generation 1"},
		{"again: later is not", deleting(pod("n1", 40), 30*time.Second), seconds(60), "30s, generation 1"},
		{"finalizers hold", final(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}}), nil, "0s, generation 0"},
		{"finalizers hold a pod without a node", final(pod("", 30)), nil, "0s, generation 2"},
		{"a namespace waits for what is in it", namespace, nil, "0s, generation 0"},
		{"all else is gone", &appsv1.Deployment{}, nil, "gone"},
	} {
		got := "gone"
		if !MarkDeleted(c.obj, now, c.grace) {
			if !Deleting(c.obj) {
				t.Errorf("%s: neither gone nor deleting", c.name)
				continue
			}
			got = fmt.Sprintf("%v, generation %d", c.obj.GetDeletionTimestamp().Sub(now), c.obj.GetGeneration())
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if namespace.Status.Phase != corev1.NamespaceTerminating {
		t.Errorf("a namespace that waits has phase %s, want Terminating", namespace.Status.Phase)
	}
}

func TestConditions(t *testing.T) {
	at := func(minutes int) metav1.Time { return metav1.NewTime(now.Add(time.Duration(minutes) * time.Minute)) }
	pod := &corev1.Pod{}
	set := func(status corev1.ConditionStatus, reason string, minute int) bool {
		return SetPodCondition(pod, corev1.PodCondition{Type: corev1.PodReady, Status: status, Reason: reason, LastTransitionTime: at(minute)})
	}
	for _, step := range []struct {
		status     corev1.ConditionStatus
		reason     string
		minute     int
		changed    bool
		transition int
	}{
		{corev1.ConditionFalse, "Starting", 1, true, 1},
		{corev1.ConditionFalse, "Starting", 2, false, 1},
		{corev1.ConditionFalse, "Unready", 3, true, 1},
		{corev1.ConditionTrue, "", 4, true, 4},
		{corev1.ConditionTrue, "", 5, false, 4},
	} {
		changed := set(step.status, step.reason, step.minute)
		c := PodCondition(pod, corev1.PodReady)
		if changed != step.changed || c.LastTransitionTime != at(step.transition) || c.Reason != step.reason {
			t.Errorf("at minute %d: changed %v, condition %v; want changed %v, transition at minute %d", step.minute, changed, c, step.changed, step.transition)
		}
	}
	if !PodReady(pod) {
		t.Error("pod is not ready")
	}
	if ok, in := PodAvailable(pod, 90, at(5).Time); ok || in != 30*time.Second {
		t.Errorf("ready for 60 of 90 s: available %v in %v, want in 30s", ok, in)
	}
	if ok, _ := PodAvailable(pod, 60, at(5).Time); !ok {
		t.Error("ready for 60 of 60 s: not available")
	}

	node := &corev1.Node{}
	cond := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastTransitionTime: at(1), LastHeartbeatTime: at(1)}
	if !SetNodeCondition(node, cond) || !NodeReady(node) {
		t.Error("a new condition changed nothing")
	}
	cond.LastHeartbeatTime, cond.LastTransitionTime = at(2), at(2)
	if SetNodeCondition(node, cond) {
		t.Error("a heartbeat alone counts as a change")
	}
	cond.Status = corev1.ConditionUnknown
	if !SetNodeCondition(node, cond) || NodeCondition(node, corev1.NodeReady).LastTransitionTime != at(2) || NodeReady(node) {
		t.Errorf("after a change of status: %v", node.Status.Conditions)
	}
}

func TestPodResources(t *testing.T) {
	for _, c := range []struct{ name, spec, want, qos string }{
		{"nothing", `containers: [{name: a}]`, "", "BestEffort"},
		{"containers add up", `containers: [{name: a, resources: {requests: {cpu: 100m}}}, {name: b, resources: {requests: {cpu: "1", memory: 1Gi}}}]`, "cpu=1100m memory=1Gi", "Burstable"},
		{"a limit alone is a request", `containers: [{name: a, resources: {limits: {cpu: 200m, memory: 1Gi}}}]`, "cpu=200m memory=1Gi", "Guaranteed"},
		{"a request goes before a limit", `containers: [{name: a, resources: {limits: {cpu: 200m}, requests: {cpu: 50m}}}]`, "cpu=50m", "Burstable"},
		{"an init container runs alone", `{containers: [{name: a, resources: {requests: {cpu: 100m}}}], initContainers: [{name: i, resources: {requests: {cpu: 300m}}}]}`, "cpu=300m", "Burstable"},
		{"a sidecar stays", `{containers: [{name: a, resources: {requests: {cpu: 100m}}}], initContainers: [{name: s, restartPolicy: Always, resources: {requests: {cpu: 50m}}}, {name: i, resources: {requests: {cpu: 300m}}}]}`, "cpu=350m", "Burstable"},
		{"overhead comes on top", `{containers: [{name: a, resources: {requests: {cpu: 100m}}}], overhead: {cpu: 10m}}`, "cpu=110m", "Burstable"},
	} {
		pod := &corev1.Pod{}
		if err := yaml.UnmarshalStrict([]byte(c.spec), &pod.Spec); err != nil {
			t.Fatal(err)
		}
		var parts []string
		list := PodResources(pod)
		for _, name := range slices.Sorted(maps.Keys(list)) {
			q := list[name]
			parts = append(parts, string(name)+"="+q.String())
		}
		if got := strings.Join(parts, " "); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if got := string(QOSClass(pod)); got != c.qos {
			t.Errorf("%s: QoS class %s, want %s", c.name, got, c.qos)
		}
	}
}

// TestSupportedTable holds the table to the API: a line that names no field of
// its kind is a mistake, and what Default writes must be supported.
func TestSupportedTable(t *testing.T) {
	for _, r := range Builtin().Versions() {
		var check func(tree *fieldTree, typ reflect.Type, path string)
		check = func(tree *fieldTree, typ reflect.Type, path string) {
			if typ.Kind() == reflect.Pointer {
				typ = typ.Elem()
			}
			for segment, child := range tree.children {
				at := path + " " + segment
				switch {
				case typ.Kind() == reflect.Slice && segment == "[]":
					check(child, typ.Elem(), at)
				case typ.Kind() == reflect.Map && strings.HasPrefix(segment, "["):
					check(child, typ.Elem(), at)
				case typ.Kind() == reflect.Struct && infoOf(typ).fields[segment] != nil:
					check(child, typ.FieldByIndex(infoOf(typ).fields[segment]).Type, at)
				default:
					t.Errorf("the table has%s, which does not exist", at)
				}
			}
		}
		check(supportedTrees()[reflect.TypeOf(New(r))], reflect.TypeOf(New(r)), " "+r.Kind)

		obj := filled(r)
		Default(obj)
		if refused := len(unsupported(obj)); refused == 0 && slices.Contains([]string{"Node", "Pod", "ReplicaSet", "Deployment"}, r.Kind) {
			t.Errorf("%s: nothing is refused in an object with everything set", r.Kind)
		}
	}
	for _, text := range []string{
		`{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: default}, spec: {containers: [{name: a, image: b, ports: [{containerPort: 1}]}]}}`,
		`{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: a, namespace: default}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: a, image: b}]}}}}`,
		`{apiVersion: apps/v1, kind: Deployment, metadata: {name: a, namespace: default}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: a, image: b}]}}}}`,
		`{apiVersion: v1, kind: Namespace, metadata: {name: a}}`,
		`{apiVersion: v1, kind: Node, metadata: {name: a}, spec: {podCIDR: 10.0.0.0/24}}`,
	} {
		obj := parseObjects(t, []byte(text))[0]
		Default(obj)
		if faults := Validate(obj); len(faults) > 0 {
			t.Errorf("what Default writes is refused: %v", faults)
		}
		once := obj.DeepCopyObject()
		Default(obj)
		if diff := cmp.Diff(once, obj); diff != "" {
			t.Errorf("a second Default changes %s:\n%s", Title(obj), diff)
		}
	}
}

// TestLineOf: the line of a field, and of the nearest enclosing one if it is
// not there.
func TestLineOf(t *testing.T) {
	docs, err := ParseManifests("web.yaml", []byte(`# a comment
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels:
    app.kubernetes.io/name: web
spec:
  selector: {matchLabels: {app: web}}
  template:
    spec:
      containers:
      - name: a
        image: b
      - name: c
        env:
        - {name: X, value: "1"}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
`))
	if err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]int{
		"":              2,
		"nonsense":      2,
		"metadata.name": 5,
		"metadata.labels[app.kubernetes.io/name]":           7,
		"metadata.labels[other.io/name]":                    6,
		"spec.replicas":                                     8,
		"spec.selector.matchLabels[app]":                    9,
		"spec.template.spec.containers[0].image":            14,
		"spec.template.spec.containers[1]":                  15,
		"spec.template.spec.containers[1].image":            15,
		"spec.template.spec.containers[1].env[0].value":     17,
		"spec.template.spec.containers[1].resources.limits": 15,
		"spec.template.spec.containers[7].image":            12,
	} {
		if got := docs[0].LineOf(field); got != want {
			t.Errorf("LineOf(%q) = %d, want %d", field, got, want)
		}
	}
	if docs[1].Line != 19 {
		t.Errorf("second document is on line %d, want 19", docs[1].Line)
	}
}
