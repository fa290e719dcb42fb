//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/holdfast-io/holdfast/agent"
	"github.com/holdfast-io/holdfast/agent/containerd"
	"github.com/holdfast-io/holdfast/agent/containerd/logfile"
	"github.com/holdfast-io/holdfast/agent/fake"
	"github.com/holdfast-io/holdfast/agent/ingress"
	"github.com/holdfast-io/holdfast/agent/network"
	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/agent/volume"
	"github.com/holdfast-io/holdfast/internal/devcluster"
	"github.com/holdfast-io/holdfast/node"
	"github.com/holdfast-io/holdfast/object"
)

type agentFlags struct {
	config   node.Config
	labels   []string
	reserved map[string]string
	eviction []string
	keptLogs string
	ingress  ingressFlags
	runtime  string
	host     nodeHost
	log      logFlags
	// uninstall removes the node instead, and asks unless yes.
	uninstall, yes bool
}

// nodeHost says where a node keeps its containers.
type nodeHost struct {
	dataDir    string
	runDir     string
	name       string // of the node among those of this machine
	containerd string
	imageDirs  []string
	registries string
	plainHTTP  []string
	logBytes   string // of a file of a container's log
	logFiles   int
	// Of the way to other nodes' pods.
	address          netip.Addr
	overlay, encrypt bool
}

func (a *app) agentCommand() *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of a node, which runs containers",
		Long: `Run the agent of a node: it runs the pods that the cluster gives it, with a
containerd of its own and the host's runc, and reports how they are.

It joins once, with a token, and keeps what it was given in its data directory;
later starts need neither --join nor --token. Pods outlive the agent: they go on
while it is away, and it takes them over when it is back.`,
		Example: `  holdfast agent --join 192.0.2.10:7443,192.0.2.11:7443 --token holdfast1...
  holdfast agent
  holdfast agent --uninstall
  holdfast agent --containerd /run/containerd/containerd.sock --label zone=a`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.uninstall {
				return a.runUninstall(cmd.Context(), f)
			}
			return a.runAgent(cmd.Context(), f)
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.config.Join, "join", nil, "join the cluster of these peers, host:port of their API")
	flags.StringVar(&f.config.Token, "token", "", "what to join with, as 'holdfast token create --role node' makes it (default: HOLDFAST_TOKEN)")
	flags.StringVar(&f.config.Name, "name", "", "name of this node, which it keeps (default: the host's name)")
	flags.StringVar(&f.config.DataDir, "data-dir", "/var/lib/holdfast-agent", "directory of all that the node keeps, images and containers too")
	flags.StringVar(&f.host.runDir, "run-dir", "", "directory of sockets and mounts, which a reboot may take (default: /run/holdfast/NAME)")
	flags.StringVar(&f.config.Advertise, "advertise", "", "IP address at which other machines reach this one (default: the first global one)")
	flags.StringVar(&f.config.Gossip, "gossip", ":7946", "where to listen for gossip, TCP and UDP")
	flags.StringVar(&f.runtime, "runtime", "embedded", "embedded (containerd and runc), or fake: containers that only exist in memory")
	flags.BoolVar(&f.host.encrypt, "encrypt", false, "encrypt what pods here and on all other nodes say to each other, with WireGuard")
	flags.BoolVar(&f.host.overlay, "overlay", false, "wrap what pods here and on other nodes say to each other in VXLAN also on one network: for one that drops addresses of pods")
	flags.StringVar(&f.host.containerd, "containerd", "", "socket of a containerd to use instead of one of our own")
	flags.StringSliceVar(&f.host.imageDirs, "image-dir", nil, "directory with images (*.tar) that need no registry; may be repeated")
	flags.StringVar(&f.config.StaticPods, "static-pods", "", "directory with manifests of pods that the node runs whatever the cluster says, and with no peer at all")
	flags.StringVar(&f.host.registries, "registry-config", "/etc/holdfast/registries", "directory that says how to reach registries: HOST/hosts.toml, of containerd's form, with mirrors and certificates")
	flags.StringSliceVar(&f.host.plainHTTP, "plain-http", nil, "registry, host or host:port, to speak to without TLS; may be repeated")
	flags.Int64Var(&f.config.Limits.ImageHighPercent, "image-gc-high-threshold", 85, "percent of the disk above which images go that nobody uses")
	flags.Int64Var(&f.config.Limits.ImageLowPercent, "image-gc-low-threshold", 80, "percent of the disk down to which they go")
	flags.StringSliceVar(&f.eviction, "eviction-hard", strings.Split(agent.DefaultEvictionHard, ","), "what must be left of what pods share, SIGNAL<AMOUNT, or pods are evicted; \"\": none is")
	flags.DurationVar(&f.config.Limits.EvictionTransition, "eviction-pressure-transition-period", 5*time.Minute, "how long the node counts as short of something after it was")
	flags.StringVar(&f.host.logBytes, "container-log-max-size", "10Mi", "size at which a file of a container's log is closed")
	flags.IntVar(&f.host.logFiles, "container-log-max-files", 5, "how many files of a container's log are kept")
	flags.DurationVar(&f.config.Limits.KeptLogsAge, "removed-pod-logs-max-age", 24*time.Hour, "how long logs of pods are kept that were deleted")
	flags.StringVar(&f.keptLogs, "removed-pod-logs-max-size", "1Gi", "how much of them is kept")
	flags.StringSliceVar(&f.labels, "label", nil, "label of the node, key=value; may be repeated")
	flags.StringToStringVar(&f.reserved, "system-reserved", nil, "what the machine needs for itself and pods do not get, such as cpu=200m,memory=512Mi")
	flags.Int64Var(&f.config.Limits.MaxPodPIDs, "pod-max-pids", 0, "the most processes and threads of a pod; 0: not bounded")
	flags.StringVar(&f.host.name, "containers-name", "", "what tells this node's containers from those of other nodes on one machine")
	_ = flags.MarkHidden("containers-name")
	flags.BoolVar(&f.uninstall, "uninstall", false, "remove all that the node has on this machine, pods, links, rules and files, and end; stop the agent before, and give the directories that it ran with")
	flags.BoolVarP(&f.yes, "yes", "y", false, "with --uninstall: do not ask")
	f.ingress.add(flags)
	f.log.add(flags)
	return cmd
}

func (a *app) runAgent(ctx context.Context, f agentFlags) error {
	log, err := f.log.logger(a.stderr, a.getenv)
	if err != nil {
		return err
	}
	f.config.Logger, f.config.Version = log, version
	if f.config.Labels, err = parseLabels(f.labels); err != nil {
		return err
	}
	if f.config.Limits.Reserved, err = parseReserved(f.reserved); err != nil {
		return err
	}
	if f.config.Limits.Eviction, err = agent.ParseThresholds(f.eviction); err != nil {
		return failf(exitUsage, "--eviction-hard: %v", err)
	}
	if f.config.Limits.EvictionTransition <= 0 {
		return failf(exitUsage, "--eviction-pressure-transition-period %v: want more than 0", f.config.Limits.EvictionTransition)
	}
	kept, err := resource.ParseQuantity(f.keptLogs)
	if err != nil || kept.Sign() <= 0 {
		return failf(exitUsage, "--removed-pod-logs-max-size %s: want an amount such as 1Gi", f.keptLogs)
	}
	if f.config.Limits.KeptLogsBytes = kept.Value(); f.config.Limits.KeptLogsAge <= 0 {
		return failf(exitUsage, "--removed-pod-logs-max-age %v: want more than 0", f.config.Limits.KeptLogsAge)
	}
	closeLog, err := f.ingress.config(&f.config.Ingress)
	if err != nil {
		return err
	}
	defer closeLog()
	if f.config.Token == "" && len(f.config.Join) > 0 {
		f.config.Token = a.getenv("HOLDFAST_TOKEN")
	}
	switch f.runtime {
	case "embedded":
		if os.Geteuid() != 0 {
			return failf(exitError, "containers need root: run this with sudo, or take --runtime fake, which needs none")
		}
	case "fake":
	default:
		return failf(exitUsage, "--runtime %s: want embedded or fake", f.runtime)
	}
	if f.runtime == "fake" {
		f.config.Mounts = volume.Folders{}
	}
	n, err := node.Prepare(ctx, f.config)
	if err != nil {
		return err
	}
	var rt runtime.Runtime = fake.New(fake.Config{})
	var net agent.Network = fake.NewNetwork()
	if f.runtime == "embedded" {
		f.host.dataDir, f.host.address = n.DataDir(), n.Address()
		if rt, net, err = f.host.containers(n.Name(), log); err != nil {
			n.Close()
			return err
		}
	}
	go func() {
		select {
		case <-ctx.Done():
		case <-rt.Ready():
			if err := devcluster.NotifyReady(); err != nil {
				log.Warn("whoever started this agent does not hear that it is ready", "err", err)
			}
		}
	}()
	err = n.Run(ctx, rt, net)
	if errors.Is(err, node.ErrAddressChanged) && f.runtime == "embedded" {
		// In place: whoever watches over this process sees the same one.
		if self, lost := os.Executable(); lost == nil {
			err = errors.Join(err, syscall.Exec(self, os.Args, os.Environ()))
		}
	}
	if ctx.Err() == nil && err == nil {
		err = errors.New("the agent ended by itself")
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// containers returns the runtime and the network of a real node.
func (h nodeHost) containers(node string, log *slog.Logger) (*containerd.Runtime, *network.Network, error) {
	if h.name == "" {
		h.name = node
	}
	if h.runDir == "" {
		h.runDir = filepath.Join("/run/holdfast", node)
	}
	data, err := filepath.Abs(h.dataDir)
	if err != nil {
		return nil, nil, err
	}
	size := logfile.Size{Segments: h.logFiles}
	if h.logBytes != "" {
		bytes, err := resource.ParseQuantity(h.logBytes)
		if err != nil || bytes.Value() < 1<<16 {
			return nil, nil, failf(exitUsage, "--container-log-max-size %s: want at least 64Ki", h.logBytes)
		}
		size.SegmentBytes = bytes.Value()
	}
	if h.logFiles < 0 || h.logFiles == 1 {
		return nil, nil, failf(exitUsage, "--container-log-max-files %d: want at least 2", h.logFiles)
	}
	rt, err := containerd.New(containerd.Config{
		Node:      h.name,
		Root:      filepath.Join(data, "containers"),
		State:     filepath.Join(h.runDir, "c"),
		Address:   h.containerd,
		ImageDirs: h.imageDirs,
		LogSize:   size,
		PlainHTTP: h.plainHTTP, RegistryDir: h.registries,
		Logger: log.With("part", "containers"),
	})
	if err != nil {
		return nil, nil, err
	}
	net, err := network.New(network.Config{
		NetNSDir: filepath.Join(h.runDir, "netns"), TunnelDir: filepath.Join(h.runDir, "tunnels"),
		Address: h.address, Overlay: h.overlay, Encrypt: h.encrypt,
		TunnelProgram: func() (string, error) { return rt.InstallProgram(network.TunnelName) },
		Logger:        log.With("part", "network"),
	})
	return rt, net, err
}

// ingressFlags say how a node serves Ingresses that is chosen for it.
type ingressFlags struct {
	http, https, accessLog string
	trusted                []string
}

func (f *ingressFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.http, "ingress-http", ":80", "where to serve Ingresses without TLS, while the node has the label "+object.IngressNodeLabel)
	flags.StringVar(&f.https, "ingress-https", ":443", "where to serve Ingresses with TLS")
	flags.StringVar(&f.accessLog, "ingress-access-log", "", "file that gets a line of JSON for each request to an Ingress; - is standard output")
	flags.StringSliceVar(&f.trusted, "ingress-trusted-proxy", nil, "addresses, such as 10.0.0.0/8, of proxies in front whose X-Forwarded headers are believed; may be repeated")
}

// config fills in c. What it returns closes the log.
func (f *ingressFlags) config(c *ingress.Config) (closeLog func(), err error) {
	c.HTTP, c.HTTPS = f.http, f.https
	for _, text := range f.trusted {
		p, err := netip.ParsePrefix(text)
		if ip, single := netip.ParseAddr(text); single == nil {
			p, err = netip.PrefixFrom(ip, ip.BitLen()), nil
		}
		if err != nil {
			return nil, failf(exitUsage, "--ingress-trusted-proxy %s: want an address, or a range such as 10.0.0.0/8", text)
		}
		c.TrustedProxies = append(c.TrustedProxies, p)
	}
	switch f.accessLog {
	case "":
	case "-":
		c.AccessLog = slog.New(slog.NewJSONHandler(os.Stdout, nil))
	default:
		// Opened for appending: whoever rotates it copies and truncates.
		file, err := os.OpenFile(f.accessLog, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
		if err != nil {
			return nil, fmt.Errorf("--ingress-access-log: %w", err)
		}
		c.AccessLog = slog.New(slog.NewJSONHandler(file, nil))
		return func() { file.Close() }, nil
	}
	return func() {}, nil
}

// parseReserved reads amounts of resources that nodes have.
func parseReserved(given map[string]string) (corev1.ResourceList, error) {
	reserved := corev1.ResourceList{}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		switch corev1.ResourceName(name) {
		case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, corev1.ResourcePods:
		default:
			return nil, failf(exitUsage, "--system-reserved %s: a node has cpu, memory, ephemeral-storage and pods", name)
		}
		amount, err := resource.ParseQuantity(given[name])
		if err != nil || amount.Sign() < 0 {
			return nil, failf(exitUsage, "--system-reserved %s=%s: want an amount such as 500m or 1Gi", name, given[name])
		}
		reserved[corev1.ResourceName(name)] = amount
	}
	return reserved, nil
}

func parseLabels(given []string) (map[string]string, error) {
	labels := map[string]string{}
	for _, label := range given {
		key, value, ok := strings.Cut(label, "=")
		if !ok || key == "" {
			return nil, failf(exitUsage, "--label %s: want key=value", label)
		}
		labels[key] = value
	}
	return labels, nil
}
