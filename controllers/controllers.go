package controllers

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore"
)

// Defaults for the fields of Config. They bound how long a lost node keeps its
// pods: one lease after its last heartbeat, and up to one health period more.
const (
	DefaultHeartbeatPeriod = time.Second
	DefaultNodeLease       = 6 * time.Second
	DefaultHealthPeriod    = 500 * time.Millisecond
	DefaultBrakeWindow     = 30 * time.Second
)

// DefaultClusterCIDR is the range from which nodes get the addresses of their
// pods.
var DefaultClusterCIDR = netip.MustParsePrefix("10.244.0.0/16")

// Health is the evidence about nodes. Its methods are called from one goroutine,
// twice a second for every node, and must not block.
type Health interface {
	// Heartbeat returns how long ago the node's agent was last heard by any
	// peer. ok is false if this peer has not heard of it at all.
	Heartbeat(node string) (age time.Duration, ok bool)
	// Gossip returns what gossip says of the node's machine: "alive",
	// "suspect", "dead", "left" or "unknown". Only "alive" has weight: it vetoes
	// a conviction.
	Gossip(node string) string
}

// Events takes the story of what was done and why. Record must not block; it is
// called from several goroutines, after what it tells of has been committed.
type Events interface {
	// Record notes an event of eventType "Normal" or "Warning" about an object.
	Record(about object.Object, eventType, reason, message string)
}

// Config is what the controllers need. The zero value of an optional field means
// its default.
type Config struct {
	Leader *raftstore.Leader // required: the leadership under which they run
	Health Health            // required

	Evictor    Evictor               // optional; without it nodes are not emptied
	Metrics    Metrics               // optional; without them autoscalers only say that they know nothing
	Events     Events                // optional; discarded
	Logger     *slog.Logger          // optional; discarded
	Registerer prometheus.Registerer // optional; metrics are not exposed

	NewUID    func() string // optional; a random UUID. The uid of a new object
	NewSuffix func() string // optional; five random letters and digits. The end of a new pod's name

	ClusterCIDR     netip.Prefix  // optional; DefaultClusterCIDR. Every node gets a /24 of it (IPv6: a /64)
	HeartbeatPeriod time.Duration // optional; 1 s. How often agents send heartbeats
	NodeLease       time.Duration // optional; 6 s. Silence after which a node may be lost
	HealthPeriod    time.Duration // optional; 500 ms. How often the evidence is looked at
	BrakeWindow     time.Duration // optional; 30 s. Nodes that fell silent within it vanished together
}

func (cfg Config) withDefaults() Config {
	if cfg.Events == nil {
		cfg.Events = discardEvents{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.NewUID == nil {
		cfg.NewUID = func() string { return string(uuid.NewUUID()) }
	}
	if cfg.NewSuffix == nil {
		cfg.NewSuffix = func() string { return rand.String(suffixLength) }
	}
	if !cfg.ClusterCIDR.IsValid() {
		cfg.ClusterCIDR = DefaultClusterCIDR
	}
	cfg.HeartbeatPeriod = cmp.Or(cfg.HeartbeatPeriod, DefaultHeartbeatPeriod)
	cfg.NodeLease = cmp.Or(cfg.NodeLease, DefaultNodeLease)
	cfg.HealthPeriod = cmp.Or(cfg.HealthPeriod, DefaultHealthPeriod)
	cfg.BrakeWindow = cmp.Or(cfg.BrakeWindow, DefaultBrakeWindow)
	return cfg
}

type discardEvents struct{}

func (discardEvents) Record(object.Object, string, string, string) {}

// Controllers runs all of them for one leadership. Make a new one for the next.
type Controllers struct {
	cfg Config
}

// New returns controllers for one leadership. It starts nothing.
func New(cfg Config) *Controllers {
	return &Controllers{cfg: cfg.withDefaults()}
}

// Run runs the controllers until ctx, which ends with the leadership, does; that
// is not an error. An error means that cfg cannot work. All of its goroutines have
// ended when it returns. Call it once.
func (c *Controllers) Run(ctx context.Context) error {
	if c.cfg.Leader == nil || c.cfg.Health == nil {
		return fmt.Errorf("controllers: Config.Leader and Config.Health are required")
	}
	if err := checkClusterCIDR(c.cfg.ClusterCIDR); err != nil {
		return fmt.Errorf("controllers: %w", err)
	}
	metrics := newMetrics(c.cfg.Registerer)
	nodes := newNodes(c.cfg, metrics)
	autoscalers := newAutoscalers(c.cfg.Metrics, c.cfg.Logger)
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { autoscalers.run(ctx) })
	drains := newDrains(c.cfg.Evictor, c.cfg.Logger)
	wg.Go(func() { drains.run(ctx) })
	r := &runner{
		leader:  c.cfg.Leader,
		events:  c.cfg.Events,
		log:     c.cfg.Logger,
		metrics: metrics,
		controllers: []*controller{
			newDeployments(c.cfg.NewUID),
			newReplicaSets(c.cfg.NewUID, c.cfg.NewSuffix),
			newReplicationControllers(c.cfg.NewUID, c.cfg.NewSuffix),
			newStatefulSets(c.cfg.NewUID),
			newDaemonSets(c.cfg.NewUID, c.cfg.NewSuffix),
			newJobs(c.cfg.NewUID, c.cfg.NewSuffix),
			newCronJobs(c.cfg.NewUID),
			newBudgets(),
			newQuotas(),
			autoscalers.controller(),
			nodes.controller(),
			drains.controller(),
			newPodCIDRs(c.cfg.ClusterCIDR),
			newNamespaces(),
			newServiceAccounts(c.cfg.NewUID),
			newVolumes(c.cfg.NewUID),
			newOwnClaims(c.cfg.NewUID),
			newEndpointSlices(c.cfg.NewUID, c.cfg.NewSuffix),
			newIngresses(),
			newCollector(),
			newDefinitions(),
			newRoles(c.cfg.NewUID),
		},
		tick:       nodes.tick,
		tickPeriod: c.cfg.HealthPeriod,
	}
	return r.run(ctx)
}
