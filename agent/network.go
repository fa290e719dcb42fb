package agent

import (
	"context"
	"net/netip"

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

// Route says through which node pods are reached.
type Route struct {
	Node     string
	Via      netip.Addr
	PodCIDRs []netip.Prefix
}

// Attachment is a pod's place in the network.
type Attachment struct {
	NetNS string // path of the namespace
	IPs   []netip.Addr
}
