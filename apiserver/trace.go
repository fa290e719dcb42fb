package apiserver

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// Trace says where a connection would go.
func (s networkService) Trace(ctx context.Context, req *holdfastv1.TraceRequest) (*holdfastv1.TraceResponse, error) {
	view, err := s.sync(ctx)
	if err != nil {
		return nil, err
	}
	plan, err := planTrace(view, req)
	if err != nil {
		return nil, err
	}
	for i, path := range plan.paths {
		plan.steps = append(plan.steps, path.steps...)
		for _, node := range path.nodes() {
			plan.steps = append(plan.steps, s.confirm(ctx, node, plan.paths[i]))
		}
	}
	return &holdfastv1.TraceResponse{Reached: plan.reached(), Steps: plan.steps}, nil
}

// confirm asks a node what its rules say of a path.
func (s networkService) confirm(ctx context.Context, node string, p tracePath) *holdfastv1.TraceStep {
	step := &holdfastv1.TraceStep{Level: 1}
	found, err := s.inspect(ctx, &holdfastv1.InspectRequest{Node: node, Packets: []*holdfastv1.Packet{p.packet}})
	switch {
	case err != nil:
		step.Text = fmt.Sprintf("node %s cannot be asked: %s", node, errorText(err))
	case len(found.GetVerdicts()) == 0:
		step.Text = fmt.Sprintf("node %s keeps no packet rules", node)
	case found.GetVerdicts()[0].GetAllowed():
		step.Text = fmt.Sprintf("node %s lets it through, by its rules of revision %d", node, found.GetProgrammed())
	default:
		step.Text = fmt.Sprintf("node %s refuses it, by chain %s of its rules of revision %d", node, found.GetVerdicts()[0].GetBy(), found.GetProgrammed())
		step.Stops = !p.stopped
	}
	return step
}

// tracePlan is where a connection goes by the cluster's state.
type tracePlan struct {
	steps   []*holdfastv1.TraceStep
	stopped bool // before any path
	paths   []tracePath
}

// tracePath is the way to one endpoint.
type tracePath struct {
	steps    []*holdfastv1.TraceStep
	stopped  bool
	packet   *holdfastv1.Packet
	from, to string // nodes; "" if it is not known to be one
}

// nodes are those whose rules judge.
func (p tracePath) nodes() []string {
	all := []string{p.from, p.to}
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(n string) bool { return n == "" })
}

func (p *tracePlan) say(format string, args ...any) {
	p.steps = append(p.steps, &holdfastv1.TraceStep{Text: fmt.Sprintf(format, args...)})
}

func (p *tracePlan) stop(remedy, format string, args ...any) *tracePlan {
	p.stopped = true
	p.steps = append(p.steps, &holdfastv1.TraceStep{Stops: true, Text: fmt.Sprintf(format, args...), Remedy: remedy})
	return p
}

func (p *tracePath) say(format string, args ...any) {
	p.steps = append(p.steps, &holdfastv1.TraceStep{Level: 1, Text: fmt.Sprintf(format, args...)})
}

func (p *tracePath) stop(remedy, format string, args ...any) {
	p.stopped = true
	p.steps = append(p.steps, &holdfastv1.TraceStep{Level: 1, Stops: true, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (p *tracePlan) reached() bool {
	for _, step := range p.steps {
		if step.GetStops() {
			return false
		}
	}
	return len(p.paths) > 0
}

// traceEnd is an end of a connection: an address, and the pod that has it, if any.
type traceEnd struct {
	ip  netip.Addr
	pod *corev1.Pod
}

func (e traceEnd) node() string {
	if e.pod == nil {
		return ""
	}
	return e.pod.Spec.NodeName
}

func (e traceEnd) String() string {
	if e.pod == nil {
		return e.ip.String()
	}
	return fmt.Sprintf("pod %s/%s (%s on %s)", e.pod.Namespace, e.pod.Name, e.ip, e.node())
}

// tracer reads what a trace is made of.
type tracer struct {
	r          object.Reader
	pods       []*corev1.Pod
	policies   []*networkingv1.NetworkPolicy
	namespaces map[string]map[string]string
}

// planTrace says where a connection goes by what r has. It is pure: testdata/trace
// states its whole behavior.
func planTrace(r object.Reader, req *holdfastv1.TraceRequest) (*tracePlan, error) {
	t := &tracer{r: r, pods: object.List[*corev1.Pod](r, ""), policies: object.List[*networkingv1.NetworkPolicy](r, ""), namespaces: map[string]map[string]string{}}
	for _, ns := range object.List[*corev1.Namespace](r, "") {
		t.namespaces[ns.Name] = ns.Labels
	}
	namespace := cmp.Or(req.GetNamespace(), metav1.NamespaceDefault)
	toNamespace := cmp.Or(req.GetToNamespace(), namespace)
	protocol := corev1.Protocol(strings.ToUpper(cmp.Or(req.GetProtocol(), string(corev1.ProtocolTCP))))
	if !slices.Contains([]corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}, protocol) {
		return nil, badRequest("protocol", "%q is none of TCP, UDP and SCTP", req.GetProtocol())
	}
	pod, ok := object.Get[*corev1.Pod](r, podResource.Key(namespace, req.GetPod()))
	if !ok {
		return nil, notFound(podResource, namespace, req.GetPod())
	}
	plan := &tracePlan{}
	from, ok := t.begin(plan, pod)
	if !ok {
		return plan, nil
	}
	switch {
	case req.GetService() != "":
		svc, ok := object.Get[*corev1.Service](r, serviceResource.Key(toNamespace, req.GetService()))
		if !ok {
			return nil, notFound(serviceResource, toNamespace, req.GetService())
		}
		t.service(plan, from, svc, req.GetPort(), protocol)
	case req.GetToPod() != "":
		to, ok := object.Get[*corev1.Pod](r, podResource.Key(toNamespace, req.GetToPod()))
		if !ok {
			return nil, notFound(podResource, toNamespace, req.GetToPod())
		}
		port, err := portOf(to, req.GetPort(), protocol)
		if err != nil {
			return nil, err
		}
		ip, err := netip.ParseAddr(to.Status.PodIP)
		if err != nil {
			return plan.stop("wait until it runs: holdfast why pod/"+to.Name, "pod %s/%s has no address: it is %s", to.Namespace, to.Name, to.Status.Phase), nil
		}
		t.path(plan, from, traceEnd{ip, to}, port, protocol)
	default:
		ip, err := netip.ParseAddr(req.GetAddress())
		if err != nil {
			return nil, badRequest("address", "%q is no address", req.GetAddress())
		}
		port, err := portOf(nil, req.GetPort(), protocol)
		if err != nil {
			return nil, err
		}
		for _, svc := range object.List[*corev1.Service](r, "") {
			if slices.Contains(append([]string{svc.Spec.ClusterIP}, svc.Spec.ClusterIPs...), ip.String()) {
				plan.say("%s is the address of service %s/%s", ip, svc.Namespace, svc.Name)
				t.service(plan, from, svc, req.GetPort(), protocol)
				return plan, nil
			}
		}
		t.path(plan, from, t.end(ip), port, protocol)
	}
	return plan, nil
}

var serviceResource = object.ResourceOf(&corev1.Service{})

func portOf(pod *corev1.Pod, text string, protocol corev1.Protocol) (uint16, error) {
	if n, err := strconv.ParseUint(text, 10, 16); err == nil && n > 0 {
		return uint16(n), nil
	}
	if pod != nil {
		for _, p := range object.NamedPorts(pod) {
			if p.Name == text && cmp.Or(p.Protocol, corev1.ProtocolTCP) == protocol {
				return uint16(p.ContainerPort), nil
			}
		}
		return 0, badRequest("port", "%q is neither a number nor a %s port's name in pod %s/%s", text, protocol, pod.Namespace, pod.Name)
	}
	return 0, badRequest("port", "%q is no port: want 1 to 65535", text)
}

// end finds the pod that has an address.
func (t *tracer) end(ip netip.Addr) traceEnd {
	for _, pod := range t.pods {
		if pod.Spec.HostNetwork || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		if slices.ContainsFunc(pod.Status.PodIPs, func(p corev1.PodIP) bool { return p.IP == ip.String() }) || pod.Status.PodIP == ip.String() {
			return traceEnd{ip, pod}
		}
	}
	return traceEnd{ip: ip}
}

// begin says whether a pod can send at all.
func (t *tracer) begin(plan *tracePlan, pod *corev1.Pod) (traceEnd, bool) {
	ip, err := netip.ParseAddr(pod.Status.PodIP)
	end := traceEnd{ip, pod}
	switch {
	case pod.Spec.NodeName == "":
		plan.stop("holdfast why pod/"+pod.Name, "pod %s/%s runs on no node yet", pod.Namespace, pod.Name)
		return end, false
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		plan.stop("", "pod %s/%s has ended: %s", pod.Namespace, pod.Name, pod.Status.Phase)
		return end, false
	case err != nil:
		plan.stop("holdfast why pod/"+pod.Name, "pod %s/%s has no address yet: it is %s", pod.Namespace, pod.Name, pod.Status.Phase)
		return end, false
	}
	where := ""
	if pod.Spec.HostNetwork {
		where = ", by the node's own network"
	}
	plan.say("from %s%s", end, where)
	return end, true
}

// service says which endpoints a service leads to.
func (t *tracer) service(plan *tracePlan, from traceEnd, svc *corev1.Service, port string, protocol corev1.Protocol) {
	name := svc.Namespace + "/" + svc.Name
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		plan.stop("ask for that name's addresses instead", "service %s is another name for %s: the cluster's rules do not lead there, the name does", name, svc.Spec.ExternalName)
		return
	}
	var of *corev1.ServicePort
	var have []string
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		have = append(have, strings.TrimPrefix(fmt.Sprintf("%s:%d/%s", p.Name, p.Port, cmp.Or(p.Protocol, corev1.ProtocolTCP)), ":"))
		if cmp.Or(p.Protocol, corev1.ProtocolTCP) == protocol && (p.Name == port && port != "" || strconv.Itoa(int(p.Port)) == port || port == "" && len(svc.Spec.Ports) == 1) {
			of = p
		}
	}
	if of == nil {
		plan.stop("use one of "+strings.Join(have, ", "), "service %s has no port %s for %s: the connection is refused", name, port, protocol)
		return
	}
	headless := svc.Spec.ClusterIP == corev1.ClusterIPNone
	if headless {
		plan.say("service %s is headless: its name leads to the endpoints themselves", name)
	} else {
		plan.say("service %s (%s), port %d", name, svc.Spec.ClusterIP, of.Port)
	}
	var ready, ending, away []endpointOf
	waiting := 0
	local := !headless && svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	for _, slice := range object.List[*discoveryv1.EndpointSlice](t.r, svc.Namespace) {
		if slice.Labels[discoveryv1.LabelServiceName] != svc.Name {
			continue
		}
		for _, p := range slice.Ports {
			if p.Name != nil && *p.Name != of.Name || p.Port == nil || p.Protocol != nil && *p.Protocol != protocol {
				continue
			}
			for _, e := range slice.Endpoints {
				ip, err := netip.ParseAddr(cmp.Or(append(e.Addresses, "")...))
				if err != nil || ip.Is6() != from.ip.Is6() {
					continue
				}
				end := endpointOf{t.end(ip), uint16(*p.Port)}
				isReady := e.Conditions.Ready == nil || *e.Conditions.Ready
				switch {
				case local && (e.NodeName == nil || *e.NodeName != from.node()):
					if isReady {
						away = append(away, end)
					}
				case isReady:
					ready = append(ready, end)
				case e.Conditions.Serving != nil && *e.Conditions.Serving && e.Conditions.Terminating != nil && *e.Conditions.Terminating:
					ending = append(ending, end)
				default:
					waiting++
				}
			}
		}
	}
	switch {
	case len(ready) > 0:
		plan.say("%d of its endpoints are ready, %d are not", len(ready), len(ending)+waiting)
	case len(ending) > 0:
		plan.say("no endpoint is ready; %d that end still serve", len(ending))
		ready = ending
	case len(away) > 0:
		plan.stop("set internalTrafficPolicy: Cluster, or run an endpoint on "+from.node(), "internalTrafficPolicy is Local, and no endpoint on node %s is ready; %d are elsewhere: the connection gets no answer", from.node(), len(away))
		return
	case waiting > 0:
		plan.stop("holdfast describe the pods: their readiness probes fail, or they start", "none of its %d endpoints is ready: the connection is refused", waiting)
		return
	case len(svc.Spec.Selector) == 0:
		plan.stop("make an EndpointSlice with the label "+discoveryv1.LabelServiceName+": "+svc.Name, "it has no selector and no endpoints: the connection is refused")
		return
	default:
		plan.stop("give pods those labels, or change the selector", "no pod has the labels %s: the connection is refused", metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: svc.Spec.Selector}))
		return
	}
	slices.SortFunc(ready, func(a, b endpointOf) int { return a.ip.Compare(b.ip) })
	for _, e := range ready {
		t.path(plan, from, e.traceEnd, e.port, protocol)
	}
}

type endpointOf struct {
	traceEnd
	port uint16
}

// path says how a connection comes to one end, and who judges it.
func (t *tracer) path(plan *tracePlan, from, to traceEnd, port uint16, protocol corev1.Protocol) {
	p := tracePath{packet: &holdfastv1.Packet{From: from.ip.String(), To: to.ip.String(), Protocol: string(protocol), Port: uint32(port)}}
	p.steps = append(p.steps, &holdfastv1.TraceStep{Text: fmt.Sprintf("to %s, port %d/%s", to, port, protocol)})
	defer func() { plan.paths = append(plan.paths, p) }()
	p.from, p.to = from.node(), to.node()
	switch node := t.nodeOf(to); {
	case to.pod != nil && from.pod.Namespace == to.pod.Namespace && from.pod.Name == to.pod.Name:
		p.say("it is the pod itself: no policy keeps it from that")
		return
	case to.pod == nil && node == from.node() && node != "":
		p.say("it is the pod's own node: no policy concerns that")
		return
	case to.pod == nil && node != "":
		p.say("it is node %s", node)
	case to.pod == nil:
		p.say("it is outside the cluster: node %s sends it on under its own address", from.node())
	case to.node() == from.node():
		p.say("both are on node %s", from.node())
	default:
		p.say("from node %s to node %s", from.node(), to.node())
	}
	t.node(&p, from.node())
	if to.node() != from.node() {
		t.node(&p, to.node())
	}
	if from.pod != nil && !from.pod.Spec.HostNetwork {
		t.judge(&p, from, to, to, port, protocol, networkingv1.PolicyTypeEgress)
	}
	if to.pod != nil && (!from.pod.Spec.HostNetwork || from.node() != to.node()) {
		t.judge(&p, to, from, to, port, protocol, networkingv1.PolicyTypeIngress)
	}
}

// nodeOf is the node that has an address that no pod has.
func (t *tracer) nodeOf(e traceEnd) string {
	if e.pod != nil {
		return e.node()
	}
	for _, node := range object.List[*corev1.Node](t.r, "") {
		for _, a := range node.Status.Addresses {
			if a.Address == e.ip.String() {
				return node.Name
			}
		}
	}
	return ""
}

// node says when a node is not well.
func (t *tracer) node(p *tracePath, name string) {
	if name == "" {
		return
	}
	node, ok := object.Get[*corev1.Node](t.r, object.ResourceOf(&corev1.Node{}).Key("", name))
	if !ok {
		p.stop("", "node %s is no more", name)
		return
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			p.stop("bring node "+name+" back, or let its pods be replaced", "node %s is not ready: %s", name, strings.TrimSuffix(c.Reason+": "+c.Message, ": "))
		}
	}
}

// judge says what the policies of one end's pod make of the connection.
func (t *tracer) judge(p *tracePath, own, far, destination traceEnd, port uint16, protocol corev1.Protocol, direction networkingv1.PolicyType) {
	word := strings.ToLower(string(direction))
	var isolating []string
	for _, np := range t.policies {
		if np.Namespace != own.pod.Namespace || !object.PolicyIsolates(np, direction) || !object.PolicySubject(np).SelectsLabels(own.pod.Labels) {
			continue
		}
		isolating = append(isolating, np.Namespace+"/"+np.Name)
		allows := func(i int, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) bool {
			if !t.peersAllow(np, peers, far) || !portsAllow(ports, destination.pod, port, protocol) {
				return false
			}
			p.say("%s of %s is allowed by rule %d of policy %s/%s", word, own.pod.Name, i+1, np.Namespace, np.Name)
			return true
		}
		if direction == networkingv1.PolicyTypeIngress {
			for i, r := range np.Spec.Ingress {
				if allows(i, r.From, r.Ports) {
					return
				}
			}
		} else {
			for i, r := range np.Spec.Egress {
				if allows(i, r.To, r.Ports) {
					return
				}
			}
		}
	}
	if len(isolating) == 0 {
		p.say("no policy isolates %s of %s", word, own.pod.Name)
		return
	}
	side := map[networkingv1.PolicyType]string{networkingv1.PolicyTypeIngress: "from", networkingv1.PolicyTypeEgress: "to"}[direction]
	p.stop(fmt.Sprintf("a rule in one of them: %s: {%s: [%s], ports: [{port: %d, protocol: %s}]}", word, side, t.peerFor(own, far), port, protocol),
		"%s of %s is isolated by policy %s, and no rule allows it: the connection gets no answer", word, own.pod.Name, strings.Join(isolating, ", "))
}

// peerFor is what a rule for an end would name.
func (t *tracer) peerFor(own, far traceEnd) string {
	if far.pod == nil {
		return fmt.Sprintf("{ipBlock: {cidr: %s}}", netip.PrefixFrom(far.ip, far.ip.BitLen()))
	}
	var labels []string
	for _, key := range slices.Sorted(func(yield func(string) bool) {
		for k := range far.pod.Labels {
			if k != "pod-template-hash" && k != "controller-revision-hash" && !yield(k) {
				return
			}
		}
	}) {
		labels = append(labels, key+": "+far.pod.Labels[key])
	}
	selector := "podSelector: {matchLabels: {" + strings.Join(labels, ", ") + "}}"
	if own.pod.Namespace != far.pod.Namespace {
		selector = "namespaceSelector: {matchLabels: {" + corev1.LabelMetadataName + ": " + far.pod.Namespace + "}}, " + selector
	}
	return "{" + selector + "}"
}

func (t *tracer) peersAllow(np *networkingv1.NetworkPolicy, peers []networkingv1.NetworkPolicyPeer, far traceEnd) bool {
	return len(peers) == 0 || slices.ContainsFunc(peers, func(peer networkingv1.NetworkPolicyPeer) bool {
		if b := peer.IPBlock; b != nil {
			in := func(text string) bool {
				cidr, err := netip.ParsePrefix(text)
				return err == nil && cidr.Contains(far.ip)
			}
			return in(b.CIDR) && !slices.ContainsFunc(b.Except, in)
		}
		s, _ := object.PolicyPeer(np, peer)
		return far.pod != nil && !far.pod.Spec.HostNetwork && s.SelectsNamespace(far.pod.Namespace, t.namespaces[far.pod.Namespace]) && s.SelectsLabels(far.pod.Labels)
	})
}

func portsAllow(ports []networkingv1.NetworkPolicyPort, destination *corev1.Pod, port uint16, protocol corev1.Protocol) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		switch {
		case p.Protocol != nil && *p.Protocol != protocol, p.Protocol == nil && protocol != corev1.ProtocolTCP:
			return false
		case p.Port == nil:
			return true
		case p.Port.Type == intstr.String:
			return destination != nil && slices.ContainsFunc(object.NamedPorts(destination), func(c corev1.ContainerPort) bool {
				return c.Name == p.Port.StrVal && cmp.Or(c.Protocol, corev1.ProtocolTCP) == protocol && c.ContainerPort == int32(port)
			})
		case p.EndPort != nil:
			return int32(port) >= p.Port.IntVal && int32(port) <= *p.EndPort
		}
		return int32(port) == p.Port.IntVal
	})
}
