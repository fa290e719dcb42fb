package network

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/agent/netstate"
	"github.com/holdfast-io/holdfast/object"
)

// twin judges as Kubernetes' documentation words it, from the objects alone.
type twin struct {
	s    *netstate.State
	pods map[netip.Addr]*netstate.Pod // of all nodes
}

func (w twin) allowed(p packet) bool {
	from, to := w.pods[p.from], w.pods[p.to]
	if from != nil && from == to {
		return true // a pod cannot be kept from itself
	}
	return w.side(from, to, p.to, to, p, policyEgress) && w.side(to, from, p.from, to, p, policyIngress)
}

// side judges for pod, whose other end is far. destination has the port.
func (w twin) side(pod, far *netstate.Pod, farIP netip.Addr, destination *netstate.Pod, p packet, direction networkingv1.PolicyType) bool {
	if pod == nil || pod.Node != w.s.Node {
		return true // another node judges
	}
	isolated := false
	for _, np := range w.s.Policies {
		if np.Namespace != pod.Name.Namespace || !matchesLabels(&np.Spec.PodSelector, pod.Labels) || !slices.Contains(np.Spec.PolicyTypes, direction) {
			continue
		}
		isolated = true
		if direction == policyIngress {
			for _, r := range np.Spec.Ingress {
				if w.peers(np, r.From, far, farIP) && w.ports(r.Ports, destination, p) {
					return true
				}
			}
		} else {
			for _, r := range np.Spec.Egress {
				if w.peers(np, r.To, far, farIP) && w.ports(r.Ports, destination, p) {
					return true
				}
			}
		}
	}
	return !isolated
}

func (w twin) peers(np *networkingv1.NetworkPolicy, peers []networkingv1.NetworkPolicyPeer, far *netstate.Pod, ip netip.Addr) bool {
	return len(peers) == 0 || slices.ContainsFunc(peers, func(peer networkingv1.NetworkPolicyPeer) bool {
		if b := peer.IPBlock; b != nil {
			return netip.MustParsePrefix(b.CIDR).Contains(ip) && !slices.ContainsFunc(b.Except, func(e string) bool { return netip.MustParsePrefix(e).Contains(ip) })
		}
		if far == nil || peer.PodSelector != nil && !matchesLabels(peer.PodSelector, far.Labels) {
			return false
		}
		if peer.NamespaceSelector != nil {
			return matchesLabels(peer.NamespaceSelector, w.s.Namespaces[far.Name.Namespace].Labels)
		}
		return far.Name.Namespace == np.Namespace
	})
}

func (w twin) ports(ports []networkingv1.NetworkPolicyPort, destination *netstate.Pod, p packet) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(port networkingv1.NetworkPolicyPort) bool {
		if protocolNumbers[*port.Protocol] != p.protocol {
			return false
		}
		switch {
		case port.Port == nil:
			return true
		case port.Port.Type == intstr.String:
			return destination != nil && slices.ContainsFunc(destination.Ports, func(c corev1.ContainerPort) bool {
				return c.Name == port.Port.StrVal && c.Protocol == *port.Protocol && c.ContainerPort == int32(p.port)
			})
		case port.EndPort != nil:
			return int32(p.port) >= port.Port.IntVal && int32(p.port) <= *port.EndPort
		}
		return int32(p.port) == port.Port.IntVal
	})
}

// matchesLabels is by hand what selectors say.
func matchesLabels(s *metav1.LabelSelector, labels map[string]string) bool {
	for k, v := range s.MatchLabels {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		have, ok := labels[e.Key]
		matches := map[metav1.LabelSelectorOperator]bool{
			metav1.LabelSelectorOpIn:           ok && slices.Contains(e.Values, have),
			metav1.LabelSelectorOpNotIn:        !ok || !slices.Contains(e.Values, have),
			metav1.LabelSelectorOpExists:       ok,
			metav1.LabelSelectorOpDoesNotExist: !ok,
		}
		if !matches[e.Operator] {
			return false
		}
	}
	return true
}

var (
	randomLabels = [][2]string{{"app", "web"}, {"app", "db"}, {"tier", "a"}, {"tier", "b"}}
	randomPorts  = []int32{80, 81, 8080}
	randomNames  = []string{"http", "api"}
	randomBlocks = []string{"0.0.0.0/0", "10.8.0.0/16", "10.8.1.0/24", "10.8.1.0/30", "10.8.1.2/32", "9.9.9.0/24", "fd00::/16", "fd00:8::/64"}
)

func pick[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

func someLabels(r *rand.Rand) map[string]string {
	l := map[string]string{}
	for range r.IntN(3) {
		kv := pick(r, randomLabels)
		l[kv[0]] = kv[1]
	}
	return l
}

func someSelector(r *rand.Rand) *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	switch r.IntN(4) {
	case 0:
	case 1:
		kv := pick(r, randomLabels)
		op := pick(r, []metav1.LabelSelectorOperator{metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist})
		e := metav1.LabelSelectorRequirement{Key: kv[0], Operator: op}
		if op == metav1.LabelSelectorOpIn || op == metav1.LabelSelectorOpNotIn {
			e.Values = []string{kv[1]}
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	default:
		kv := pick(r, randomLabels)
		s.MatchLabels = map[string]string{kv[0]: kv[1]}
	}
	return s
}

func somePeers(r *rand.Rand) (peers []networkingv1.NetworkPolicyPeer) {
	for range r.IntN(3) {
		switch r.IntN(4) {
		case 0:
			b := &networkingv1.IPBlock{CIDR: pick(r, randomBlocks)}
			cidr := netip.MustParsePrefix(b.CIDR)
			for range r.IntN(3) {
				if e := netip.MustParsePrefix(pick(r, randomBlocks)); e.Bits() > cidr.Bits() && cidr.Contains(e.Addr()) {
					b.Except = append(b.Except, e.String())
				}
			}
			peers = append(peers, networkingv1.NetworkPolicyPeer{IPBlock: b})
		case 1:
			peers = append(peers, networkingv1.NetworkPolicyPeer{PodSelector: someSelector(r)})
		case 2:
			peers = append(peers, networkingv1.NetworkPolicyPeer{NamespaceSelector: someSelector(r)})
		case 3:
			peers = append(peers, networkingv1.NetworkPolicyPeer{NamespaceSelector: someSelector(r), PodSelector: someSelector(r)})
		}
	}
	return peers
}

func somePolicyPorts(r *rand.Rand) (ports []networkingv1.NetworkPolicyPort) {
	for range r.IntN(3) {
		p := networkingv1.NetworkPolicyPort{Protocol: new(pick(r, []corev1.Protocol{"TCP", "UDP", "SCTP"}))}
		switch r.IntN(4) {
		case 0:
		case 1:
			p.Port = new(intstr.FromString(pick(r, randomNames)))
		case 2:
			p.Port, p.EndPort = new(intstr.FromInt32(80)), new(pick(r, randomPorts))
		default:
			p.Port = new(intstr.FromInt32(pick(r, randomPorts)))
		}
		ports = append(ports, p)
	}
	return ports
}

// someState makes a cluster: pods of two nodes in three namespaces, and policies.
func someState(r *rand.Rand) (*netstate.State, []judged, twin) {
	s := netstate.Empty("n1").WithLocal(map[string]*netstate.Pod{})
	var changes []netstate.Change
	namespaces := []string{"x", "y", "z"}
	for _, name := range namespaces {
		changes = append(changes, netstate.Change{Object: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: someLabels(r)}}})
	}
	ips := map[string][]netip.Addr{}
	w := twin{pods: map[netip.Addr]*netstate.Pod{}}
	for i := range 3 + r.IntN(6) {
		node := 1 + i%2
		pod := &netstate.Pod{Name: netstate.Name{Namespace: pick(r, namespaces), Name: fmt.Sprint("p", i)}, Labels: someLabels(r), Node: fmt.Sprint("n", node)}
		pod.IPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 8, byte(node), byte(2 + i/2)})}
		if r.IntN(2) == 0 {
			pod.IPs = append(pod.IPs, netip.MustParseAddr(fmt.Sprintf("fd00:8::%d:%d", node, 2+i)))
		}
		for range r.IntN(3) {
			pod.Ports = append(pod.Ports, corev1.ContainerPort{Name: pick(r, randomNames), Protocol: pick(r, []corev1.Protocol{"TCP", "UDP"}), ContainerPort: pick(r, randomPorts)})
		}
		for _, ip := range pod.IPs {
			w.pods[ip] = pod
		}
		if node == 1 {
			s.Local[pod.Name.Name], ips[pod.Name.Name] = pod, pod.IPs
		} else {
			changes = append(changes, netstate.Change{Object: pod})
		}
	}
	for i := range r.IntN(5) {
		np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(r, namespaces), Name: fmt.Sprint("np", i)}}
		np.Spec.PodSelector = *someSelector(r)
		for range r.IntN(3) {
			np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: somePeers(r), Ports: somePolicyPorts(r)})
		}
		for range r.IntN(2) {
			np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: somePeers(r), Ports: somePolicyPorts(r)})
		}
		if r.IntN(3) == 0 {
			np.Spec.PolicyTypes = []networkingv1.PolicyType{policyEgress}
		}
		object.Default(np)
		changes = append(changes, netstate.Change{Object: np})
	}
	s = s.With(1, changes...)
	w.s = s
	return s, judgedPods(s, ips), w
}

// TestPoliciesRandom compares the tables with what the documentation says of each
// connection, in many small clusters.
func TestPoliciesRandom(t *testing.T) {
	for seed := range uint64(600) {
		r := rand.New(rand.NewPCG(seed, 7))
		s, pods, w := someState(r)
		var all [2][]netip.Addr
		for ip := range w.pods {
			all[familyOf(ip)] = append(all[familyOf(ip)], ip)
		}
		all[0] = append(all[0], netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("10.8.1.0"), netip.MustParseAddr("255.255.255.255"))
		all[1] = append(all[1], netip.MustParseAddr("fd00::1"), netip.MustParseAddr("2001::1"))
		for i := range all {
			tables := policyTablesOf(s, pods, i == 1)
			for _, from := range all[i] {
				for _, to := range all[i] {
					for _, protocol := range []byte{6, 17, 132} {
						for _, port := range []uint16{79, 80, 81, 8080} {
							p := packet{from, to, protocol, port}
							got, by := tables.allows(p)
							if w.pods[from] == nil && w.pods[to] == nil {
								continue
							}
							if want := w.allowed(p); got != want {
								t.Fatalf("seed %d: %v: allowed %t by %q, want %t\n%s", seed, p, got, by, want, tables.text())
							}
						}
					}
				}
			}
		}
	}
}

func familyOf(ip netip.Addr) int {
	if ip.Is6() {
		return 1
	}
	return 0
}

// TestPoliciesKernelRandom brings the kernel's tables from one random cluster to the
// next, and reads them back.
func TestPoliciesKernelRandom(t *testing.T) {
	ns := newNamespace(t)
	in(t, ns, func() error {
		var have [2]*kernelTable
		for seed := range uint64(60) {
			s, pods, _ := someState(rand.New(rand.NewPCG(seed, 9)))
			for i, f := range policyFamilies {
				tables := policyTablesOf(s, pods, f.v6)
				if err := f.bring(&have[i], tables, int64(seed)); err != nil {
					return fmt.Errorf("seed %d: %w", seed, err)
				}
				found, err := readTable(f.table)
				if err != nil {
					return err
				}
				if diff := tableDiff(found, have[i]); diff != "" {
					return fmt.Errorf("seed %d, family %d: %s", seed, i, diff)
				}
			}
		}
		return new(policyPlane).remove()
	})
}
