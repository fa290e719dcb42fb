package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/holdfast-io/holdfast/agent/netstate"
)

// RangeChecker is what a [Network] can that shares a machine with others.
type RangeChecker interface {
	// CheckRanges returns an error, for people, when addresses that the cluster has for
	// its pods and services are in use on this machine otherwise. It changes nothing.
	CheckRanges(ctx context.Context, ranges []netip.Prefix) error
}

// rangesPatience is how long an agent that knows nothing of the cluster's ranges waits
// for a peer to say them, before it goes by those that it knows.
const rangesPatience = 5 * time.Second

// checkRanges returns nil once nothing is in the way of the cluster's ranges. It is
// asked once in the life of an agent, before it sets anything up: what comes later is
// in the wrong itself, and pods that run are not to pay for it.
func (a *Agent) checkRanges(ctx context.Context, own []netip.Prefix) error {
	checker, ok := a.cfg.Network.(RangeChecker)
	if !ok {
		return nil
	}
	state := a.network.knowing(ctx, rangesPatience)
	ranges := slices.Concat(state.Config.PodCIDRs, state.Config.ServiceCIDRs)
	for _, p := range own {
		if !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Bits() <= p.Bits() && r.Contains(p.Addr()) }) {
			ranges = append(ranges, p)
		}
	}
	return checker.CheckRanges(ctx, ranges)
}

// knowing returns the state of the network once a peer has said any, or after patience.
func (n *netSync) knowing(ctx context.Context, patience time.Duration) *netstate.State {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		state, changed := n.holder.Get()
		if state.Revision > 0 {
			return state
		}
		select {
		case <-changed:
		case <-timer.C:
			return state
		case <-ctx.Done():
			return state
		}
	}
}

// afterCheck is a data plane that is not touched before the network was checked.
type afterCheck struct {
	Services
	checked <-chan struct{}
}

// Program implements [Services].
func (p afterCheck) Program(ctx context.Context, state *netstate.State) error {
	select {
	case <-p.checked:
		return p.Services.Program(ctx, state)
	case <-ctx.Done():
		return fmt.Errorf("the node's network is not set up yet: %w", context.Cause(ctx))
	}
}
