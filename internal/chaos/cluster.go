//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/internal/chaos/volatile"
	"github.com/holdfast-io/holdfast/internal/devcluster"
	"github.com/holdfast-io/holdfast/internal/faults"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

const (
	// maxPeers is how many machines a run ever has, those of a killed run included.
	maxPeers = 9
	// bootTimeout bounds the start of a process, on a machine that is busy.
	bootTimeout = 40 * time.Second
)

// cluster is real processes, each in a network namespace of its own.
type cluster struct {
	dir    string // everything: data, logs, the administrator's context
	binary string
	driver devcluster.Driver
	subnet netip.Prefix
	creds  *pki.Credentials

	mu       sync.Mutex
	machines []*machine
	made     int // machines, those that are forgotten as well
}

// machine is one peer. Its methods must not overlap, but for reading.
type machine struct {
	c      *cluster
	spec   devcluster.Spec
	client *client.Client // pinned to this peer
	binary string         // what it runs; empty: the cluster's

	mu      sync.Mutex
	program devcluster.Program
	paused  bool
	disk    *volatile.Disk // in row 2
	cgroup  string
}

// newCluster takes dir, frees it of what an earlier, killed run left, and starts
// peers.
func newCluster(ctx context.Context, dir, binary string, peers int, prepare func(*machine) error) (_ *cluster, err error) {
	c := &cluster{dir: dir, binary: binary}
	c.driver, err = devcluster.NewNetns(devcluster.NetnsConfig{
		DataDir: dir, Command: c.command,
		Halt:  func(context.Context, devcluster.Spec, devcluster.Dirs) error { return nil },
		Sweep: func(devcluster.Spec, devcluster.Dirs) error { return nil },
	})
	if err != nil {
		return nil, err
	}
	if err := c.sweep(ctx); err != nil {
		return nil, fmt.Errorf("remove what an earlier run left: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close(), c.sweep(context.WithoutCancel(ctx)))
		}
	}()
	if c.subnet, err = c.driver.Subnet(); err != nil {
		return nil, err
	}
	if err := c.driver.Prepare(ctx, c.subnet); err != nil {
		return nil, err
	}
	for range peers {
		m, err := c.add()
		if err != nil {
			return nil, err
		}
		if prepare != nil {
			if err := prepare(m); err != nil {
				return nil, err
			}
		}
		if err := m.join(ctx); err != nil {
			return nil, err
		}
	}
	return c, c.settle(ctx, peers)
}

// add makes a machine that is not on.
func (c *cluster) add() (*machine, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	spec, err := c.driver.Place(devcluster.RolePeer, c.made, c.subnet)
	if err != nil {
		return nil, err
	}
	c.made++
	spec.Name, spec.Role = fmt.Sprintf("p%d", c.made), devcluster.RolePeer
	m := &machine{c: c, spec: spec}
	c.machines = append(c.machines, m)
	return m, nil
}

// all returns the machines.
func (c *cluster) all() []*machine {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*machine(nil), c.machines...)
}

// others returns all machines but some.
func (c *cluster) others(but ...*machine) (rest []*machine) {
next:
	for _, m := range c.all() {
		for _, b := range but {
			if m == b {
				continue next
			}
		}
		rest = append(rest, m)
	}
	return rest
}

// forget takes m out of the list: it is no peer any more.
func (c *cluster) forget(m *machine) {
	rest := c.others(m)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.machines = rest
}

func (c *cluster) config() string { return filepath.Join(c.dir, "admin.yaml") }

// command is the command line of a peer. Its boot is in spec and boot only.
func (c *cluster) command(spec devcluster.Spec, boot devcluster.Boot, dirs devcluster.Dirs) *exec.Cmd {
	args := []string{
		"server", "--name", spec.Name, "--data-dir", dirs.Data, "--advertise", spec.Address.String(),
		"--log-level", "info", "--log-format", "text", "--fault-socket",
	}
	if boot.Init {
		args = append(args, "--init", "--context-name", "admin")
	}
	if len(boot.Join) > 0 {
		args = append(args, "--join", strings.Join(boot.Join, ","))
	}
	binary := c.binary
	for _, m := range c.all() {
		if m.spec.Name == spec.Name && m.binary != "" {
			binary = m.binary
		}
	}
	cmd := exec.Command(binary, args...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), client.EnvConfig+"="+c.config(), "HOLDFAST_TOKEN="+boot.Token, "JOURNAL_STREAM=")
	return cmd
}

// cli runs a command of the binary as the administrator, against any peer unless args
// name one.
func (c *cluster) cli(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if !slices.Contains(args, "--peer") { // the context may know only those that have gone
		for _, m := range c.all() {
			args = append(args, "--peer", m.spec.APIAddress())
		}
	}
	cmd := exec.CommandContext(ctx, c.binary, args...)
	cmd.Env = append(os.Environ(), client.EnvConfig+"="+c.config(), client.EnvContext+"=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("holdfast %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// dial returns a client of these machines, which goes to no other.
func (c *cluster) dial(machines ...*machine) *client.Client {
	var peers []string
	for _, m := range machines {
		peers = append(peers, m.spec.APIAddress())
	}
	return client.New(client.Config{Peers: peers, OnlyThese: true, Credentials: c.creds, RetryFor: 2 * time.Second, DialTimeout: 2 * time.Second})
}

// settle returns once the cluster has so many voters and all of them answer.
func (c *cluster) settle(ctx context.Context, voters int) error {
	return eventually(ctx, 60*time.Second, fmt.Sprintf("%d voters that answer", voters), func(ctx context.Context) error {
		list, err := c.all()[0].client.Cluster().ListPeers(ctx, &holdfastv1.ListPeersRequest{})
		if err != nil {
			return err
		}
		have, notes := 0, list.GetNotes()
		for _, p := range list.GetPeers() {
			if p.GetPeer().GetVoter() && p.GetError() == "" {
				have++
			}
		}
		if have != voters {
			return fmt.Errorf("%d voters answer (%s)", have, strings.Join(notes, "; "))
		}
		return nil
	})
}

// close ends all processes.
func (c *cluster) close() error {
	var errs []error
	for _, m := range c.all() {
		errs = append(errs, m.kill())
		if m.client != nil {
			m.client.Close()
		}
	}
	return errors.Join(errs...)
}

// sweep removes all that a run makes: namespaces, links, mounts, control groups,
// files, and processes.
func (c *cluster) sweep(ctx context.Context) error {
	var errs []error
	for i := range maxPeers {
		spec := devcluster.Spec{Name: fmt.Sprintf("p%d", i+1), Role: devcluster.RolePeer}
		kill, cancel := context.WithTimeout(ctx, 20*time.Second)
		errs = append(errs, c.driver.Kill(kill, spec), devcluster.RemoveCgroup(c.cgroupOf(spec.Name)))
		cancel()
	}
	errs = append(errs, c.driver.Close(ctx))
	if err := errors.Join(errs...); err != nil {
		return err // and keep the files: something may still write there
	}
	return os.RemoveAll(c.dir)
}

func (c *cluster) cgroupOf(name string) string {
	return filepath.Join("holdfast-chaos", devcluster.ID(c.dir)+"-"+name)
}

func (m *machine) data() string { return m.c.driver.DataDir(m.spec) }
func (m *machine) name() string { return m.spec.Name }

// join starts a peer that is in no cluster yet; the first makes one.
func (m *machine) join(ctx context.Context) error {
	if m.c.creds == nil {
		if err := m.boot(ctx, devcluster.Boot{Init: true}); err != nil {
			return err
		}
		file, err := client.LoadConfig(m.c.config())
		if err != nil {
			return err
		}
		admin, err := file.Context("admin")
		if err != nil {
			return err
		}
		if m.c.creds, err = admin.Credentials(); err != nil {
			return err
		}
		m.client = m.c.dial(m)
		return nil
	}
	var boot devcluster.Boot
	for _, o := range m.c.others(m) {
		if o.running() {
			boot.Join = append(boot.Join, o.spec.APIAddress())
		}
	}
	any := m.c.dial(m.c.others(m)...)
	defer any.Close()
	err := eventually(ctx, 20*time.Second, "a token", func(ctx context.Context) error {
		token, err := any.Cluster().CreateToken(ctx, &holdfastv1.CreateTokenRequest{Role: holdfastv1.Role_ROLE_PEER})
		boot.Token = token.GetToken()
		return err
	})
	if err != nil {
		return err
	}
	m.client = m.c.dial(m)
	return m.boot(ctx, boot)
}

// boot starts the process and returns once it serves.
func (m *machine) boot(ctx context.Context, boot devcluster.Boot) error {
	if err := m.begin(boot); err != nil {
		return err
	}
	m.mu.Lock()
	program := m.program
	m.mu.Unlock()
	select {
	case <-program.Ready():
		return nil
	case <-program.Done():
		return fmt.Errorf("%s ended at its start: %w; see %s", m.name(), program.Err(), m.c.driver.Log(m.spec))
	case <-time.After(bootTimeout):
		return fmt.Errorf("%s is not ready after %v: see %s", m.name(), bootTimeout, m.c.driver.Log(m.spec))
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// begin starts the process and does not wait for it.
func (m *machine) begin(boot devcluster.Boot) error {
	program, err := m.c.driver.Start(m.spec, boot)
	if err != nil {
		return fmt.Errorf("start %s: %w", m.name(), err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.program, m.paused = program, false
	return nil
}

// restart starts a peer that belongs to the cluster.
func (m *machine) restart(ctx context.Context) error { return m.boot(ctx, devcluster.Boot{}) }

func (m *machine) running() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.program != nil && !closed(m.program.Done())
}

// ended waits for the process to end by itself.
func (m *machine) ended(ctx context.Context, within time.Duration) error {
	m.mu.Lock()
	program := m.program
	m.mu.Unlock()
	select {
	case <-program.Done():
		return nil
	case <-time.After(within):
		return fmt.Errorf("%s still runs after %v", m.name(), within)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// kill ends the process with SIGKILL and returns once it has ended. One that has is
// not an error.
func (m *machine) kill() error {
	m.mu.Lock()
	program := m.program
	m.mu.Unlock()
	if program == nil || closed(program.Done()) {
		return nil
	}
	if err := unix.Kill(program.PID(), unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %s: %w", m.name(), err)
	}
	select {
	case <-program.Done():
		m.mu.Lock()
		m.paused = false
		m.mu.Unlock()
		return nil
	case <-time.After(10 * time.Second):
		return fmt.Errorf("%s does not die", m.name())
	}
}

// stop ends the process politely.
func (m *machine) stop(ctx context.Context) error {
	m.mu.Lock()
	program := m.program
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return program.Stop(ctx)
}

// unplugAndKill is what a power cut looks like from outside: no connection is closed.
func (m *machine) unplugAndKill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return m.c.driver.Kill(ctx, m.spec)
}

// pause stops the process with SIGSTOP, resume lets it go on.
func (m *machine) pause() error  { return m.signal(unix.SIGSTOP, true) }
func (m *machine) resume() error { return m.signal(unix.SIGCONT, false) }

func (m *machine) signal(sig unix.Signal, paused bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.program == nil || closed(m.program.Done()) {
		return fmt.Errorf("%s does not run", m.name())
	}
	m.paused = paused
	return unix.Kill(m.program.PID(), sig)
}

// fault sends a line to the peer's fault plane.
func (m *machine) fault(ctx context.Context, line string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := faults.Control(ctx, filepath.Join(m.data(), "faults.sock"), line)
	if err != nil {
		return "", fmt.Errorf("%s of %s: %w", line, m.name(), err)
	}
	return out, nil
}

// metrics returns the peer's metrics that have no labels, by name.
func (m *machine) metrics(ctx context.Context) (map[string]float64, error) {
	transport := &http.Transport{TLSClientConfig: m.c.creds.ClientTLS(pki.RolePeer, "http/1.1")}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+m.spec.APIAddress()+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("metrics of %s: %s", m.name(), resp.Status)
	}
	all := make(map[string]float64)
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		var name string
		var v float64
		if n, _ := fmt.Sscan(lines.Text(), &name, &v); n == 2 {
			all[name] = v
		}
	}
	return all, lines.Err()
}

// struck returns how often faults of a kind have struck in this process.
func (m *machine) struck(ctx context.Context, kind faults.Kind) int {
	out, err := m.fault(ctx, "fired")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(out) {
		var name string
		var n int
		if _, err := fmt.Sscan(line, &name, &n); err == nil && name == string(kind) {
			return n
		}
	}
	return 0
}

// mountSmall makes the data directory a file system of its own in memory.
func (m *machine) mountSmall(bytes int) error {
	if err := os.MkdirAll(m.data(), 0o700); err != nil {
		return err
	}
	if err := unix.Mount("holdfast-chaos", m.data(), "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", bytes)); err != nil {
		return fmt.Errorf("mount a small disk for %s: %w", m.name(), err)
	}
	return nil
}

// mountVolatile makes the data directory a disk that can lose what was not synced.
func (m *machine) mountVolatile() (err error) {
	if err := os.MkdirAll(m.data(), 0o700); err != nil {
		return err
	}
	m.disk, err = volatile.Mount(m.data(), filepath.Join(m.c.dir, "disks", m.name()))
	return err
}

func (m *machine) filler() string { return filepath.Join(m.data(), "filler") }

// fill takes all room that is left on the disk at one moment, for which the peer
// stands still: what it gives up when it sees that is its own.
func (m *machine) fill() (err error) {
	if m.running() {
		if err := m.pause(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, m.resume()) }()
	}
	f, err := os.OpenFile(m.filler(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Statfs(m.data(), &st); err != nil {
		return err
	}
	for size := int64(st.Bavail) * st.Bsize; size > 0; size -= 64 << 10 {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return fmt.Errorf("%s: there was no room to take", m.data())
}

func (m *machine) unfill() error {
	if err := os.Remove(m.filler()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// starve gives the process a share of one core, in percent.
func (m *machine) starve(percent int) error {
	m.cgroup = m.c.cgroupOf(m.name())
	for _, root := range []string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup"} {
		dir := filepath.Join(root, m.cgroup)
		quota, text := "cpu.cfs_quota_us", fmt.Sprint(percent*1000)
		if root == "/sys/fs/cgroup" {
			quota, text = "cpu.max", fmt.Sprintf("%d 100000", percent*1000)
		}
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, quota), []byte(text), 0o644); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(fmt.Sprint(m.program.PID())), 0o644)
	}
	return errors.New("no control group for cpu on this machine")
}

// feed ends starve.
func (m *machine) feed() error {
	for _, file := range []string{"/sys/fs/cgroup/cpu/cgroup.procs", "/sys/fs/cgroup/cgroup.procs"} {
		if _, err := os.Stat(file); err == nil {
			if err := os.WriteFile(file, []byte(fmt.Sprint(m.program.PID())), 0o644); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
			break
		}
	}
	return devcluster.RemoveCgroup(m.cgroup)
}

// eventually calls f until it succeeds, within a time. f has 2 s each time.
func eventually(ctx context.Context, within time.Duration, what string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		try, done := context.WithTimeout(ctx, 2*time.Second)
		err := f(try)
		done()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no %s within %v: %w", what, within, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
