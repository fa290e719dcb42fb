package agent_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/agent/netstate"
	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
)

// testNetwork is the part of a test's peer about the cluster's network.
type testNetwork struct {
	mu      sync.Mutex
	froms   []int64
	first   []*agentv1.NetworkResponse
	stream  chan *agentv1.NetworkResponse
	acked   int64
	drains  []int64       // revisions that Drained was called with
	drained chan struct{} // Drained answers once it is closed
}

func (p *testPeer) Network(ctx context.Context, req *agentv1.NetworkRequest, stream agentv1connect.AgentServiceNetworkServerStream) error {
	cut, err := p.up()
	if err != nil {
		return err
	}
	if p.net == nil {
		return p.UnimplementedAgentServiceHandler.Network(ctx, req, stream)
	}
	p.net.mu.Lock()
	p.net.froms = append(p.net.froms, req.GetFromRevision())
	in := make(chan *agentv1.NetworkResponse, 10)
	p.net.stream = in
	for _, m := range p.net.first {
		in <- m
	}
	p.net.mu.Unlock()
	for {
		select {
		case m := <-in:
			if err := stream.Send(m); err != nil {
				return err
			}
		case <-cut:
			return errDown
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *testPeer) AckNetwork(_ context.Context, req *agentv1.AckNetworkRequest) (*agentv1.AckNetworkResponse, error) {
	if _, err := p.up(); err != nil {
		return nil, err
	}
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	p.net.acked = req.GetRevision()
	return &agentv1.AckNetworkResponse{}, nil
}

func (p *testPeer) Drained(ctx context.Context, req *agentv1.DrainedRequest) (*agentv1.DrainedResponse, error) {
	if p.net == nil {
		return nil, connect.NewError(connect.CodeUnimplemented, "no")
	}
	p.net.mu.Lock()
	p.net.drains = append(p.net.drains, req.GetRevision())
	drained := p.net.drained
	p.net.mu.Unlock()
	select {
	case <-drained:
		return &agentv1.DrainedResponse{}, nil
	case <-time.After(req.GetTimeout().AsDuration()):
		return &agentv1.DrainedResponse{Missing: []string{"n2"}}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// networkMessage holds objects at a revision; a name with "-" before it is gone.
func networkMessage(t *testing.T, complete bool, revision int64, objs ...any) *agentv1.NetworkResponse {
	t.Helper()
	var changes agentv1.NetworkChanges
	for _, obj := range objs {
		if key, ok := obj.(string); ok {
			changes.Removed = append(changes.Removed, key)
			continue
		}
		data, err := object.Encode(obj.(object.Object))
		if err != nil {
			t.Fatal(err)
		}
		changes.Objects = append(changes.Objects, &agentv1.Input{Key: string(object.KeyOf(obj.(object.Object))), Revision: revision, Object: data})
	}
	data, err := proto.Marshal(&changes)
	if err != nil {
		t.Fatal(err)
	}
	m := &agentv1.NetworkResponse{Complete: complete, Revision: revision, Changes: data}
	if complete {
		m.Node = &agentv1.NetworkNode{Zone: "z", ClusterDomain: "cluster.local", ServiceCidrs: []string{"10.96.0.0/12"}}
	}
	return m
}

func netService(name string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
}

func netSlice(name, service string, pod *corev1.Pod, terminating bool) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, AddressType: discoveryv1.AddressTypeIPv4}
	s.Labels = map[string]string{discoveryv1.LabelServiceName: service}
	e := discoveryv1.Endpoint{Addresses: []string{"10.8.1.2"}, Conditions: discoveryv1.EndpointConditions{Ready: new(!terminating), Serving: new(true), Terminating: &terminating}}
	if pod != nil {
		e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}
	}
	s.Endpoints = []discoveryv1.Endpoint{e}
	return s
}

func networkText(s *netstate.State) string {
	words := []string{fmt.Sprintf("%d zone=%s", s.Revision, s.Zone)}
	var services, slicesOf []string
	for n := range s.Services {
		services = append(services, n.Name)
	}
	for n, list := range s.Slices {
		for _, slice := range list {
			slicesOf = append(slicesOf, n.Name+"/"+slice.Name)
		}
	}
	slices.Sort(services)
	slices.Sort(slicesOf)
	words = append(append(words, services...), slicesOf...)
	return strings.Join(words, " ")
}

// TestNetworkState: the state follows the stream, over parts, deltas and a slice that
// changes its service; it goes on from its revision with another peer, and after a
// restart without any.
func TestNetworkState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPeer("a"), newPeer("b")
		a.says(complete(t, 1))
		b.says(complete(t, 1))
		first := networkMessage(t, true, 10, netService("web"))
		first.Unfinished, first.Node = true, nil
		a.net = &testNetwork{first: []*agentv1.NetworkResponse{first, networkMessage(t, true, 10, netService("other"), netSlice("s", "web", nil, false))}}
		b.net = &testNetwork{}
		n := newNode(t, a, b)
		n.start()
		want := func(text string) {
			t.Helper()
			settle(time.Second)
			s, _ := n.agent.NetworkState().Get()
			if got := networkText(s); got != text {
				t.Fatalf("the state is %q, want %q", got, text)
			}
		}
		want("10 zone=z other web web/s")
		if a.net.acked != 10 {
			t.Errorf("acknowledged is %d, want 10", a.net.acked)
		}
		a.net.stream <- networkMessage(t, false, 12, netSlice("s", "other", nil, false), "services/default/web")
		want("12 zone=z other other/s")
		a.net.stream <- networkMessage(t, false, 9, netService("old"))
		want("12 zone=z other other/s")

		a.setDown(true)
		settle(20 * time.Second)
		if len(b.net.froms) == 0 || b.net.froms[0] != 12 {
			t.Fatalf("the other peer was asked from %v, want 12", b.net.froms)
		}
		b.net.stream <- networkMessage(t, false, 15, netService("new"))
		want("15 zone=z new other other/s")
		if b.net.acked != 15 {
			t.Errorf("the other peer has %d, want 15", b.net.acked)
		}

		b.setDown(true)
		n.stop()
		n.start()
		want("15 zone=z new other other/s")

		// A file that ends in the middle of a record is used up to there.
		n.stop()
		path := filepath.Join(n.dir, "network")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data[:len(data)-3], 0o600); err != nil {
			t.Fatal(err)
		}
		n.start()
		want("12 zone=z other other/s")
	})
}

// TestDrain: a pod that is an endpoint is told to end only when its endpoint was
// marked, and all nodes have taken that in; or when its patience is over.
func TestDrain(t *testing.T) {
	for _, c := range []struct {
		name    string
		marked  bool // the endpoint is marked after 1 s
		drained bool // all nodes acknowledge 1 s later
		stops   time.Duration
	}{
		{"all nodes acknowledge", true, true, 2 * time.Second},
		{"one does not", true, false, 5 * time.Second},
		{"nobody marks the endpoint", false, false, 5 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newPeer("a")
				n := newNode(t, a)
				pod := newPod("web", corev1.Container{Name: "x", Image: "web:1"})
				a.says(complete(t, 10, pod))
				a.net = &testNetwork{drained: make(chan struct{}), first: []*agentv1.NetworkResponse{networkMessage(t, true, 10, netService("web"), netSlice("s", "web", pod, false))}}
				n.start()
				settle(time.Second)
				a.send(t, increment(t, 11, deleted(pod, 30)))
				settle(time.Second)
				n.wantRunning("before its endpoint is marked", "uid-web/x/0")
				if c.marked {
					a.net.stream <- networkMessage(t, false, 12, netSlice("s", "web", pod, true))
				}
				settle(time.Second - 10*time.Millisecond)
				n.wantRunning("before all nodes know", "uid-web/x/0")
				if c.drained {
					close(a.net.drained)
				}
				settle(c.stops - 2*time.Second - 10*time.Millisecond)
				if c.stops > 2*time.Second {
					n.wantRunning("before patience is over", "uid-web/x/0")
				}
				settle(100 * time.Millisecond)
				n.wantRunning("in the end")
				if want := []int64{12}; c.marked && !slices.Equal(a.net.drains, want) {
					t.Errorf("asked whether all have %v, want %v", a.net.drains, want)
				}
			})
		})
	}
}

// TestDrainNobody: a pod that is no endpoint is told to end at once.
func TestDrainNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web", corev1.Container{Name: "x", Image: "web:1"})
		a.says(complete(t, 10, pod))
		a.net = &testNetwork{drained: make(chan struct{}), first: []*agentv1.NetworkResponse{networkMessage(t, true, 10, netService("web"))}}
		n.start()
		settle(time.Second)
		a.send(t, increment(t, 11, deleted(pod, 30)))
		settle(100 * time.Millisecond)
		n.wantRunning("after its deletion")
	})
}
