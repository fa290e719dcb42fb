package apiserver

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/agent"
	"github.com/holdfast-io/holdfast/agent/deadman"
	"github.com/holdfast-io/holdfast/agent/fake"
	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/agent/volume"
	"github.com/holdfast-io/holdfast/controllers"
	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
	"github.com/holdfast-io/holdfast/scheduler"
)

// Promises I5 and I7 in random histories: three peers with their stores, controllers
// and schedulers, and four nodes with their agents and dead-men, all of them the real
// code in virtual time. Only containers, links, clocks and processes are pretended.

var (
	fencingHistories = flag.Int("apiserver.fencing", 0, "random histories of fencing to play; 0: a few")
	fencingFirst     = flag.Int("apiserver.fencing-first", 0, "seed of the first of them")
	fencingMutant    = flag.String("apiserver.mutant", "", "break fencing on purpose: bound, persist, deadman, freeze, grant, confirm or clock")
)

// simTally is what happened in some histories: a proof of which nothing happened is
// none.
type simTally struct {
	faults      map[string]int
	starts      int // of containers of fenced pods
	moves       int // starts of a fenced pod on another node than the one before
	killed      int // containers of fenced pods that a dead-man killed
	tooLate     int // starts that a frozen control group held back
	leaderships int
	keptThrough int // unfenced containers that ran on through the loss of all peers
	served      int // of these, endpoints of a Service that stayed
	violations  []string
}

// simMachine is a node's machine.
type simMachine struct {
	name    string
	s       *fencingSim
	rt      *fake.Runtime
	net     *fake.Network
	dir     string
	drift   float64 // how fast its clock goes
	booted  time.Time
	asleep  atomic.Int64 // how far its clock is ahead of others: a time.Duration, as wallOff
	wallOff atomic.Int64

	// What outlives the agent.
	guard *simGuard

	mu     sync.Mutex
	cut    map[string]chan struct{} // by peer: closed while the link is cut
	gossip string
	life   *simLife // of the agent; nil: it does not run
	client *simClient
}

// simLife is one life of an agent's process.
type simLife struct {
	mu     sync.Mutex
	frozen chan struct{} // closed when it goes on; nil: it runs
	dead   chan struct{}
	cancel context.CancelFunc
	ended  chan struct{}
}

var errDead = errors.New("the process was killed")

// gate is passed by all that a process does to the world outside.
func (l *simLife) gate(ctx context.Context) error {
	for {
		l.mu.Lock()
		frozen := l.frozen
		l.mu.Unlock()
		select {
		case <-l.dead:
			return errDead
		default:
		}
		if frozen == nil {
			return nil
		}
		select {
		case <-frozen:
		case <-l.dead:
			return errDead
		}
	}
}

func (l *simLife) freeze() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.frozen == nil {
		l.frozen = make(chan struct{})
	}
}

func (l *simLife) thaw() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.frozen != nil {
		close(l.frozen)
		l.frozen = nil
	}
}

// clock is the machine's, since its start.
func (m *simMachine) clock() time.Duration {
	if *fencingMutant == "clock" {
		return time.Hour + time.Since(m.booted) + time.Duration(m.wallOff.Load())
	}
	return time.Second + time.Duration(float64(time.Since(m.booted))*m.drift) + time.Duration(m.asleep.Load())
}

// simGuard is a deadman.Guard whose files are in memory, and whose process is a
// goroutine.
type simGuard struct {
	m *simMachine

	mu          sync.Mutex
	until, seen time.Duration
	pods        map[string]bool
	frozen      map[string]bool
	stop        chan struct{} // ends the dead-man; nil: it does not run
}

// lifeGuard is a simGuard as one life of an agent has it.
type lifeGuard struct {
	*simGuard
	life *simLife
}

func (g lifeGuard) Open() error {
	if *fencingMutant == "persist" { // what begins anew with the agent
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.until > 0 {
			g.until = g.m.clock() + object.FencingTerm
		}
	}
	return nil
}

func (g lifeGuard) Run(ctx context.Context) error {
	for {
		if g.life.gate(ctx) == nil && ctx.Err() == nil {
			g.ensure()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (g *simGuard) ensure() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.pods) == 0 || g.stop != nil || *fencingMutant == "deadman" {
		return
	}
	stop := make(chan struct{})
	g.stop = stop
	w := deadman.Watch{
		Kernel: g,
		Lease: func() (time.Duration, error) {
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.until == 0 {
				return 0, errors.New("no lease")
			}
			return g.until, nil
		},
		Cells: func() []string {
			g.mu.Lock()
			defer g.mu.Unlock()
			return slices.Sorted(maps.Keys(g.pods))
		},
		Seen: func(until time.Duration) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.seen = until
		},
	}
	g.m.s.wg.Go(func() {
		for {
			next, ok := w.Step(g.m.clock())
			if !ok {
				g.mu.Lock()
				if g.stop == stop {
					g.stop = nil
				}
				g.mu.Unlock()
				return
			}
			select {
			case <-stop:
				return
			case <-g.m.s.ctx.Done():
				return
			case <-time.After(time.Duration(float64(next)/g.m.drift) + time.Millisecond):
			}
		}
	})
}

func (g *simGuard) killProcess() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stop != nil {
		close(g.stop)
		g.stop = nil
	}
}

func (g *simGuard) Until() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.until
}

func (g lifeGuard) Renew(until time.Duration) error {
	if err := g.life.gate(context.Background()); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.until = max(g.until, until)
	return nil
}

func (g *simGuard) Seen() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if *fencingMutant == "deadman" {
		return g.until
	}
	return g.seen
}

func (g lifeGuard) Watch(uid string) error {
	if err := g.life.gate(context.Background()); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pods[uid] = true
	return nil
}

func (g lifeGuard) Forget(uid string) error {
	if err := g.life.gate(context.Background()); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.pods, uid)
	delete(g.frozen, uid)
	return nil
}

// Kill, Freeze, Thaw and Frozen are the machine's kernel, for control groups that are
// pods' uids.
func (g *simGuard) Kill(uid string) int {
	n := 0
	for _, c := range g.m.runningIn(uid) {
		if g.m.rt.Crash(uid, c, 137) {
			n++
			g.m.s.count(func(t *simTally) { t.killed++ })
		}
	}
	return n
}

func (g *simGuard) Freeze(uid string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.frozen[uid] = *fencingMutant != "freeze"
}

func (g *simGuard) Thaw(uid string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.frozen, uid)
}

func (g *simGuard) Frozen(uid string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.frozen[uid]
}

// runningIn returns the containers of a pod that run.
func (m *simMachine) runningIn(uid string) (names []string) {
	all, _ := m.rt.List(context.Background())
	for _, p := range all {
		for _, c := range p.Containers {
			if p.UID == uid && c.State == runtime.StateRunning {
				names = append(names, c.ID.Name)
			}
		}
	}
	return names
}

// running returns the uids of pods of which something runs, by namespace and name.
func (m *simMachine) running() map[string]string {
	out := map[string]string{}
	all, _ := m.rt.List(context.Background())
	for _, p := range all {
		for _, c := range p.Containers {
			if c.State == runtime.StateRunning {
				out[m.s.podName(p.UID)] = p.UID
			}
		}
	}
	return out
}

// simRuntime is the machine's containers as one life of its agent has them.
type simRuntime struct {
	*fake.Runtime
	m    *simMachine
	life *simLife
}

// Run only waits: containers go on without the agent.
func (r simRuntime) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (r simRuntime) CreatePod(ctx context.Context, p runtime.Pod) error {
	if err := r.life.gate(ctx); err != nil {
		return err
	}
	r.m.s.named(p.UID, p.Namespace+"/"+p.Name)
	return r.Runtime.CreatePod(ctx, p)
}

func (r simRuntime) RunContainer(ctx context.Context, c runtime.Container) error {
	// Between the decision and the process there is the time to make a container.
	slow := 200
	if r.m.s.chance(4) == 0 {
		slow = 10_000
	}
	time.Sleep(time.Duration(r.m.s.chance(slow)) * time.Millisecond)
	if err := r.life.gate(ctx); err != nil {
		return err
	}
	if r.m.guard.Frozen(c.ID.PodUID) {
		r.m.s.count(func(t *simTally) { t.tooLate++ })
		return errors.New("the control group is frozen")
	}
	err := r.Runtime.RunContainer(ctx, c)
	if err == nil {
		r.m.s.started(r.m, c.ID.PodUID)
	}
	return err
}

func (r simRuntime) StopContainer(ctx context.Context, id runtime.ContainerID, grace time.Duration) error {
	if err := r.life.gate(ctx); err != nil {
		return err
	}
	return r.Runtime.StopContainer(ctx, id, grace)
}

func (r simRuntime) RemovePod(ctx context.Context, uid string) error {
	if err := r.life.gate(ctx); err != nil {
		return err
	}
	return r.Runtime.RemovePod(ctx, uid)
}

func (r simRuntime) RemoveContainer(ctx context.Context, id runtime.ContainerID) error {
	if err := r.life.gate(ctx); err != nil {
		return err
	}
	return r.Runtime.RemoveContainer(ctx, id)
}

// simClient reaches the peers over links that can be cut.
type simClient struct {
	m    *simMachine
	life *simLife

	mu sync.Mutex
	at int
}

func (c *simClient) Peer() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.m.s.peers[c.at%len(c.m.s.peers)]
}

func (c *simClient) SetPeers([]string) {}

func (c *simClient) Access() holdfastv1connect.AccessServiceClient {
	return holdfastv1connect.NewAccessServiceClient(c.connection())
}

func (c *simClient) Switch(string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at++
}

func (c *simClient) Agent() agentv1connect.AgentServiceClient {
	return mutantService{agentv1connect.NewAgentServiceClient(c.connection())}
}

// connection goes to the peer in use. Calls into a cut wait, as packets that get lost,
// until their time is over; those under way break.
func (c *simClient) connection() *connect.Client {
	peer := c.Peer()
	id := pki.Identity{Cluster: testCluster, Role: pki.RoleNode, Name: c.m.name}
	return connect.NewClient(connectinprocess.New(c.m.s.c.servers[peer].rpc), func(next connect.ClientFunc) connect.ClientFunc {
		return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
			if err := c.life.gate(ctx); err != nil {
				return nil, err
			}
			ctx, cancel := context.WithCancel(ctx)
			cut := c.m.link(peer)
			context.AfterFunc(ctx, cancel)
			go func() {
				select {
				case <-cut:
				case <-c.life.dead:
				case <-ctx.Done():
				}
				cancel()
			}()
			select {
			case <-cut:
				select {
				case <-ctx.Done():
				case <-time.After(2 * time.Second):
				}
				return nil, connect.NewError(connect.CodeUnavailable, "no answer")
			default:
			}
			time.Sleep(time.Millisecond)
			return next(withIdentity(ctx, id), spec)
		}
	})
}

// mutantService is what a careless peer would say.
type mutantService struct {
	agentv1connect.AgentServiceClient
}

func (s mutantService) Heartbeat(ctx context.Context, req *agentv1.HeartbeatRequest) (*agentv1.HeartbeatResponse, error) {
	resp, err := s.AgentServiceClient.Heartbeat(ctx, req)
	if err == nil && *fencingMutant == "grant" {
		resp.GrantedAt = req.GetSentAt()
	}
	return resp, err
}

func (s mutantService) Confirm(ctx context.Context, req *agentv1.ConfirmRequest) (*agentv1.ConfirmResponse, error) {
	resp, err := s.AgentServiceClient.Confirm(ctx, req)
	if *fencingMutant == "confirm" {
		return &agentv1.ConfirmResponse{WantedUids: req.GetUids()}, nil
	}
	return resp, err
}

func (m *simMachine) link(peer string) chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cut[peer]
}

func (m *simMachine) setCut(is bool, peers ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range peers {
		select {
		case <-m.cut[p]:
			if !is {
				m.cut[p] = make(chan struct{})
			}
		default:
			if is {
				close(m.cut[p])
			}
		}
	}
}

func (m *simMachine) setGossip(state string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gossip = state
}

// start begins a life of the agent.
func (m *simMachine) start() {
	life := &simLife{dead: make(chan struct{}), ended: make(chan struct{})}
	level := slog.LevelError + 1
	if os.Getenv("HOLDFAST_TEST_LOG") != "" {
		level = slog.LevelInfo
	}
	m.client = &simClient{m: m, life: life, at: m.s.chance(3)}
	a, err := agent.New(agent.Config{
		Node: m.name, Client: m.client, Runtime: simRuntime{m.rt, m, life}, Network: m.net,
		Mounts: volume.Folders{}, DataDir: m.dir, Socket: "none", Address: netip.MustParseAddr("192.0.2.1"), Version: "test", ClusterCA: "none",
		ResolvConf: "/dev/null", ParallelStarts: 4, Guard: lifeGuard{m.guard, life}, Clock: m.clock,
		Logger: slog.New(slog.NewTextHandler(m.s.t.Output(), &slog.HandlerOptions{Level: level})).With("node", m.name),
	})
	if err != nil {
		m.s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(m.s.ctx)
	life.cancel = cancel
	m.mu.Lock()
	m.life = life
	m.mu.Unlock()
	m.s.wg.Go(func() {
		defer close(life.ended)
		if err := a.Run(ctx); err != nil {
			m.s.t.Errorf("agent of %s: %v", m.name, err)
		}
	})
}

// kill ends the agent as SIGKILL does.
func (m *simMachine) kill() {
	m.mu.Lock()
	life := m.life
	m.life = nil
	m.mu.Unlock()
	if life == nil {
		return
	}
	close(life.dead)
	life.cancel()
	<-life.ended
}

// off takes the machine's power, and on gives it back.
func (m *simMachine) off() {
	m.guard.killProcess()
	m.kill()
	m.rt.Close()
}

func (m *simMachine) on() {
	// Its clock goes on: the peers tell starts of a machine apart by its boot id, which is
	// this one's here.
	m.guard.mu.Lock()
	m.guard.until, m.guard.seen, m.guard.frozen = 0, 0, map[string]bool{} // of another start of the machine
	m.guard.mu.Unlock()
	m.start()
}

// fencingSim is one history.
type fencingSim struct {
	t     *testing.T
	c     *cluster
	raft  *storetest.Cluster
	peers []string
	nodes []*simMachine
	ctx   context.Context
	end   context.CancelFunc
	wg    sync.WaitGroup
	begin time.Time

	mu    sync.Mutex
	rand  *rand.Rand
	names map[string]string // of pods, by uid
	last  map[string]string // of fenced pods: the node of the last start
	wall  time.Duration     // how far the peers' wall clocks are off
	tally *simTally
	log   []string
}

func (s *fencingSim) chance(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rand.IntN(n)
}

func (s *fencingSim) count(f func(*simTally)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.tally)
}

func (s *fencingSim) named(uid, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[uid] = name
}

func (s *fencingSim) podName(uid string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names[uid]
}

func (s *fencingSim) note(format string, args ...any) {
	line := fmt.Sprintf("%8.3fs %s", time.Since(s.begin).Seconds(), fmt.Sprintf(format, args...))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, line)
}

// single names the pods of which there must never be two: a StatefulSet's by their
// names, those of a Deployment of one by their Deployment.
func single(name string) string {
	_, pod, _ := strings.Cut(name, "/")
	switch {
	case strings.HasPrefix(pod, "db-"):
		return pod
	case strings.HasPrefix(pod, "one-"):
		return "one"
	default:
		return ""
	}
}

// started is told each start of a container. Two copies of a pod run together if and
// only if one is started while the other runs.
func (s *fencingSim) started(on *simMachine, uid string) {
	name := s.podName(uid)
	one := single(name)
	if one == "" {
		return
	}
	s.note("%s: %s starts (%s)", on.name, name, uid)
	for _, m := range s.nodes {
		for other, otherUID := range m.running() {
			if single(other) == one && otherUID != uid {
				s.note("VIOLATION: %s runs on %s as %s while it starts on %s as %s", one, m.name, otherUID, on.name, uid)
				s.count(func(t *simTally) {
					t.violations = append(t.violations, fmt.Sprintf("%s runs on %s and %s", one, m.name, on.name))
				})
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tally.starts++
	if before := s.last[one]; before != "" && before != on.name {
		s.tally.moves++
	}
	s.last[one] = on.name
}

// simHealth is the evidence on one peer.
type simHealth struct {
	*Heartbeats
	s *fencingSim
}

func (h simHealth) Heartbeat(node string) (time.Duration, bool) {
	age, ok := h.Heartbeats.Heartbeat(node)
	if *fencingMutant == "bound" && age > 3*time.Second { // as if the bound were shorter
		age += 6 * time.Second
	}
	return age, ok
}

func (h simHealth) Gossip(node string) string {
	for _, m := range h.s.nodes {
		if m.name == node {
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.gossip
		}
	}
	return "unknown"
}

func newFencingSim(t *testing.T, seed int, tally *simTally) *fencingSim {
	s := &fencingSim{t: t, rand: rand.New(rand.NewPCG(uint64(seed), 7)), names: map[string]string{}, last: map[string]string{}, tally: tally, begin: time.Now()}
	s.ctx, s.end = context.WithCancel(context.Background())
	s.c, s.raft = newRaftCluster(t, 3, func(cfg *Config) {
		cfg.NewUID = func() string { return fmt.Sprintf("uid-%d-%d", s.chance(1<<30), s.chance(1<<30)) }
		cfg.Now = func() time.Time {
			s.mu.Lock()
			defer s.mu.Unlock()
			return time.Now().Add(s.wall)
		}
	})
	s.peers = slices.Sorted(maps.Keys(s.c.servers))
	for _, p := range s.raft.Peers {
		api := s.c.servers[p.ID]
		s.wg.Go(func() {
			_ = p.Store.Lead(s.ctx, func(ctx context.Context, l *raftstore.Leader) error {
				for ctx.Err() == nil {
					if api.beginReign(ctx, l) == nil {
						break
					}
				}
				s.count(func(t *simTally) { t.leaderships++ })
				s.note("%s leads", p.ID)
				var wg sync.WaitGroup
				wg.Go(func() {
					_ = controllers.New(controllers.Config{Leader: l, Health: simHealth{api.Heartbeats(), s}}).Run(ctx)
				})
				wg.Go(func() { _ = scheduler.New(scheduler.Config{Leader: l}).Run(ctx) })
				wg.Wait()
				return nil
			})
		})
	}
	dir := t.TempDir()
	for i := range 4 {
		m := &simMachine{
			name: fmt.Sprintf("n%d", i+1), s: s, rt: fake.New(fake.Config{}), net: fake.NewNetwork(), dir: filepath.Join(dir, fmt.Sprint(i)),
			drift: 0.996 + 0.002*float64(s.chance(5)), booted: time.Now(), gossip: "alive", cut: map[string]chan struct{}{},
		}
		m.guard = &simGuard{m: m, pods: map[string]bool{}, frozen: map[string]bool{}}
		for _, p := range s.peers {
			m.cut[p] = make(chan struct{})
		}
		s.nodes = append(s.nodes, m)
		s.wg.Go(func() { _ = m.rt.Run(s.ctx) })
		synctest.Wait()
		m.start()
	}
	return s
}

// wanted creates the workloads.
func (s *fencingSim) wanted() {
	s.c.put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", UID: "ns"}})
	template := func(name, image string) corev1.PodTemplateSpec {
		return corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}},
			Spec: corev1.PodSpec{
				TerminationGracePeriodSeconds: new(int64(5)),
				Containers:                    []corev1.Container{{Name: "main", Image: image}},
			},
		}
	}
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name), Generation: 1}
	}
	selector := func(name string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
	}
	db := &appsv1.StatefulSet{ObjectMeta: meta("db"), Spec: appsv1.StatefulSetSpec{
		Replicas: new(int32(3)), Selector: selector("db"), Template: template("db", "fake/stubborn:1"), PodManagementPolicy: appsv1.ParallelPodManagement,
	}}
	one := &appsv1.Deployment{ObjectMeta: meta("one"), Spec: appsv1.DeploymentSpec{
		Replicas: new(int32(1)), Selector: selector("one"), Template: template("one", "web:1"),
		Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
	}}
	one.Spec.Template.Annotations = map[string]string{object.FencingAnnotation: object.FencingStrict}
	web := &appsv1.Deployment{ObjectMeta: meta("web"), Spec: appsv1.DeploymentSpec{Replicas: new(int32(4)), Selector: selector("web"), Template: template("web", "web:1")}}
	front := &corev1.Service{ObjectMeta: meta("web"), Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}}, ClusterIP: corev1.ClusterIPNone,
	}}
	for _, obj := range []object.Object{db, one, web, front} {
		object.Default(obj)
		s.put(obj)
	}
}

func (s *fencingSim) put(obj object.Object) {
	data, err := object.Encode(obj)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.raft.WaitLeader().Store.Txn(s.ctx, raftstore.Txn{Then: []raftstore.Op{raftstore.Put(string(object.KeyOf(obj)), data)}}); err != nil {
		s.t.Fatal(err)
	}
}

// serving returns how many of the workloads' pods run.
func (s *fencingSim) serving() (fenced, others int) {
	for _, m := range s.nodes {
		for name := range m.running() {
			if single(name) != "" {
				fenced++
			} else {
				others++
			}
		}
	}
	return fenced, others
}

// await runs time until all pods run, or fails the test.
func (s *fencingSim) await(what string, limit time.Duration) {
	for start := time.Now(); ; time.Sleep(250 * time.Millisecond) {
		fenced, others := s.serving()
		if fenced == 4 && others >= 4 {
			return
		}
		if time.Since(start) > limit {
			s.t.Errorf("%s: after %v %d fenced pods and %d others run, want 4 and 4", what, limit, fenced, others)
			return
		}
	}
}

func (s *fencingSim) fault(kind, format string, args ...any) {
	s.note("FAULT "+kind+" "+format, args...)
	s.count(func(t *simTally) { t.faults[kind]++ })
}

func (s *fencingSim) sleep(least, most time.Duration) {
	time.Sleep(least + time.Duration(s.chance(int((most-least)/time.Millisecond)))*time.Millisecond)
}

// strike does one thing to the cluster and undoes it after some time.
func (s *fencingSim) strike() {
	m := s.nodes[s.chance(len(s.nodes))]
	switch s.chance(10) {
	case 0: // nobody hears the machine, and it hears nobody
		s.fault("cut", "%s from all", m.name)
		m.setCut(true, s.peers...)
		s.sleep(time.Second, 5*time.Second)
		m.setGossip("dead")
		s.sleep(time.Second, 30*time.Second)
		m.setGossip("alive")
		m.setCut(false, s.peers...)
	case 1: // cut from the peers only
		s.fault("isolate", "%s from the peers", m.name)
		m.setCut(true, s.peers...)
		s.sleep(time.Second, 30*time.Second)
		m.setCut(false, s.peers...)
	case 2: // the peer that it is with, or some, perhaps the leader
		n := 1 + s.chance(2)
		s.fault("cut-some", "%s from %d peers", m.name, n)
		some := slices.Clone(s.peers)
		some = slices.Delete(some, 0, len(some)-n)
		m.setCut(true, some...)
		s.sleep(time.Second, 20*time.Second)
		m.setCut(false, some...)
	case 3: // the agent stands still, cut off or not
		life := m.life
		both := s.chance(2) == 0
		if s.chance(2) == 0 { // while it starts what crashed
			for name, uid := range m.running() {
				if single(name) != "" {
					m.rt.Crash(uid, "main", 1)
				}
			}
			s.sleep(0, 300*time.Millisecond)
		}
		s.fault("freeze", "the agent of %s, cut: %v", m.name, both)
		life.freeze()
		m.setGossip("dead")
		if both {
			m.setCut(true, s.peers...)
		}
		s.sleep(time.Second, 40*time.Second)
		if s.chance(2) == 0 { // the link comes back first: what the agent was about to do is late
			m.setCut(false, s.peers...)
			s.sleep(0, 2*time.Second)
		}
		life.thaw()
		s.sleep(0, 2*time.Second)
		m.setCut(false, s.peers...)
		m.setGossip("alive")
	case 4: // the agent dies, and comes back
		s.fault("kill", "the agent of %s", m.name)
		m.kill()
		m.setGossip("dead")
		s.sleep(time.Millisecond, 30*time.Second)
		m.start()
		m.setGossip("alive")
	case 5: // it dies while it is cut off, and comes back before the link does
		s.fault("kill-cut", "the agent of %s", m.name)
		m.setCut(true, s.peers...)
		m.setGossip("dead")
		s.sleep(time.Millisecond, 8*time.Second)
		m.kill()
		s.sleep(time.Millisecond, 4*time.Second)
		m.start()
		s.sleep(time.Second, 20*time.Second)
		m.setCut(false, s.peers...)
		m.setGossip("alive")
	case 6: // the machine is started anew
		s.fault("power", "%s", m.name)
		m.off()
		m.setGossip("dead")
		s.sleep(time.Second, 25*time.Second)
		m.on()
		m.setGossip("alive")
	case 7: // clocks: people's everywhere, and the machine's goes ahead as after a sleep
		s.fault("clock", "%s", m.name)
		s.mu.Lock()
		s.wall += time.Duration(s.rand.IntN(7200)-3600) * time.Second
		s.mu.Unlock()
		m.wallOff.Add(-int64(s.chance(60)) * int64(time.Second))
		m.asleep.Add(int64(s.chance(5000)) * int64(time.Millisecond))
		m.setCut(true, s.peers...)
		m.setGossip("dead")
		s.sleep(time.Second, 20*time.Second)
		m.setGossip("alive")
		m.setCut(false, s.peers...)
	case 8: // another leader: the old one is cut off from the others, not from the nodes
		leader := s.raft.WaitLeader()
		s.fault("leader", "%s is cut off", leader.ID)
		s.raft.Cut([]*storetest.Peer{leader}, s.raft.Others(leader))
		for _, to := range s.raft.Others(leader) {
			s.c.setDown(to.ID, true)
			s.c.setDown(leader.ID, true)
		}
		// A node is lost with it, of those that it hears if there is one.
		for _, other := range s.nodes {
			if other.client.Peer() == leader.ID {
				m = other
			}
		}
		m.setCut(true, s.raft.Others(leader)[0].ID, s.raft.Others(leader)[1].ID)
		if s.chance(3) > 0 {
			m.setGossip("dead")
		}
		s.sleep(time.Second, 40*time.Second)
		for _, p := range s.raft.Peers {
			s.c.setDown(p.ID, false)
		}
		s.raft.Heal()
		m.setCut(false, s.peers...)
		m.setGossip("alive")
	case 9: // the dead-man dies alone; the agent makes another
		s.fault("deadman", "of %s", m.name)
		m.guard.killProcess()
		time.Sleep(2 * time.Second)
	}
}

// loseAllPeers cuts every node from every peer. What is not fenced runs on, and is taken
// out of service nowhere.
func (s *fencingSim) loseAllPeers() {
	s.fault("all-peers", "are lost")
	before := map[string]string{}
	for _, m := range s.nodes {
		for name, uid := range m.running() {
			if single(name) == "" {
				before[uid] = m.name
			}
		}
		m.setCut(true, s.peers...)
	}
	served := s.readyEndpoints()
	seen := "alive"
	if s.chance(2) == 0 {
		seen = "dead" // to the peers: it is they who are cut off
	}
	for _, m := range s.nodes {
		m.setGossip(seen)
	}
	s.sleep(20*time.Second, time.Minute)
	after := map[string]string{}
	for _, m := range s.nodes {
		for name, uid := range m.running() {
			if one := single(name); one == "" {
				after[uid] = m.name
			} else {
				s.t.Errorf("fenced pod %s runs on %s with no peer to renew its lease", name, m.name)
			}
		}
	}
	if !maps.Equal(before, after) {
		s.t.Errorf("without any peer, unfenced pods were %v and are %v", before, after)
	}
	view := s.raft.WaitLeader().Store.View()
	serving := s.readyEndpoints()
	for uid := range after {
		pod, ok := object.Get[*corev1.Pod](view, object.ResourceOf(&corev1.Pod{}).Key("default", strings.TrimPrefix(s.podName(uid), "default/")))
		switch {
		case !ok || string(pod.UID) != uid: // replaced before; its node has not been told
		case object.Deleting(pod), !object.PodReady(pod):
			s.t.Errorf("without any peer, pod %s was taken out of service", pod.Name)
		case served[uid] && !serving[uid]:
			s.t.Errorf("without any peer, the endpoint of pod %s was withdrawn", pod.Name)
		case served[uid]:
			s.count(func(t *simTally) { t.keptThrough++; t.served++ })
		default:
			s.count(func(t *simTally) { t.keptThrough++ })
		}
	}
	for _, m := range s.nodes {
		m.setCut(false, s.peers...)
		m.setGossip("alive")
	}
}

// readyEndpoints returns the uids of pods that slices show as ready endpoints.
func (s *fencingSim) readyEndpoints() map[string]bool {
	ready := map[string]bool{}
	for _, slice := range object.List[*discoveryv1.EndpointSlice](s.raft.WaitLeader().Store.View(), "") {
		for _, e := range slice.Endpoints {
			if e.TargetRef != nil && e.Conditions.Ready != nil && *e.Conditions.Ready {
				ready[string(e.TargetRef.UID)] = true
			}
		}
	}
	return ready
}

// playFencing plays one history.
func playFencing(t *testing.T, seed int, tally *simTally) {
	synctest.Test(t, func(t *testing.T) {
		s := newFencingSim(t, seed, tally)
		before := len(tally.violations)
		s.wanted()
		s.await("at the beginning", time.Minute)
		for range 5 {
			s.sleep(0, 15*time.Second)
			s.strike()
		}
		s.sleep(20*time.Second, 30*time.Second)
		s.await("after the faults", 2*time.Minute)
		s.loseAllPeers()
		s.await("at the end", 2*time.Minute)
		for _, m := range s.nodes {
			m.kill()
			m.guard.killProcess()
		}
		s.end()
		for _, m := range s.nodes {
			m.rt.Close()
		}
		for _, stop := range s.c.stops {
			stop()
		}
		s.wg.Wait()
		if t.Failed() || len(tally.violations) > before {
			t.Logf("history %d:\n%s", seed, strings.Join(s.log, "\n"))
		}
	})
}

// TestFencingHistories is promise I5, and I7 beside it.
func TestFencingHistories(t *testing.T) {
	n := *fencingHistories
	if n == 0 {
		n = 1 // make test plays 40 without the race detector
	}
	tally := &simTally{faults: map[string]int{}}
	for i := range n {
		t.Run(fmt.Sprint(*fencingFirst+i), func(t *testing.T) { playFencing(t, *fencingFirst+i, tally) })
	}
	t.Logf("%d histories: faults %v, %d leaderships, %d starts of fenced pods, %d of them on another node, %d killed by a dead-man, %d starts held back, %d pods kept without peers, %d of them endpoints, %d overlaps",
		n, tally.faults, tally.leaderships, tally.starts, tally.moves, tally.killed, tally.tooLate, tally.keptThrough, tally.served, len(tally.violations))
	for _, v := range tally.violations {
		t.Errorf("overlap: %s", v)
	}
	if tally.starts < 4*n || tally.keptThrough < n || tally.served < n || n >= 20 && (tally.moves < n/2 || tally.killed < n/2) {
		t.Errorf("the histories prove nothing: %+v", tally)
	}
}
