package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/deadman"
	"github.com/holdfast-io/holdfast/agent/ingress"
	containers "github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/agent/volume"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// Client reaches the peers; *client.Client is one.
type Client interface {
	// Agent returns the agent's service on whichever peer is in use.
	Agent() agentv1connect.AgentServiceClient
	// Access returns the service that makes tokens, on the same peer.
	Access() holdfastv1connect.AccessServiceClient
	// Peer returns the address of the peer in use, or "".
	Peer() string
	// SetPeers replaces the addresses to choose from. The connection in use
	// stays.
	SetPeers(addresses []string)
	// Switch makes the next call go to another peer, if there is one.
	Switch(reason string)
}

// Config is what an agent needs.
type Config struct {
	Node    string             // required; the node's name, as in its certificate
	Client  Client             // required
	Runtime containers.Runtime // required; Run of the agent runs it
	Network Network            // required
	// Mounts is what makes volumes in memory and the like. Optional; the kernel.
	Mounts volume.Mounts
	// DataDir keeps the desired state, and the agent's socket. Required; made if
	// it is missing. One agent at a time.
	DataDir string
	Address netip.Addr // required; the node's address, as other nodes reach it

	Peers    []string            // optional; addresses of peers to begin with, beside those remembered
	Labels   map[string]string   // optional; of the node, beside the well-known ones
	Version  string              // optional; Holdfast's version, for nodeInfo
	Capacity corev1.ResourceList // optional; what the machine has. Keys given here override what was measured
	// StaticPods is a folder with manifests of pods that the node runs whatever the
	// peers say. Optional; it is read every 5 s.
	StaticPods string
	Limits     Limits // optional; of what pods may use
	// Signals measures the node. Optional; this machine, and the file system of DataDir.
	Signals NodeSignals
	// ClusterCA are the certificates, in PEM, by which pods know the cluster's API: what the
	// ConfigMap kube-root-ca.crt of each namespace would hold, if nobody has made one. Optional.
	ClusterCA string
	// ResolvConf is the file that pods' resolv.conf is made from. Optional;
	// /etc/resolv.conf.
	ResolvConf string
	// Ingress says how Ingresses are served, on a node that is chosen for it. Optional;
	// its Logger and Registerer are the agent's.
	Ingress ingress.Config
	// Socket is the path of the unix socket that serves /healthz, /metrics and
	// /debug/pprof. Optional; agent.sock in DataDir. "none": no socket.
	Socket string
	// ParallelStarts bounds the pods that are being set up at the same time.
	// Optional; twice the number of CPUs.
	ParallelStarts int
	// StartHold is how long, after a start, containers that do not run wait for
	// word from a peer before the saved state alone is reason enough to start
	// them. A machine that comes back after its pods were replaced thus does not
	// start them again. Optional; 5 s.
	StartHold time.Duration
	// Guard ends fenced pods at the end of the node's lease when the agent does not.
	// Optional: a dead-man if the runtime's containers are processes; else the agent alone does.
	Guard Guard
	// Clock returns how long ago the machine was started, the time it slept included. It
	// never goes back. Optional; CLOCK_BOOTTIME.
	Clock func() time.Duration

	Logger     *slog.Logger          // optional; discards
	Registerer prometheus.Registerer // optional; served on the socket if it is a Gatherer too
}

// Limits bound what pods may use of a node.
type Limits struct {
	// Reserved is what the machine needs for itself: pods are given the rest.
	// Optional; nothing.
	Reserved corev1.ResourceList
	// MaxPodPIDs bounds the processes and threads of each pod. Optional; not bounded.
	MaxPodPIDs int64
	// ImageHighPercent and ImageLowPercent: when the disk with the images is fuller than
	// the first, unused images go until it is no fuller than the second. Optional; 85 and 80.
	ImageHighPercent, ImageLowPercent int64
	// Eviction is what must be left of what pods share, or some are ended. Optional; nil is
	// [DefaultEvictionHard], an empty list nothing.
	Eviction []Threshold
	// EvictionTransition is how long the node says that it is short of something after it
	// was. Optional; 5 min.
	EvictionTransition time.Duration
	// KeptLogsAge and KeptLogsBytes bound the logs of removed pods that are kept. Optional; 24 h
	// and 1 GiB. They go at once when the node is short of disk.
	KeptLogsAge   time.Duration
	KeptLogsBytes int64
}

// Agent runs one node. See [New].
type Agent struct {
	cfg      Config
	log      *slog.Logger
	metrics  *metrics
	gatherer prometheus.Gatherer
	machine  machine

	reports  *reporter
	pods     *pods
	claims   *claims
	session  *session
	sessions *sessions
	usage    *usage
	images   *imageCollector
	evictor  *evictor
	logs     *logKeeper
	routes   *routes
	network  *netSync
	edge     *edge
	static   *staticPods
	fencing  *fencing
}

const (
	// runtimeTimeout is how long a runtime may take to come up.
	runtimeTimeout = 60 * time.Second
	// defaultStartHold: an agent reaches a peer within a fraction of it when any
	// can be reached.
	defaultStartHold = 5 * time.Second
)

// New returns an agent that does nothing until it is run. It reads no file but
// what describes the machine.
func New(cfg Config) (*Agent, error) {
	switch {
	case cfg.Node == "":
		return nil, errors.New("agent: Config.Node is empty")
	case cfg.Client == nil:
		return nil, errors.New("agent: Config.Client is nil")
	case cfg.Runtime == nil:
		return nil, errors.New("agent: Config.Runtime is nil")
	case cfg.Network == nil:
		return nil, errors.New("agent: Config.Network is nil")
	case cfg.DataDir == "":
		return nil, errors.New("agent: Config.DataDir is empty")
	case !cfg.Address.IsValid():
		return nil, errors.New("agent: Config.Address is not set")
	case cfg.Limits.ImageHighPercent > 100, cfg.Limits.ImageLowPercent < 0, cfg.Limits.ImageLowPercent > cmp.Or(cfg.Limits.ImageHighPercent, defaultImageHigh):
		return nil, errors.New("agent: the disk with the images: want percents, the low one not above the high one")
	}
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("agent: data directory: %w", err)
	}
	cfg.DataDir = dir
	if cfg.Version == "" {
		cfg.Version = "unknown"
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = defaultResolvConf
	}
	if cfg.Socket == "" {
		cfg.Socket = filepath.Join(dir, "agent.sock")
	}
	if cfg.ParallelStarts <= 0 {
		cfg.ParallelStarts = 2 * runtime.NumCPU()
	}
	if cfg.StartHold == 0 {
		cfg.StartHold = defaultStartHold
	}
	if cfg.Limits.Eviction == nil {
		if cfg.Limits.Eviction, err = ParseThresholds(strings.Split(DefaultEvictionHard, ",")); err != nil {
			return nil, err
		}
	}
	if cfg.Limits.EvictionTransition == 0 {
		cfg.Limits.EvictionTransition = defaultEvictionTransition
	}
	if cfg.Signals == nil {
		cfg.Signals = nodeSignals(dir)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Agent{cfg: cfg, log: cfg.Logger}
	registry := prometheus.NewRegistry()
	a.gatherer = registry
	var registerer prometheus.Registerer = registry
	if cfg.Registerer != nil {
		registerer = cfg.Registerer
		if g, ok := cfg.Registerer.(prometheus.Gatherer); ok {
			a.gatherer = g
		}
	}
	a.metrics = newMetrics(registerer)
	if a.machine, err = thisMachine(); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	a.reports = newReporter(cfg.Client, a.log, a.metrics)
	a.metrics.watch(a.reports)
	a.routes = newRoutes(cfg.Network, a.log)
	a.network = newNetSync(cfg.Node, dir, cfg.Client, a.log)
	if a.edge, err = newEdge(cfg, a.metrics, a.network.holder); err != nil {
		return nil, err
	}
	if cfg.Mounts == nil {
		cfg.Mounts = volume.Kernel{}
	}
	if cfg.Guard == nil {
		cfg.Guard = newGuard(filepath.Join(dir, "fencing"), a.machine.BootID, cfg.Runtime, a.log)
	}
	if cfg.Clock == nil {
		cfg.Clock = deadman.Boottime
	}
	a.cfg = cfg
	a.fencing = newFencing(cfg.Guard, cfg.Clock, a.log)
	memory := quantity(a.machine.capacity(cfg), corev1.ResourceMemory)
	a.pods = newPods(podsConfig{
		runtime: cfg.Runtime, network: cfg.Network,
		volumes: volume.New(volume.Config{Dir: filepath.Join(dir, "volumes"), Node: cfg.Node, Mounts: cfg.Mounts}), networkReady: a.routes.wait, admitted: a.network.admitted, identified: a.network.setLocal, drain: a.network.drain, confirm: a.confirm, fencing: a.fencing, issue: a.issueToken, clusterCA: cfg.ClusterCA, reports: a.reports, log: a.log, metrics: a.metrics,
		dataDir: dir, nodeName: cfg.Node, hostIP: cfg.Address, allocatable: nodeObject(cfg, a.machine, "").Status.Allocatable, resolvConf: cfg.ResolvConf, clusterDNS: a.edge.cluster,
		parallel: cfg.ParallelStarts, startHold: cfg.StartHold,
		maxPIDs: cfg.Limits.MaxPodPIDs, memoryBytes: memory.Value(),
	})
	a.fencing.wake = a.pods.notifyAll
	a.static = &staticPods{dir: cfg.StaticPods, node: cfg.Node, client: cfg.Client, pods: a.pods, log: a.log}
	a.claims = newClaims(cfg.Node, a.pods.volumes, cfg.Client, a.log)
	a.session = newSession(a)
	a.routes.register, a.routes.check = a.session.register, a.checkRanges
	a.sessions = newSessions(a)
	a.usage = newUsage(a)
	a.images = &imageCollector{
		runtime: cfg.Runtime, log: a.log, pods: a.pods.known,
		high: cmp.Or(cfg.Limits.ImageHighPercent, defaultImageHigh), low: cmp.Or(cfg.Limits.ImageLowPercent, defaultImageLow),
	}
	a.logs = &logKeeper{
		runtime: cfg.Runtime, log: a.log,
		age: cmp.Or(cfg.Limits.KeptLogsAge, defaultKeptLogsAge), bytes: cmp.Or(cfg.Limits.KeptLogsBytes, defaultKeptLogsBytes),
	}
	a.evictor = &evictor{
		pods: a.pods, images: a.images, logs: a.logs, runtime: cfg.Runtime, volumes: a.pods.volumes, log: a.log,
		thresholds: cfg.Limits.Eviction, transition: cfg.Limits.EvictionTransition, signals: cfg.Signals, register: a.session.register,
	}
	return a, nil
}

// Run runs the node until ctx ends; pods go on running after it. It returns an
// error when the node cannot be run at all: the data directory is in use or
// cannot be written, or there is no container runtime. An unreachable control
// plane is not an error.
func (a *Agent) Run(ctx context.Context) error {
	if err := os.MkdirAll(a.cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("agent: make data directory: %w", err)
	}
	unlock, err := lockDir(a.cfg.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := a.session.load(); err != nil {
		return err
	}
	a.static.load()
	if err := a.cfg.Guard.Open(); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	a.network.load()
	defer a.network.journal.close()

	// The runtime goes last: what uses it must have ended. Containers outlive it.
	runtimeCtx, stopRuntime := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRuntime()
	g, ctx := errgroup.WithContext(ctx)
	runtimeEnded := make(chan error, 1)
	go func() { runtimeEnded <- a.cfg.Runtime.Run(runtimeCtx) }()
	g.Go(func() error { return a.serveLocal(ctx) })
	g.Go(func() error {
		select {
		case err := <-runtimeEnded:
			runtimeEnded <- err
			if err == nil {
				err = errors.New("it ended by itself")
			}
			return fmt.Errorf("container runtime: %w", err)
		case <-ctx.Done():
			return nil
		}
	})
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(runtimeTimeout):
			return fmt.Errorf("container runtime is not ready after %v", runtimeTimeout)
		case <-a.cfg.Runtime.Ready():
		}
		// The workers begin before any peer is asked: what runs is adopted first.
		g.Go(func() error { return a.routes.run(ctx) })
		g.Go(func() error { return a.routes.runAnnouncements(ctx, a.session.registered) })
		g.Go(func() error { return a.cfg.Guard.Run(ctx) })
		g.Go(func() error { return a.fencing.run(ctx) })
		plane, _ := a.cfg.Network.(Services)
		if plane != nil {
			plane = afterCheck{plane, a.routes.checked}
		}
		g.Go(func() error { return a.network.program(ctx, a.edge.programmed(plane)) })
		g.Go(func() error { return a.network.acknowledge(ctx) })
		g.Go(func() error { return a.edge.follow(ctx) })
		g.Go(func() error { return a.edge.runNames(ctx) })
		g.Go(func() error { return a.edge.runIngress(ctx) })
		g.Go(func() error { return a.pods.run(ctx) })
		g.Go(func() error { return a.reports.run(ctx) })
		g.Go(func() error { return a.claims.run(ctx) })
		g.Go(func() error { return a.session.run(ctx) })
		g.Go(func() error { a.session.saveAgain(ctx); return nil })
		g.Go(func() error { return a.session.heartbeats(ctx) })
		g.Go(func() error { return a.usage.run(ctx) })
		g.Go(func() error { return a.static.run(ctx) })
		g.Go(func() error { return a.images.run(ctx) })
		g.Go(func() error { return a.evictor.run(ctx) })
		g.Go(func() error { return a.logs.run(ctx) })
		return a.sessions.run(ctx)
	})
	err = g.Wait()
	stopRuntime()
	<-runtimeEnded
	return err
}
