package fake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/holdfast-io/holdfast/agent"
)

var _ agent.Network = (*Network)(nil)

// Network gives out addresses and remembers routes. It carries nothing. All
// methods may be called concurrently.
type Network struct {
	mu       sync.Mutex
	cidrs    []netip.Prefix
	routes   []agent.Route
	attached map[string]agent.Attachment
}

// NewNetwork returns a network without any address.
func NewNetwork() *Network {
	return &Network{attached: map[string]agent.Attachment{}}
}

// Configure sets the CIDRs that addresses are taken from.
func (n *Network) Configure(_ context.Context, podCIDRs []netip.Prefix, routes []agent.Route) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cidrs, n.routes = slices.Clone(podCIDRs), slices.Clone(routes)
	return nil
}

// Attach takes the first free address of the first CIDR that has one. The first
// two of a CIDR, the network's and the gateway's, are not given out.
func (n *Network) Attach(_ context.Context, podUID string) (agent.Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a, ok := n.attached[podUID]; ok {
		return a, nil
	}
	if len(n.cidrs) == 0 {
		return agent.Attachment{}, errors.New("the node has no pod CIDR yet")
	}
	used := map[netip.Addr]bool{}
	for _, a := range n.attached {
		for _, ip := range a.IPs {
			used[ip] = true
		}
	}
	for _, cidr := range n.cidrs {
		for ip := cidr.Masked().Addr().Next().Next(); cidr.Contains(ip); ip = ip.Next() {
			if used[ip] || ip.Is4() && !cidr.Contains(ip.Next()) { // the last is for broadcasts
				continue
			}
			a := agent.Attachment{NetNS: "fake-netns/" + podUID, IPs: []netip.Addr{ip}}
			n.attached[podUID] = a
			return a, nil
		}
	}
	return agent.Attachment{}, fmt.Errorf("no free address in %v", n.cidrs)
}

// Detach frees a pod's address.
func (n *Network) Detach(_ context.Context, podUID string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, podUID)
	return nil
}

// List returns the attached pods.
func (n *Network) List(context.Context) (map[string]agent.Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.attached), nil
}

// Remove forgets everything.
func (n *Network) Remove(context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cidrs, n.routes, n.attached = nil, nil, map[string]agent.Attachment{}
	return nil
}

// Routes returns what Configure was last called with.
func (n *Network) Routes() ([]netip.Prefix, []agent.Route) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.cidrs), slices.Clone(n.routes)
}
