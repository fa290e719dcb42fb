//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent"
	"github.com/holdfast-io/holdfast/agent/fake"
	"github.com/holdfast-io/holdfast/agent/volume"
	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/internal/devcluster"
	"github.com/holdfast-io/holdfast/node"
	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/peer"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// settleTimeout is how long a cluster may take to be whole once all its programs
// are ready.
const settleTimeout = 60 * time.Second

type devFlags struct {
	dataDir     string
	peers       int
	nodes       int
	runtime     string
	subnet      string
	imageDirs   []string
	contextName string
	logLevel    string
}

func (a *app) devCommand() *cobra.Command {
	var f devFlags
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole cluster on this machine, to try things on",
		Long: `Run a whole cluster on this machine, until it is stopped with Ctrl-C: VMs in the
small. Each peer and each node is a process of its own, in a network namespace of
its own with its own address, joined to the others by a switch. That needs root.
With --runtime fake everything is in one process and no container really runs,
which needs no root.

What is killed stays dead until "holdfast dev start": watch what the rest does
about it. The data stay in --data-dir, and the next start comes back with them,
also after everything was killed at once.`,
		Example: `  holdfast dev --image-dir bin/images
  holdfast dev --runtime fake --peers 1
  holdfast dev ps
  holdfast dev kill n1`,
		Args: groupArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("peers") {
				f.peers = -1
			}
			if !cmd.Flags().Changed("nodes") {
				f.nodes = -1
			}
			return a.runDev(cmd.Context(), f)
		},
	}
	cmd.PersistentFlags().StringVar(&f.dataDir, "data-dir", defaultDevDir(a.getenv), "directory of all that the cluster keeps")
	flags := cmd.Flags()
	flags.IntVar(&f.peers, "peers", 3, "how many peers; more than there are adds some")
	flags.IntVar(&f.nodes, "nodes", 2, "how many nodes; more than there are adds some")
	flags.StringVar(&f.runtime, "runtime", "embedded", "embedded: real containers, as root; fake: in one process, without root")
	flags.StringVar(&f.subnet, "subnet", "", fmt.Sprintf("addresses of the machines (default: %s, or the next one that the host does not use)", devcluster.DefaultSubnet))
	flags.StringSliceVar(&f.imageDirs, "image-dir", nil, "directory with images (*.tar) that are on every node; may be repeated")
	flags.StringVar(&f.contextName, "context-name", "dev", "name of the context to save for the command line")
	flags.StringVar(&f.logLevel, "log-level", "info", "of all machines: debug, info, warn or error")
	cmd.AddCommand(a.devPSCommand(&f), a.devKillCommand(&f), a.devStartCommand(&f), a.devExecCommand(&f), a.devCleanCommand(&f))
	return cmd
}

// defaultDevDir is root's or the user's own.
func defaultDevDir(getenv func(string) string) string {
	if os.Geteuid() == 0 {
		return "/var/lib/holdfast-dev"
	}
	if dir := getenv("XDG_DATA_HOME"); dir != "" {
		return filepath.Join(dir, "holdfast-dev")
	}
	return filepath.Join(getenv("HOME"), ".local", "share", "holdfast-dev")
}

// devRun is one run of `holdfast dev`.
type devRun struct {
	app     *app
	flags   devFlags
	cluster *devcluster.Cluster
	printed sync.Mutex // sentences come from several goroutines
}

func (a *app) runDev(ctx context.Context, f devFlags) error {
	var err error
	if f.dataDir, err = filepath.Abs(f.dataDir); err != nil {
		return err
	}
	for i, dir := range f.imageDirs {
		if f.imageDirs[i], err = filepath.Abs(dir); err != nil {
			return err
		}
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			return failf(exitUsage, "--image-dir %s: there is no such directory", dir)
		}
	}
	d := &devRun{app: a, flags: f}
	driver, err := d.driver()
	if err != nil {
		return err
	}
	began := a.now()
	d.cluster, err = devcluster.Open(devcluster.Config{
		DataDir: f.dataDir, Driver: driver, Peers: f.peers, Nodes: f.nodes,
		Token: d.token, Settled: d.settled,
		Report: d.say,
	})
	if err != nil {
		return err
	}
	defer d.cluster.Close()
	return d.cluster.Run(ctx, func(ctx context.Context) error {
		path, err := saveContext(d.contextFor(f.contextName))
		if err != nil {
			return fmt.Errorf("save a context for the command line: %w", err)
		}
		listener, err := devcluster.Listen(d.cluster)
		if err != nil {
			return err
		}
		d.welcome(brief(a.now().Sub(began)), path)
		err = devcluster.Serve(ctx, d.cluster, listener)
		if ctx.Err() != nil {
			d.say("Stopping. (Ctrl-C again to leave at once; then `holdfast dev clean` tidies up.)")
		}
		return err
	})
}

func (d *devRun) say(sentence string) {
	d.printed.Lock()
	defer d.printed.Unlock()
	fmt.Fprintln(d.app.stdout, sentence)
}

func (d *devRun) driver() (devcluster.Driver, error) {
	var subnet netip.Prefix
	if d.flags.subnet != "" {
		var err error
		if subnet, err = netip.ParsePrefix(d.flags.subnet); err != nil {
			return nil, failf(exitUsage, "--subnet %s: want a range such as %s", d.flags.subnet, devcluster.DefaultSubnet)
		}
	}
	switch d.flags.runtime {
	case "embedded":
		if d.flags.nodes != 0 {
			if _, err := exec.LookPath("runc"); err != nil {
				return nil, failf(exitError, "runc, which starts containers, is not installed: run `apt-get install runc`, or take --runtime fake")
			}
		}
		return devcluster.NewNetns(netnsConfig(d.flags, subnet))
	case "fake":
		if subnet.IsValid() {
			return nil, failf(exitUsage, "--subnet is for real machines: --runtime fake has only the loopback's ports")
		}
		if err := os.MkdirAll(d.flags.dataDir, 0o700); err != nil {
			return nil, err
		}
		return devcluster.NewInProcess(devcluster.InProcessConfig{
			DataDir: d.flags.dataDir, LogPath: filepath.Join(d.flags.dataDir, "dev.log"), Run: d.runInProcess,
		}), nil
	}
	return nil, failf(exitUsage, "--runtime %s: want embedded or fake", d.flags.runtime)
}

// netnsConfig says what programs the machines run: this one.
func netnsConfig(f devFlags, subnet netip.Prefix) devcluster.NetnsConfig {
	return devcluster.NetnsConfig{
		DataDir: f.dataDir,
		Want:    subnet,
		Command: func(spec devcluster.Spec, boot devcluster.Boot, dirs devcluster.Dirs) *exec.Cmd {
			return machineCommand(f, spec, boot, dirs)
		},
		Halt: func(ctx context.Context, spec devcluster.Spec, dirs devcluster.Dirs) error {
			rt, _, err := hostOn(f, spec, dirs).containers(spec.Name, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			return rt.Purge(ctx)
		},
		Sweep: func(spec devcluster.Spec, _ devcluster.Dirs) error {
			return devcluster.RemoveCgroup(filepath.Join("holdfast", containersName(f, spec)))
		},
	}
}

// containersName tells the containers of a node from those of other nodes on this
// machine, of other development clusters too.
func containersName(f devFlags, spec devcluster.Spec) string {
	return devcluster.ID(f.dataDir) + "-" + spec.Name
}

func hostOn(f devFlags, spec devcluster.Spec, dirs devcluster.Dirs) nodeHost {
	return nodeHost{dataDir: dirs.Data, runDir: dirs.Run, name: containersName(f, spec), imageDirs: f.imageDirs}
}

// machineCommand is the command line that a real machine would have.
func machineCommand(f devFlags, spec devcluster.Spec, boot devcluster.Boot, dirs devcluster.Dirs) *exec.Cmd {
	verb := "server"
	args := []string{"--name", spec.Name, "--data-dir", dirs.Data, "--advertise", spec.Address.String(), "--log-level", f.logLevel, "--log-format", "text"}
	if spec.Role == devcluster.RoleNode {
		verb = "agent"
		// Several nodes share one machine here, whose disk is its owner's: it is none of their business.
		args = append(args, "--run-dir", dirs.Run, "--containers-name", containersName(f, spec), "--eviction-hard", "")
		for _, dir := range f.imageDirs {
			args = append(args, "--image-dir", dir)
		}
	}
	if boot.Init {
		args = append(args, "--init", "--context-name", adminContext)
	}
	if len(boot.Join) > 0 {
		args = append(args, "--join", strings.Join(boot.Join, ","))
	}
	self, err := os.Executable()
	if err != nil {
		self = "/proc/self/exe"
	}
	cmd := exec.Command(self, append([]string{verb}, args...)...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), client.EnvConfig+"="+adminConfig(f.dataDir), "HOLDFAST_TOKEN="+boot.Token, "JOURNAL_STREAM=")
	return cmd
}

// adminContext is what the first peer calls the context that it makes for us.
const adminContext = "admin"

func adminConfig(dataDir string) string { return filepath.Join(dataDir, "admin.yaml") }

// runInProcess is a machine's program in fake mode: what server and agent do,
// without a process of its own.
func (d *devRun) runInProcess(ctx context.Context, spec devcluster.Spec, boot devcluster.Boot, dataDir string, ready func()) error {
	file, err := os.OpenFile(filepath.Join(d.flags.dataDir, "dev.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	log, err := (&logFlags{level: d.flags.logLevel, format: "text"}).logger(file, d.app.getenv)
	if err != nil {
		return err
	}
	log = log.With("machine", spec.Name)
	whenReady := func(c <-chan struct{}) {
		select {
		case <-c:
			ready()
		case <-ctx.Done():
		}
	}
	at := func(port uint16) string { return netip.AddrPortFrom(spec.Address, port).String() }
	if spec.Role == devcluster.RoleNode {
		n, err := node.Prepare(ctx, node.Config{
			DataDir: dataDir, Name: spec.Name, Advertise: spec.Address.String(), Gossip: at(spec.Gossip),
			Join: boot.Join, Token: boot.Token, Version: version, Logger: log, Mounts: volume.Folders{},
			Limits: agent.Limits{Eviction: []agent.Threshold{}},
		})
		if err != nil {
			return err
		}
		rt := fake.New(fake.Config{})
		defer rt.Close()
		go whenReady(rt.Ready())
		return n.Run(ctx, rt, fake.NewNetwork())
	}
	var once sync.Once
	isReady := ready
	ready = func() { once.Do(isReady) }
	return untilDone(ctx, log, func() error {
		p, err := peer.Prepare(ctx, peer.Config{
			DataDir: dataDir, Name: spec.Name, Listen: spec.APIAddress(), Gossip: at(spec.Gossip), Advertise: spec.Address.String(),
			Init: boot.Init, Join: boot.Join, Token: boot.Token, Version: version, Logger: log,
		})
		if err != nil {
			return err
		}
		if boot.Init {
			c, err := p.AdminContext()
			if err == nil {
				c.Name = adminContext
				err = saveContextTo(adminConfig(d.flags.dataDir), c)
			}
			if err != nil {
				p.Close()
				return err
			}
		}
		go whenReady(p.Ready())
		return p.Run(ctx)
	})
}

// contextFor returns the administrator's context under a name, with all peers.
func (d *devRun) contextFor(name string) client.Context {
	config, err := client.LoadConfig(adminConfig(d.flags.dataDir))
	if err != nil || len(config.Contexts) == 0 {
		return client.Context{Name: name}
	}
	c := config.Contexts[0]
	c.Name, c.Peers = name, d.cluster.Peers()
	return c
}

func (d *devRun) remote() (*remote, error) {
	c := d.contextFor(adminContext)
	if c.Cert == "" {
		return nil, fmt.Errorf("the first peer has left no administrator's certificate in %s", adminConfig(d.flags.dataDir))
	}
	return remoteOf(c, nil, nil)
}

func (d *devRun) token(ctx context.Context, role devcluster.Role) (string, error) {
	r, err := d.remote()
	if err != nil {
		return "", err
	}
	defer r.close()
	token, err := d.app.createToken(ctx, r, string(role), 10*time.Minute, 0)
	if err != nil {
		return "", err
	}
	return token.GetToken(), nil
}

// settled waits until every peer votes and every node is ready.
func (d *devRun) settled(ctx context.Context) error {
	r, err := d.remote()
	if err != nil {
		return err
	}
	defer r.close()
	missing := "no peer has answered"
	deadline := time.Now().Add(settleTimeout)
	for {
		if missing, err = d.missing(ctx, r); err == nil && missing == "" {
			return nil
		}
		if err != nil {
			missing = err.Error()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the cluster is not whole after %v: %s", settleTimeout, missing)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// missing says what the cluster still lacks, or "".
func (d *devRun) missing(ctx context.Context, r *remote) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	status, err := r.cluster.Status(ctx, &holdfastv1.StatusRequest{})
	if err != nil {
		return "", err
	}
	voters, ready := map[string]bool{}, map[string]bool{}
	for _, p := range status.GetPeers() {
		voters[p.GetId()] = p.GetVoter()
	}
	nodes, _, err := d.app.list(ctx, r, &holdfastv1.ListRequest{Kind: wireKind(mustResource("nodes"))}, "nodes")
	if err != nil {
		return "", err
	}
	for _, n := range nodes {
		if n, ok := n.(*corev1.Node); ok {
			ready[n.Name] = object.NodeReady(n)
		}
	}
	for _, m := range d.cluster.Machines() {
		switch {
		case m.Role == devcluster.RolePeer && !voters[m.Name]:
			return fmt.Sprintf("peer %s does not vote yet", m.Name), nil
		case m.Role == devcluster.RoleNode && !ready[m.Name]:
			return fmt.Sprintf("node %s is not ready yet; its log is %s", m.Name, m.Log), nil
		}
	}
	if !status.GetQuorum() {
		return "no quorum yet: " + status.GetQuorumError(), nil
	}
	return "", nil
}

func (d *devRun) welcome(elapsed, configPath string) {
	peers, nodes := 0, 0
	var lines strings.Builder
	for _, m := range d.cluster.Machines() {
		at := m.Address.String()
		if m.Role == devcluster.RolePeer {
			peers++
			at = m.APIAddress()
		} else {
			nodes++
		}
		fmt.Fprintf(&lines, "  %-4s %-5s %s\n", m.Name, m.Role, at)
	}
	use := ""
	if config, err := client.LoadConfig(configPath); err != nil || config.Current != d.flags.contextName {
		use = fmt.Sprintf("  export %s=%s\n", client.EnvContext, d.flags.contextName)
	}
	where := ""
	if d.flags.dataDir != defaultDevDir(d.app.getenv) {
		where = " --data-dir " + d.flags.dataDir
	}
	exec := ""
	if d.flags.runtime != "fake" {
		exec = fmt.Sprintf("\n  holdfast dev%s exec n1 -- COMMAND", where)
	}
	d.say(fmt.Sprintf(`Cluster up in %s: %d peers, %d nodes.
%sData in %s, context %q in %s. In another terminal:
%s  holdfast cluster status
  holdfast dev%s ps | kill MACHINE | start MACHINE%s
Ctrl-C stops the cluster; the data stay.`, elapsed, peers, nodes, lines.String(), d.flags.dataDir, d.flags.contextName, configPath, use, where, exec))
}

func (a *app) devPSCommand(f *devFlags) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "ps",
		Short:   "Show the machines of the development cluster",
		Example: "  holdfast dev ps\n  holdfast dev ps -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "table", "json", "yaml"); err != nil {
				return err
			}
			control, err := dialDev(f)
			if err != nil {
				return err
			}
			ctx, cancel := a.request(cmd.Context())
			defer cancel()
			machines, err := control.Machines(ctx)
			if err != nil {
				return devFailure(err)
			}
			if output != "table" {
				data, err := json.Marshal(machines)
				if err != nil {
					return err
				}
				return writeJSON(a.stdout, output, data)
			}
			t := object.Table{Columns: []object.Column{{Name: "MACHINE"}, {Name: "ROLE"}, {Name: "STATE"}, {Name: "PID"}, {Name: "ADDRESS"}, {Name: "LOG"}, {Name: "DETAIL"}}}
			for _, m := range machines {
				pid, at := "-", m.Address.String()
				if m.PID != 0 {
					pid = fmt.Sprint(m.PID)
				}
				if m.Role == devcluster.RolePeer {
					at = m.APIAddress()
				}
				t.Rows = append(t.Rows, []string{m.Name, string(m.Role), string(m.State), pid, at, m.Log, m.Detail})
			}
			(&grid{w: a.stdout, header: true}).write(t)
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	return cmd
}

func dialDev(f *devFlags) (*devcluster.Control, error) {
	dir, err := filepath.Abs(f.dataDir)
	if err != nil {
		return nil, err
	}
	return devcluster.Dial(dir), nil
}

// devFailure gives errors of the development cluster their exit codes.
func devFailure(err error) error {
	switch {
	case errors.Is(err, devcluster.ErrNoMachine):
		return failf(exitNotFound, "%w", err)
	case errors.Is(err, devcluster.ErrNotUp):
		return failf(exitUnavailable, "%w", err)
	}
	return err
}

func (a *app) devKillCommand(f *devFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "kill MACHINE...",
		Short: "Kill everything on machines at once, as a power cut does",
		Long: `Kill everything on machines at once, as a power cut does: the machine is unplugged,
then every process on it is killed with SIGKILL, containers too. Only its disk
is left. (To kill a program alone, use its PID, which "holdfast dev ps" shows.)
With --runtime fake, the machine's part of the process is only stopped.`,
		Example: "  holdfast dev kill n1",
		Args:    atLeastOne("MACHINE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.devEach(cmd.Context(), f, args, (*devcluster.Control).Kill, "killed")
		},
	}
}

func (a *app) devStartCommand(f *devFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "start MACHINE...",
		Short:   "Start machines that are dead or off, and wait until they are ready",
		Example: "  holdfast dev start p2",
		Args:    atLeastOne("MACHINE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.devEach(cmd.Context(), f, args, (*devcluster.Control).Start, "ready")
		},
	}
}

func atLeastOne(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return failf(exitUsage, "say which %s", what)
		}
		return nil
	}
}

func (a *app) devEach(ctx context.Context, f *devFlags, machines []string, do func(*devcluster.Control, context.Context, string) error, done string) error {
	control, err := dialDev(f)
	if err != nil {
		return err
	}
	for _, machine := range machines {
		if err := do(control, ctx, machine); err != nil {
			return devFailure(err)
		}
		fmt.Fprintf(a.stdout, "%s %s\n", machine, done)
	}
	return nil
}

func (a *app) devExecCommand(f *devFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "exec MACHINE -- COMMAND [ARGUMENT...]",
		Short: "Run a command in a machine's network",
		Long: `Run a command in a machine's network namespace, with this host's files. "host" is
no machine: just run the command.`,
		Example: "  holdfast dev exec n2 -- curl -s http://10.244.0.2:8080/",
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return failf(exitUsage, "want MACHINE -- COMMAND, such as: holdfast dev exec n1 -- ip address")
			}
			return runDevExec(f.dataDir, args[0], args[1:])
		},
	}
}

// runDevExec becomes the command, inside the namespace. It returns only errors.
func runDevExec(dataDir, machine string, command []string) error {
	dir, err := filepath.Abs(dataDir)
	if err != nil {
		return err
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return failf(exitNotFound, "%w", err)
	}
	ns, err := devcluster.Namespace(dir, machine)
	if err != nil {
		return failf(exitNotFound, "%w", err)
	}
	// The thread that executes keeps its namespace.
	runtime.LockOSThread()
	if err := devcluster.EnterNamespace(ns); err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", path, syscall.Exec(path, command, os.Environ()))
}

func (a *app) devCleanCommand(f *devFlags) *cobra.Command {
	var removeData, yes bool
	cmd := &cobra.Command{
		Use:   "clean",
		Short: "Remove what a killed development cluster has left on this machine",
		Long: `Remove what a killed development cluster has left on this machine: processes,
containers, mounts, network namespaces, links. The data stay, unless
--remove-data is given. Refused while the cluster runs.`,
		Example: "  holdfast dev clean --data-dir /tmp/try --remove-data --yes",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runDevClean(cmd.Context(), *f, removeData, yes)
		},
	}
	cmd.Flags().BoolVar(&removeData, "remove-data", false, "also delete the data directory; asks first")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func (a *app) runDevClean(ctx context.Context, f devFlags, removeData, yes bool) error {
	var err error
	if f.dataDir, err = filepath.Abs(f.dataDir); err != nil {
		return err
	}
	if _, err := os.Stat(f.dataDir); err != nil {
		return failf(exitNotFound, "there is no development cluster in %s: say --data-dir", f.dataDir)
	}
	if removeData {
		question := fmt.Sprintf("This deletes the cluster in %s with all its data.", f.dataDir)
		if _, ok := a.terminal(a.stdin); ok {
			question += " Go on?"
		}
		if err := a.confirm(yes, question); err != nil {
			return err
		}
	}
	if err := devcluster.Clean(ctx, netnsConfig(f, netip.Prefix{}), removeData); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout, "clean")
	return nil
}
