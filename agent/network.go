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
