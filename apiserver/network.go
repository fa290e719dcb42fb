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
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// networkHistory is how many changed keys a peer remembers, for agents that come
	// back to go on from where they were.
	networkHistory = 10_000
	// networkMessageBytes is where a message ends and the next begins.
	networkMessageBytes = 1 << 20
	// podsPerMessage likewise, of pods.
	podsPerMessage = 4000
)

var (
	namespacePrefix = namespaceResource.Prefix("")
	ingressPrefix   = object.ResourceOf(&networkingv1.Ingress{}).Prefix("")
	secretResource  = object.ResourceOf(&corev1.Secret{})
	secretPrefix    = secretResource.Prefix("")
	networkPrefixes = []string{
		object.ResourceOf(&corev1.Service{}).Prefix(""), object.ResourceOf(&discoveryv1.EndpointSlice{}).Prefix(""), ingressPrefix,
		object.ResourceOf(&networkingv1.IngressClass{}).Prefix(""), object.ResourceOf(&networkingv1.NetworkPolicy{}).Prefix(""), namespacePrefix,
	}
)

func ofNetwork(key string) bool {
	return slices.ContainsFunc(networkPrefixes, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
}

// networkIndex holds what every node has to know of the cluster's network, as it is
// stored, and what changed last. One goroutine keeps it level with the store; what
// is sent is put together and encoded once, however many agents take it.
type networkIndex struct {
	mu       sync.Mutex
	revision int64 // everything up to here is in; 0: not filled yet
	objects  map[string]input
	secrets  map[string]input
	named    map[string]map[string]bool // by Ingress: the keys of Secrets that it names
	nodes    map[string]networkNode
	// changed are the keys in the order of their changes; what changed up to since is
	// forgotten.
	changed  []changedKey
	since    int64
	restarts int           // counts when everything was filled anew
	tls      int           // counts changes of what ingress nodes alone are told
	woken    chan struct{} // closed at the next change
	// advanced is closed when revision grows.
	advanced chan struct{}
	encoded  map[int64]*networkMessages
	hash     uint64 // see object.RevisionSum; of objects
	policy   policyIndex
	view     func() raftstore.View
}

type changedKey struct {
	revision int64
	key      string
}

type networkNode struct {
	zone    string
	ingress bool
}

// networkMessages takes an agent from a revision (0: from nothing) to another. It is
// shared by all streams and is not changed.
type networkMessages struct {
	complete bool
	revision int64
	parts    [][]byte // NetworkChanges
}

func newNetworkIndex() *networkIndex {
	x := &networkIndex{woken: make(chan struct{}), advanced: make(chan struct{})}
	x.clear()
	return x
}

func (x *networkIndex) clear() {
	x.objects, x.secrets = make(map[string]input), make(map[string]input)
	x.named, x.nodes = make(map[string]map[string]bool), make(map[string]networkNode)
	x.changed, x.encoded = nil, make(map[int64]*networkMessages)
	x.policy, x.hash = newPolicyIndex(), 0
}

// run follows the store until ctx ends.
func (x *networkIndex) run(ctx context.Context, store *raftstore.Store) error {
	select {
	case <-ctx.Done():
		return nil
	case <-store.Ready():
	}
	x.view = store.View
	for {
		view := store.View()
		x.reset(view)
		cursor := store.Watch("", view.Revision())
		for {
			events, upTo, err := cursor.Next(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, raftstore.ErrCompacted) {
				break
			}
			if err != nil {
				return fmt.Errorf("watch the network's state: %w", err)
			}
			x.apply(events, upTo)
		}
	}
}

func (x *networkIndex) reset(view raftstore.View) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.clear()
	x.restarts++ // streams compare all they were told
	for _, prefix := range append([]string{secretPrefix, nodePrefix}, networkPrefixes...) {
		for kv := range view.Prefix(prefix) {
			x.set(kv.Key, kv.Value, kv.Mod)
		}
	}
	x.changed, x.since = nil, view.Revision()
	x.advance(view.Revision(), true)
}

func (x *networkIndex) apply(events []raftstore.Event, upTo int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	news := false
	for _, e := range events {
		if e.Type == raftstore.EventPut {
			news = x.set(e.Key, e.KV.Value, e.Revision) || news
		} else {
			news = x.remove(e.Key, e.Revision) || news
		}
	}
	if extra := len(x.changed) - networkHistory; extra > 0 {
		x.since = x.changed[extra-1].revision
		x.changed = slices.Clone(x.changed[extra:])
	}
	x.advance(upTo, news)
}

// set takes in an object and reports whether that is news for any node.
func (x *networkIndex) set(key string, value []byte, revision int64) bool {
	switch {
	case ofNetwork(key):
		if strings.HasPrefix(key, ingressPrefix) {
			x.name(key, ingressSecrets(decodedAs[*networkingv1.Ingress](key, value, revision)))
		}
		x.count(key)
		x.objects[key] = input{revision: revision, value: value}
		x.hash += object.RevisionSum(key, revision)
		x.changed = append(x.changed, changedKey{revision, key})
		switch {
		case strings.HasPrefix(key, policyPrefix):
			x.policy.load(x.view())
			x.policy.setPolicy(key, decodedAs[*networkingv1.NetworkPolicy](key, value, revision))
		case strings.HasPrefix(key, namespacePrefix):
			ns := decodedAs[*corev1.Namespace](key, value, revision)
			x.policy.setNamespace(ns.Name, ns.Labels)
		}
		return true
	case strings.HasPrefix(key, podPrefix):
		return x.policy.loaded && x.policy.setPod(key, value, revision)
	case strings.HasPrefix(key, secretPrefix):
		x.secrets[key] = input{revision: revision, value: value}
		return x.secretChanged(key)
	case strings.HasPrefix(key, nodePrefix):
		node := decodedAs[*corev1.Node](key, value, revision)
		label, is := node.Labels[object.IngressNodeLabel]
		now := networkNode{zone: node.Labels[corev1.LabelTopologyZone], ingress: is && label != "false"}
		before, known := x.nodes[node.Name]
		x.nodes[node.Name] = now
		return !known || before != now
	}
	return false
}

func (x *networkIndex) remove(key string, revision int64) bool {
	switch {
	case ofNetwork(key):
		if strings.HasPrefix(key, ingressPrefix) {
			x.name(key, nil)
		}
		x.count(key)
		delete(x.objects, key)
		x.changed = append(x.changed, changedKey{revision, key})
		switch {
		case strings.HasPrefix(key, policyPrefix):
			x.policy.setPolicy(key, nil)
		case strings.HasPrefix(key, namespacePrefix):
			x.policy.setNamespace(strings.TrimPrefix(key, namespacePrefix), nil)
		}
		return true
	case strings.HasPrefix(key, podPrefix):
		return x.policy.removePod(strings.TrimPrefix(key, podPrefix), revision)
	case strings.HasPrefix(key, secretPrefix):
		delete(x.secrets, key)
		return x.secretChanged(key)
	case strings.HasPrefix(key, nodePrefix):
		delete(x.nodes, strings.TrimPrefix(key, nodePrefix))
		return true
	}
	return false
}

// count takes an object that is to change out of the hash.
func (x *networkIndex) count(key string) {
	if before, ok := x.objects[key]; ok {
		x.hash -= object.RevisionSum(key, before.revision)
	}
}

func (x *networkIndex) name(ingress string, secrets map[string]bool) {
	if maps.Equal(x.named[ingress], secrets) {
		return
	}
	x.tls++
	if delete(x.named, ingress); len(secrets) > 0 {
		x.named[ingress] = secrets
	}
}

func (x *networkIndex) secretChanged(key string) bool {
	for _, named := range x.named {
		if named[key] {
			x.tls++
			return true
		}
	}
	return false
}

func ingressSecrets(ingress *networkingv1.Ingress) map[string]bool {
	keys := make(map[string]bool)
	for _, tls := range ingress.Spec.TLS {
		if tls.SecretName != "" {
			keys[string(secretResource.Key(ingress.Namespace, tls.SecretName))] = true
		}
	}
	return keys
}

func decodedAs[T object.Object](key string, value []byte, revision int64) T {
	obj, err := object.Decode(value, revision)
	if err != nil {
		panic(fmt.Sprintf("apiserver: stored object %s: %v", key, err)) // it was valid when it was written
	}
	return obj.(T)
}

func (x *networkIndex) advance(revision int64, news bool) {
	x.revision = revision
	close(x.advanced)
	x.advanced = make(chan struct{})
	if !news {
		return
	}
	clear(x.encoded)
	close(x.woken)
	x.woken = make(chan struct{})
}

// messages returns what takes an agent that has revision from to what the index
// holds, nil if nothing has changed since.
func (x *networkIndex) messages(from int64) *networkMessages {
	complete := from < x.since || from == 0
	if complete {
		from = 0
	}
	if m, ok := x.encoded[from]; ok {
		return m
	}
	m := &networkMessages{complete: complete, revision: x.revision}
	var changes agentv1.NetworkChanges
	size := 0
	flush := func() {
		data, err := proto.Marshal(&changes)
		if err != nil {
			panic(fmt.Sprintf("apiserver: encode the network's state: %v", err))
		}
		m.parts = append(m.parts, data)
		changes, size = agentv1.NetworkChanges{}, 0
	}
	add := func(key string) {
		if in, ok := x.objects[key]; ok {
			changes.Objects = append(changes.Objects, &agentv1.Input{Key: key, Revision: in.revision, Object: in.value})
			size += len(key) + len(in.value)
		} else {
			changes.Removed = append(changes.Removed, key)
			size += len(key)
		}
		if size >= networkMessageBytes {
			flush()
		}
	}
	if complete {
		for _, key := range slices.Sorted(maps.Keys(x.objects)) {
			add(key)
		}
	} else {
		first, _ := slices.BinarySearchFunc(x.changed, from+1, func(c changedKey, revision int64) int { return int(c.revision - revision) })
		keys := make(map[string]bool)
		for _, c := range x.changed[first:] {
			keys[c.key] = true
		}
		for _, key := range slices.Sorted(maps.Keys(keys)) {
			add(key)
		}
	}
	switch {
	case size > 0 || complete && len(m.parts) == 0:
		flush()
	case len(m.parts) == 0:
		m = nil
	}
	x.encoded[from] = m
	return m
}

// news is what an agent is to be told.
type networkNews struct {
	messages *networkMessages
	known    bool // the node has a Node object
	revision int64
	node     networkNode
	tls      int
	secrets  map[string]input
	woken    <-chan struct{}
	pods     podNews
}

// news returns what a node that has a revision is to be told, and with pods what that
// stream has not been told of pods.
func (x *networkIndex) news(node string, from int64, pods *podStream) networkNews {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := networkNews{messages: x.messages(from), revision: x.revision, woken: x.woken}
	if pods != nil {
		if pods.restarts != x.restarts {
			pods.started, pods.restarts = false, x.restarts
			pods.sent = nil
		}
		n.pods = x.policy.news(node, pods)
	}
	if n.node, n.known = x.nodes[node]; n.node.ingress {
		n.tls, n.secrets = x.tls, make(map[string]input)
		for _, named := range x.named {
			for key := range named {
				if in, ok := x.secrets[key]; ok {
					n.secrets[key] = in
				}
			}
		}
	}
	return n
}

// wait returns once the index is at or past revision.
func (x *networkIndex) wait(ctx context.Context, revision int64) error {
	timeout := time.NewTimer(waitTimeout)
	defer timeout.Stop()
	for {
		x.mu.Lock()
		at, advanced := x.revision, x.advanced
		x.mu.Unlock()
		if at > 0 && at >= revision {
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

// Network streams what the node has to know of the cluster's network. As with
// Desired, an agent that has nothing gets a state that was current when it asked,
// and no message is older than what an agent has.
func (s agentService) Network(ctx context.Context, req *agentv1.NetworkRequest, stream agentv1connect.AgentServiceNetworkServerStream) error {
	node, err := nodeName(ctx)
	if err != nil {
		return err
	}
	if err := stream.SendHeaders(); err != nil { // the wait may be long
		return err
	}
	from := max(req.GetFromRevision(), 0)
	least := from
	if from == 0 || !s.network.news(node, from, nil).known {
		view, err := s.sync(ctx)
		if err != nil {
			return err
		}
		least = max(from, view.Revision())
	}
	// The index follows the store by a moment; no need to begin with the past.
	if err := s.network.wait(ctx, max(least, s.store.View().Revision())); err != nil {
		return err
	}
	var told networkNode
	var pods podStream
	for tls, first := 0, true; ; {
		now := s.network.news(node, from, &pods)
		if !now.known {
			return notRegistered(node)
		}
		tellNode := first || now.node != told || now.tls != tls
		if tellNode || now.messages != nil || !now.pods.empty() {
			if err := s.sendNetwork(stream, now, tellNode); err != nil {
				return err
			}
			from, told, tls, first = now.revision, now.node, now.tls, false
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-now.woken:
		}
	}
}

func (s agentService) sendNetwork(stream agentv1connect.AgentServiceNetworkServerStream, now networkNews, tellNode bool) error {
	last := &agentv1.NetworkResponse{Revision: now.revision, AllPods: now.pods.all, RemovedPods: now.pods.removed}
	for part := range slices.Chunk(now.pods.pods, podsPerMessage) {
		if len(last.GetPods()) > 0 {
			if err := stream.Send(&agentv1.NetworkResponse{Complete: now.messages != nil && now.messages.complete, Unfinished: true, Revision: now.revision, AllPods: last.GetAllPods(), Pods: last.GetPods()}); err != nil {
				return err
			}
			last.AllPods = false
		}
		last.Pods = part
	}
	if m := now.messages; m != nil {
		last.Complete = m.complete
		for i, part := range m.parts {
			if i == len(m.parts)-1 {
				last.Changes = part
				break
			}
			if err := stream.Send(&agentv1.NetworkResponse{Complete: m.complete, Unfinished: true, Revision: m.revision, Changes: part}); err != nil {
				return err
			}
		}
	}
	if tellNode {
		last.Node = &agentv1.NetworkNode{Zone: now.node.zone, Ingress: now.node.ingress, ClusterDomain: s.cfg.ClusterDomain}
		for _, cidr := range s.cfg.PodCIDRs {
			last.Node.PodCidrs = append(last.Node.PodCidrs, cidr.String())
		}
		for _, cidr := range s.cfg.ServiceCIDRs {
			last.Node.ServiceCidrs = append(last.Node.ServiceCidrs, cidr.String())
		}
		for _, key := range slices.Sorted(maps.Keys(now.secrets)) {
			in := now.secrets[key]
			last.Node.Secrets = append(last.Node.Secrets, &agentv1.Input{Key: key, Revision: in.revision, Object: in.value})
		}
		last.Node.Secrets = s.openInputs(last.Node.GetSecrets())
	}
	return stream.Send(last)
}
