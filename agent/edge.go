package agent

import (
	"context"
	"net/netip"
	"sync"

	"github.com/holdfast-io/holdfast/agent/dns"
	"github.com/holdfast-io/holdfast/agent/ingress"
	"github.com/holdfast-io/holdfast/agent/netstate"
)

// NameServers is what a [Network] can that has a place for the node's DNS server. The
// agent serves names there, and pods are told of it.
type NameServers interface {
	// NameServer is the address on this node at which its pods reach it. It is there
	// once the network was configured, and always the same.
	NameServer() netip.Addr
}

const dnsPort = 53

// edge is what of the cluster's network the agent serves itself: names, to the node's
// pods, and Ingresses, to the world.
type edge struct {
	state   *netstate.Holder
	names   *dns.Server     // nil: the network has no place for it
	ingress *ingress.Server // nil: the network reaches no pods
	server  netip.Addr      // of names

	mu   sync.Mutex
	last *netstate.State // that is in place
}

func newEdge(cfg Config, m *metrics, state *netstate.Holder) (*edge, error) {
	e := &edge{state: state}
	var err error
	if place, ok := cfg.Network.(NameServers); ok {
		e.server = place.NameServer()
		e.names, err = dns.New(dns.Config{
			Addresses: []netip.AddrPort{netip.AddrPortFrom(e.server, dnsPort)}, ResolvConf: cfg.ResolvConf,
			Logger: cfg.Logger.With("part", "dns"), Registerer: m.reg,
		})
		if err != nil {
			return nil, err
		}
	}
	if _, ok := cfg.Network.(Services); ok {
		icfg := cfg.Ingress
		icfg.Logger, icfg.Registerer = cfg.Logger.With("part", "ingress"), m.reg
		if e.ingress, err = ingress.New(icfg); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// cluster is the DNS that pods are told of.
func (e *edge) cluster() dns.Cluster {
	if e.names == nil {
		return dns.Cluster{}
	}
	c := dns.Cluster{Servers: []netip.Addr{e.server}, Domain: dns.DefaultDomain}
	if state, _ := e.state.Get(); state.Config.Domain != "" {
		c.Domain = state.Config.Domain
	}
	return c
}

// runNames serves names until ctx ends.
func (e *edge) runNames(ctx context.Context) error {
	if e.names == nil {
		return nil
	}
	return e.names.Run(ctx)
}

// runIngress serves Ingresses, while the node is one of those that do, until ctx ends.
func (e *edge) runIngress(ctx context.Context) error {
	if e.ingress == nil {
		return nil
	}
	return e.ingress.Run(ctx)
}

// update puts the newest state in place, and returns once it is.
func (e *edge) update() {
	e.mu.Lock()
	defer e.mu.Unlock()
	state, _ := e.state.Get()
	if state == e.last {
		return
	}
	if e.last = state; e.names != nil {
		e.names.Set(state)
	}
	if e.ingress != nil {
		e.ingress.Set(state)
	}
}

// programmed returns what programs the data plane, and has the newest state in place
// here before: what the node says that it has taken in, requests through it have as
// well. plane may be nil.
func (e *edge) programmed(plane Services) Services { return edgePlane{e, plane} }

type edgePlane struct {
	edge  *edge
	plane Services
}

// Program implements [Services].
func (p edgePlane) Program(ctx context.Context, state *netstate.State) error {
	p.edge.update()
	if p.plane == nil {
		return nil
	}
	return p.plane.Program(ctx, state)
}

// follow keeps both at the newest state until ctx ends.
func (e *edge) follow(ctx context.Context) error {
	for {
		_, changed := e.state.Get()
		e.update()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}
