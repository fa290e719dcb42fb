package apiserver

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// TestObjects runs testdata/objects/*.txtar: each states a rule of ObjectService
// and plays a script against a fresh cluster, by unary calls, and again over a Session.
// The files but "script" are manifests. What each line of a script does is in
// player.run.
func TestObjects(t *testing.T) {
	golden.Run(t, "testdata/objects/*.txtar", func(t *testing.T, in golden.Input) string {
		play := func(c *cluster, client holdfastv1connect.ObjectServiceClient) string {
			p := &player{t: t, in: in, cluster: c, client: client}
			for line := range strings.Lines(string(in.File("script"))) {
				if line = strings.TrimSpace(line); line != "" {
					fmt.Fprintf(&p.out, "> %s\n", line)
					p.run(strings.Fields(line))
				}
			}
			return p.out.String()
		}
		c := newCluster(t, 1)
		unary := play(c, c.objects("peer-1"))
		c = newCluster(t, 1)
		if session := play(c, newSessionClient(t, c.objects("peer-1"))); session != unary {
			t.Errorf("over a session it is otherwise:\n%s", session)
		}
		return unary
	})
}

// player plays a script.
type player struct {
	t       *testing.T
	in      golden.Input
	cluster *cluster
	client  holdfastv1connect.ObjectServiceClient
	out     strings.Builder
	next    string // the last continue token
}

func (p *player) run(words []string) {
	ctx := p.t.Context()
	args, flags := words[1:], map[string]string{}
	args = slices.DeleteFunc(args, func(s string) bool {
		name, value, ok := strings.Cut(s, ":=")
		if ok {
			flags[name] = value
		}
		return ok
	})
	dry := flags["dry"] != ""
	switch words[0] {
	case "apply": // FILE… [manager:=NAME] [force:=yes] [set:=NAME] [prune:=yes]: all of their objects in one call
		resp, err := p.client.Apply(ctx, &holdfastv1.ApplyRequest{
			Objects: p.manifests(args...), DryRun: dry, FieldManager: flags["manager"], Force: flags["force"] != "", Set: flags["set"], Prune: flags["prune"] != "",
		})
		if p.failed(err) {
			return
		}
		for _, result := range resp.GetResults() {
			fmt.Fprintf(&p.out, "%s ", strings.ToLower(strings.TrimPrefix(result.GetAction().String(), "APPLY_ACTION_")))
			p.show(result.GetObject())
		}
		p.warned(resp.GetAnswer())
	case "patch": // KIND NAME TYPE FILE [manager:=NAME] [sub:=SUBRESOURCE]
		kind, namespace, name := target(args)
		resp, err := p.client.Patch(ctx, &holdfastv1.PatchRequest{
			Kind: kind, Namespace: namespace, Name: name, Type: patchTypes[args[2]], Patch: p.in.File(args[3]), DryRun: dry,
			FieldManager: flags["manager"], Force: flags["force"] != "", Subresource: flags["sub"], Encoding: holdfastv1.Encoding_ENCODING_JSON,
		})
		if p.failed(err) {
			return
		}
		if resp.GetCreated() {
			fmt.Fprint(&p.out, "created ")
		}
		p.show(resp.GetObject())
		p.warned(resp.GetAnswer())
	case "scale": // KIND NAME [REPLICAS] [rev:=REVISION]: without replicas it is read
		kind, namespace, name := target(args)
		if len(args) == 2 {
			resp, err := p.client.Get(ctx, &holdfastv1.GetRequest{Kind: kind, Namespace: namespace, Name: name, Subresource: "scale", Encoding: holdfastv1.Encoding_ENCODING_JSON})
			if !p.failed(err) {
				p.show(resp.GetObject())
			}
			return
		}
		wish := fmt.Sprintf(`{"apiVersion":"autoscaling/v1","kind":"Scale","metadata":{"name":%q},"spec":{"replicas":%s}}`, name, args[2])
		resp, err := p.client.Update(ctx, &holdfastv1.UpdateRequest{
			Kind: kind, Subresource: "scale", DryRun: dry,
			Object: &holdfastv1.Object{Namespace: namespace, Name: name, Revision: number(flags["rev"]), Data: []byte(wish), Encoding: holdfastv1.Encoding_ENCODING_JSON},
		})
		if !p.failed(err) {
			p.show(resp.GetObject())
		}
	case "evict": // POD [uid:=UID]
		_, namespace, name := target([]string{"pods", args[0]})
		resp, err := p.client.Evict(ctx, &holdfastv1.EvictRequest{Namespace: namespace, Name: name, Uid: flags["uid"], DryRun: dry})
		if !p.failed(err) {
			fmt.Fprintf(&p.out, "evicted at revision %d\n", resp.GetAnswer().GetRevision())
		}
	case "deletecollection": // KIND [NAMESPACE] [labels:=SELECTOR]
		kind, _, _ := target(append(args[:1:1], "/"))
		req := &holdfastv1.DeleteCollectionRequest{Kind: kind, LabelSelector: flags["labels"], FieldSelector: flags["fields"], DryRun: dry}
		if len(args) > 1 {
			req.Namespace = args[1]
		}
		resp, err := p.client.DeleteCollection(ctx, req)
		if p.failed(err) {
			return
		}
		for _, obj := range resp.GetObjects() {
			p.show(obj)
		}
		p.warned(resp.GetAnswer())
	case "create": // FILE
		resp, err := p.client.Create(ctx, &holdfastv1.CreateRequest{Object: p.manifests(args...)[0], DryRun: dry, FieldManager: flags["manager"]})
		if !p.failed(err) {
			p.show(resp.GetObject())
			p.warned(resp.GetAnswer())
		}
	case "update": // FILE [rev:=REVISION]
		in := p.manifests(args...)[0]
		in.Revision = number(flags["rev"])
		resp, err := p.client.Update(ctx, &holdfastv1.UpdateRequest{Object: in, DryRun: dry, FieldManager: flags["manager"]})
		if !p.failed(err) {
			p.show(resp.GetObject())
			p.warned(resp.GetAnswer())
		}
	case "status": // FILE [rev:=REVISION]
		in := p.manifests(args...)[0]
		in.Revision = number(flags["rev"])
		resp, err := p.client.Update(ctx, &holdfastv1.UpdateRequest{Object: in, Subresource: "status"})
		if !p.failed(err) {
			p.show(resp.GetObject())
		}
	case "delete": // KIND NAME [uid:=UID] [grace:=SECONDS] [rev:=REVISION] [propagation:=foreground]
		kind, namespace, name := target(args)
		req := &holdfastv1.DeleteRequest{
			Kind: kind, Namespace: namespace, Name: name, Uid: flags["uid"], DryRun: dry, Revision: number(flags["rev"]),
			Propagation: holdfastv1.Propagation(holdfastv1.Propagation_value["PROPAGATION_"+strings.ToUpper(flags["propagation"])]),
		}
		if flags["grace"] != "" {
			req.GracePeriod = durationpb.New(time.Duration(number(flags["grace"])) * time.Second)
		}
		resp, err := p.client.Delete(ctx, req)
		if p.failed(err) {
			return
		}
		if resp.GetGone() {
			fmt.Fprint(&p.out, "gone ")
		} else {
			fmt.Fprintf(&p.out, "terminates until %s ", resp.GetDeadline().AsTime().Format(time.TimeOnly))
		}
		p.show(resp.GetObject())
	case "get": // KIND NAME
		kind, namespace, name := target(args)
		resp, err := p.client.Get(ctx, &holdfastv1.GetRequest{Kind: kind, Namespace: namespace, Name: name})
		if !p.failed(err) {
			p.show(resp.GetObject())
		}
	case "list": // KIND [NAMESPACE] [labels:=SELECTOR] [fields:=SELECTOR] [limit:=N] [continue:=yes]
		kind, namespace, _ := target(append(args, "/"))
		if len(args) > 1 {
			namespace = args[1]
		}
		req := &holdfastv1.ListRequest{Kind: kind, Namespace: namespace, LabelSelector: flags["labels"], FieldSelector: flags["fields"], Limit: int32(number(flags["limit"]))}
		if flags["continue"] != "" {
			req.Continue = p.next
		}
		resp, err := p.client.List(ctx, req)
		if p.failed(err) {
			return
		}
		for _, obj := range resp.GetObjects() {
			p.show(obj)
		}
		p.next = resp.GetContinue()
		fmt.Fprintf(&p.out, "%d at revision %d, more: %t\n", len(resp.GetObjects()), resp.GetAnswer().GetRevision(), p.next != "")
	case "bind": // POD NODE: what the scheduler does
		pod, ok := p.cluster.pod(args[0])
		if !ok {
			p.t.Fatalf("bind: no pod %s", args[0])
		}
		pod.Spec.NodeName = args[1]
		p.cluster.put(pod)
	case "finalizer": // POD [FINALIZER]: what a controller does
		pod, ok := p.cluster.pod(args[0])
		if !ok {
			p.t.Fatalf("finalizer: no pod %s", args[0])
		}
		pod.Finalizers = args[1:]
		p.cluster.put(pod)
	case "ready": // POD…: what their agents report
		for _, name := range args {
			pod, ok := p.cluster.pod(name)
			if !ok {
				p.t.Fatalf("ready: no pod %s", name)
			}
			pod.Status.Phase = corev1.PodRunning
			pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			p.cluster.put(pod)
		}
	case "revision":
		fmt.Fprintf(&p.out, "%d\n", p.cluster.store.View().Revision())
	default:
		p.t.Fatalf("unknown command %q", words[0])
	}
}

var patchTypes = map[string]holdfastv1.PatchType{
	"json": holdfastv1.PatchType_PATCH_TYPE_JSON, "merge": holdfastv1.PatchType_PATCH_TYPE_MERGE,
	"strategic": holdfastv1.PatchType_PATCH_TYPE_STRATEGIC, "apply": holdfastv1.PatchType_PATCH_TYPE_APPLY,
}

func (p *player) warned(answer *holdfastv1.Answer) {
	for _, warning := range answer.GetWarnings() {
		fmt.Fprintf(&p.out, "  warning: %s\n", warning)
	}
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

// manifests returns the objects of files, as JSON: what a program would send.
func (p *player) manifests(files ...string) []*holdfastv1.Object {
	p.t.Helper()
	var objs []*holdfastv1.Object
	for _, file := range files {
		docs, err := object.ParseManifests(file, p.in.File(file))
		if err != nil {
			p.t.Fatal(err)
		}
		for _, doc := range docs {
			data, err := object.EncodeJSON(doc.Object)
			if err != nil {
				p.t.Fatal(err)
			}
			objs = append(objs, &holdfastv1.Object{Encoding: holdfastv1.Encoding_ENCODING_JSON, Data: data})
		}
	}
	return objs
}

func target(args []string) (kind *holdfastv1.Kind, namespace, name string) {
	r, err := object.ResourceFor(args[0])
	if err != nil {
		kind = &holdfastv1.Kind{Version: "v1", Kind: args[0]}
	} else {
		kind = kindOf(r)
	}
	name = args[1]
	if before, after, ok := strings.Cut(args[1], "/"); ok {
		namespace, name = before, after
	}
	return kind, namespace, name
}

func (p *player) failed(err error) bool {
	if err == nil {
		return false
	}
	faults := faultsOf(err)
	if len(faults) == 0 {
		fmt.Fprintf(&p.out, "%v\n", err)
		return true
	}
	fmt.Fprintf(&p.out, "%v\n", connect.CodeOf(err))
	for _, fault := range faults {
		if !strings.Contains(err.Error(), fault.GetMessage()) {
			p.t.Errorf("the error %q does not say %q", err, fault.GetMessage())
		}
		// What package object says is its own business, and tested there.
		text := fault.GetMessage()
		text = text[:min(len(text), 70)]
		fmt.Fprintf(&p.out, "  fault %d %q %s: %s\n", fault.GetIndex(), fault.GetObject(), fault.GetField(), text)
	}
	return true
}

func (p *player) show(in *holdfastv1.Object) {
	p.t.Helper()
	if in.GetKind().GetKind() == "Scale" {
		fmt.Fprintf(&p.out, "%s\n", bytes.TrimSpace(in.GetData()))
		return
	}
	obj, err := object.Decode(in.GetData(), in.GetRevision())
	if err != nil {
		p.t.Fatal(err)
	}
	if object.ResourceOf(obj).Kind != in.GetKind().GetKind() || obj.GetName() != in.GetName() || obj.GetNamespace() != in.GetNamespace() {
		p.t.Errorf("envelope %v does not fit %s", in, object.Title(obj))
	}
	fmt.Fprintln(&p.out, brief(obj))
}

// brief is the text form in which tests look at objects: what the system owns,
// and enough of the rest.
func brief(obj object.Object) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s rev=%s uid=%s gen=%d", object.Title(obj), obj.GetResourceVersion(), obj.GetUID(), obj.GetGeneration())
	if at := obj.GetCreationTimestamp(); !at.IsZero() {
		fmt.Fprintf(&b, " created=%s", at.UTC().Format(time.TimeOnly))
	}
	if at := obj.GetDeletionTimestamp(); at != nil {
		fmt.Fprintf(&b, " deleted=%s/%ds", at.UTC().Format(time.TimeOnly), *obj.GetDeletionGracePeriodSeconds())
	}
	texts := func(name string, m map[string]string) {
		if len(m) > 0 {
			fmt.Fprintf(&b, " %s{", name)
			for i, k := range slices.Sorted(maps.Keys(m)) {
				if i > 0 {
					b.WriteByte(',')
				}
				fmt.Fprintf(&b, "%s=%s", k, m[k])
			}
			b.WriteByte('}')
		}
	}
	texts("labels", obj.GetLabels())
	texts("annotations", obj.GetAnnotations())
	if f := obj.GetFinalizers(); len(f) > 0 {
		fmt.Fprintf(&b, " finalizers%v", f)
	}
	switch obj := obj.(type) {
	case *corev1.Pod:
		fmt.Fprintf(&b, " node=%s phase=%s image=%s", obj.Spec.NodeName, obj.Status.Phase, obj.Spec.Containers[0].Image)
	case *batchv1.Job:
		fmt.Fprintf(&b, " parallelism=%d selector=%s labels of pods=%s", *obj.Spec.Parallelism, metav1.FormatLabelSelector(obj.Spec.Selector), labels.FormatLabels(obj.Spec.Template.Labels))
	case *appsv1.Deployment:
		fmt.Fprintf(&b, " replicas=%d ready=%d", *obj.Spec.Replicas, obj.Status.ReadyReplicas)
	case *corev1.ConfigMap:
		texts("data", obj.Data)
	case *corev1.Namespace:
		fmt.Fprintf(&b, " phase=%s", obj.Status.Phase)
	}
	return b.String()
}

// TestGenerateName: the server completes the name, and two objects of one
// generateName do not meet.
func TestGenerateName(t *testing.T) {
	c := newCluster(t, 1)
	seen := map[string]bool{}
	for range 5 {
		pod := boundPod("", "")
		pod.GenerateName = "web-"
		resp, err := c.objects("peer-1").Create(t.Context(), &holdfastv1.CreateRequest{Object: message(t, pod)})
		if err != nil {
			t.Fatal(err)
		}
		name := resp.GetObject().GetName()
		if !strings.HasPrefix(name, "web-") || len(name) != len("web-")+5 || seen[name] {
			t.Errorf("got name %q after %v", name, seen)
		}
		seen[name] = true
	}
}

// TestReadFreshness: each answer says how true it is, and a peer without a
// quorum answers local reads only.
func TestReadFreshness(t *testing.T) {
	c := newCluster(t, 1)
	ctx, objects := t.Context(), c.objects("peer-1")
	revision := c.put(boundPod("a", ""))
	get := func(ctx context.Context, read *holdfastv1.ReadOptions) (*holdfastv1.GetResponse, error) {
		return objects.Get(ctx, &holdfastv1.GetRequest{Kind: &holdfastv1.Kind{Version: "v1", Kind: "Pod"}, Name: "a", Read: read})
	}

	local := &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL}
	if _, err := get(ctx, local); err != nil {
		t.Fatal(err)
	}
	resp, err := get(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer := resp.GetAnswer()
	if answer.GetAge() == nil || answer.GetAge().AsDuration() > waitTimeout || answer.GetCutOff() != nil || answer.GetServedBy() != "peer-1" || answer.GetTerm() == 0 || answer.GetRevision() < revision {
		t.Errorf("answer of a linearizable read: %v", answer)
	}
	if resp, err = get(ctx, local); err != nil {
		t.Fatal(err)
	}
	if age := resp.GetAnswer().GetAge(); age == nil || age.AsDuration() > time.Minute {
		t.Errorf("age of a local read after a linearizable one: %v", age)
	}
	// Bytes go out as they are stored.
	kv, _ := c.store.View().Get("pods/default/a")
	if got := resp.GetObject(); string(got.GetData()) != string(kv.Value) || got.GetRevision() != kv.Mod {
		t.Errorf("stored bytes were changed on the way")
	}

	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := get(short, &holdfastv1.ReadOptions{MinRevision: revision + 1}); err == nil {
		t.Error("a revision that does not exist was served")
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := get(ctx, &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL, MinRevision: revision + 1})
		waiting <- err
	}()
	c.put(boundPod("b", ""))
	if err := <-waiting; err != nil {
		t.Errorf("read at the next revision: %v", err)
	}
}

// TestJSON: whoever asks for JSON gets it, with kind and resourceVersion inside.
func TestJSON(t *testing.T) {
	c := newCluster(t, 1)
	revision := c.put(boundPod("a", ""))
	resp, err := c.objects("peer-1").List(t.Context(), &holdfastv1.ListRequest{Kind: &holdfastv1.Kind{Version: "v1", Kind: "Pod"}, Encoding: holdfastv1.Encoding_ENCODING_JSON})
	if err != nil || len(resp.GetObjects()) != 1 {
		t.Fatalf("%v, %v", resp, err)
	}
	got := string(resp.GetObjects()[0].GetData())
	for _, want := range []string{`"kind":"Pod"`, `"apiVersion":"v1"`, fmt.Sprintf(`"resourceVersion":"%d"`, revision)} {
		if !strings.Contains(got, want) {
			t.Errorf("JSON without %s:\n%s", want, got)
		}
	}
}

// TestErrorInfo: an error says who failed, and when.
func TestErrorInfo(t *testing.T) {
	c := newCluster(t, 1)
	_, err := c.objects("peer-1").Get(t.Context(), &holdfastv1.GetRequest{Kind: &holdfastv1.Kind{Version: "v1", Kind: "Pod"}, Name: "none"})
	wantCode(t, err, connect.CodeNotFound, "Pod default/none not found")
	if info := infoOf(err); info.GetServedBy() != "peer-1" || info.GetLeader() != "peer-1" {
		t.Errorf("ErrorInfo is %v", info)
	}
}
