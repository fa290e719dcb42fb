package agent_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/agent"
	"github.com/holdfast-io/holdfast/agent/fake"
	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/agent/volume"
	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// testPeer is a peer as an agent sees it, and no more: it says what a test tells
// it to, and remembers what it was told.
type testPeer struct {
	agentv1connect.UnimplementedAgentServiceHandler
	name   string
	server *connect.Server

	mu         sync.Mutex
	cut        chan struct{} // closed when the peer goes down
	down       bool
	silent     bool     // heartbeats get no answer
	noQuorum   bool     // nothing is confirmed
	wanted     []string // uids that are, whatever the streams say
	confirms   int
	mirrors    [][]*corev1.Pod // of each Mirror call
	loseAcks   int             // so many reports are recorded and answered with an error
	period     time.Duration
	grants     bool  // leases are renewed
	granted    int64 // what the next heartbeat is told
	nodes      []*corev1.Node
	froms      []int64                           // of each Desired call
	first      func() []*agentv1.DesiredResponse // what each Desired stream begins with
	streams    []chan *agentv1.DesiredResponse
	heartbeats []time.Time
	usage      []*agentv1.ReportUsageRequest
	usageAt    []time.Time
	reports    []*agentv1.PodStatusReport // in order
	removed    []string                   // volumes, as name/uid
	tokens     []*holdfastv1.IssueTokenRequest
	wishes     []chan *agentv1.SessionsResponse
	calls      map[string]*sessionCall
	net        *testNetwork // nil: it knows nothing of the network
}

// sessionCall is what an agent does in answer to a wish.
type sessionCall struct {
	ended  chan struct{}
	out    strings.Builder // log, or stdout
	notice string          // of a log
	stderr strings.Builder
	code   int32
	start  bool
	err    *agentv1.SessionError
	in     chan *holdfastv1.ExecRequest
	say    chan *agentv1.SessionResponse // of other kinds than exec
	taken  int64                         // bytes of input
	// network is the answer to an inspection.
	network *holdfastv1.NodeNetwork
	closed  bool          // the pod has closed its side of a connection
	leave   chan struct{} // closed: the caller goes
}

func newPeer(name string) *testPeer {
	p := &testPeer{name: name, server: connect.NewServer(), cut: make(chan struct{}), period: time.Second, calls: map[string]*sessionCall{}}
	p.first = func() []*agentv1.DesiredResponse { return nil }
	agentv1connect.RegisterAgentServiceHandler(p.server, p)
	holdfastv1connect.RegisterAccessServiceHandler(p.server, accessOf{peer: p})
	return p
}

// accessOf makes tokens as a peer does: only of pods of the node, good for as long as was asked for.
type accessOf struct {
	holdfastv1connect.UnimplementedAccessServiceHandler
	peer *testPeer
}

func (a accessOf) IssueToken(_ context.Context, req *holdfastv1.IssueTokenRequest) (*holdfastv1.IssueTokenResponse, error) {
	if _, err := a.peer.up(); err != nil {
		return nil, err
	}
	a.peer.mu.Lock()
	defer a.peer.mu.Unlock()
	a.peer.tokens = append(a.peer.tokens, req)
	if req.GetBinding().GetKind() != "Pod" || req.GetBinding().GetUid() == "" {
		return nil, connect.NewError(connect.CodePermissionDenied, "a node gets only tokens that are bound to its pods")
	}
	now := time.Now()
	claims := fmt.Sprintf(`{"iat":%d,"exp":%d,"sub":"system:serviceaccount:%s:%s","aud":%q,"n":%d}`,
		now.Unix(), now.Add(req.GetLifetime().AsDuration()).Unix(), req.GetNamespace(), req.GetServiceAccount(), req.GetAudiences(), len(a.peer.tokens))
	text := "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
	return &holdfastv1.IssueTokenResponse{Token: text}, nil
}

func (p *testPeer) setDown(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if down && !p.down {
		close(p.cut)
		p.streams, p.wishes = nil, nil
	}
	if !down && p.down {
		p.cut = make(chan struct{})
	}
	p.down = down
}

var errDown = connect.NewError(connect.CodeUnavailable, "peer is down")

func (p *testPeer) up() (<-chan struct{}, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return nil, errDown
	}
	return p.cut, nil
}

func (p *testPeer) Register(_ context.Context, req *agentv1.RegisterRequest) (*agentv1.RegisterResponse, error) {
	if _, err := p.up(); err != nil {
		return nil, err
	}
	obj, err := object.Decode(req.GetNode(), 0)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err.Error())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nodes = append(p.nodes, obj.(*corev1.Node))
	return &agentv1.RegisterResponse{HeartbeatPeriod: durationpb.New(p.period)}, nil
}

func (p *testPeer) Desired(ctx context.Context, req *agentv1.DesiredRequest, stream agentv1connect.AgentServiceDesiredServerStream) error {
	cut, err := p.up()
	if err != nil {
		return err
	}
	in := make(chan *agentv1.DesiredResponse, 10)
	p.mu.Lock()
	p.froms = append(p.froms, req.GetFromRevision())
	p.streams = append(p.streams, in)
	first := p.first()
	p.mu.Unlock()
	for _, m := range first {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
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

// send sends a message on the newest Desired stream.
func (p *testPeer) send(t *testing.T, m *agentv1.DesiredResponse) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.streams) == 0 {
		t.Fatalf("peer %s has no Desired stream", p.name)
	}
	p.streams[len(p.streams)-1] <- m
}

func (p *testPeer) Heartbeat(ctx context.Context, req *agentv1.HeartbeatRequest) (*agentv1.HeartbeatResponse, error) {
	if _, err := p.up(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	silent := p.silent
	p.mu.Unlock()
	if silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heartbeats = append(p.heartbeats, time.Now())
	resp := &agentv1.HeartbeatResponse{Period: durationpb.New(p.period), GrantedAt: p.granted}
	if p.grants {
		p.granted = req.GetSentAt() // as the leader's word, which comes a period later
	}
	return resp, nil
}

func (p *testPeer) ReportStatus(_ context.Context, req *agentv1.ReportStatusRequest) (*agentv1.ReportStatusResponse, error) {
	if _, err := p.up(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reports = append(p.reports, req.GetPods()...)
	for _, v := range req.GetRemovedVolumes() {
		p.removed = append(p.removed, v.GetName()+"/"+v.GetUid())
	}
	if p.loseAcks > 0 {
		p.loseAcks--
		return nil, errDown
	}
	return &agentv1.ReportStatusResponse{}, nil
}

func (p *testPeer) Confirm(_ context.Context, req *agentv1.ConfirmRequest) (*agentv1.ConfirmResponse, error) {
	if _, err := p.up(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.noQuorum {
		return nil, connect.NewError(connect.CodeUnavailable, "no leader")
	}
	p.confirms++
	res := &agentv1.ConfirmResponse{}
	for _, uid := range req.GetUids() {
		if slices.Contains(p.wanted, uid) {
			res.WantedUids = append(res.WantedUids, uid)
		}
	}
	return res, nil
}

func (p *testPeer) Mirror(_ context.Context, req *agentv1.MirrorRequest) (*agentv1.MirrorResponse, error) {
	if _, err := p.up(); err != nil {
		return nil, err
	}
	var pods []*corev1.Pod
	for _, data := range req.GetPods() {
		obj, err := object.Decode(data, 0)
		if err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, err.Error())
		}
		pods = append(pods, obj.(*corev1.Pod))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mirrors = append(p.mirrors, pods)
	return &agentv1.MirrorResponse{}, nil
}

func (p *testPeer) ReportUsage(_ context.Context, req *agentv1.ReportUsageRequest) (*agentv1.ReportUsageResponse, error) {
	if _, err := p.up(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.usage = append(p.usage, req)
	p.usageAt = append(p.usageAt, time.Now())
	return &agentv1.ReportUsageResponse{Period: durationpb.New(20 * time.Second)}, nil
}

func (p *testPeer) Sessions(ctx context.Context, _ *agentv1.SessionsRequest, stream agentv1connect.AgentServiceSessionsServerStream) error {
	cut, err := p.up()
	if err != nil {
		return err
	}
	in := make(chan *agentv1.SessionsResponse, 10)
	p.mu.Lock()
	p.wishes = append(p.wishes, in)
	p.mu.Unlock()
	if err := stream.Send(&agentv1.SessionsResponse{}); err != nil {
		return err
	}
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

// wish asks the agent for a session.
func (p *testPeer) wish(t *testing.T, m *agentv1.SessionsResponse) *sessionCall {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.wishes) == 0 {
		t.Fatalf("peer %s has no Sessions stream", p.name)
	}
	c := &sessionCall{ended: make(chan struct{}), in: make(chan *holdfastv1.ExecRequest, 10), say: make(chan *agentv1.SessionResponse, 10), leave: make(chan struct{}), code: -1}
	m.SessionId = fmt.Sprintf("s%d", len(p.calls))
	p.calls[m.SessionId] = c
	p.wishes[len(p.wishes)-1] <- m
	return c
}

func (p *testPeer) Session(ctx context.Context, stream agentv1connect.AgentServiceSessionServerStream) error {
	m, err := stream.Receive()
	if err != nil {
		return err
	}
	p.mu.Lock()
	c := p.calls[m.GetSessionId()]
	p.mu.Unlock()
	if c == nil {
		return connect.Errorf(connect.CodeNotFound, "no session %q", m.GetSessionId())
	}
	defer close(c.ended)
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		for {
			select {
			case in := <-c.in:
				if stream.Send(&agentv1.SessionResponse{Exec: in}) != nil {
					return
				}
			case m := <-c.say:
				if stream.Send(m) != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	received := make(chan struct{})
	go func() {
		defer close(received)
		for {
			m, err := stream.Receive()
			if err != nil {
				return
			}
			c.take(m)
		}
	}()
	select {
	case <-received:
	case <-c.leave:
	}
	return nil
}

func (c *sessionCall) take(m *agentv1.SessionRequest) {
	switch m := m.GetMessage().(type) {
	case *agentv1.SessionRequest_Logs:
		c.out.Write(m.Logs.GetData())
		c.notice += m.Logs.GetNotice()
	case *agentv1.SessionRequest_Error:
		c.err = m.Error
	case *agentv1.SessionRequest_Network:
		c.network = m.Network
	case *agentv1.SessionRequest_Taken:
		c.taken += m.Taken
	case *agentv1.SessionRequest_Attach:
		switch m := m.Attach.GetMessage().(type) {
		case *holdfastv1.AttachResponse_Started:
			c.start = true
		case *holdfastv1.AttachResponse_Stdout:
			c.out.Write(m.Stdout)
		case *holdfastv1.AttachResponse_Stderr:
			c.stderr.Write(m.Stderr)
		case *holdfastv1.AttachResponse_ExitCode:
			c.code = m.ExitCode
		}
	case *agentv1.SessionRequest_PortForward:
		c.start = c.start || m.PortForward.GetConnected()
		c.closed = c.closed || m.PortForward.GetCloseWrite()
		c.out.Write(m.PortForward.GetData())
	case *agentv1.SessionRequest_Exec:
		switch m := m.Exec.GetMessage().(type) {
		case *holdfastv1.ExecResponse_Started:
			c.start = true
		case *holdfastv1.ExecResponse_Stdout:
			c.out.Write(m.Stdout)
		case *holdfastv1.ExecResponse_Stderr:
			c.stderr.Write(m.Stderr)
		case *holdfastv1.ExecResponse_ExitCode:
			c.code = m.ExitCode
		}
	}
}

// status returns the last status that the peer was told of a pod.
func (p *testPeer) status(t *testing.T, uid types.UID) (corev1.PodStatus, *agentv1.PodStatusReport) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range slices.Backward(p.reports) {
		if r.GetUid() == string(uid) {
			var s corev1.PodStatus
			if err := s.Unmarshal(r.GetStatus()); err != nil {
				t.Fatalf("report of %s: %v", uid, err)
			}
			return s, r
		}
	}
	return corev1.PodStatus{}, nil
}

func (p *testPeer) count(of func(*testPeer) int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return of(p)
}

// testClient is a client of several peers, in its simplest form.
type testClient struct {
	mu    sync.Mutex
	peers []*testPeer
	at    int
	named []string // by SetPeers
}

func (c *testClient) Agent() agentv1connect.AgentServiceClient {
	c.mu.Lock()
	defer c.mu.Unlock()
	return agentv1connect.NewAgentServiceClient(connect.NewClient(connectinprocess.New(c.peers[c.at].server)))
}

func (c *testClient) Access() holdfastv1connect.AccessServiceClient {
	c.mu.Lock()
	defer c.mu.Unlock()
	return holdfastv1connect.NewAccessServiceClient(connect.NewClient(connectinprocess.New(c.peers[c.at].server)))
}

func (c *testClient) Peer() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peers[c.at].name
}

func (c *testClient) SetPeers(addresses []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.named = addresses
}

func (c *testClient) Switch(string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = (c.at + 1) % len(c.peers)
}

// testNode is an agent in a bubble of virtual time, with a fake runtime and
// network, which outlive it.
type testNode struct {
	t    *testing.T
	rt   *fake.Runtime
	wrap runtime.Runtime // what the agent is given; rt if nil
	net  *fake.Network
	// wrapNet is what the agent is given; net if nil.
	wrapNet agent.Network
	client  *testClient
	dir     string
	static  string // folder of static pods
	mounts  volume.Mounts
	// signals and eviction are of the agent's configuration; by default nobody is evicted.
	signals   agent.NodeSignals
	eviction  []agent.Threshold
	keptLogs  time.Duration
	clusterCA string
	guard     agent.Guard
	clock     func() time.Duration // since the machine's start
	stop      func()
	agent     *agent.Agent // the last that was started
}

func newNode(t *testing.T, peers ...*testPeer) *testNode {
	n := &testNode{t: t, rt: fake.New(fake.Config{}), net: fake.NewNetwork(), client: &testClient{peers: peers}, dir: t.TempDir(), mounts: volume.Folders{}, eviction: []agent.Threshold{}}
	t.Cleanup(func() {
		if n.stop != nil {
			n.stop()
		}
		n.rt.Close()
		for _, f := range n.rt.Faults() {
			t.Errorf("the agent broke a rule of the runtime: %s", f)
		}
	})
	return n
}

// start runs the agent until stop is called or the test ends.
func (n *testNode) start() {
	n.t.Helper()
	rt := n.wrap
	if rt == nil {
		rt = n.rt
	}
	var network agent.Network = n.net
	if n.wrapNet != nil {
		network = n.wrapNet
	}
	a, err := agent.New(agent.Config{
		Node: "n1", Client: n.client, Runtime: rt, Network: network, Mounts: n.mounts, DataDir: n.dir, Socket: "none",
		Address: netip.MustParseAddr("192.0.2.1"), Version: "test", Labels: map[string]string{"zone": "a"},
		ResolvConf: "/dev/null", ParallelStarts: 4, StaticPods: n.static, Guard: n.guard, Clock: n.clock,
		Signals: n.signals, Limits: agent.Limits{Eviction: n.eviction, KeptLogsAge: n.keptLogs}, ClusterCA: n.clusterCA,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.agent = a
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			n.t.Errorf("Run returned %v, want nil at its context's end", err)
		}
	})
}

// settle lets everything happen that does not need time, and then d.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// running returns the runs of containers that go on, as "uid/name/attempt".
func (n *testNode) running() []string {
	n.t.Helper()
	all, err := n.rt.List(context.Background())
	if err != nil {
		n.t.Fatal(err)
	}
	var out []string
	for _, p := range all {
		for _, c := range p.Containers {
			if c.State == runtime.StateRunning {
				out = append(out, fmt.Sprintf("%s/%s/%d", p.UID, c.ID.Name, c.ID.Attempt))
			}
		}
	}
	return out
}

func (n *testNode) wantRunning(when string, want ...string) {
	n.t.Helper()
	if got := n.running(); !slices.Equal(got, want) {
		n.t.Fatalf("%s: running are %q, want %q", when, got, want)
	}
}

// newPod returns a pod that was bound to the node.
func newPod(name string, containers ...corev1.Container) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name)},
		Spec: corev1.PodSpec{
			NodeName: "n1", Containers: containers, RestartPolicy: corev1.RestartPolicyAlways,
			TerminationGracePeriodSeconds: new(int64(30)),
		},
		Status: corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
		}},
	}
	if len(containers) == 0 {
		pod.Spec.Containers = []corev1.Container{{Name: "main", Image: "web:1"}}
	}
	return pod
}

func deleted(pod *corev1.Pod, grace int64) *corev1.Pod {
	pod = pod.DeepCopy()
	now := metav1.Now()
	pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &now, &grace
	return pod
}

// complete is a complete message with the pods.
func complete(t *testing.T, revision int64, pods ...*corev1.Pod) *agentv1.DesiredResponse {
	m := increment(t, revision, pods...)
	m.Complete, m.HasRoutes = true, true
	m.PodCidrs = []string{"10.1.0.0/24"}
	m.Peers = []string{"a", "b"}
	return m
}

func increment(t *testing.T, revision int64, pods ...*corev1.Pod) *agentv1.DesiredResponse {
	t.Helper()
	m := &agentv1.DesiredResponse{Revision: revision}
	for _, p := range pods {
		data, err := object.Encode(p)
		if err != nil {
			t.Fatal(err)
		}
		m.Pods = append(m.Pods, data)
	}
	return m
}

// says makes a peer begin each Desired stream with the messages.
func (p *testPeer) says(messages ...*agentv1.DesiredResponse) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.first = func() []*agentv1.DesiredResponse { return messages }
}
