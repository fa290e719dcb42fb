package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	configureTimeout    = 30 * time.Second
	configureBackoffMax = 30 * time.Second
	// configurePeriod is how often the network is configured without news, to
	// repair what somebody else may have changed.
	configurePeriod = time.Minute
)

// routes keeps the network configured as was last wished.
type routes struct {
	network Network
	log     *slog.Logger
	wake    chan struct{} // of capacity 1
	ready   chan struct{} // closed once the network was configured
	// check says whether anything is in the way; nil: nobody asks. checked is closed once
	// nothing was.
	check   func(ctx context.Context, own []netip.Prefix) error
	checked chan struct{}

	// register makes the node known anew, with what is announced.
	register func(context.Context) error
	told     chan struct{} // of capacity 1: there is something new to announce

	mu        sync.Mutex
	known     bool
	cidrs     []netip.Prefix
	routes    []Route
	announced string
	refused   string // why the network cannot be set up at all, "" if it can
}

func newRoutes(network Network, log *slog.Logger) *routes {
	return &routes{network: network, log: log, wake: make(chan struct{}, 1), ready: make(chan struct{}), told: make(chan struct{}, 1), checked: make(chan struct{})}
}

// announcement is what the network says of itself to other nodes, "" at first.
func (r *routes) announcement() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.announced
}

// announce notes what the network says now.
func (r *routes) announce() {
	announcer, ok := r.network.(Announcer)
	if !ok {
		return
	}
	now := announcer.Announcement()
	r.mu.Lock()
	defer r.mu.Unlock()
	if now == r.announced {
		return
	}
	r.announced = now
	select {
	case r.told <- struct{}{}:
	default:
	}
}

// runAnnouncements makes the node known anew each time that what it announces has
// changed, until ctx ends. registered is closed once it was known at all: a
// registration after that has the latest in any case.
func (r *routes) runAnnouncements(ctx context.Context, registered <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return nil
	case <-registered:
	}
	for failures := 0; ; {
		if failures == 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-r.told:
			}
		}
		err := r.register(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			failures = 0
			continue
		case failures == 0:
			r.log.Warn("other nodes are not told yet how this one is reached; trying again", "error", err)
		}
		failures++
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff(failures, sessionBackoffFirst, sessionBackoffMax)):
		}
	}
}

func (r *routes) set(cidrs []netip.Prefix, routes []Route) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known, r.cidrs, r.routes = true, cidrs, routes
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// wait returns once the network was configured for the first time since the agent
// started: before that, no pod can be attached.
func (r *routes) wait(ctx context.Context) error {
	select {
	case <-r.ready:
		return nil
	case <-ctx.Done():
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.refused != "" {
			return fmt.Errorf("the node's network is not set up: %s: %w", r.refused, ctx.Err())
		}
		return fmt.Errorf("the node's network is not configured yet; it waits for a pod CIDR from the control plane: %w", ctx.Err())
	}
}

// mayBegin returns nil once nothing was in the way of setting the network up, and
// from then on.
func (r *routes) mayBegin(ctx context.Context, own []netip.Prefix) error {
	select {
	case <-r.checked:
		return nil
	default:
	}
	var err error
	if r.check != nil {
		err = r.check(ctx, own)
	}
	if err == nil {
		close(r.checked)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.refused
	if r.refused = ""; err != nil {
		r.refused = err.Error()
	}
	if r.refused != before {
		select {
		case r.told <- struct{}{}:
		default:
		}
	}
	return err
}

// conditions are what the Node says of its network: nothing before it is set up or
// refused.
func (r *routes) conditions() []corev1.NodeCondition {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refused != "" {
		return []corev1.NodeCondition{{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: "AddressesInUse", Message: r.refused}}
	}
	select {
	case <-r.ready:
		return []corev1.NodeCondition{{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: "NetworkIsSetUp", Message: "pods have a network"}}
	default:
		return nil
	}
}

// run configures the network at each change until ctx ends, and tries again what
// failed.
func (r *routes) run(ctx context.Context) error {
	failures := 0
	var once sync.Once
	for {
		pause := configurePeriod
		r.mu.Lock()
		known, cidrs, routes := r.known, r.cidrs, r.routes
		r.mu.Unlock()
		// Before there is a pod CIDR there is nothing to configure: what an agent
		// without state would ask for is that all routes go away.
		if known && len(cidrs) > 0 {
			cctx, cancel := context.WithTimeout(ctx, configureTimeout)
			err := r.mayBegin(cctx, cidrs)
			if err == nil {
				err = r.network.Configure(cctx, cidrs, routes)
				r.announce() // what failed for one node is no reason to keep it from the others
			}
			cancel()
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				failures++
				pause = backoff(failures, cleanupBackoffFirst, configureBackoffMax)
				r.log.Error("network is not configured; trying again", "pause", pause, "error", err)
			case failures > 0:
				failures = 0
				r.log.Info("network is configured again")
			}
			if err == nil {
				once.Do(func() { close(r.ready) })
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-r.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}
