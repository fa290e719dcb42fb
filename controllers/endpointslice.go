package controllers

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/object"
)

var (
	serviceResource = object.ResourceOf(&corev1.Service{})
	sliceResource   = object.ResourceOf(&discoveryv1.EndpointSlice{})
)

const (
	// sliceManager is who Kubernetes says writes the slices of services with a
	// selector. Slices of others are left alone.
	sliceManager = "endpointslice-controller.k8s.io"
	// maxPerSlice is how many endpoints a slice holds: a change of one of them is
	// sent as a whole slice.
	maxPerSlice = 100
	// endpointsDelay gathers the changes of pods that come together.
	endpointsDelay = 20 * time.Millisecond
)

// place is where a pod runs. A node that is lost says nothing of its pods any more,
// so they are taken not to serve.
type place struct {
	zone string
	lost bool
}

// slicesPlan is what becomes of the slices of a service.
type slicesPlan struct {
	create, update, remove []*discoveryv1.EndpointSlice
}

// planSlices compares the slices that a service has with the pods that its selector
// selects. An endpoint stays in the slice that it is in, so that a change of one pod
// changes one slice. It is pure:
// testdata/endpointslice states its whole behavior.
func planSlices(svc *corev1.Service, pods []*corev1.Pod, have []*discoveryv1.EndpointSlice, where func(node string) place, newName, newUID func() string, now time.Time) slicesPlan {
	var plan slicesPlan
	seen := map[*discoveryv1.EndpointSlice]bool{}
	for _, family := range svc.Spec.IPFamilies {
		addressType := discoveryv1.AddressType(family)
		wanted := endpointGroups(svc, pods, family, where)
		ofType := filterSlices(have, func(s *discoveryv1.EndpointSlice) bool { return s.AddressType == addressType })
		if len(wanted) == 0 { // a service without endpoints has one slice that says so
			wanted = []endpointGroup{{key: "", ports: nil}}
			if len(ofType) > 0 {
				wanted[0].key, wanted[0].ports = portsKey(ofType[0].Ports), ofType[0].Ports
			}
		}
		for _, group := range wanted {
			in := filterSlices(ofType, func(s *discoveryv1.EndpointSlice) bool { return portsKey(s.Ports) == group.key })
			for _, s := range in {
				seen[s] = true
			}
			for i, endpoints := range distribute(group.endpoints, in) {
				switch {
				case i >= len(in):
					plan.create = append(plan.create, newSlice(svc, addressType, group.ports, endpoints, newName(), newUID(), now))
				case len(endpoints) == 0 && (i > 0 || len(group.endpoints) > 0):
					plan.remove = append(plan.remove, in[i])
				default:
					next := in[i].DeepCopy()
					next.Endpoints = endpoints
					next.Labels, next.OwnerReferences = sliceLabels(svc), sliceOwner(svc)
					if !equality.Semantic.DeepEqual(next, in[i]) {
						next.Generation++
						plan.update = append(plan.update, next)
					}
				}
			}
		}
	}
	for _, s := range have {
		if !seen[s] { // of ports or a family that the service has no more
			plan.remove = append(plan.remove, s)
		}
	}
	return plan
}

// endpointGroup are the endpoints whose ports have the same numbers.
type endpointGroup struct {
	key       string
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint // by address
}

func endpointGroups(svc *corev1.Service, pods []*corev1.Pod, family corev1.IPFamily, where func(string) place) []endpointGroup {
	groups := map[string]*endpointGroup{}
	for _, pod := range pods {
		ip, ok := podIP(pod, family)
		if !ok || object.PodPhaseFinal(pod) {
			continue
		}
		ports := endpointPorts(svc, pod)
		key := portsKey(ports)
		if groups[key] == nil {
			groups[key] = &endpointGroup{key: key, ports: ports}
		}
		groups[key].endpoints = append(groups[key].endpoints, endpointOf(svc, pod, ip, where(pod.Spec.NodeName)))
	}
	var all []endpointGroup
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		g := groups[key]
		slices.SortFunc(g.endpoints, func(a, b discoveryv1.Endpoint) int { return cmp.Compare(a.Addresses[0], b.Addresses[0]) })
		setHints(svc, g.endpoints)
		all = append(all, *g)
	}
	return all
}

func podIP(pod *corev1.Pod, family corev1.IPFamily) (string, bool) {
	ips := pod.Status.PodIPs
	if len(ips) == 0 && pod.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	for _, ip := range ips {
		if addr, err := netip.ParseAddr(ip.IP); err == nil && addr.Is4() == (family == corev1.IPv4Protocol) {
			return ip.IP, true
		}
	}
	return "", false
}

// endpointPorts are a service's ports with the numbers that they have at pod. A port
// that is named and that the pod does not have is left out.
func endpointPorts(svc *corev1.Service, pod *corev1.Pod) []discoveryv1.EndpointPort {
	var ports []discoveryv1.EndpointPort
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		number := p.TargetPort.IntVal
		if p.TargetPort.Type == intstr.String {
			number = namedPort(pod, p.TargetPort.StrVal, cmp.Or(p.Protocol, corev1.ProtocolTCP))
		}
		if number == 0 {
			continue
		}
		ports = append(ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: new(cmp.Or(p.Protocol, corev1.ProtocolTCP)), Port: &number, AppProtocol: p.AppProtocol})
	}
	return ports
}

// namedPort looks where Kubernetes does: in the containers, and then in the init
// containers that go on running.
func namedPort(pod *corev1.Pod, name string, protocol corev1.Protocol) int32 {
	containers := slices.Clone(pod.Spec.Containers)
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, p := range c.Ports {
			if p.Name == name && cmp.Or(p.Protocol, corev1.ProtocolTCP) == protocol {
				return p.ContainerPort
			}
		}
	}
	return 0
}

func portsKey(ports []discoveryv1.EndpointPort) string {
	var b strings.Builder
	for _, p := range ports {
		fmt.Fprintf(&b, "%s/%s/%d/%s ", value(p.Name), value(p.Protocol), value(p.Port), value(p.AppProtocol))
	}
	return b.String()
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func endpointOf(svc *corev1.Service, pod *corev1.Pod, ip string, at place) discoveryv1.Endpoint {
	serving, terminating := object.PodReady(pod) && !at.lost, object.Deleting(pod)
	e := discoveryv1.Endpoint{
		Addresses: []string{ip},
		Conditions: discoveryv1.EndpointConditions{
			Ready:       new(svc.Spec.PublishNotReadyAddresses || serving && !terminating),
			Serving:     &serving,
			Terminating: &terminating,
		},
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
	}
	if pod.Spec.NodeName != "" {
		e.NodeName = &pod.Spec.NodeName
		if at.zone != "" {
			e.Zone = &at.zone
		}
	}
	if pod.Spec.Hostname != "" && pod.Spec.Subdomain == svc.Name {
		e.Hostname = &pod.Spec.Hostname
	}
	return e
}

// setHints says for whom the endpoints are, if the service wants its traffic to stay
// near. An endpoint in no zone would be for nobody, so then there are no hints.
func setHints(svc *corev1.Service, endpoints []discoveryv1.Endpoint) {
	near := value(svc.Spec.TrafficDistribution)
	if near == "" || slices.ContainsFunc(endpoints, func(e discoveryv1.Endpoint) bool {
		return value(e.Conditions.Ready) && (e.NodeName == nil || e.Zone == nil && near != corev1.ServiceTrafficDistributionPreferSameNode)
	}) {
		return
	}
	for i := range endpoints {
		e := &endpoints[i]
		if !value(e.Conditions.Ready) {
			continue
		}
		e.Hints = &discoveryv1.EndpointHints{}
		if e.Zone != nil {
			e.Hints.ForZones = []discoveryv1.ForZone{{Name: *e.Zone}}
		}
		if near == corev1.ServiceTrafficDistributionPreferSameNode {
			e.Hints.ForNodes = []discoveryv1.ForNode{{Name: *e.NodeName}}
		}
	}
}

// distribute says which endpoints go into each of the slices of in, by their place there,
// and what goes into new ones, behind. Those that are in a slice stay there; new
// ones fill slices that change anyway, then the fullest that has room for all of
// them, then new slices.
func distribute(wanted []discoveryv1.Endpoint, in []*discoveryv1.EndpointSlice) [][]discoveryv1.Endpoint {
	left := make(map[types.UID]discoveryv1.Endpoint, len(wanted))
	for _, e := range wanted {
		left[e.TargetRef.UID] = e
	}
	placed := make([][]discoveryv1.Endpoint, len(in))
	changed := make([]bool, len(in))
	for i, s := range in {
		for _, was := range s.Endpoints {
			var uid types.UID
			if was.TargetRef != nil {
				uid = was.TargetRef.UID
			}
			e, ok := left[uid]
			if !ok || len(placed[i]) == maxPerSlice {
				changed[i] = true
				continue
			}
			delete(left, uid)
			changed[i] = changed[i] || !equality.Semantic.DeepEqual(e, was)
			placed[i] = append(placed[i], e)
		}
	}
	var fresh []discoveryv1.Endpoint
	for _, e := range wanted {
		if _, ok := left[e.TargetRef.UID]; ok {
			fresh = append(fresh, e)
		}
	}
	fill := func(i int) {
		n := min(len(fresh), maxPerSlice-len(placed[i]))
		placed[i] = append(placed[i], fresh[:n]...)
		fresh = fresh[n:]
	}
	for i := range placed {
		if changed[i] && len(placed[i]) > 0 {
			fill(i)
		}
	}
	for len(fresh) >= maxPerSlice {
		placed = append(placed, fresh[:maxPerSlice])
		fresh = fresh[maxPerSlice:]
	}
	best := -1
	for i := range in {
		if len(fresh) > 0 && maxPerSlice-len(placed[i]) >= len(fresh) && (best < 0 || len(placed[i]) > len(placed[best])) {
			best = i
		}
	}
	if best >= 0 {
		fill(best)
	}
	if len(fresh) > 0 || len(placed) == 0 {
		placed = append(placed, fresh)
	}
	return placed
}

func newSlice(svc *corev1.Service, addressType discoveryv1.AddressType, ports []discoveryv1.EndpointPort, endpoints []discoveryv1.Endpoint, name, uid string, now time.Time) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Name: childName(svc.Name, name), GenerateName: svc.Name + "-", Namespace: svc.Namespace, UID: types.UID(uid), Generation: 1,
			CreationTimestamp: metav1.NewTime(now.Truncate(time.Second)),
			Labels:            sliceLabels(svc), OwnerReferences: sliceOwner(svc),
		},
		AddressType: addressType, Ports: ports, Endpoints: endpoints,
	}
}

// sliceLabels are the service's own, and those that say whose a slice is.
func sliceLabels(svc *corev1.Service) map[string]string {
	labels := map[string]string{}
	maps.Copy(labels, svc.Labels)
	delete(labels, corev1.IsHeadlessService)
	labels[discoveryv1.LabelServiceName], labels[discoveryv1.LabelManagedBy] = svc.Name, sliceManager
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		labels[corev1.IsHeadlessService] = ""
	}
	return labels
}

func sliceOwner(svc *corev1.Service) []metav1.OwnerReference {
	return []metav1.OwnerReference{*metav1.NewControllerRef(svc, corev1.SchemeGroupVersion.WithKind("Service"))}
}

func filterSlices(all []*discoveryv1.EndpointSlice, keep func(*discoveryv1.EndpointSlice) bool) []*discoveryv1.EndpointSlice {
	var kept []*discoveryv1.EndpointSlice
	for _, s := range all {
		if keep(s) {
			kept = append(kept, s)
		}
	}
	return kept
}

// newEndpointSlices returns the controller that keeps the endpoints of services with
// a selector. Those of others, and of ExternalName ones, are not its business.
func newEndpointSlices(newUID, newSuffix func() string) *controller {
	selecting := func(x *index, e entry) []object.Key {
		if !isKind(e.resource, podResource) {
			return nil
		}
		return x.adopters(serviceResource, e)
	}
	return &controller{
		name:  "endpointslice",
		delay: endpointsDelay,
		all:   func(s state) []object.Key { return keysOf(s.index, serviceResource) },
		affected: func(x *index, c change) []object.Key {
			keys := affectsItself(serviceResource, c)
			keys = append(keys, affectsOwners(x, serviceResource, sliceResource, c)...)
			keys = append(keys, selecting(x, c.before)...)
			keys = append(keys, selecting(x, c.now)...)
			if node, ok := c.after.(*corev1.Node); ok && c.placement { // it has another zone, or is lost
				for key := range x.onNode[node.Name] {
					keys = append(keys, selecting(x, x.entries[key])...)
				}
			}
			return keys
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			var o outcome
			svc, ok := object.Get[*corev1.Service](s, key)
			if !ok || object.Deleting(svc) || len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName || s.terminating[svc.Namespace] {
				return o
			}
			selector := selectorOf(svc)
			var pods []*corev1.Pod
			for _, key := range s.podsIn[svc.Namespace].sorted() {
				if !selector.Matches(s.entries[key].labels) {
					continue
				}
				if pod, ok := object.Get[*corev1.Pod](s, key); ok {
					pods = append(pods, pod)
				}
			}
			have := filterSlices(ownedBy[*discoveryv1.EndpointSlice](s, svc), func(slice *discoveryv1.EndpointSlice) bool {
				return slice.Labels[discoveryv1.LabelManagedBy] == sliceManager
			})
			where := func(node string) place {
				facts := s.nodes[node]
				return place{zone: facts.labels[corev1.LabelTopologyZone], lost: facts.evicting}
			}
			plan := planSlices(svc, pods, have, where, newSuffix, newUID, now)
			room := newBudget()
			write := func(all []*discoveryv1.EndpointSlice, how func(object.Object)) {
				for _, slice := range all {
					if !room.spend(slice) {
						o.more = true
						return
					}
					how(slice)
				}
			}
			// New ones first: an endpoint that moves is never in none.
			write(plan.create, o.create)
			write(plan.update, o.update)
			if !o.more {
				write(plan.remove, o.delete)
			}
			if len(o.txn.Then) > 0 {
				o.txn.Reason = "endpoints"
			}
			return o
		},
	}
}
