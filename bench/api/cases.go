package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/holdfast-io/holdfast/bench/rig"
	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// testCase is one thing to measure.
type testCase struct {
	name string
	run  func(ctx context.Context, r *run, out *result) error
}

// Ways to call.
const (
	unary     = "unary"
	stream    = "stream"
	restJSON  = "rest_json"
	restProto = "rest_proto"
)

const (
	namespace   = "bench"
	connections = 100 // at most; clients share them
)

var (
	podKind       = &holdfastv1.Kind{Version: "v1", Kind: "Pod"}
	configMapKind = &holdfastv1.Kind{Version: "v1", Kind: "ConfigMap"}
)

func (r *run) cases() []testCase {
	var out []testCase
	for _, clients := range r.clients {
		for _, way := range []string{unary, stream} {
			out = append(out, testCase{fmt.Sprintf("create pods, %s, %d clients", way, clients), creates("pods", newPod, way, clients)})
		}
	}
	out = append(
		out,
		testCase{"create pods, REST with JSON, 100 clients", creates("pods", newPod, restJSON, 100)},
		testCase{"create pods, REST with protobuf, 100 clients", creates("pods", newPod, restProto, 100)},
		testCase{"create pods, one apply of many", applies},
		testCase{"create pods, frames of a stream", frames},
		testCase{"create config maps, unary, 100 clients", creates("configmaps", newConfigMap, unary, 100)},
		testCase{"create config maps, stream, 100 clients", creates("configmaps", newConfigMap, stream, 100)},
	)
	for _, way := range []string{unary, stream, restJSON, restProto} {
		out = append(out, testCase{fmt.Sprintf("get pods, %s, 100 clients", way), gets(way, 100)})
	}
	return append(
		out,
		testCase{"list of many pods", lists},
		testCase{"watchers of a namespace", watches},
		testCase{"agents on a peer", agents},
		testCase{"start of holdfast get pods", starts},
	)
}

// newPod is a pod as people write them: about 300 B of JSON.
func newPod(name string) runtime.Object {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": "web", "tier": "front"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "main", Image: "registry.example.com/web:1.2.3",
			Env:   []corev1.EnvVar{{Name: "MODE", Value: "production"}},
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")},
			},
		}}},
	}
}

func newConfigMap(name string) runtime.Object {
	return &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": "web"}},
		Data:       map[string]string{"config": "level: info\nmode: production\n"},
	}
}

// protobuf encodes an object as Kubernetes' protobuf.
func protobuf(obj runtime.Object) []byte {
	data, err := object.Encode(obj.(object.Object))
	if err != nil {
		panic(err) // an object of ours
	}
	return data
}

func jsonOf(obj runtime.Object) []byte {
	data, err := object.EncodeJSON(obj.(object.Object))
	if err != nil {
		panic(err) // an object of ours
	}
	return data
}

// prepare makes the namespace and finds the leader.
func (r *run) prepare(ctx context.Context) (leader int, err error) {
	if leader, err = r.peers.Leader(ctx); err != nil {
		return 0, err
	}
	c := r.peers.Client(leader)
	defer c.Close()
	ns := &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	_, err = c.Objects().Apply(ctx, &holdfastv1.ApplyRequest{Objects: []*holdfastv1.Object{{Data: jsonOf(ns)}}})
	return leader, err
}

// clear deletes all objects of a kind.
func (r *run) clear(ctx context.Context, leader int, kind *holdfastv1.Kind) error {
	c := r.peers.Client(leader)
	defer c.Close()
	for {
		list, err := c.Objects().List(ctx, &holdfastv1.ListRequest{Kind: kind, Namespace: namespace, Limit: 1})
		if err != nil || len(list.GetObjects()) == 0 {
			return err
		}
		// As many as one call may bring in its time; the next takes the rest.
		_, err = c.Objects().DeleteCollection(ctx, &holdfastv1.DeleteCollectionRequest{Kind: kind, Namespace: namespace})
		if err != nil && ctx.Err() != nil {
			return err
		}
	}
}

// perform runs a load against the leader, and profiles it if asked to.
func (r *run) perform(ctx context.Context, name string, leader int, l rig.Load) (rig.Timing, error) {
	l.WarmUp, l.Measure = r.warmUp, r.measure
	stop := r.startProfile(ctx, name)
	t, err := l.Run(ctx, r.peers.PIDs(), r.peers.PIDs(), r.peers.Member(leader).PID())
	stop()
	return t, err
}

func (r *run) startProfile(ctx context.Context, name string) (stop func()) {
	if r.profile == "" {
		return func() {}
	}
	base := filepath.Join(r.profile, strings.NewReplacer(" ", "-", ",", "").Replace(name))
	var fetches sync.WaitGroup
	for i := range rig.Members {
		fetches.Go(func() {
			err := rig.FetchProfile(ctx, r.peers.Addresses[i], r.peers.Credentials.ClientTLS(pki.RolePeer, "http/1.1"), r.warmUp+r.measure, fmt.Sprintf("%s-%d.pprof", base, i))
			if err != nil {
				fmt.Fprintln(os.Stderr, "profile:", err)
			}
		})
	}
	out, err := os.Create(base + "-client.pprof")
	if err != nil || pprof.StartCPUProfile(out) != nil {
		return fetches.Wait
	}
	return func() {
		pprof.StopCPUProfile()
		out.Close()
		fetches.Wait()
	}
}

// creates measures clients that each create one object after another.
func creates(plural string, object func(name string) runtime.Object, way string, clients int) func(context.Context, *run, *result) error {
	return func(ctx context.Context, r *run, out *result) (err error) {
		leader, err := r.prepare(ctx)
		if err != nil {
			return err
		}
		kind := podKind
		if plural == "configmaps" {
			kind = configMapKind
		}
		defer func() { err = errors.Join(err, r.clear(ctx, leader, kind)) }()
		conns, done := r.connect(ctx, way, clients, leader)
		defer done()
		r.serial++
		t, err := r.perform(ctx, out.Case, leader, rig.Load{Clients: clients, Call: func(ctx context.Context, client int, n int64) (int, error) {
			name := fmt.Sprintf("%s-%d-%d", plural, r.serial, n)
			return 1, conns[client%len(conns)].create(ctx, plural, object(name))
		}})
		if err == nil {
			out.load(fmt.Sprintf("create_%s_%s_%d", plural, way, clients), t, "objects")
		}
		return err
	}
}

// applies measures applies of many new pods each.
func applies(ctx context.Context, r *run, out *result) error {
	return r.batches(ctx, out, "create_pods_apply", 4, func(ctx context.Context, c conn, names []string) error {
		req := &holdfastv1.ApplyRequest{FieldManager: "bench"}
		for _, name := range names {
			req.Objects = append(req.Objects, &holdfastv1.Object{Data: jsonOf(newPod(name))})
		}
		_, err := c.(connectConn).objects.Apply(ctx, req)
		return err
	})
}

// frames measures creates that are called together, a few hundred by each of a few
// programs, over a stream for each.
func frames(ctx context.Context, r *run, out *result) error {
	return r.batches(ctx, out, "create_pods_frames", 4, func(ctx context.Context, c conn, names []string) error {
		errs := make([]error, len(names))
		var group sync.WaitGroup
		for i, name := range names {
			group.Go(func() { errs[i] = c.create(ctx, "pods", newPod(name)) })
		}
		group.Wait()
		return errors.Join(errs...)
	})
}

// batches measures calls that make r.batch pods each.
func (r *run) batches(ctx context.Context, out *result, name string, clients int, create func(ctx context.Context, c conn, names []string) error) (err error) {
	leader, err := r.prepare(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.clear(ctx, leader, podKind)) }()
	conns, done := r.connect(ctx, stream, clients, leader)
	defer done()
	r.serial++
	t, err := r.perform(ctx, out.Case, leader, rig.Load{Clients: clients, Call: func(ctx context.Context, client int, n int64) (int, error) {
		names := make([]string, r.batch)
		for i := range names {
			names[i] = fmt.Sprintf("pods-%d-%d-%d", r.serial, n, i)
		}
		return len(names), create(ctx, conns[client], names)
	}})
	if err == nil {
		out.load(name, t, "objects")
	}
	return err
}

// fill makes pods named pod-0 and so on, up to count, besides those that there are.
func (r *run) fill(ctx context.Context, leader, count int) error {
	const clients = 500
	conns, done := r.connect(ctx, stream, 4, leader)
	defer done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	next.Store(int64(r.pods))
	var group sync.WaitGroup
	for i := range clients {
		group.Go(func() {
			for n := next.Add(1) - 1; n < int64(count) && ctx.Err() == nil; n = next.Add(1) - 1 {
				if err := conns[i%len(conns)].create(ctx, "pods", newPod("pod-"+strconv.FormatInt(n, 10))); err != nil {
					cancel(err)
				}
			}
		})
	}
	group.Wait()
	r.pods = max(r.pods, count)
	return context.Cause(ctx)
}

// gets measures linearizable reads, from all peers in turn.
func gets(way string, clients int) func(context.Context, *run, *result) error {
	const pods = 1000
	return func(ctx context.Context, r *run, out *result) error {
		leader, err := r.prepare(ctx)
		if err != nil {
			return err
		}
		if err := r.fill(ctx, leader, pods); err != nil {
			return err
		}
		conns, done := r.connect(ctx, way, clients, 0, 1, 2)
		defer done()
		t, err := r.perform(ctx, out.Case, leader, rig.Load{Clients: clients, Call: func(ctx context.Context, client int, n int64) (int, error) {
			return 1, conns[client%len(conns)].get(ctx, "pods", "pod-"+strconv.FormatInt(n*7919%pods, 10))
		}})
		if err == nil {
			out.load(fmt.Sprintf("get_pods_%s_%d", way, clients), t, "objects")
		}
		return err
	}
}
