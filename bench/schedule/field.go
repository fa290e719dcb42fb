package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/bench/rig"
	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

const (
	// sessions are the streams over which pods are made, inFlight how many creates
	// each has under way.
	sessions = 4
	inFlight = 250
	// beat is how often nodes are heard of.
	beat = time.Second
)

var (
	podKind  = &holdfastv1.Kind{Version: "v1", Kind: "Pod"}
	nodeKind = &holdfastv1.Kind{Version: "v1", Kind: "Node"}
	// nodeMark stands in the bytes of every pod that names one of our nodes.
	nodeMark = []byte("node-")
)

// field is a cluster with pretended nodes.
type field struct {
	peers   *rig.Peers
	nodes   int
	profile string

	leader   int
	clients  []*client.Client
	sessions []*client.ObjectSession
	workers  sync.WaitGroup
	stop     context.CancelFunc

	mu      sync.Mutex
	bound   map[string]bool // by name
	ending  map[string]bool // names of pods that are being deleted
	changed chan struct{}   // closed when bound has grown
	broken  error
}

func (f *field) close() {
	if f.stop != nil {
		f.stop()
	}
	for _, s := range f.sessions {
		s.Close()
	}
	for _, c := range f.clients {
		c.Close()
	}
	f.workers.Wait()
}

// begin makes the nodes and what pods need, and returns when all nodes can be used.
func (f *field) begin(ctx context.Context) (err error) {
	if f.leader, err = f.peers.Leader(ctx); err != nil {
		return err
	}
	f.bound, f.ending, f.changed = map[string]bool{}, map[string]bool{}, make(chan struct{})
	for range sessions {
		c := f.peers.Client(f.leader)
		f.clients = append(f.clients, c)
		f.sessions = append(f.sessions, c.ObjectSession(client.SessionOptions{}))
	}
	ctx, f.stop = context.WithCancel(ctx)
	if err := f.heartbeats(ctx); err != nil {
		return err
	}
	for _, obj := range []object.Object{
		&corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: namespace}},
		&schedulingv1.PriorityClass{TypeMeta: metav1.TypeMeta{APIVersion: "scheduling.k8s.io/v1", Kind: "PriorityClass"}, ObjectMeta: metav1.ObjectMeta{Name: highPriority}, Value: 10},
	} {
		if err := f.create(ctx, 0, obj); err != nil {
			return err
		}
	}
	err = f.all(ctx, f.nodes, func(ctx context.Context, i int) error {
		node := newNode(i)
		data, err := object.Encode(node)
		if err != nil {
			return err
		}
		if _, err := f.sessions[i%sessions].Create(ctx, &holdfastv1.CreateRequest{Object: &holdfastv1.Object{Data: data}}); err != nil {
			return err
		}
		node.Status = nodeStatus() // without a resourceVersion: the controllers write nodes as well
		if data, err = object.Encode(node); err != nil {
			return err
		}
		_, err = f.sessions[i%sessions].Update(ctx, &holdfastv1.UpdateRequest{Object: &holdfastv1.Object{Data: data}, Subresource: "status"})
		return err
	})
	if err != nil {
		return fmt.Errorf("make the nodes: %w", err)
	}
	return f.usable(ctx)
}

// heartbeats says of all nodes that they live, as a peer does that their agents are
// connected to, until ctx ends.
func (f *field) heartbeats(ctx context.Context) error {
	creds, err := pki.LoadCredentials(filepath.Join(f.peers.Dir, fmt.Sprintf("p%d", (f.leader+1)%rig.Members), "pki"))
	if err != nil {
		return fmt.Errorf("a peer's credentials: %w", err)
	}
	c := client.New(client.Config{Peers: f.peers.Addresses[f.leader : f.leader+1], OnlyThese: true, Credentials: creds, PingTimeout: f.peers.Patience})
	health := peerv1connect.NewHealthServiceClient(c.Connect())
	req := &peerv1.RelayRequest{Peer: creds.Identity().Name}
	for i := range f.nodes {
		req.Nodes = append(req.Nodes, &peerv1.NodeHeartbeat{Node: newNode(i).Name, Age: durationpb.New(0), BootId: "bench"})
	}
	f.workers.Go(func() {
		defer c.Close()
		for ctx.Err() == nil {
			begun := time.Now()
			for _, n := range req.Nodes {
				n.SentAt = begun.UnixNano()
			}
			if _, err := health.Relay(ctx, req); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "        heartbeats:", err)
			}
			_ = rig.Pause(ctx, time.Until(begun.Add(beat)))
		}
	})
	return nil
}

// usable waits until pods may go to every node.
func (f *field) usable(ctx context.Context) error {
	objects := f.clients[0].Objects()
	for {
		list, err := objects.List(ctx, &holdfastv1.ListRequest{Kind: nodeKind})
		if err != nil {
			return err
		}
		usable := 0
		for _, o := range list.GetObjects() {
			obj, err := object.Decode(o.GetData(), 0)
			if err != nil {
				return err
			}
			if node, ok := obj.(*corev1.Node); ok && object.NodeReady(node) && len(node.Spec.Taints) == 0 && len(node.Status.Allocatable) > 0 {
				usable++
			}
		}
		if usable == f.nodes {
			return nil
		}
		if err := rig.Pause(ctx, 200*time.Millisecond); err != nil {
			return fmt.Errorf("%d of %d nodes can be used: %w", usable, f.nodes, err)
		}
	}
}

// all calls do for each of n, as many at once as the sessions have under way.
func (f *field) all(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var group sync.WaitGroup
	for range min(sessions*inFlight, n) {
		group.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				callCtx, done := context.WithTimeout(ctx, time.Minute)
				if err := do(callCtx, i); err != nil {
					cancel(err)
				}
				done()
			}
		})
	}
	group.Wait()
	return context.Cause(ctx)
}

func (f *field) create(ctx context.Context, session int, obj object.Object) error {
	data, err := object.Encode(obj)
	if err != nil {
		return err
	}
	_, err = f.sessions[session%sessions].Create(ctx, &holdfastv1.CreateRequest{Object: &holdfastv1.Object{Data: data}})
	return err
}

// end says that a pod has ended, as its node does once nothing of it runs: what it took
// is free.
func (f *field) end(ctx context.Context, session int, pod *corev1.Pod) error {
	pod.ResourceVersion = "" // others write it as well
	pod.Status.Phase = corev1.PodSucceeded
	data, err := object.Encode(pod)
	if err == nil {
		_, err = f.sessions[session%sessions].Update(ctx, &holdfastv1.UpdateRequest{Object: &holdfastv1.Object{Data: data}, Subresource: "status"})
	}
	return err
}

// watch notes at a peer that does not lead which pods have nodes, and says of those that
// are being deleted that they have ended.
func (f *field) watch(ctx context.Context) error {
	c := f.peers.Client((f.leader + 1) % rig.Members)
	f.clients = append(f.clients, c)
	stream, err := c.Objects().Watch(ctx, &holdfastv1.WatchRequest{Kind: podKind, Namespace: namespace})
	if err != nil {
		return err
	}
	if _, err := stream.Receive(); err != nil {
		return err
	}
	f.workers.Go(func() {
		defer stream.Close()
		for {
			msg, err := stream.Receive()
			if err != nil {
				f.mu.Lock()
				f.broken = err
				f.grow()
				f.mu.Unlock()
				return
			}
			f.take(ctx, msg.GetChanges())
		}
	})
	return nil
}

// grow wakes who waits for bound. The caller holds the lock.
func (f *field) grow() {
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *field) take(ctx context.Context, changes []*holdfastv1.Change) {
	var bound []string
	var ending []*corev1.Pod
	for _, change := range changes {
		o := change.GetObject()
		if change.GetType() == holdfastv1.ChangeType_CHANGE_TYPE_DELETED || !bytes.Contains(o.GetData(), nodeMark) {
			continue
		}
		obj, err := object.Decode(o.GetData(), o.GetRevision())
		if err != nil {
			continue
		}
		switch pod, ok := obj.(*corev1.Pod); {
		case ok && pod.Spec.NodeName != "" && pod.DeletionTimestamp != nil:
			ending = append(ending, pod)
		case ok && pod.Spec.NodeName != "":
			bound = append(bound, pod.Name)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range bound {
		f.bound[name] = true
	}
	for _, pod := range ending {
		if f.ending[pod.Name] {
			continue
		}
		f.ending[pod.Name] = true
		session := len(f.ending)
		f.workers.Go(func() {
			if err := f.end(ctx, session, pod); err != nil && ctx.Err() == nil {
				fmt.Fprintf(os.Stderr, "        end %s: %v\n", pod.Name, err)
			}
		})
	}
	f.grow()
}

// wait waits until so many pods have nodes.
func (f *field) wait(ctx context.Context, pods int) error {
	for {
		f.mu.Lock()
		n, changed, broken := len(f.bound), f.changed, f.broken
		f.mu.Unlock()
		switch {
		case n >= pods:
			return nil
		case broken != nil:
			return fmt.Errorf("the watch ended: %w", broken)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d pods have nodes: %w", n, pods, context.Cause(ctx))
		}
	}
}

// play plays a shape.
func (f *field) play(ctx context.Context, s shape, pods int) (m measured, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := f.watch(ctx); err != nil {
		return m, fmt.Errorf("watch pods: %w", err)
	}
	before := s.before * f.nodes / 5
	if s.churn {
		before = max(before, pods)
	}
	err = f.all(ctx, before, func(ctx context.Context, i int) error { return f.create(ctx, i, newPod("before", i, s.fill)) })
	if err != nil {
		return m, fmt.Errorf("make the pods that are there before: %w", err)
	}
	if err := f.wait(ctx, before); err != nil {
		return m, err
	}

	stop, used, begin := f.startProfile(ctx, s.name), rig.ReadUsage(f.peers.PIDs()), time.Now()
	err = f.all(ctx, pods, func(ctx context.Context, i int) error {
		if err := f.create(ctx, i, newPod("measured", i, s.pod)); err != nil || !s.churn {
			return err
		}
		return f.end(ctx, i, newPod("before", i, nil))
	})
	m.created = time.Since(begin)
	if err == nil {
		err = f.wait(ctx, before+pods)
	}
	m.bound = time.Since(begin)
	m.spent = rig.ReadUsage(f.peers.PIDs()).Since(used, f.peers.PIDs(), f.peers.Member(f.leader).PID())
	m.nodes, m.pods = f.nodes, pods
	stop()
	if now, leaderErr := f.peers.Leader(ctx); err == nil && (leaderErr != nil || now != f.leader) {
		err = errors.Join(errors.New("the leader changed meanwhile"), leaderErr)
	}
	return m, err
}

// startProfile takes profiles of the peers, if asked to, for as long as a shape takes
// about.
func (f *field) startProfile(ctx context.Context, name string) (stop func()) {
	if f.profile == "" {
		return func() {}
	}
	var fetches sync.WaitGroup
	for i := range rig.Members {
		fetches.Go(func() {
			path := filepath.Join(f.profile, fmt.Sprintf("%s-%d.pprof", name, i))
			if i == f.leader {
				path = filepath.Join(f.profile, name+"-leader.pprof")
			}
			err := rig.FetchProfile(ctx, f.peers.Addresses[i], f.peers.Credentials.ClientTLS(pki.RolePeer, "http/1.1"), 4*time.Second, path)
			if err != nil {
				fmt.Fprintln(os.Stderr, "profile:", err)
			}
		})
	}
	return fetches.Wait
}
