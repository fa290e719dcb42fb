package apiserver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func newNode(name, address string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}},
		Status: corev1.NodeStatus{
			Addresses:   []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}},
			Capacity:    corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4")},
			Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("3900m")},
			NodeInfo:    corev1.NodeSystemInfo{KernelVersion: "6.1"},
		},
	}
}

func register(t testing.TB, agent agentv1connect.AgentServiceClient, node *corev1.Node) *agentv1.RegisterResponse {
	t.Helper()
	data, err := object.Encode(node)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := agent.Register(t.Context(), &agentv1.RegisterRequest{ProtocolVersion: 1, Node: data, BootId: "boot-1"})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func (c *cluster) node(name string) *corev1.Node {
	c.t.Helper()
	node, ok := object.Get[*corev1.Node](c.store.View(), object.Key("nodes/"+name))
	if !ok {
		c.t.Fatalf("there is no node %s", name)
	}
	return node
}

// TestRegister: the agent's part of a Node is kept level, the rest is not the
// agent's, and a repetition writes nothing.
func TestRegister(t *testing.T) {
	c := newCluster(t, 1)
	agent := c.agent("peer-1", "n1")
	resp := register(t, agent, newNode("n1", "10.1.0.1"))
	if resp.GetHeartbeatPeriod().AsDuration() != time.Second || len(resp.GetPeers()) != 1 || len(resp.GetPodCidrs()) != 0 {
		t.Errorf("first answer: %v", resp)
	}
	node := c.node("n1")
	if node.UID == "" || node.Generation != 1 || node.Status.NodeInfo.BootID != "boot-1" || node.Status.Capacity.Cpu().String() != "4" {
		t.Errorf("registered as %+v", node)
	}
	if _, ok := c.servers["peer-1"].Heartbeats().Heartbeat("n1"); !ok {
		t.Error("a node that registers is not heard of")
	}

	// What others write stays.
	node.Spec.PodCIDR, node.Spec.PodCIDRs = "10.244.1.0/24", []string{"10.244.1.0/24"}
	node.Spec.Taints = []corev1.Taint{{Key: "node.kubernetes.io/unreachable", Effect: corev1.TaintEffectNoExecute}}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}}
	node.Labels["disk"] = "ssd"
	c.put(node)
	before := c.store.View().Revision()
	resp = register(t, agent, newNode("n1", "10.1.0.1"))
	if c.store.View().Revision() != before {
		t.Error("a repetition was written")
	}
	if !slices.Equal(resp.GetPodCidrs(), []string{"10.244.1.0/24"}) {
		t.Errorf("pod CIDRs are %v", resp.GetPodCidrs())
	}

	changed := newNode("n1", "10.1.0.99")
	changed.Labels = map[string]string{"topology.kubernetes.io/zone": "b"}
	changed.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	changed.Spec.Taints = []corev1.Taint{}
	register(t, agent, changed)
	node = c.node("n1")
	if fmt.Sprint(node.Labels) != "map[disk:ssd topology.kubernetes.io/zone:b]" {
		t.Errorf("labels are %v: the user's stays, the agent's are replaced", node.Labels)
	}
	if node.Status.Addresses[0].Address != "10.1.0.99" || len(node.Spec.Taints) != 1 || node.Status.Conditions[0].Status != corev1.ConditionUnknown || node.Spec.PodCIDR == "" {
		t.Errorf("after a change: %+v", node)
	}

	data, _ := object.Encode(newNode("n2", "10.1.0.2"))
	_, err := agent.Register(t.Context(), &agentv1.RegisterRequest{ProtocolVersion: 1, Node: data})
	wantCode(t, err, connect.CodePermissionDenied, `cannot register "n2"`)
	_, err = agent.Register(t.Context(), &agentv1.RegisterRequest{ProtocolVersion: 2, Node: data})
	wantCode(t, err, connect.CodeFailedPrecondition, "protocol version 2")
	data, _ = object.Encode(boundPod("a", ""))
	_, err = agent.Register(t.Context(), &agentv1.RegisterRequest{ProtocolVersion: 1, Node: data})
	wantCode(t, err, connect.CodeInvalidArgument, "want a Node")
}

// desired is an agent's Desired stream.
type desired struct {
	t      testing.TB
	stream agentv1connect.AgentServiceDesiredClientStream
	cancel context.CancelFunc
}

func startDesired(t testing.TB, agent agentv1connect.AgentServiceClient, from int64) *desired {
	t.Helper()
	return openDesired(t, agent, &agentv1.DesiredRequest{FromRevision: from})
}

func openDesired(t testing.TB, agent agentv1connect.AgentServiceClient, req *agentv1.DesiredRequest) *desired {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := agent.Desired(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); stream.Close() })
	return &desired{t: t, stream: stream, cancel: cancel}
}

func (d *desired) next() *agentv1.DesiredResponse {
	d.t.Helper()
	msg, err := d.stream.Receive()
	if err != nil {
		d.t.Fatal(err)
	}
	return msg
}

// want compares the next message's text form.
func (d *desired) want(text string) *agentv1.DesiredResponse {
	d.t.Helper()
	msg := d.next()
	if got := desiredText(d.t, msg); got != text {
		d.t.Errorf("got %q, want %q", got, text)
	}
	return msg
}

func desiredText(t testing.TB, msg *agentv1.DesiredResponse) string {
	t.Helper()
	var words []string
	if msg.GetComplete() {
		words = append(words, "complete")
	}
	for _, data := range msg.GetPods() {
		obj, err := object.Decode(data, 0)
		if err != nil {
			t.Fatal(err)
		}
		pod := obj.(*corev1.Pod)
		if pod.ResourceVersion == "" {
			t.Errorf("pod %s comes without its resourceVersion", pod.Name)
		}
		words = append(words, fmt.Sprintf("%s(%s)", pod.Name, pod.Spec.Containers[0].Image))
	}
	for _, uid := range msg.GetRemovedPods() {
		words = append(words, "-"+uid)
	}
	for _, in := range msg.GetInputs() {
		if obj, err := object.Decode(in.GetObject(), in.GetRevision()); err != nil || string(object.KeyOf(obj)) != in.GetKey() || in.GetRevision() <= 0 {
			t.Errorf("input %s at revision %d is %v (%v)", in.GetKey(), in.GetRevision(), obj, err)
		}
		words = append(words, "+"+in.GetKey())
	}
	for _, key := range msg.GetRemovedInputs() {
		words = append(words, "-"+key)
	}
	if msg.GetHasRoutes() {
		words = append(words, fmt.Sprint("own", msg.GetPodCidrs()))
		for _, route := range msg.GetRoutes() {
			words = append(words, fmt.Sprint(route.GetNode(), " via ", route.GetAddress(), route.GetPodCidrs()))
		}
	}
	for _, route := range msg.GetChangedRoutes() {
		words = append(words, fmt.Sprint("~", route.GetNode(), " via ", route.GetAddress(), route.GetPodCidrs()))
	}
	for _, node := range msg.GetRemovedRoutes() {
		words = append(words, "~-"+node)
	}
	if len(msg.GetPeers()) > 0 {
		words = append(words, fmt.Sprint(len(msg.GetPeers()), " peers"))
	}
	return strings.Join(words, " ")
}

func withCIDR(node *corev1.Node, cidr string) *corev1.Node {
	node.Spec.PodCIDR, node.Spec.PodCIDRs = cidr, []string{cidr}
	return node
}

// TestDesired: complete first, then what changes and nothing else; routes and
// peers when they change.
func TestDesired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var third atomic.Bool
		c := newCluster(t, 2, func(cfg *Config) {
			peers := cfg.Peers()
			cfg.Peers = func() map[string]string {
				if !third.Load() {
					return peers
				}
				return map[string]string{"peer-1": "10.0.0.1:7000", "peer-2": "10.0.0.2:7000", "peer-3": "10.0.0.3:7000"}
			}
		})
		n1, n2 := withCIDR(newNode("n1", "10.1.0.1"), "10.244.1.0/24"), newNode("n2", "10.1.0.2")
		c.put(n1, n2, boundPod("a", "n1"), boundPod("other", "n2"), boundPod("pending", ""))
		d := startDesired(t, c.agent("peer-1", "n1"), 0)
		first := d.want("complete a(web:1) own[10.244.1.0/24] 2 peers")
		if first.GetRevision() != c.store.View().Revision() {
			t.Errorf("first message at revision %d, the store is at %d", first.GetRevision(), c.store.View().Revision())
		}

		// Only what concerns the node, and at once.
		c.put(boundPod("other", "n2"), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "x"}})
		start := time.Now()
		revision := c.put(boundPod("b", "n1"))
		if msg := d.want("b(web:1)"); msg.GetRevision() < revision {
			t.Errorf("b came at revision %d, it was written at %d", msg.GetRevision(), revision)
		}
		if took := time.Since(start); took > 50*time.Millisecond {
			t.Errorf("a bound pod took %s", took)
		}
		changed := boundPod("b", "n1")
		changed.Spec.Containers[0].Image = "web:2"
		c.put(changed)
		d.want("b(web:2)")
		c.remove(changed)
		d.want("-uid-b")

		// A pod of the same name is another pod.
		replaced := boundPod("a", "n1")
		replaced.UID = "uid-a2"
		c.put(replaced)
		d.want("a(web:1) -uid-a")

		// The other node gets its pod CIDR, moves, and goes.
		c.put(withCIDR(newNode("n2", "10.1.0.2"), "10.244.2.0/24"))
		d.want("own[10.244.1.0/24] n2 via 10.1.0.2[10.244.2.0/24]")
		busy := withCIDR(newNode("n2", "10.1.0.2"), "10.244.2.0/24")
		busy.Status.NodeInfo.KernelVersion = "6.2"
		c.put(busy) // no news for n1
		c.put(withCIDR(newNode("n2", "10.1.0.22"), "10.244.2.0/24"))
		d.want("own[10.244.1.0/24] n2 via 10.1.0.22[10.244.2.0/24]")
		c.remove(n2)
		d.want("own[10.244.1.0/24]")

		third.Store(true)
		d.want("3 peers")

		// A node that is removed must register again.
		c.remove(n1)
		_, err := d.stream.Receive()
		wantCode(t, err, connect.CodeFailedPrecondition, "call Register")
	})
}

// TestDesiredRouteChanges: an agent that takes changes of routes gets those, and all
// routes where the changes are not known.
func TestDesiredRouteChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1, n2 := withCIDR(newNode("n1", "10.1.0.1"), "10.244.1.0/24"), withCIDR(newNode("n2", "10.1.0.2"), "10.244.2.0/24")
		c.put(n1, n2)
		d := openDesired(t, c.agent("peer-1", "n1"), &agentv1.DesiredRequest{RouteChanges: true})
		d.want("complete own[10.244.1.0/24] n2 via 10.1.0.2[10.244.2.0/24] 1 peers")
		c.put(withCIDR(newNode("n3", "10.1.0.3"), "10.244.3.0/24"), boundPod("a", "n1"))
		d.want("a(web:1) ~n3 via 10.1.0.3[10.244.3.0/24]")
		c.put(withCIDR(newNode("n2", "10.1.0.22"), "10.244.2.0/24"), newNode("n4", "10.1.0.4")) // which has no CIDR yet
		c.remove(newNode("n3", ""))
		synctest.Wait()
		got := desiredText(t, d.next())
		for !strings.HasSuffix(got, "~-n3") { // in one message or two
			got += " " + desiredText(t, d.next())
		}
		if got != "~n2 via 10.1.0.22[10.244.2.0/24] ~-n3" {
			t.Errorf("n2 has moved and n3 is gone: got %q", got)
		}

		// Its own CIDR comes with all routes.
		c.put(withCIDR(newNode("n1", "10.1.0.1"), "10.244.9.0/24"))
		d.want("own[10.244.9.0/24] n2 via 10.1.0.22[10.244.2.0/24]")

		// So does what is older than the log.
		s := c.servers["peer-1"].desired
		s.mu.Lock()
		s.routeLog = nil
		s.mu.Unlock()
		c.put(withCIDR(newNode("n5", "10.1.0.5"), "10.244.5.0/24"))
		d.want("~n5 via 10.1.0.5[10.244.5.0/24]")
		s.mu.Lock()
		s.rerouted("n5")
		s.routeLog = nil
		s.mu.Unlock()
		d.want("own[10.244.9.0/24] n2 via 10.1.0.22[10.244.2.0/24] n5 via 10.1.0.5[10.244.5.0/24]")
	})
}

// TestDesiredWave: routes that come one by one reach many agents in few messages, and a
// pod among them at once.
func TestDesiredWave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const agents, nodes = 200, 100 // a pause is 20 ms
		c := newCluster(t, 1)
		var all []object.Object
		for i := range agents {
			all = append(all, newNode(fmt.Sprint("a", i), "10.1.0.1"))
		}
		c.put(all...)
		type seen struct {
			messages, routes int
			pod              time.Duration
		}
		results := make(chan seen)
		var begin time.Time
		for i := range agents {
			d := openDesired(t, c.agent("peer-1", fmt.Sprint("a", i)), &agentv1.DesiredRequest{RouteChanges: true})
			d.next()
			go func() {
				var s seen
				for s.routes < nodes {
					msg, err := d.stream.Receive()
					if err != nil {
						t.Error(err)
						break
					}
					s.messages++
					s.routes += len(msg.GetChangedRoutes())
					if len(msg.GetPods()) > 0 {
						s.pod = time.Since(begin)
					}
				}
				results <- s
			}()
		}
		synctest.Wait()
		begin = time.Now()
		for i := range nodes {
			c.put(withCIDR(newNode(fmt.Sprint("n", i), "10.1.0.2"), fmt.Sprintf("10.244.%d.0/24", i)))
			if i == nodes/2 {
				c.put(boundPod("p", "a7"))
			}
			time.Sleep(time.Millisecond)
		}
		told := 0
		for range agents {
			s := <-results
			if s.messages > 9 {
				t.Errorf("an agent was sent %d messages in 100 ms", s.messages)
			}
			if s.pod > 0 {
				if told++; s.pod > 51*time.Millisecond {
					t.Errorf("the pod, written after 50 ms, came after %s", s.pod)
				}
			}
		}
		if told != 1 {
			t.Errorf("%d agents were told of the pod", told)
		}
	})
}

// TestDesiredInputs: a node is told of what its pods name, whenever it changes,
// and of nothing else, above all of no other secret.
func TestDesiredInputs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "default", Name: name} }
		secret := func(name, value string) *corev1.Secret {
			return &corev1.Secret{ObjectMeta: meta(name), Data: map[string][]byte{"k": []byte(value)}}
		}
		configMap := func(name, value string) *corev1.ConfigMap {
			return &corev1.ConfigMap{ObjectMeta: meta(name), Data: map[string]string{"k": value}}
		}
		uses := func(name, node string, volumes ...corev1.VolumeSource) *corev1.Pod {
			p := boundPod(name, node)
			for i, v := range volumes {
				p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: fmt.Sprint("v", i), VolumeSource: v})
			}
			return p
		}
		usesSecret := func(name string) corev1.VolumeSource {
			return corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name}}
		}
		usesClaim := func(name string) corev1.VolumeSource {
			return corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}
		}
		a := uses("a", "n1", usesSecret("mine"), usesSecret("not-there-yet"))
		a.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}}
		elsewhere := secret("mine", "of another namespace")
		elsewhere.Namespace = "other"
		c.put(newNode("n1", "10.1.0.1"), newNode("n2", "10.1.0.2"), secret("mine", "1"), secret("others", "1"), secret("nobodys", "1"), elsewhere,
			configMap("cm", "1"), configMap("nobodys", "1"), a, uses("b", "n2", usesSecret("others")), uses("pending", "", usesSecret("nobodys")))
		d := startDesired(t, c.agent("peer-1", "n1"), 0)
		d.want("complete a(web:1) +configmaps/default/cm +secrets/default/mine own[] 1 peers")

		c.put(secret("others", "2"), secret("nobodys", "2"), configMap("nobodys", "2")) // no news for n1
		c.put(configMap("cm", "2"))
		d.want("+configmaps/default/cm")
		c.put(secret("not-there-yet", "1"))
		d.want("+secrets/default/not-there-yet")
		c.remove(secret("mine", ""))
		d.want("-secrets/default/mine")
		c.put(secret("mine", "2"))
		d.want("+secrets/default/mine")

		// Two pods name it; the node knows it as long as one of them is there.
		c.put(uses("second", "n1", usesSecret("mine"), usesSecret("others")))
		d.want("second(web:1) +secrets/default/others")
		c.remove(a)
		d.want("-uid-a -configmaps/default/cm -secrets/default/not-there-yet")
		c.put(configMap("cm", "3"), secret("not-there-yet", "2")) // no longer of concern
		c.remove(uses("second", "n1"))
		d.want("-uid-second -secrets/default/mine -secrets/default/others")

		// A claim, and its volume once it is bound to one.
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: meta("data")}
		volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}}
		c.put(claim, volume, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "another"}})
		c.put(uses("db", "n1", usesClaim("data")))
		d.want("db(web:1) +persistentvolumeclaims/default/data")
		claim.Spec.VolumeName = "pv"
		c.put(claim)
		d.want("+persistentvolumeclaims/default/data +persistentvolumes/pv")
		volume.Labels = map[string]string{"new": "1"}
		c.put(volume)
		d.want("+persistentvolumes/pv")
		c.remove(claim)
		d.want("-persistentvolumeclaims/default/data -persistentvolumes/pv")
	})
}

// TestRemovedVolume: a node is told of the local volumes whose data it is to
// remove, of no other node's, and its word lets go of them.
func TestRemovedVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		volume := func(name, node string) *corev1.PersistentVolume {
			now := metav1.Now()
			return &corev1.PersistentVolume{
				ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), DeletionTimestamp: &now, Finalizers: []string{object.LocalVolumeFinalizer}},
				Spec: corev1.PersistentVolumeSpec{
					PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
					PersistentVolumeSource:        corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: object.LocalProvisioner, VolumeHandle: name, VolumeAttributes: map[string]string{"node": node}}},
				},
				Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeReleased},
			}
		}
		bound := volume("bound", "n1")
		bound.Status.Phase = corev1.VolumeBound
		kept := volume("kept", "n1")
		kept.Finalizers = append(kept.Finalizers, "example.com/mine")
		c.put(newNode("n1", "10.1.0.1"), newNode("n2", "10.1.0.2"), volume("a", "n1"), volume("other", "n2"), bound, kept)
		agent := c.agent("peer-1", "n1")
		d := startDesired(t, agent, 0)
		d.want("complete +persistentvolumes/a +persistentvolumes/kept own[] 1 peers")

		removed := func(name string) *agentv1.RemovedVolume {
			return &agentv1.RemovedVolume{Name: name, Uid: "uid-" + name}
		}
		for range 2 { // an answer may be lost
			_, err := agent.ReportStatus(t.Context(), &agentv1.ReportStatusRequest{RemovedVolumes: []*agentv1.RemovedVolume{
				removed("a"), removed("other"), removed("bound"), removed("none"), removed("kept"), {Name: "kept", Uid: "another"},
			}})
			if err != nil {
				t.Fatal(err)
			}
		}
		var left []string
		for _, pv := range object.List[*corev1.PersistentVolume](c.store.View(), "") {
			left = append(left, fmt.Sprint(pv.Name, pv.Finalizers))
		}
		if want := "[bound[holdfast.dev/local-volume] kept[example.com/mine] other[holdfast.dev/local-volume]]"; fmt.Sprint(left) != want {
			t.Errorf("volumes left are %v, want %s", left, want)
		}
		for seen := ""; !strings.Contains(seen, "-persistentvolumes/a"); {
			seen += " " + desiredText(t, d.next())
		}
	})
}

// TestDesiredResumes: the agent goes on with another peer, whose first message is
// complete and not older than what the agent has.
func TestDesiredResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		c.put(newNode("n1", "10.1.0.1"), boundPod("a", "n1"), boundPod("b", "n1"))
		d := startDesired(t, c.agent("peer-1", "n1"), 0)
		at := d.want("complete a(web:1) b(web:1) own[] 2 peers").GetRevision()
		d.cancel()
		c.remove(boundPod("a", "n1"))
		c.put(boundPod("c", "n1"))
		d = startDesired(t, c.agent("peer-2", "n1"), at)
		if msg := d.want("complete b(web:1) c(web:1) own[] 2 peers"); msg.GetRevision() < at+2 {
			t.Errorf("resumed at revision %d after %d and two changes", msg.GetRevision(), at)
		}
		// One that is ahead of the peer waits for it, and is not told older things.
		ahead := startDesired(t, c.agent("peer-2", "n1"), c.store.View().Revision()+1)
		synctest.Wait()
		c.put(boundPod("d", "n1"))
		ahead.want("complete b(web:1) c(web:1) d(web:1) own[] 2 peers")
		tooFar := startDesired(t, c.agent("peer-2", "n1"), c.store.View().Revision()+100)
		_, err := tooFar.stream.Receive()
		wantCode(t, err, connect.CodeUnavailable, "ask another peer")
		stranger := startDesired(t, c.agent("peer-2", "n9"), 0)
		_, err = stranger.stream.Receive()
		wantCode(t, err, connect.CodeFailedPrecondition, "n9 has no Node object")
	})
}

// TestDesiredSlowAgent: an agent that does not read misses no state: when it
// reads again, it gets to where things are, without everything in between.
func TestDesiredSlowAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		c.put(newNode("n1", "10.1.0.1"))
		d := startDesired(t, c.agent("peer-1", "n1"), 0)
		d.next()
		const changes = 500
		for i := range changes {
			pod := boundPod(fmt.Sprint("p", i%5), "n1")
			pod.Spec.Containers[0].Image = fmt.Sprint("web:", i)
			c.put(pod)
		}
		synctest.Wait()
		images := map[string]string{}
		messages := 0
		for images["p4"] != fmt.Sprint("web:", changes-1) {
			messages++
			for _, data := range d.next().GetPods() {
				obj, err := object.Decode(data, 0)
				if err != nil {
					t.Fatal(err)
				}
				images[obj.GetName()] = obj.(*corev1.Pod).Spec.Containers[0].Image
			}
		}
		if messages > changes/2 {
			t.Errorf("%d messages for %d changes that nobody read", messages, changes)
		}
		for i := range 5 {
			if want := fmt.Sprint("web:", changes-5+i); images[fmt.Sprint("p", i)] != want {
				t.Errorf("p%d is at %s, want %s", i, images[fmt.Sprint("p", i)], want)
			}
		}
	})
}

func statusReport(t testing.TB, name string, status corev1.PodStatus) *agentv1.PodStatusReport {
	t.Helper()
	data, err := status.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return &agentv1.PodStatusReport{Namespace: "default", Name: name, Uid: "uid-" + name, Status: data}
}

var running = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.244.1.5", Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}

// TestReportStatus: what is recorded, for whom, and what is not written.
func TestReportStatus(t *testing.T) {
	c := newCluster(t, 1)
	agent := c.agent("peer-1", "n1")
	mine := boundPod("mine", "n1")
	mine.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}}
	c.put(mine, boundPod("elsewhere", "n2"), boundPod("unbound", ""), boundPod("reborn", "n1"))

	good := statusReport(t, "mine", running)
	good.Events = []*agentv1.PodEvent{{Type: "Normal", Reason: "Started", Message: "container main"}}
	reborn := statusReport(t, "reborn", running)
	reborn.Uid = "uid-of-its-past-life"
	foreign := statusReport(t, "elsewhere", running)
	foreign.Events = []*agentv1.PodEvent{{Type: "Normal", Reason: "Forged", Message: "by another node"}}
	req := &agentv1.ReportStatusRequest{Pods: []*agentv1.PodStatusReport{
		good, foreign, statusReport(t, "unbound", running), statusReport(t, "never", running), reborn,
	}}
	resp, err := agent.ReportStatus(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(resp.GetUnknown()), "[uid-elsewhere uid-never uid-of-its-past-life uid-unbound]"; got != want {
		t.Errorf("unknown: %s, want %s", got, want)
	}
	pod, _ := c.pod("mine")
	if resp.GetRevision() == 0 || resp.GetRevision() != revisionOf(pod) {
		t.Errorf("acknowledged at revision %d, the pod is at %d", resp.GetRevision(), revisionOf(pod))
	}
	if pod.Status.Phase != corev1.PodRunning || !object.PodReady(pod) || object.PodCondition(pod, corev1.PodScheduled) == nil {
		t.Errorf("status is %+v: want the agent's, with the scheduler's condition", pod.Status)
	}
	for _, name := range []string{"elsewhere", "unbound", "reborn"} {
		if pod, _ := c.pod(name); pod.Status.Phase == corev1.PodRunning {
			t.Errorf("the status of %s was written", name)
		}
	}
	events, _ := c.servers["peer-1"].cfg.Events.List("")
	if len(events) != 1 || events[0].Reason != "Started" || events[0].Source.Host != "n1" {
		t.Errorf("events: %v", events)
	}

	// The answer is lost; the agent says it all again, and it costs nothing.
	before := c.store.View().Revision()
	again, err := agent.ReportStatus(t.Context(), req)
	if err != nil || c.store.View().Revision() != before || again.GetRevision() != resp.GetRevision() {
		t.Errorf("a repetition: revision %d -> %d, answer %v, %v", before, c.store.View().Revision(), again, err)
	}
	_, err = agent.ReportStatus(t.Context(), &agentv1.ReportStatusRequest{Pods: []*agentv1.PodStatusReport{{Namespace: "default", Name: "mine", Uid: "uid-mine", Status: []byte{0xff}}}})
	wantCode(t, err, connect.CodeInvalidArgument, "status of pod default/mine")
}

// TestReportRemoved: a terminating pod goes when its node says that nothing of it
// is left, and not before; finalizers hold the object and not the node.
func TestReportRemoved(t *testing.T) {
	c := newCluster(t, 1)
	agent := c.agent("peer-1", "n1")
	held := boundPod("held", "n1")
	held.Finalizers = []string{"example.com/hold"}
	c.put(boundPod("done", "n1"), held, boundPod("staying", "n1"))
	report := func(names ...string) {
		t.Helper()
		req := &agentv1.ReportStatusRequest{}
		for _, name := range names {
			r := statusReport(t, name, corev1.PodStatus{Phase: corev1.PodSucceeded})
			r.Removed = true
			req.Pods = append(req.Pods, r)
		}
		if _, err := agent.ReportStatus(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	report("staying")
	if _, ok := c.pod("staying"); !ok {
		t.Error("a pod that nobody deleted went away")
	}
	for _, name := range []string{"done", "held"} {
		resp, err := c.objects("peer-1").Delete(t.Context(), &holdfastv1.DeleteRequest{Kind: podKind, Name: name})
		if err != nil || resp.GetGone() {
			t.Fatalf("delete %s: %v, %v", name, resp, err)
		}
	}
	report("done", "held")
	if _, ok := c.pod("done"); ok {
		t.Error("a terminating pod of which nothing is left is still there")
	}
	pod, ok := c.pod("held")
	if !ok {
		t.Fatal("a pod with a finalizer went away")
	}
	pod.Finalizers = nil
	if _, err := c.objects("peer-1").Update(t.Context(), &holdfastv1.UpdateRequest{Object: message(t, pod)}); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.pod("held"); !ok {
		t.Error("an update without resourceVersion took a finalizer away")
	}
	in := message(t, pod)
	in.Revision = revisionOf(pod)
	if _, err := c.objects("peer-1").Update(t.Context(), &holdfastv1.UpdateRequest{Object: in}); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.pod("held"); ok {
		t.Error("the last finalizer is gone and the pod is not")
	}
}

// TestOvertakenReport: of two reports about one pod that meet, as when an agent
// has moved to another peer and the old one's call is still under way, the one
// that comes second does not write over the first: it is told to look again. The
// race is run until it has happened.
func TestOvertakenReport(t *testing.T) {
	c := newCluster(t, 2)
	c.put(boundPod("a", "n1"))
	overtaken := 0
	for round := 0; overtaken < 5; round++ {
		if round == 5000 {
			t.Fatalf("in %d rounds two reports met %d times", round, overtaken)
		}
		results := make(map[string]error, 2)
		var mu sync.Mutex
		var both sync.WaitGroup
		for i, peer := range []string{"peer-1", "peer-2"} {
			both.Go(func() {
				message := fmt.Sprint(round, "/", i)
				_, err := c.agent(peer, "n1").ReportStatus(t.Context(), &agentv1.ReportStatusRequest{Pods: []*agentv1.PodStatusReport{
					statusReport(t, "a", corev1.PodStatus{Phase: corev1.PodRunning, Message: message}),
				}})
				mu.Lock()
				defer mu.Unlock()
				results[message] = err
			})
		}
		both.Wait()
		pod, _ := c.pod("a")
		for message, err := range results {
			if err == nil {
				continue
			}
			wantCode(t, err, connect.CodeAborted, "report it again")
			overtaken++
			if pod.Status.Message == message {
				t.Fatalf("the report %s was refused and stands", message)
			}
		}
		if results[pod.Status.Message] != nil || len(results) != 2 {
			t.Fatalf("status %q, results %v", pod.Status.Message, results)
		}
	}
}

// TestReportMeetsOthers: a change by somebody else, of what is not the agent's,
// does not get in the way of a report, nor is it undone by one.
func TestReportMeetsOthers(t *testing.T) {
	c := newCluster(t, 1)
	for round := range 100 {
		name := fmt.Sprint("p", round)
		c.put(boundPod(name, "n1"))
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := c.objects("peer-1").Delete(t.Context(), &holdfastv1.DeleteRequest{Kind: podKind, Name: name}); err != nil {
				t.Errorf("delete: %v", err)
			}
		})
		both.Go(func() {
			if _, err := c.agent("peer-1", "n1").ReportStatus(t.Context(), &agentv1.ReportStatusRequest{Pods: []*agentv1.PodStatusReport{statusReport(t, name, running)}}); err != nil {
				t.Errorf("report: %v", err)
			}
		})
		both.Wait()
		if pod, _ := c.pod(name); pod.Status.Phase != corev1.PodRunning || !object.Deleting(pod) {
			t.Fatalf("round %d: phase %s, deleting %t; one of the two was lost", round, pod.Status.Phase, object.Deleting(pod))
		}
	}
}

// TestHeartbeats: a heartbeat through any peer is in the leader's table within
// 1.1 s, batched to at most one relay each second, and nothing is written.
func TestHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		leader := c.servers["peer-1"].Heartbeats()
		revision := c.store.View().Revision()
		// A hundred nodes, spread over the peers, each with its own phase.
		for round := range 100 {
			for n := range 10 {
				node := fmt.Sprintf("n%d", round%10*10+n)
				resp, err := c.agent(fmt.Sprint("peer-", n%3+1), node).Heartbeat(t.Context(), &agentv1.HeartbeatRequest{BootId: "b"})
				if err != nil || resp.GetPeriod().AsDuration() != time.Second {
					t.Fatalf("%v, %v", resp, err)
				}
			}
			time.Sleep(100 * time.Millisecond)
			if round < 21 {
				continue // each node once, and 1.1 s more
			}
			synctest.Wait()
			for n := range 100 {
				age, ok := leader.Heartbeat(fmt.Sprintf("n%d", n))
				if !ok || age > 2100*time.Millisecond {
					t.Fatalf("round %d: the leader has n%d at %s, %t: want at most a period and 1.1 s", round, n, age, ok)
				}
			}
		}
		if c.store.View().Revision() != revision {
			t.Error("heartbeats were written")
		}
		if _, ok := leader.Heartbeat("never"); ok {
			t.Error("a node that was never heard of has a heartbeat")
		}

		// A single one after silence goes on at once.
		time.Sleep(3 * time.Second)
		if _, err := c.agent("peer-2", "n0").Heartbeat(t.Context(), &agentv1.HeartbeatRequest{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if age, _ := leader.Heartbeat("n0"); age != 0 {
			t.Errorf("after silence the leader has it at %s", age)
		}

		// While the leader cannot be reached nothing is lost; ages stay true.
		c.setDown("peer-1", true)
		time.Sleep(3 * time.Second)
		if _, err := c.agent("peer-3", "n5").Heartbeat(t.Context(), &agentv1.HeartbeatRequest{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Second)
		c.setDown("peer-1", false)
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if age, _ := leader.Heartbeat("n5"); age < 5*time.Second || age > 5200*time.Millisecond {
			t.Errorf("the leader has n5 at %s, want the 5.1 s since it was heard of", age)
		}
	})
}

// TestConfirm: which pods a node is to run, by a linearizable read, whatever its
// stream has said.
func TestConfirm(t *testing.T) {
	c := newCluster(t, 1)
	agent := c.agent("peer-1", "n1")
	register(t, agent, newNode("n1", "10.1.0.1"))
	mine, marked, gone, other := boundPod("mine", "n1"), boundPod("marked", "n1"), boundPod("gone", "n1"), boundPod("other", "n2")
	now := metav1.Now()
	marked.DeletionTimestamp = &now
	c.put(mine, marked, gone, other)
	c.remove(gone)
	resp, err := agent.Confirm(t.Context(), &agentv1.ConfirmRequest{
		Uids: []string{string(mine.UID), string(marked.UID), string(gone.UID), string(other.UID), "never-heard-of"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.GetWantedUids(); !slices.Equal(got, []string{string(mine.UID)}) || resp.GetRevision() < c.store.View().Revision() {
		t.Errorf("wanted are %q at revision %d, want %q alone", got, resp.GetRevision(), mine.UID)
	}
}

// TestMirror: a node makes, replaces and takes away mirrors of its own pods, and
// nothing else.
func TestMirror(t *testing.T) {
	c := newCluster(t, 1)
	agent := c.agent("peer-1", "n1")
	mirror := func(name, hash string, change ...func(*corev1.Pod)) []byte {
		pod := boundPod(name, "n1")
		pod.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: hash}
		for _, f := range change {
			f(pod)
		}
		data, err := object.Encode(pod)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	call := func(pods ...[]byte) error {
		_, err := agent.Mirror(t.Context(), &agentv1.MirrorRequest{Pods: pods})
		return err
	}
	wantCode(t, call(mirror("dns", "1")), connect.CodeFailedPrecondition, "n1")
	register(t, agent, newNode("n1", "10.1.0.1"))
	must := func(pods ...[]byte) {
		t.Helper()
		if err := call(pods...); err != nil {
			t.Fatal(err)
		}
	}
	must(mirror("dns", "1"), mirror("log", "1"))
	first, ok := c.pod("dns")
	if !ok || first.UID == "uid-dns" || first.OwnerReferences[0].UID != c.node("n1").UID || first.Status.Phase != corev1.PodPending {
		t.Fatalf("the mirror is %+v", first)
	}
	before := c.store.View().Revision()
	must(mirror("dns", "1"), mirror("log", "1"))
	if c.store.View().Revision() != before {
		t.Error("a repetition was written")
	}
	must(mirror("dns", "2"))
	if second, _ := c.pod("dns"); second == nil || second.UID == first.UID || second.Annotations[corev1.MirrorPodAnnotationKey] != "2" {
		t.Errorf("a changed pod's mirror is %+v", second)
	}
	if _, ok := c.pod("log"); ok {
		t.Error("a mirror that is no longer wanted is still there")
	}
	marked, _ := c.pod("dns")
	now := metav1.Now()
	marked.DeletionTimestamp = &now
	c.put(marked)
	must(mirror("dns", "2"))
	if again, _ := c.pod("dns"); again == nil || again.UID == marked.UID || again.DeletionTimestamp != nil {
		t.Errorf("the mirror after its deletion is %+v", again)
	}
	c.put(boundPod("web", "n1"))
	wantCode(t, call(mirror("dns", "2"), mirror("web", "1")), connect.CodeAlreadyExists, "web")
	if web, _ := c.pod("web"); web.UID != "uid-web" {
		t.Error("a pod that is no mirror was replaced")
	}
	must()
	if _, ok := c.pod("web"); !ok {
		t.Error("a pod that is no mirror was taken away")
	}
	wantCode(t, call(mirror("x", "")), connect.CodeInvalidArgument, "annotation")
	wantCode(t, call(mirror("x", "1", func(p *corev1.Pod) { p.Spec.NodeName = "n2" })), connect.CodeInvalidArgument, "n2")
	wantCode(t, call(mirror("x", "1", func(p *corev1.Pod) {
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "key"}}}}
	})), connect.CodeInvalidArgument, "refers to")
	data, _ := object.Encode(newNode("n1", "10.1.0.1"))
	wantCode(t, call(data), connect.CodeInvalidArgument, "no pod")
}

// TestRegisterLabels: a node cannot give itself a label by which pods are drawn to it or
// kept from others.
func TestRegisterLabels(t *testing.T) {
	c := newCluster(t, 1)
	for label, refused := range map[string]bool{"node-restriction.kubernetes.io/pci": true, "node-role.kubernetes.io/master": true, "disk": false, "topology.kubernetes.io/zone": false} {
		node := newNode("n1", "10.1.0.1")
		node.Labels[label] = "x"
		data, _ := object.Encode(node)
		_, err := c.agent("peer-1", "n1").Register(t.Context(), &agentv1.RegisterRequest{ProtocolVersion: 1, Node: data})
		if refused {
			wantCode(t, err, connect.CodePermissionDenied, "may not give itself the label "+label)
		} else if err != nil {
			t.Errorf("%s: %v", label, err)
		}
	}
}
