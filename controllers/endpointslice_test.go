package controllers

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// service reads a Service: ports=http:80:8080,dns:53:dns/UDP (name, port, target)
// headless families=IPv4,IPv6 publish near=PreferClose.
func (l *line) service() *corev1.Service {
	l.t.Helper()
	svc := &corev1.Service{}
	for text := range strings.SplitSeq(l.str("ports", ":80:8080"), ",") {
		if text == "" {
			continue
		}
		text, protocol, _ := strings.Cut(text, "/")
		parts := strings.Split(text, ":")
		port, err := strconv.Atoi(parts[1])
		if err != nil {
			l.t.Fatalf("%s: %v", l.text, err)
		}
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: parts[0], Port: int32(port), TargetPort: intstr.Parse(parts[2]), Protocol: corev1.Protocol(protocol)})
	}
	for family := range strings.SplitSeq(l.str("families", "IPv4"), ",") {
		svc.Spec.IPFamilies = append(svc.Spec.IPFamilies, corev1.IPFamily(family))
	}
	svc.Spec.ClusterIP = "10.96.0.9"
	if l.has("headless") {
		svc.Spec.ClusterIP = corev1.ClusterIPNone
	}
	svc.Spec.PublishNotReadyAddresses = l.has("publish")
	if near, ok := l.get("near"); ok {
		svc.Spec.TrafficDistribution = &near
	}
	svc.Spec.Selector = map[string]string{"app": "web"}
	svc.ObjectMeta = l.meta()
	l.done()
	return svc
}

// endpointPod reads a pod with ip=10.0.0.1,fd00::1 (none by default), named=http:8080
// hostname=a subdomain=web, and what pods have otherwise.
func (l *line) endpointPod() *corev1.Pod {
	l.t.Helper()
	ips, _ := l.get("ip")
	named, _ := l.get("named")
	hostname, subdomain := l.str("hostname", ""), l.str("subdomain", "")
	pod := l.pod()
	pod.Spec.Hostname, pod.Spec.Subdomain = hostname, subdomain
	for ip := range strings.SplitSeq(ips, ",") {
		if ip != "" {
			pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: ip})
		}
	}
	if name, number, ok := strings.Cut(named, ":"); ok {
		n, _ := strconv.Atoi(number)
		pod.Spec.Containers = []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{Name: name, ContainerPort: int32(n), Protocol: corev1.ProtocolTCP}}}}
	}
	return pod
}

func describeSlice(s *discoveryv1.EndpointSlice) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", s.Name, s.AddressType)
	for _, p := range s.Ports {
		fmt.Fprintf(&b, " %s=%d/%s", value(p.Name), value(p.Port), value(p.Protocol))
	}
	b.WriteString("\n")
	for _, e := range s.Endpoints {
		fmt.Fprintf(&b, "  %s pod=%s", e.Addresses[0], e.TargetRef.Name)
		for _, c := range []struct {
			name string
			set  *bool
		}{{"ready", e.Conditions.Ready}, {"serving", e.Conditions.Serving}, {"terminating", e.Conditions.Terminating}} {
			if value(c.set) {
				b.WriteString(" " + c.name)
			}
		}
		for _, c := range []struct {
			name string
			text *string
		}{{"hostname", e.Hostname}, {"node", e.NodeName}, {"zone", e.Zone}} {
			if c.text != nil {
				fmt.Fprintf(&b, " %s=%s", c.name, *c.text)
			}
		}
		if e.Hints != nil {
			for _, z := range e.Hints.ForZones {
				b.WriteString(" for-zone=" + z.Name)
			}
			for _, n := range e.Hints.ForNodes {
				b.WriteString(" for-node=" + n.Name)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// TestPlanSlices runs testdata/endpointslice/*.txtar: a service, the pods that it
// selected before (optional), and those that it selects now. Node n1 is in zone a,
// n2 in b, n3 in none, and n4 is lost.
func TestPlanSlices(t *testing.T) {
	golden.Run(t, "testdata/endpointslice/*.txtar", func(t *testing.T, in golden.Input) string {
		where := func(node string) place {
			return map[string]place{"n1": {zone: "a"}, "n2": {zone: "b"}, "n4": {zone: "a", lost: true}}[node]
		}
		read := func(name string) (pods []*corev1.Pod) {
			data, _ := in.Lookup(name)
			for _, l := range parseLines(t, data) {
				pods = append(pods, l.endpointPod())
			}
			return pods
		}
		svc := one(t, in.File("service")).service()
		names, uids := sequential("s"), sequential("u")
		var have []*discoveryv1.EndpointSlice
		if _, ok := in.Lookup("before"); ok {
			have = planSlices(svc, read("before"), nil, where, names, uids, testNow).create
		}
		plan := planSlices(svc, read("pods"), have, where, names, uids, testNow)
		var b strings.Builder
		for _, part := range []struct {
			verb string
			all  []*discoveryv1.EndpointSlice
		}{{"create", plan.create}, {"update", plan.update}, {"remove", plan.remove}} {
			for _, s := range part.all {
				text := describeSlice(s)
				if part.verb == "remove" {
					text = s.Name + "\n"
				}
				b.WriteString(part.verb + " " + text)
			}
		}
		if b.Len() == 0 {
			return "nothing\n"
		}
		return b.String()
	})
}

// TestSlicesStayStable: a thousand pods come and go; each is in one slice, none is
// over-full, and one that stays is where it was.
func TestSlicesStayStable(t *testing.T) {
	svc := one(t, []byte("web")).service()
	pod := func(i int) *corev1.Pod {
		return one(t, fmt.Appendf(nil, "web-%d ready ip=10.%d.%d.%d", i, 1+i/62500, i/250%250, 1+i%250)).endpointPod()
	}
	var pods []*corev1.Pod
	var have []*discoveryv1.EndpointSlice
	names, uids := sequential("s"), sequential("u")
	s := newSim(t, 3)
	for round, next := 0, 0; round < 60; round++ {
		pods = slices.DeleteFunc(pods, func(*corev1.Pod) bool { return s.rand.IntN(10) == 0 })
		for range s.rand.IntN(120) {
			pods = append(pods, pod(next))
			next++
		}
		before := map[string]string{}
		for _, slice := range have {
			for _, e := range slice.Endpoints {
				before[e.TargetRef.Name] = slice.Name
			}
		}
		plan := planSlices(svc, pods, have, func(string) place { return place{} }, names, uids, testNow)
		byName := map[string]*discoveryv1.EndpointSlice{}
		for _, slice := range slices.Concat(have, plan.create, plan.update) {
			byName[slice.Name] = slice
		}
		for _, slice := range plan.remove {
			delete(byName, slice.Name)
		}
		in := map[string]string{}
		have = nil
		for name, slice := range byName {
			have = append(have, slice)
			if len(slice.Endpoints) > maxPerSlice {
				t.Fatalf("round %d: slice %s has %d endpoints", round, name, len(slice.Endpoints))
			}
			for _, e := range slice.Endpoints {
				if other := in[e.TargetRef.Name]; other != "" {
					t.Fatalf("round %d: %s is in %s and %s", round, e.TargetRef.Name, other, name)
				}
				in[e.TargetRef.Name] = name
				if was := before[e.TargetRef.Name]; was != "" && was != name {
					t.Fatalf("round %d: %s moved from %s to %s", round, e.TargetRef.Name, was, name)
				}
			}
		}
		slices.SortFunc(have, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
		if len(in) != len(pods) {
			t.Fatalf("round %d: %d endpoints for %d pods", round, len(in), len(pods))
		}
	}
}

// TestEndpointsFollow: slices appear with pods, follow readiness, and go with the
// service; the controllers come to rest.
func TestEndpointsFollow(t *testing.T) {
	s := newSim(t, 11)
	endpoints := newEndpointSlices(sequential("slice-"), sequential("e"))
	endpoints.queue = newQueue()
	s.r.controllers = append(s.r.controllers, endpoints)
	svc := one(t, []byte("web")).service()
	svc.ResourceVersion = ""
	s.put(svc)
	rs := one(t, []byte("web replicas=3")).replicaSet()
	rs.ResourceVersion = ""
	s.put(rs)
	settle := func() {
		for range 40 {
			for s.commitLate() || s.controllers(false) || s.agent() {
			}
			s.now = s.now.Add(endpointsDelay)
		}
	}
	settle()
	for i, pod := range s.pods() {
		pod.Status.PodIP = fmt.Sprintf("10.0.0.%d", i+1)
		s.put(pod)
	}
	settle()
	ready := func() (n int) {
		for _, slice := range object.List[*discoveryv1.EndpointSlice](s.view(), "default") {
			for _, e := range slice.Endpoints {
				if *e.Conditions.Ready {
					n++
				}
			}
		}
		return n
	}
	if n := ready(); n != 3 {
		t.Fatalf("%d endpoints are ready, want 3", n)
	}
	pod := s.pods()[0]
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(s.now)}}
	s.put(pod)
	for range 4 {
		for s.commitLate() || s.controllers(false) {
		}
		s.now = s.now.Add(endpointsDelay)
	}
	if n := ready(); n != 2 {
		t.Fatalf("%d endpoints are ready after one pod is not, want 2", n)
	}
	got, _ := object.Get[*corev1.Service](s.view(), object.KeyOf(svc))
	s.delete(got)
	settle()
	if left := object.List[*discoveryv1.EndpointSlice](s.view(), "default"); len(left) > 0 {
		t.Errorf("%d slices are left of a service that is gone", len(left))
	}
}
