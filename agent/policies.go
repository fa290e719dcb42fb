package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/netstate"
	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
)

// What network policies ask of the agent: it knows its own pods before any peer can
// say what they are, and no pod is attached before the rules know it. So a pod is
// judged from its first packet.

// identify tells the network which pods are here: those desired, and those that still
// end. p.mu is held.
func (p *pods) identify() {
	if p.identified == nil {
		return
	}
	all := maps.Clone(p.desired)
	for uid, w := range p.workers {
		if pod, _ := w.desired(); all[uid] == nil && pod != nil {
			all[uid] = pod
		}
	}
	p.identified(all)
}

// setLocal makes pods, by uid, those of the node.
func (n *netSync) setLocal(pods map[string]*corev1.Pod) {
	n.holder.Update(func(s *netstate.State) *netstate.State {
		local := make(map[string]*netstate.Pod, len(pods))
		for uid, pod := range pods {
			if pod.Spec.HostNetwork {
				continue // it has the node's addresses, which policies do not concern
			}
			now := &netstate.Pod{
				Name:   netstate.Name{Namespace: pod.Namespace, Name: pod.Name},
				Labels: pod.Labels, Node: s.Node, Ports: object.NamedPorts(pod),
			}
			if before := s.Local[uid]; before != nil && reflect.DeepEqual(before, now) {
				now = before // no news for anybody
			}
			local[uid] = now
		}
		if maps.Equal(local, s.Local) {
			return s
		}
		return s.WithLocal(local)
	})
}

// needPolicies notes that a peer knows of policies that changed at revision.
func (n *netSync) needPolicies(revision int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.needed = max(n.needed, revision)
}

// admitted returns once the data plane is at a state that knows a pod, and all
// policies that were there before the pod was bound to the node.
func (n *netSync) admitted(ctx context.Context, uid string) error {
	for {
		n.mu.Lock()
		done, needed, changed := n.done, n.needed, n.doneChanged
		n.mu.Unlock()
		state, _ := n.holder.Get()
		switch {
		case needed == 0 && state.Revision == 0:
			return nil // nobody has said anything of policies
		case done != nil && done.Revision >= needed && done.Local[uid] != nil:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the node's network policies are not known or not in place yet: need them at revision %d, have %d: %w", needed, state.Revision, ctx.Err())
		}
	}
}

// setDone notes the state that the data plane is at.
func (n *netSync) setDone(s *netstate.State) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.programmed, n.done = s.Revision, s
	close(n.doneChanged)
	n.doneChanged = make(chan struct{})
}

// withPolicyPods returns s with what a message says of the pods that policies ask
// about.
func withPolicyPods(s *netstate.State, msg *agentv1.NetworkResponse) *netstate.State {
	if !msg.GetAllPods() && len(msg.GetPods())+len(msg.GetRemovedPods()) == 0 {
		return s
	}
	next := *s
	if msg.GetAllPods() {
		next.Pods = nil
	}
	var changes []netstate.Change
	for _, in := range msg.GetPods() {
		pod := &netstate.Pod{Name: netstate.Name{Namespace: in.GetNamespace(), Name: in.GetName()}, Labels: in.GetLabels(), Node: in.GetNode()}
		for _, text := range in.GetIps() {
			if ip, err := netip.ParseAddr(text); err == nil {
				pod.IPs = append(pod.IPs, ip.Unmap())
			}
		}
		for _, p := range in.GetPorts() {
			pod.Ports = append(pod.Ports, corev1.ContainerPort{Name: p.GetName(), Protocol: corev1.Protocol(p.GetProtocol()), ContainerPort: int32(p.GetPort())})
		}
		changes = append(changes, netstate.Change{Object: pod})
	}
	for _, name := range msg.GetRemovedPods() {
		namespace, rest, _ := strings.Cut(name, "/")
		changes = append(changes, netstate.Change{Object: &netstate.Pod{Name: netstate.Name{Namespace: namespace, Name: rest}}, Removed: true})
	}
	return next.With(next.Revision, changes...)
}

// policyPods are the pods of a state as a message holds them.
func policyPods(s *netstate.State) []*agentv1.PolicyPod {
	var all []*agentv1.PolicyPod
	for name, pod := range s.Pods {
		out := &agentv1.PolicyPod{Namespace: name.Namespace, Name: name.Name, Labels: pod.Labels, Node: pod.Node}
		for _, ip := range pod.IPs {
			out.Ips = append(out.Ips, ip.String())
		}
		for _, p := range pod.Ports {
			out.Ports = append(out.Ports, &agentv1.PolicyPort{Name: p.Name, Protocol: string(p.Protocol), Port: uint32(p.ContainerPort)})
		}
		all = append(all, out)
	}
	return all
}
