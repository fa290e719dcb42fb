package apiserver

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// policyHistory is how many changes of pods are remembered; a stream that is further
// behind compares everything.
const policyHistory = 10_000

var policyPrefix = object.ResourceOf(&networkingv1.NetworkPolicy{}).Prefix("")

// policyIndex knows, for each node, which pods the policies of the node's own pods ask
// about: so that a node is told of those and of no others. Selections that several
// policies share are evaluated once, a pod is compared with those that may select its
// namespace only, and nothing at all is done in a cluster without policies. It is part
// of a [networkIndex], under its lock.
type policyIndex struct {
	loaded     bool // pods are in: there is, or was, a policy
	policies   map[string]*policyEntry
	selections map[string]*selectionEntry
	namespaces map[string]map[string]string // their labels
	pods       map[string]*podEntry         // by namespace/name
	byNS       map[string]map[string]*podEntry
	nodes      map[string]*policyNode
	// changed are the names of pods in the order of their changes, of which the first
	// is number since.
	changed []string
	since   int
}

type policyEntry struct {
	subject object.PodSelection
	peers   []object.PodSelection
}

type selectionEntry struct {
	object.PodSelection
	policies int // that name it
	members  map[string]*podEntry
}

// podEntry is a pod that is on a node and has not ended.
type podEntry struct {
	revision int64
	name     string // namespace/name
	pod      *agentv1.PolicyPod
	selected map[string]bool // by these selections
	subject  map[string]bool // of these policies
}

// policyNode is what the policies of a node's pods ask.
type policyNode struct {
	version int            // counts changes of the keys of wants
	wants   map[string]int // selections -> how often
}

func newPolicyIndex() policyIndex {
	return policyIndex{
		policies: map[string]*policyEntry{}, selections: map[string]*selectionEntry{}, namespaces: map[string]map[string]string{},
		pods: map[string]*podEntry{}, byNS: map[string]map[string]*podEntry{}, nodes: map[string]*policyNode{},
	}
}

func (x *policyIndex) node(name string) *policyNode {
	n := x.nodes[name]
	if n == nil {
		n = &policyNode{wants: map[string]int{}}
		x.nodes[name] = n
	}
	return n
}

func (n *policyNode) want(key string, by int) {
	before := n.wants[key]
	if n.wants[key] += by; n.wants[key] == 0 {
		delete(n.wants, key)
	}
	if (before == 0) != (n.wants[key] == 0) {
		n.version++
	}
}

// load takes in all pods, before the first policy.
func (x *policyIndex) load(view raftstore.View) {
	if x.loaded {
		return
	}
	x.loaded = true
	for kv := range view.Prefix(podPrefix) {
		if !object.Unbound(kv.Value) {
			x.setPod(kv.Key, kv.Value, kv.Mod)
		}
	}
}

// setPolicy takes in a policy, nil if it is gone.
func (x *policyIndex) setPolicy(key string, np *networkingv1.NetworkPolicy) {
	if old := x.policies[key]; old != nil {
		delete(x.policies, key)
		for _, pod := range x.byNS[old.subject.Namespace()] {
			if pod.subject[key] {
				delete(pod.subject, key)
				x.ask(pod.pod.GetNode(), old, -1)
			}
		}
		for _, peer := range old.peers {
			s := x.selections[peer.Key()]
			if s.policies--; s.policies > 0 {
				continue
			}
			delete(x.selections, peer.Key())
			for _, pod := range s.members {
				delete(pod.selected, peer.Key())
			}
		}
	}
	if np == nil {
		return
	}
	now := &policyEntry{subject: object.PolicySubject(np), peers: object.PolicyPeers(np)}
	x.policies[key] = now
	for _, peer := range now.peers {
		s := x.selections[peer.Key()]
		if s == nil {
			s = &selectionEntry{PodSelection: peer, members: map[string]*podEntry{}}
			x.selections[peer.Key()] = s
			for namespace, pods := range x.byNS {
				if s.SelectsNamespace(namespace, x.namespaces[namespace]) {
					for _, pod := range pods {
						x.compare(pod, s)
					}
				}
			}
		}
		s.policies++
	}
	for _, pod := range x.byNS[np.Namespace] {
		if now.subject.SelectsLabels(pod.pod.GetLabels()) {
			pod.subject[key] = true
			x.ask(pod.pod.GetNode(), now, 1)
		}
	}
}

// ask counts a policy of a pod on a node.
func (x *policyIndex) ask(node string, policy *policyEntry, by int) {
	n := x.node(node)
	for _, peer := range policy.peers {
		n.want(peer.Key(), by)
	}
}

// compare makes a pod whose namespace may be selected a member of a selection, or not.
func (x *policyIndex) compare(pod *podEntry, s *selectionEntry) {
	if s.SelectsLabels(pod.pod.GetLabels()) {
		pod.selected[s.Key()], s.members[pod.name] = true, pod
	} else {
		delete(pod.selected, s.Key())
		delete(s.members, pod.name)
	}
}

// setNamespace takes in a namespace's labels, nil if it is gone.
func (x *policyIndex) setNamespace(name string, labels map[string]string) (news bool) {
	before := x.namespaces[name]
	if delete(x.namespaces, name); labels != nil {
		x.namespaces[name] = labels
	}
	for _, s := range x.selections {
		was, is := s.SelectsNamespace(name, before), s.SelectsNamespace(name, labels)
		if was == is {
			continue
		}
		for _, pod := range x.byNS[name] {
			if is {
				x.compare(pod, s)
			} else {
				delete(pod.selected, s.Key())
				delete(s.members, pod.name)
			}
			x.log(pod.name)
			news = true
		}
	}
	return news
}

// setPod takes in a pod as it is stored, and reports whether that is news for any
// node.
func (x *policyIndex) setPod(key string, value []byte, revision int64) (news bool) {
	name := strings.TrimPrefix(key, podPrefix)
	if have := x.pods[name]; have != nil && have.revision >= revision {
		return false // it was loaded newer
	}
	if object.Unbound(value) {
		return x.removePod(name, revision)
	}
	in := decodedAs[*corev1.Pod](key, value, revision)
	if in.Spec.NodeName == "" || in.Spec.HostNetwork || in.Status.Phase == corev1.PodSucceeded || in.Status.Phase == corev1.PodFailed {
		return x.removePod(name, revision)
	}
	pod := policyPod(in)
	have := x.pods[name]
	if have != nil && proto.Equal(have.pod, pod) {
		have.revision = revision
		return false
	}
	if have != nil {
		news = x.removePod(name, revision)
	}
	now := &podEntry{revision: revision, name: name, pod: pod, selected: map[string]bool{}, subject: map[string]bool{}}
	x.pods[name] = now
	if x.byNS[in.Namespace] == nil {
		x.byNS[in.Namespace] = map[string]*podEntry{}
	}
	x.byNS[in.Namespace][name] = now
	for _, s := range x.selections {
		if s.SelectsNamespace(in.Namespace, x.namespaces[in.Namespace]) {
			x.compare(now, s)
		}
	}
	for policy, p := range x.policies {
		if p.subject.Namespace() == in.Namespace && p.subject.SelectsLabels(in.Labels) {
			now.subject[policy] = true
			x.ask(in.Spec.NodeName, p, 1)
			news = true
		}
	}
	if len(now.selected) > 0 {
		x.log(name)
		news = true
	}
	return news
}

func (x *policyIndex) removePod(name string, revision int64) (news bool) {
	have := x.pods[name]
	if have == nil || have.revision > revision {
		return false
	}
	namespace := have.pod.GetNamespace()
	delete(x.pods, name)
	if delete(x.byNS[namespace], name); len(x.byNS[namespace]) == 0 {
		delete(x.byNS, namespace)
	}
	for key := range have.selected {
		delete(x.selections[key].members, name)
	}
	for policy := range have.subject {
		x.ask(have.pod.GetNode(), x.policies[policy], -1)
		news = true
	}
	if len(have.selected) > 0 {
		x.log(name)
		news = true
	}
	return news
}

func (x *policyIndex) log(name string) {
	x.changed = append(x.changed, name)
	if len(x.changed) >= 2*policyHistory {
		x.since += policyHistory
		x.changed = slices.Clone(x.changed[policyHistory:])
	}
}

// policyPod is what policies ask about a pod.
func policyPod(in *corev1.Pod) *agentv1.PolicyPod {
	pod := &agentv1.PolicyPod{Namespace: in.Namespace, Name: in.Name, Labels: in.Labels, Node: in.Spec.NodeName}
	for _, ip := range in.Status.PodIPs {
		pod.Ips = append(pod.Ips, ip.IP)
	}
	if len(pod.Ips) == 0 && in.Status.PodIP != "" {
		pod.Ips = []string{in.Status.PodIP}
	}
	for _, p := range object.NamedPorts(in) {
		pod.Ports = append(pod.Ports, &agentv1.PolicyPort{Name: p.Name, Protocol: string(p.Protocol), Port: uint32(p.ContainerPort)})
	}
	return pod
}

// podStream is what a node was told of pods over one stream.
type podStream struct {
	started  bool
	restarts int // of the index
	version  int // of the node
	at       int // number of the next change
	sent     map[string]*agentv1.PolicyPod
}

// podNews is what a node is to be told.
type podNews struct {
	all     bool // pods are all there are
	pods    []*agentv1.PolicyPod
	removed []string
}

func (n podNews) empty() bool { return !n.all && len(n.pods)+len(n.removed) == 0 }

// news returns what a stream has not been told, and counts it as told.
func (x *policyIndex) news(node string, s *podStream) podNews {
	n := x.node(node)
	news := podNews{all: !s.started}
	end := x.since + len(x.changed)
	if s.sent == nil {
		s.sent = map[string]*agentv1.PolicyPod{}
	}
	tell := func(name string) {
		have, told := s.sent[name]
		var now *agentv1.PolicyPod
		if e := x.pods[name]; e != nil && len(e.pod.GetIps()) > 0 && wanted(n, e) {
			now = e.pod
		}
		switch {
		case now != nil && now != have:
			news.pods = append(news.pods, now)
			s.sent[name] = now
		case now == nil && told:
			news.removed = append(news.removed, name)
			delete(s.sent, name)
		}
	}
	if s.started && s.version == n.version && s.at >= x.since {
		names := slices.Clone(x.changed[s.at-x.since:])
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			tell(name)
		}
	} else {
		names := map[string]bool{}
		for key := range n.wants {
			for name := range x.selections[key].members {
				names[name] = true
			}
		}
		for name := range s.sent {
			names[name] = true
		}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			tell(name)
		}
	}
	s.started, s.version, s.at = true, n.version, end
	return news
}

func wanted(n *policyNode, pod *podEntry) bool {
	for key := range pod.selected {
		if n.wants[key] > 0 {
			return true
		}
	}
	return false
}
