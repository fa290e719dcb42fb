package apiserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

// peersScan is how often the addresses of the peers are looked at for changes.
const peersScan = 2 * time.Second

// desiredIndex holds, for each node, what it should run, and all nodes' routes.
// One goroutine keeps it level with the store, so that each change is decoded
// once, however many agents are connected, and wakes only the agents it concerns.
//
// A wake-up carries nothing: the stream that is woken compares what the index
// holds with what it has sent. So no change can be lost on the way, nothing
// queues up behind a slow agent, and a resumed stream is nothing special.
type desiredIndex struct {
	mu       sync.Mutex
	primed   bool
	revision int64                     // everything up to here is in
	pods     map[string]string         // key -> node, of bound pods
	byNode   map[string]map[string]pod // node -> key -> pod
	inputs   inputIndex
	nodes    map[string]nodeEntry
	policies int64                // the revision of the last change of a NetworkPolicy
	routes   int                  // counts changes of any node's route
	routeLog []string             // the nodes of the last of these changes, the newest last
	sorted   []*agentv1.NodeRoute // all routes, by name; nil: to be made
	peers    []string
	streams  int                      // of agents
	wakes    map[string]chan struct{} // node -> closed at its next change
	everyone chan struct{}            // closed at the next change that all are told
	advanced chan struct{}            // closed when revision grows
}

// maxRouteLog bounds the changes of routes that are remembered; who is further behind
// gets all routes.
const maxRouteLog = 4096

// pod is a pod as an agent gets it.
type pod struct {
	uid      string
	revision int64
	data     []byte // Kubernetes' protobuf envelope, with resourceVersion; immutable
	names    []object.Key
}

// nodeEntry is what is known of a node that is in the store.
type nodeEntry struct {
	cidrs []string
	route *agentv1.NodeRoute // nil while it has no address or CIDR; immutable
}

func newDesiredIndex() *desiredIndex {
	d := &desiredIndex{wakes: make(map[string]chan struct{}), everyone: make(chan struct{}), advanced: make(chan struct{})}
	d.clear()
	return d
}

func (d *desiredIndex) clear() {
	d.pods = make(map[string]string)
	d.byNode = make(map[string]map[string]pod)
	d.inputs = newInputIndex()
	d.nodes = make(map[string]nodeEntry)
	d.sorted = nil
}

var podPrefix, nodePrefix = object.ResourceOf(&corev1.Pod{}).Prefix(""), object.ResourceOf(&corev1.Node{}).Prefix("")

// run follows the store until ctx ends.
func (d *desiredIndex) run(ctx context.Context, s *Server) error {
	select {
	case <-ctx.Done():
		return nil
	case <-s.store.Ready():
	}
	ctx, cancel := context.WithCancel(ctx)
	peers := time.NewTicker(peersScan)
	defer peers.Stop()
	scanned := make(chan struct{})
	d.setPeers(s.peerAddresses())
	go func() { // ends with ctx, before run does
		defer close(scanned)
		for {
			select {
			case <-ctx.Done():
				return
			case <-peers.C:
				d.setPeers(s.peerAddresses())
			}
		}
	}()
	defer func() { <-scanned }()
	defer cancel()
	for {
		view := s.store.View()
		d.reset(view)
		cursor := s.store.Watch("", view.Revision())
		for {
			events, upTo, err := cursor.Next(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, raftstore.ErrCompacted) {
				break // too far behind, or a snapshot came: start over
			}
			if err != nil {
				return fmt.Errorf("watch desired state: %w", err)
			}
			d.apply(events, upTo)
		}
	}
}

// reset fills the index from view. Everybody is woken.
func (d *desiredIndex) reset(view raftstore.View) {
	pods := make(map[string]*corev1.Pod)
	nodes := make(map[string]*corev1.Node)
	for _, p := range object.List[*corev1.Pod](view, "") {
		pods[string(object.KeyOf(p))] = p
	}
	for _, n := range object.List[*corev1.Node](view, "") {
		nodes[n.Name] = n
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clear()
	for _, prefix := range inputPrefixes {
		for kv := range view.Prefix(prefix) {
			d.inputs.set(object.Key(kv.Key), kv.Value, kv.Mod)
		}
	}
	for key, p := range pods {
		d.setPod(key, p, revisionOf(p))
	}
	for kv := range view.Prefix(policyPrefix) {
		d.policies = max(d.policies, kv.Mod)
	}
	for name, n := range nodes {
		d.setNode(name, n)
	}
	d.routes++
	d.routeLog = nil // whatever has changed since
	d.primed = true
	d.wakeAll()
	for node := range d.wakes {
		d.wake(node)
	}
	d.advance(view.Revision())
}

// apply takes in the changes up to a revision.
func (d *desiredIndex) apply(events []raftstore.Event, upTo int64) {
	type decodedEvent struct {
		raftstore.Event
		obj object.Object // nil: deleted
	}
	// Decoding needs no lock.
	concern := make([]decodedEvent, 0, len(events))
	for _, e := range events {
		in := decodedEvent{Event: e}
		switch {
		case isInput(e.Key), strings.HasPrefix(e.Key, policyPrefix): // needs no decoding
		case !strings.HasPrefix(e.Key, podPrefix) && !strings.HasPrefix(e.Key, nodePrefix):
			continue
		case e.Type == raftstore.EventPut && strings.HasPrefix(e.Key, podPrefix) && object.Unbound(e.KV.Value):
			// On no node it is as good as gone, and most writes of a pod are before it has one.
		case e.Type == raftstore.EventPut:
			obj, err := object.Decode(e.KV.Value, e.Revision)
			if err != nil {
				panic(fmt.Sprintf("apiserver: stored object %s: %v", e.Key, err)) // it was valid when it was written
			}
			in.obj = obj
		}
		concern = append(concern, in)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range concern {
		if strings.HasPrefix(e.Key, policyPrefix) {
			d.policies = e.Revision
			continue
		}
		if isInput(e.Key) {
			users := d.inputs.users(object.Key(e.Key))
			if e.Type == raftstore.EventPut {
				d.inputs.set(object.Key(e.Key), e.KV.Value, e.Revision)
			} else {
				d.inputs.remove(object.Key(e.Key))
			}
			maps.Copy(users, d.inputs.users(object.Key(e.Key)))
			for node := range users {
				d.wake(node)
			}
			continue
		}
		if name, ok := strings.CutPrefix(e.Key, nodePrefix); ok {
			node, _ := e.obj.(*corev1.Node)
			d.setNode(name, node)
			continue
		}
		p, _ := e.obj.(*corev1.Pod)
		d.setPod(e.Key, p, e.Revision)
	}
	d.advance(upTo)
}

// setPod puts a pod under its node. nil: it is gone.
func (d *desiredIndex) setPod(key string, p *corev1.Pod, revision int64) {
	before, now := d.pods[key], ""
	if p != nil {
		now = p.Spec.NodeName
	}
	if before != "" {
		d.inputs.count(before, d.byNode[before][key].names, -1)
	}
	if before != "" && before != now {
		delete(d.byNode[before], key)
		delete(d.pods, key)
		d.wake(before)
	}
	if now == "" {
		return
	}
	if d.byNode[now] == nil {
		d.byNode[now] = make(map[string]pod)
	}
	d.pods[key] = now
	names := object.PodInputs(p)
	d.inputs.count(now, names, 1)
	d.byNode[now][key] = pod{uid: string(p.UID), revision: revision, data: envelope(p), names: names}
	d.wake(now)
}

// setNode keeps a node's CIDRs and route. nil: it is gone.
func (d *desiredIndex) setNode(name string, node *corev1.Node) {
	before := d.nodes[name]
	if node == nil {
		delete(d.nodes, name)
		d.rerouted(name)
		return
	}
	entry := nodeEntry{cidrs: podCIDRs(node)}
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP && len(entry.cidrs) > 0 {
			entry.route = &agentv1.NodeRoute{Node: name, Address: a.Address, PodCidrs: entry.cidrs, Network: node.Annotations[object.NodeNetworkAnnotation]}
			break
		}
	}
	d.nodes[name] = entry
	if slices.Equal(before.cidrs, entry.cidrs) && before.route.GetAddress() == entry.route.GetAddress() && before.route.GetNetwork() == entry.route.GetNetwork() {
		return
	}
	d.rerouted(name)
}

// rerouted notes that a node's CIDRs or route have changed.
func (d *desiredIndex) rerouted(name string) {
	d.routes++
	if len(d.routeLog) >= 2*maxRouteLog {
		d.routeLog = append([]string(nil), d.routeLog[maxRouteLog:]...)
	}
	d.routeLog = append(d.routeLog, name)
	d.sorted = nil
	d.wake(name)
	d.wakeAll()
}

func (d *desiredIndex) setPeers(peers []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if slices.Equal(d.peers, peers) {
		return
	}
	d.peers = peers
	d.wakeAll()
}

func (d *desiredIndex) wake(node string) {
	if ch, ok := d.wakes[node]; ok {
		close(ch)
		delete(d.wakes, node)
	}
}

func (d *desiredIndex) wakeAll() {
	close(d.everyone)
	d.everyone = make(chan struct{})
}

func (d *desiredIndex) advance(revision int64) {
	if revision > d.revision || !d.primed {
		d.revision = revision
	}
	close(d.advanced)
	d.advanced = make(chan struct{})
}

// snapshot is what a node should know at a revision.
type snapshot struct {
	revision int64
	known    bool // the node has a Node object
	pods     map[string]pod
	inputs   map[object.Key]input
	policies int64
	routes   int
	peers    []string
	woken    <-chan struct{} // closed when a later snapshot may differ in what is the node's own
	everyone <-chan struct{} // in what all are told
}

func (d *desiredIndex) snapshot(node string) snapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	ch, ok := d.wakes[node]
	if !ok {
		ch = make(chan struct{})
		d.wakes[node] = ch
	}
	_, known := d.nodes[node]
	return snapshot{revision: d.revision, known: known, pods: maps.Clone(d.byNode[node]), inputs: d.inputs.of(node, d.byNode[node]), policies: d.policies, routes: d.routes, peers: d.peers, woken: ch, everyone: d.everyone}
}

// network returns the node's own CIDRs and all other nodes' routes, by name.
func (d *desiredIndex) network(node string) (own []string, routes []*agentv1.NodeRoute) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sorted == nil {
		d.sorted = make([]*agentv1.NodeRoute, 0, len(d.nodes))
		for _, name := range slices.Sorted(maps.Keys(d.nodes)) {
			if route := d.nodes[name].route; route != nil {
				d.sorted = append(d.sorted, route)
			}
		}
	}
	routes = make([]*agentv1.NodeRoute, 0, len(d.sorted))
	for _, route := range d.sorted {
		if route.GetNode() != node {
			routes = append(routes, route)
		}
	}
	return d.nodes[node].cidrs, routes
}

// routesSince returns the node's own CIDRs, and what has changed in the routes of other
// nodes since there were so many changes. ok is false if that is no longer known.
func (d *desiredIndex) routesSince(node string, since int) (own []string, changed []*agentv1.NodeRoute, removed []string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	behind := d.routes - since
	if behind > len(d.routeLog) {
		return nil, nil, nil, false
	}
	names := slices.Clone(d.routeLog[len(d.routeLog)-behind:])
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if name == node {
			continue
		}
		if route := d.nodes[name].route; route != nil {
			changed = append(changed, route)
		} else {
			removed = append(removed, name)
		}
	}
	return d.nodes[node].cidrs, changed, removed, true
}

// turn returns when an agent that was told something at that time may be told what all
// are told: so that all of them together are sent no more messages than watches are, and
// a wave of changes comes to each in few. What is the agent's own ends the wait.
func (d *desiredIndex) turn(ctx context.Context, told time.Time, woken <-chan struct{}) {
	d.mu.Lock()
	pause := min(time.Duration(d.streams)*watchPause, maxAgentPause) - time.Since(told)
	d.mu.Unlock()
	if pause < minWatchPause {
		return
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-woken:
	case <-ctx.Done():
	}
}

// maxAgentPause bounds what a wave of changes of the routes may be late for an agent.
const maxAgentPause = 250 * time.Millisecond

// count counts a stream, or with -1 its end.
func (d *desiredIndex) count(by int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.streams += by
}

// wait returns once the index is at or past revision.
func (d *desiredIndex) wait(ctx context.Context, revision int64) error {
	timeout := time.NewTimer(waitTimeout)
	defer timeout.Stop()
	for {
		d.mu.Lock()
		at, primed, advanced := d.revision, d.primed, d.advanced
		d.mu.Unlock()
		if primed && at >= revision {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timeout.C:
			return connect.Errorf(connect.CodeUnavailable,
				"this peer is at revision %d and did not reach %d within %s; ask another peer", at, revision, waitTimeout)
		case <-advanced:
		}
	}
}

// envelope encodes a pod for an agent: as it is stored, with its resourceVersion.
func envelope(p *corev1.Pod) []byte {
	raw, err := p.Marshal()
	if err == nil {
		unknown := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "v1", Kind: "Pod"}, Raw: raw}
		if raw, err = unknown.Marshal(); err == nil {
			return append([]byte("k8s\x00"), raw...)
		}
	}
	panic(fmt.Sprintf("apiserver: encode %s: %v", object.Title(p), err)) // it was decoded from bytes
}

// Desired streams what the node should run. The first message, complete, shows at
// least the revision that the agent has taken in; an agent that has nothing gets
// a state that was current when it asked, so that a machine which comes up beside
// a peer that is cut off does not start pods that run elsewhere by now.
//
// Fails with FailedPrecondition while there is no Node object, and when it is
// deleted: the agent registers again. Unavailable when the peer cannot come up
// with a state that is new enough within 10 s.
func (s agentService) Desired(ctx context.Context, req *agentv1.DesiredRequest, stream agentv1connect.AgentServiceDesiredServerStream) error {
	node, err := nodeName(ctx)
	if err != nil {
		return err
	}
	if err := stream.SendHeaders(); err != nil { // the wait may be long
		return err
	}
	from := req.GetFromRevision()
	if from <= 0 {
		view, err := s.sync(ctx)
		if err != nil {
			return err
		}
		from = view.Revision()
	}
	// The index follows the store by a moment; no need to begin with the past.
	if err := s.desired.wait(ctx, max(from, s.store.View().Revision())); err != nil {
		return err
	}
	if !s.desired.snapshot(node).known {
		// The Node may have been registered through another peer just now.
		view, err := s.sync(ctx)
		if err != nil {
			return err
		}
		if err := s.desired.wait(ctx, view.Revision()); err != nil {
			return err
		}
	}
	s.desired.count(1)
	defer s.desired.count(-1)
	sent := agentState{node: node, changes: req.GetRouteChanges()}
	var told time.Time
	for {
		now := s.desired.snapshot(node)
		if !now.known {
			return notRegistered(node)
		}
		if msg := sent.diff(s.desired, now); msg != nil {
			msg.Inputs = s.openInputs(msg.GetInputs())
			if err := stream.Send(msg); err != nil {
				return err
			}
			told = time.Now()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-now.woken:
		case <-now.everyone:
			s.desired.turn(ctx, told, now.woken)
		}
	}
}

// agentState is what an agent has been sent over one stream.
type agentState struct {
	node    string
	changes bool // of routes are what it wants, not all of them
	started bool
	pods    map[string]pod // by uid
	inputs  map[object.Key]input
	routes  int
	own     []string
	others  []*agentv1.NodeRoute // without changes
	peers   []string
}

// diff returns the message that takes the agent to now, nil if it is there.
func (a *agentState) diff(index *desiredIndex, now snapshot) *agentv1.DesiredResponse {
	msg := &agentv1.DesiredResponse{Complete: !a.started, Revision: now.revision, PolicyRevision: now.policies}
	pods := make(map[string]pod, len(now.pods))
	for _, key := range slices.Sorted(maps.Keys(now.pods)) {
		p := now.pods[key]
		pods[p.uid] = p
		if before, ok := a.pods[p.uid]; !ok || before.revision != p.revision {
			msg.Pods = append(msg.Pods, p.data)
		}
	}
	for _, uid := range slices.Sorted(maps.Keys(a.pods)) {
		if _, still := pods[uid]; !still {
			msg.RemovedPods = append(msg.RemovedPods, uid)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(now.inputs)) {
		in := now.inputs[key]
		if before, ok := a.inputs[key]; !ok || before.revision != in.revision {
			msg.Inputs = append(msg.Inputs, &agentv1.Input{Key: string(key), Revision: in.revision, Object: in.value})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(a.inputs)) {
		if _, still := now.inputs[key]; !still {
			msg.RemovedInputs = append(msg.RemovedInputs, string(key))
		}
	}
	if !a.started || a.routes != now.routes {
		a.reroute(index, msg)
	}
	if !a.started || !slices.Equal(a.peers, now.peers) {
		msg.Peers = now.peers
	}
	a.started, a.pods, a.inputs, a.routes, a.peers = true, pods, now.inputs, now.routes, now.peers
	if !msg.GetComplete() && len(msg.GetPods())+len(msg.GetRemovedPods())+len(msg.GetInputs())+len(msg.GetRemovedInputs())+len(msg.GetPeers())+len(msg.GetChangedRoutes())+len(msg.GetRemovedRoutes()) == 0 && !msg.GetHasRoutes() {
		return nil
	}
	return msg
}

// reroute puts into msg what the agent is to know of routes.
func (a *agentState) reroute(index *desiredIndex, msg *agentv1.DesiredResponse) {
	if a.started && a.changes {
		own, changed, removed, ok := index.routesSince(a.node, a.routes)
		if ok && slices.Equal(own, a.own) {
			msg.ChangedRoutes, msg.RemovedRoutes = changed, removed
			return
		}
	}
	own, others := index.network(a.node)
	if !a.started || !slices.Equal(own, a.own) || a.changes || !slices.EqualFunc(others, a.others, sameRoute) {
		msg.HasRoutes, msg.Routes, msg.PodCidrs = true, others, own
	}
	if a.own = own; !a.changes {
		a.others = others
	}
}

func sameRoute(a, b *agentv1.NodeRoute) bool {
	return a.GetNode() == b.GetNode() && a.GetAddress() == b.GetAddress() && a.GetNetwork() == b.GetNetwork() && slices.Equal(a.GetPodCidrs(), b.GetPodCidrs())
}
