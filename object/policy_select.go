package object

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// PodSelection is what a NetworkPolicy selects pods by: those that it is about, or
// those at the other end of what one of its rules allows. It is not changed after it
// was made, so it is safe for concurrent use.
type PodSelection struct {
	namespace  string          // the one namespace, if namespaces is nil
	namespaces labels.Selector // of the namespaces' labels
	pods       labels.Selector
	key        string
}

func newPodSelection(namespace string, namespaces, pods *metav1.LabelSelector) PodSelection {
	s := PodSelection{namespace: namespace, pods: policySelector(pods)}
	if namespaces == nil {
		s.key = "pods " + namespace + "/" + s.pods.String()
		return s
	}
	s.namespace, s.namespaces = "", policySelector(namespaces)
	s.key = "pods of namespaces " + s.namespaces.String() + "/" + s.pods.String()
	return s
}

func policySelector(s *metav1.LabelSelector) labels.Selector {
	if s == nil {
		return labels.Everything()
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing() // it was valid when it was written
	}
	return selector
}

// Key is the same for selections that are the same.
func (s PodSelection) Key() string { return s.key }

// Namespace is the one whose pods can be among the selected; "" if labels of namespaces
// say which.
func (s PodSelection) Namespace() string { return s.namespace }

// SelectsNamespace reports whether pods of a namespace can be among the selected.
func (s PodSelection) SelectsNamespace(name string, of map[string]string) bool {
	if s.namespaces == nil {
		return name == s.namespace
	}
	return s.namespaces.Matches(labels.Set(of))
}

// SelectsLabels reports whether a pod with such labels is selected, if its namespace
// is.
func (s PodSelection) SelectsLabels(of map[string]string) bool {
	return s.pods.Matches(labels.Set(of))
}

// PolicySubject selects the pods that a policy is about.
func PolicySubject(np *networkingv1.NetworkPolicy) PodSelection {
	return newPodSelection(np.Namespace, nil, &np.Spec.PodSelector)
}

// PolicyIsolates reports whether a policy is about a direction.
func PolicyIsolates(np *networkingv1.NetworkPolicy, direction networkingv1.PolicyType) bool {
	return slices.Contains(np.Spec.PolicyTypes, direction)
}

// PolicyPeer is the selection that a peer of a rule of policy np is; ok is false if it
// is an ipBlock.
func PolicyPeer(np *networkingv1.NetworkPolicy, peer networkingv1.NetworkPolicyPeer) (selection PodSelection, ok bool) {
	if peer.IPBlock != nil {
		return PodSelection{}, false
	}
	return newPodSelection(np.Namespace, peer.NamespaceSelector, peer.PodSelector), true
}

// AllPods selects every pod.
var AllPods = newPodSelection("", &metav1.LabelSelector{}, nil)

// PolicyPeers are all selections that the rules of a policy name, each once. A node
// with pods that the policy is about has to know the pods that they select. A rule
// without peers that names a port asks every pod what it means by that name.
func PolicyPeers(np *networkingv1.NetworkPolicy) []PodSelection {
	var all []PodSelection
	have := map[string]bool{}
	add := func(s PodSelection) {
		if !have[s.key] {
			have[s.key] = true
			all = append(all, s)
		}
	}
	rule := func(peers []networkingv1.NetworkPolicyPeer) {
		for _, peer := range peers {
			if s, ok := PolicyPeer(np, peer); ok {
				add(s)
			}
		}
	}
	if PolicyIsolates(np, networkingv1.PolicyTypeIngress) {
		for _, r := range np.Spec.Ingress {
			rule(r.From)
		}
	}
	if PolicyIsolates(np, networkingv1.PolicyTypeEgress) {
		for _, r := range np.Spec.Egress {
			rule(r.To)
			if len(r.To) == 0 && slices.ContainsFunc(r.Ports, func(p networkingv1.NetworkPolicyPort) bool {
				return p.Port != nil && p.Port.Type == intstr.String
			}) {
				add(AllPods)
			}
		}
	}
	return all
}

// NamedPorts are the ports of a pod's containers that have a name, in their order;
// of two of one name and protocol, the first.
func NamedPorts(pod *corev1.Pod) []corev1.ContainerPort {
	var all []corev1.ContainerPort
	add := func(containers []corev1.Container) {
		for _, c := range containers {
			for _, p := range c.Ports {
				if p.Name != "" && !slices.ContainsFunc(all, func(have corev1.ContainerPort) bool {
					return have.Name == p.Name && have.Protocol == p.Protocol
				}) {
					all = append(all, corev1.ContainerPort{Name: p.Name, ContainerPort: p.ContainerPort, Protocol: p.Protocol})
				}
			}
		}
	}
	add(pod.Spec.Containers)
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add([]corev1.Container{c})
		}
	}
	return all
}
