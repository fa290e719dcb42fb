package object

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// TestPolicyPeers: which selections a policy names, each once; those of a direction
// that it is not about do not count.
func TestPolicyPeers(t *testing.T) {
	app := func(name string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
	}
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}}
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{
		{PodSelector: app("web")},
		{PodSelector: app("web")},
		{NamespaceSelector: app("lab")},
		{NamespaceSelector: app("lab"), PodSelector: app("web")},
		{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/8"}},
	}}}
	np.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromString("http"))}}}, {}}
	keys := func() string {
		text := ""
		for _, s := range PolicyPeers(np) {
			text += s.Key() + "\n"
		}
		return text
	}
	ingress := "pods shop/app=web\npods of namespaces app=lab/\npods of namespaces app=lab/app=web\n"
	np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	if got := keys(); got != ingress {
		t.Errorf("ingress asks about\n%s", got)
	}
	np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
	if got, want := keys(), ingress+"pods of namespaces /\n"; got != want {
		t.Errorf("both ask about\n%s", got)
	}
}

// TestNamedPorts: containers and sidecars count, what ends before them does not.
func TestNamedPorts(t *testing.T) {
	container := func(ports ...corev1.ContainerPort) corev1.Container { return corev1.Container{Ports: ports} }
	port := func(name string, protocol corev1.Protocol, number int32) corev1.ContainerPort {
		return corev1.ContainerPort{Name: name, Protocol: protocol, ContainerPort: number}
	}
	pod := &corev1.Pod{}
	pod.Spec.Containers = []corev1.Container{container(port("http", "TCP", 80), port("", "TCP", 81)), container(port("http", "TCP", 82), port("http", "UDP", 83))}
	sidecar := container(port("admin", "TCP", 84))
	sidecar.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
	pod.Spec.InitContainers = []corev1.Container{sidecar, container(port("once", "TCP", 85))}
	var got []string
	for _, p := range NamedPorts(pod) {
		got = append(got, fmt.Sprintf("%s/%s=%d", p.Name, p.Protocol, p.ContainerPort))
	}
	if want := "[http/TCP=80 http/UDP=83 admin/TCP=84]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}
