package agent

import (
	"cmp"
	"context"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/netstate"
)

// Network gives pods their addresses and keeps the node's routes. Its calls may
// overlap, but never two for one pod. What it makes is found again after a
// restart of the agent: Attach for an attached pod returns what is there.
type Network interface {
	// Configure sets the node's own pod CIDRs and the routes to the pods of all
	// other nodes. It may be called again with the same or other values, and
	// owns the difference: what is no longer named goes away.
	Configure(ctx context.Context, podCIDRs []netip.Prefix, routes []Route) error
	// Attach makes a pod's network namespace, its address and its way out. It
	// returns an error while the node has no pod CIDR or no free address.
	Attach(ctx context.Context, podUID string) (Attachment, error)
	// Detach takes it all away. Detaching an unknown pod is not an error.
	Detach(ctx context.Context, podUID string) error
	// List returns the attached pods, by uid.
	List(ctx context.Context) (map[string]Attachment, error)
	// Remove takes away all that the network ever made on this node.
	Remove(ctx context.Context) error
}

// Services is what a [Network] can that programs services as well. Calls do not
// overlap. It is as Configure is: called again with the same or another state, it owns
// the difference.
type Services interface {
	// Program makes the node's data plane what the state says, and returns once it
	// is.
	Program(ctx context.Context, state *netstate.State) error
}

// Audits is what a [Network] can that reads back what it has made.
type Audits interface {
	// Audit compares the node's packet rules, as the kernel has them, with what the
	// last programmed state makes of them, and repairs what is different. Nothing is
	// said of what was not programmed yet.
	Audit(ctx context.Context) ([]TableAudit, error)
	// Judge says whether network policies of this node let a connection through, by
	// the state last programmed, and which rules decide; "" if none does.
	Judge(from, to netip.Addr, protocol byte, port uint16) (allowed bool, by string)
}

// TableAudit is what was found of one table of packet rules.
type TableAudit struct {
	Name string
	// Hash is of all that the kernel has of it, Wanted of what it is to have.
	Hash, Wanted string
	// Faults say what was different, for people. Repaired: it is no more.
	Faults   []string
	Repaired bool
}

// HostPorts is what a [Network] can that opens ports of the node for pods.
type HostPorts interface {
	// SetHostPorts makes what arrives at ports of the node go to an attached pod: those,
	// and no other of the pod's. It may be called again. Detach closes them, nothing else
	// does.
	SetHostPorts(ctx context.Context, podUID string, ports []HostPort) error
}

// HostPort is a port of the node that leads to a pod.
type HostPort struct {
	Protocol corev1.Protocol
	HostIP   netip.Addr // not valid: all addresses of the node
	HostPort uint16
	Port     uint16 // the pod's
}

// hostPorts returns what of the node's ports a pod asks for. Init containers that run
// before the others have none.
func hostPorts(pod *corev1.Pod) (ports []HostPort) {
	if pod.Spec.HostNetwork {
		return nil // they are the node's already
	}
	each := func(c *corev1.Container) {
		for _, p := range c.Ports {
			if p.HostPort == 0 {
				continue
			}
			ip, _ := netip.ParseAddr(p.HostIP)
			if ip.IsUnspecified() {
				ip = netip.Addr{}
			}
			ports = append(ports, HostPort{cmp.Or(p.Protocol, corev1.ProtocolTCP), ip, uint16(p.HostPort), uint16(p.ContainerPort)})
		}
	}
	for i := range pod.Spec.InitContainers {
		if policy := pod.Spec.InitContainers[i].RestartPolicy; policy != nil && *policy == corev1.ContainerRestartPolicyAlways {
			each(&pod.Spec.InitContainers[i])
		}
	}
	for i := range pod.Spec.Containers {
		each(&pod.Spec.Containers[i])
	}
	return ports
}

// Route says through which node pods are reached.
type Route struct {
	Node     string
	Via      netip.Addr
	PodCIDRs []netip.Prefix
	// Announced is what that node's [Announcer] said, "" if it has said nothing.
	Announced string
}

// Announcer is what a [Network] can whose nodes have to know something of one
// another: on which network they are, and with which keys traffic to them is sealed.
type Announcer interface {
	// Announcement returns what the other nodes are to know of this one, as of the last
	// Configure. They get it with their routes.
	Announcement() string
}

// Attachment is a pod's place in the network.
type Attachment struct {
	NetNS string // path of the namespace
	IPs   []netip.Addr
}
