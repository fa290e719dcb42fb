package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/bench/rig"
	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// watches measures how long after a write its watchers know, while r.watchers of them
// watch the config maps of a namespace and r.writes of these are made each second.
func watches(ctx context.Context, r *run, out *result) (err error) {
	leader, err := r.prepare(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.clear(ctx, leader, configMapKind)) }()
	r.serial++
	prefix := fmt.Sprintf("watched-%d-", r.serial)
	writes := int(r.measure.Seconds()*float64(r.writes)) + 1
	begun := make([]atomic.Int64, writes) // when a write began, in ns
	var mu sync.Mutex
	var latencies []time.Duration
	var received atomic.Int64

	watching, stop := context.WithCancel(ctx)
	defer stop()
	var clients []*client.Client
	for i := range min(r.watchers, connections) {
		clients = append(clients, r.peers.Client(i%rig.Members))
	}
	var watchers sync.WaitGroup
	ready := make(chan error, r.watchers)
	for i := range r.watchers {
		watchers.Go(func() {
			stream, err := clients[i%len(clients)].Objects().Watch(watching, &holdfastv1.WatchRequest{Kind: configMapKind, Namespace: namespace})
			if err != nil {
				ready <- err
				return
			}
			defer stream.Close()
			var mine []time.Duration
			for first := true; ; first = false {
				msg, err := stream.Receive()
				if first {
					ready <- err
				}
				if err != nil {
					break
				}
				now := time.Now().UnixNano()
				for _, change := range msg.GetChanges() {
					name, ok := cut(change.GetObject().GetName(), prefix)
					if n, err := strconv.Atoi(name); ok && err == nil && change.GetType() == holdfastv1.ChangeType_CHANGE_TYPE_ADDED {
						mine = append(mine, time.Duration(now-begun[n].Load()))
						received.Add(1)
					}
				}
			}
			mu.Lock()
			latencies = append(latencies, mine...)
			mu.Unlock()
		})
	}
	defer func() {
		stop()
		for _, c := range clients {
			c.Close()
		}
	}()
	for range r.watchers {
		if err := <-ready; err != nil {
			return fmt.Errorf("begin to watch: %w", err)
		}
	}

	conns, done := r.connect(ctx, stream, 4, leader)
	defer done()
	before, start := rig.ReadUsage(r.peers.PIDs()), time.Now()
	var writing sync.WaitGroup
	failures := make(chan error, writes)
	for n := range writes {
		_ = rig.Pause(ctx, time.Until(start.Add(time.Duration(n)*time.Second/time.Duration(r.writes))))
		writing.Go(func() {
			begun[n].Store(time.Now().UnixNano())
			failures <- conns[n%len(conns)].create(ctx, "configmaps", newConfigMap(prefix+strconv.Itoa(n)))
		})
	}
	writing.Wait()
	took := time.Since(start)
	for range writes {
		err = errors.Join(err, <-failures)
	}
	if err != nil {
		return err
	}
	want := int64(writes) * int64(r.watchers)
	for patience := time.Now(); received.Load() < want && time.Since(patience) < time.Minute; {
		if err := rig.Pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	used := rig.ReadUsage(r.peers.PIDs()).Since(before, r.peers.PIDs(), r.peers.Member(leader).PID())
	stop()
	watchers.Wait()
	if int64(len(latencies)) != want {
		return fmt.Errorf("watchers have seen %d events of %d", len(latencies), want)
	}
	slices.Sort(latencies)
	out.add("watch_watchers", float64(r.watchers), "")
	out.add("watch_writes", float64(writes)/took.Seconds(), "writes/s")
	out.add("watch_events", float64(want)/used.Wall.Seconds(), "events/s")
	out.add("watch_p50", rig.Milliseconds(rig.Quantile(latencies, 0.5)), "ms")
	out.add("watch_p99", rig.Milliseconds(rig.Quantile(latencies, 0.99)), "ms")
	out.add("watch_servers", float64(used.Servers.Nanoseconds())/float64(want), "ns/event")
	out.add("watch_client", float64(used.Client.Nanoseconds())/float64(want), "ns/event")
	return nil
}

func cut(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || s[:len(prefix)] != prefix {
		return "", false
	}
	return s[len(prefix):], true
}

// agents measures many agents on one peer that is not the leader, each with a
// connection and a stream of its own: the peer's memory for them, and how long a change
// of a node's route takes to all.
func agents(ctx context.Context, r *run, out *result) error {
	leader, err := r.prepare(ctx)
	if err != nil {
		return err
	}
	peer := (leader + 1) % rig.Members
	text, err := r.peers.Token(ctx, holdfastv1.Role_ROLE_NODE)
	if err != nil {
		return err
	}
	token, err := pki.ParseToken(text)
	if err != nil {
		return err
	}
	empty, err := rig.MemoryOf(r.peers.Member(peer).PID())
	if err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	type arrival struct{ at time.Time }
	arrived := make(chan arrival, 16*r.agents)
	ready := make(chan error, r.agents)
	turns := make(chan struct{}, 16) // that join at once
	var all sync.WaitGroup
	defer func() { stop(); all.Wait() }()
	r.serial++
	begin := time.Now()
	for i := range r.agents {
		all.Go(func() {
			turns <- struct{}{}
			c, stream, err := r.agent(watching, peer, token, fmt.Sprintf("node-%d-%d", r.serial, i), i)
			<-turns
			ready <- err
			if err != nil {
				return
			}
			defer c.Close()
			defer stream.Close()
			for {
				msg, err := stream.Receive()
				if err != nil {
					return
				}
				if len(msg.GetChangedRoutes()) > 0 {
					arrived <- arrival{time.Now()}
				}
			}
		})
	}
	for range r.agents {
		if err := <-ready; err != nil {
			return fmt.Errorf("start an agent: %w", err)
		}
	}
	out.add("agents", float64(r.agents), "")
	out.add("agents_start", time.Since(begin).Seconds(), "s")
	// Until the routes of all have reached all.
	quiet := func() error {
		for {
			select {
			case <-arrived:
			case <-time.After(2 * time.Second):
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	if err := quiet(); err != nil {
		return err
	}
	full, err := rig.MemoryOf(r.peers.Member(peer).PID())
	if err != nil {
		return err
	}
	out.add("agents_memory", float64(full.Anonymous-empty.Anonymous)/(1<<20), "MiB")

	// One of them moves, and tells it to another peer.
	token2, err := r.peers.Token(ctx, holdfastv1.Role_ROLE_NODE)
	if err != nil {
		return err
	}
	if token, err = pki.ParseToken(token2); err != nil {
		return err
	}
	used := rig.ReadUsage(r.peers.PIDs())
	start := time.Now()
	c, stream, err := r.agent(watching, leader, token, fmt.Sprintf("node-%d-new", r.serial), r.agents)
	if err != nil {
		return err
	}
	defer c.Close()
	defer stream.Close()
	var latencies []time.Duration
	for len(latencies) < r.agents {
		select {
		case a := <-arrived:
			latencies = append(latencies, a.at.Sub(start))
		case <-time.After(time.Minute):
			return fmt.Errorf("%d of %d agents have heard of the new node", len(latencies), r.agents)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	spent := rig.ReadUsage(r.peers.PIDs()).Since(used, r.peers.PIDs(), r.peers.Member(peer).PID())
	slices.Sort(latencies)
	out.add("agents_broadcast_p50", rig.Milliseconds(rig.Quantile(latencies, 0.5)), "ms")
	out.add("agents_broadcast_p99", rig.Milliseconds(rig.Quantile(latencies, 0.99)), "ms")
	out.add("agents_broadcast_peer", spent.Leader.Seconds(), "s of CPU")
	return nil
}

// desired is an agent's stream.
type desired interface {
	Receive() (*agentv1.DesiredResponse, error)
	Close() error
}

// agent joins a machine, registers its node and opens its stream; the first message is
// read.
func (r *run) agent(ctx context.Context, peer int, token pki.Token, name string, number int) (*client.Client, desired, error) {
	address := fmt.Sprintf("10.%d.%d.%d", 1+number/65536, number/256%256, number%256)
	joined, err := client.Join(ctx, r.peers.Addresses[peer:peer+1], token, pki.RoleNode, name, address+":7001")
	if err != nil {
		return nil, nil, err
	}
	c := client.New(client.Config{Peers: r.peers.Addresses[peer : peer+1], Credentials: joined.Credentials, OnlyThese: true, PingTimeout: r.peers.Patience})
	node := &corev1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: name},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}},
	}
	data, err := object.Encode(node)
	if err == nil {
		_, err = c.Agent().Register(ctx, &agentv1.RegisterRequest{ProtocolVersion: 1, Node: data, BootId: name})
	}
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	stream, err := c.Agent().Desired(ctx, &agentv1.DesiredRequest{RouteChanges: true})
	if err == nil {
		_, err = stream.Receive()
	}
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, stream, nil
}
