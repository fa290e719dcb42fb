package devcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// bootTimeout is how long a machine's program may take to be ready.
	bootTimeout = 60 * time.Second
	// stopTimeout is how long a program may take to end when asked to.
	stopTimeout = 15 * time.Second
	// killTimeout is how long the kernel may take to end killed processes.
	killTimeout = 20 * time.Second
)

// ErrNoMachine is returned for a name that no machine has.
var ErrNoMachine = errors.New("no such machine")

// Config is what a cluster is made of. Every field but Peers and Nodes is
// required.
type Config struct {
	// DataDir holds one directory for each machine. Absolute.
	DataDir string
	Driver  Driver
	// Peers and Nodes say how many of each. Negative: as many as there are, or
	// 3 and 2 in a new directory.
	Peers, Nodes int
	// Token returns a join token for a role. It is called once a peer is ready.
	Token func(ctx context.Context, role Role) (string, error)
	// Settled returns once the cluster as a whole serves: every peer votes and
	// every node is ready.
	Settled func(ctx context.Context) error
	// Report is told, in one sentence for people, what happens. It may be
	// called from several goroutines.
	Report func(sentence string)
}

// Cluster is a development cluster. Its methods are safe for concurrent use.
type Cluster struct {
	cfg  Config
	lock *os.File

	mu       sync.Mutex
	layout   layout
	machines map[string]*machine
	closing  bool
	watchers sync.WaitGroup
}

// machine is a machine and its program.
type machine struct {
	turn sync.Mutex // held while the program is begun or killed, so that the two never overlap

	// What follows is under Cluster.mu.
	state   State
	program Program
	detail  string
	asked   bool // its program is being ended on purpose
}

// Open takes the data directory, making it if need be, and lays the machines
// out. It fails when another process has the directory.
func Open(cfg Config) (*Cluster, error) {
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("no permission to make %s: choose a directory of your own with --data-dir", cfg.DataDir)
		}
		return nil, err
	}
	lock, err := takeLock(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, lock: lock, machines: map[string]*machine{}}
	if err := c.lay(); err != nil {
		_ = lock.Close()
		return nil, err
	}
	return c, nil
}

// takeLock locks the data directory for this process. The lock goes with the
// process, so a killed one leaves none behind.
func takeLock(dataDir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dataDir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("no permission to use %s: it belongs to another user; choose another --data-dir or become that user", dataDir)
		}
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		owner, _ := os.ReadFile(lock.Name())
		_ = lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			who := "another process"
			if pid := strings.TrimSpace(string(owner)); pid != "" {
				who = "process " + pid
			}
			return nil, fmt.Errorf("a development cluster already runs on %s (%s): stop that one with Ctrl-C, or choose another --data-dir", dataDir, who)
		}
		return nil, fmt.Errorf("lock %s: %w", dataDir, err)
	}
	if err := lock.Truncate(0); err == nil {
		_, _ = lock.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	return lock, nil
}

func (c *Cluster) lay() error {
	l, err := loadLayout(c.cfg.DataDir)
	if err != nil {
		return err
	}
	if name := c.cfg.Driver.Runtime(); l.Runtime == "" {
		l.Runtime = name
	} else if l.Runtime != name {
		return fmt.Errorf("the cluster in %s was made with --runtime %s: go on with that, or choose another --data-dir", c.cfg.DataDir, l.Runtime)
	}
	if len(l.Machines) == 0 {
		if l.Subnet, err = c.cfg.Driver.Subnet(); err != nil {
			return err
		}
	}
	err = l.grow(c.cfg.Peers, c.cfg.Nodes, func(role Role, i int) (Spec, error) {
		return c.cfg.Driver.Place(role, i, l.Subnet)
	})
	if err != nil {
		return err
	}
	if l.count(RolePeer) == 0 {
		return errors.New("a cluster needs at least one peer: --peers 1 or more")
	}
	c.layout = l
	for _, spec := range l.Machines {
		c.machines[spec.Name] = &machine{state: StateOff}
	}
	return l.save(c.cfg.DataDir)
}

// Close gives the data directory back. Call it after Run.
func (c *Cluster) Close() error { return c.lock.Close() }

// Subnet is where the machines have their addresses; zero in one process.
func (c *Cluster) Subnet() netip.Prefix { return c.layout.Subnet }

// Peers returns the API addresses of all peers.
func (c *Cluster) Peers() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, spec := range c.layout.Machines {
		if spec.Role == RolePeer {
			out = append(out, spec.APIAddress())
		}
	}
	return out
}

// Machines returns all machines, peers first.
func (c *Cluster) Machines() []Machine {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Machine, 0, len(c.layout.Machines))
	for _, spec := range c.layout.Machines {
		m := c.machines[spec.Name]
		shown := Machine{
			Spec: spec, State: m.state, Detail: m.detail,
			DataDir: c.cfg.Driver.DataDir(spec), Log: c.cfg.Driver.Log(spec),
		}
		if m.program != nil && (m.state == StateRunning || m.state == StateStarting) {
			shown.PID = m.program.PID()
		}
		out = append(out, shown)
	}
	return out
}

// Run brings all machines up, calls serve with a context that ends with ctx,
// and takes everything down again when serve returns; data stay. The first
// failure while machines come up ends it, and is returned.
func (c *Cluster) Run(ctx context.Context, serve func(context.Context) error) (err error) {
	defer func() {
		// What was started must be stopped though ctx has ended.
		err = errors.Join(err, c.shutdown(context.WithoutCancel(ctx)))
	}()
	if err := c.cfg.Driver.Prepare(ctx, c.layout.Subnet); err != nil {
		return err
	}
	if err := c.bringUp(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // told to stop, and the error is only the echo of that
		}
		return err
	}
	return serve(ctx)
}

// bringUp starts all machines at once as far as possible: those that belong to
// the cluster need nobody; the others need a token, and so a peer that is ready
// and has a quorum; the first peer of all makes the cluster.
func (c *Cluster) bringUp(ctx context.Context) error {
	var joined, strangers []Spec
	for _, spec := range c.layout.Machines {
		if spec.Joined {
			joined = append(joined, spec)
		} else {
			strangers = append(strangers, spec)
		}
	}
	if len(joined) == 0 {
		joined, strangers = strangers[:1], strangers[1:] // the first is p1: peers come first
	}
	if err := inParallel(joined, func(spec Spec) error { return c.Start(ctx, spec.Name) }); err != nil {
		return err
	}
	if err := inParallel(strangers, func(spec Spec) error { return c.Start(ctx, spec.Name) }); err != nil {
		return err
	}
	return c.cfg.Settled(ctx)
}

// Start starts a machine and returns once its program is ready. It does nothing
// for a machine that runs.
func (c *Cluster) Start(ctx context.Context, name string) error {
	spec, m, err := c.find(name)
	if err != nil {
		return err
	}
	program, err := c.startOnce(ctx, m, spec)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	timeout := time.NewTimer(bootTimeout)
	defer timeout.Stop()
	select {
	case <-program.Ready():
	case <-program.Done():
		return fmt.Errorf("start %s: its program ended: %w%s", name, orEnded(program.Err()), tailOf(c.cfg.Driver.Log(spec)))
	case <-timeout.C:
		return fmt.Errorf("start %s: not ready after %v: see %s%s", name, bootTimeout, c.cfg.Driver.Log(spec), tailOf(c.cfg.Driver.Log(spec)))
	case <-ctx.Done():
		return fmt.Errorf("start %s: %w", name, context.Cause(ctx))
	}
	return c.markReady(m, name)
}

// startOnce starts the machine's program unless it runs. It does not wait for it,
// so that a machine which never gets ready can still be killed.
func (c *Cluster) startOnce(ctx context.Context, m *machine, spec Spec) (Program, error) {
	m.turn.Lock()
	defer m.turn.Unlock()
	c.mu.Lock()
	program, state := m.program, m.state
	c.mu.Unlock()
	if state == StateRunning || state == StateStarting {
		return program, nil
	}
	boot, err := c.bootOf(ctx, spec)
	if err != nil {
		return nil, err
	}
	return c.begin(m, spec, boot)
}

// begin starts the program and the goroutine that waits for its end.
func (c *Cluster) begin(m *machine, spec Spec, boot Boot) (Program, error) {
	c.mu.Lock()
	closing := c.closing
	c.mu.Unlock()
	if closing {
		return nil, errors.New("the cluster is being stopped")
	}
	program, err := c.cfg.Driver.Start(spec, boot)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m.program, m.state, m.detail, m.asked = program, StateStarting, "", false
	c.watchers.Go(func() { c.await(m, spec, program) })
	return program, nil
}

// await reports a program that ends without being asked to.
func (c *Cluster) await(m *machine, spec Spec, program Program) {
	<-program.Done()
	c.mu.Lock()
	ready := m.state == StateRunning
	if m.asked {
		m.state = StateOff
	} else {
		m.state, m.detail = StateDead, orEnded(program.Err()).Error()
	}
	detail := m.detail
	c.mu.Unlock()
	if ready && detail != "" {
		c.cfg.Report(fmt.Sprintf("%s %s died: %s; `holdfast dev start %s` brings it back", spec.Role, spec.Name, detail, spec.Name))
	}
}

func (c *Cluster) markReady(m *machine, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.state == StateStarting {
		m.state = StateRunning
	}
	for i := range c.layout.Machines {
		if spec := &c.layout.Machines[i]; spec.Name == name && !spec.Joined {
			spec.Joined = true
			return c.layout.save(c.cfg.DataDir)
		}
	}
	return nil
}

// bootOf says how a machine finds its cluster. p1 is always told to initialise:
// it goes on with what it has, and renews the administrator's certificate.
func (c *Cluster) bootOf(ctx context.Context, spec Spec) (Boot, error) {
	empty, err := isEmpty(c.cfg.Driver.DataDir(spec))
	if err != nil {
		return Boot{}, err
	}
	if spec.Joined && empty {
		return Boot{}, fmt.Errorf("its data in %s are gone: bring them back, or remove %s to begin anew", c.cfg.DataDir, c.cfg.DataDir)
	}
	switch {
	case spec.Name == c.layout.Machines[0].Name:
		return Boot{Init: true}, nil
	case spec.Joined:
		return Boot{}, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bootTimeout, errors.New("no peer gave a join token in time"))
	defer cancel()
	token, err := c.cfg.Token(ctx, spec.Role)
	if err != nil {
		return Boot{}, fmt.Errorf("get a join token: %w", err)
	}
	return Boot{Join: c.joinable(), Token: token}, nil
}

// joinable returns the API addresses of the peers that run.
func (c *Cluster) joinable() []string {
	var out []string
	for _, m := range c.Machines() {
		if m.Role == RolePeer && m.State == StateRunning {
			out = append(out, m.APIAddress())
		}
	}
	return out
}

// Kill ends everything on a machine at once, as a power cut does.
func (c *Cluster) Kill(ctx context.Context, name string) error {
	spec, m, err := c.find(name)
	if err != nil {
		return err
	}
	m.turn.Lock()
	defer m.turn.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, killTimeout, fmt.Errorf("still there after %v", killTimeout))
	defer cancel()
	c.mu.Lock()
	m.asked = true
	c.mu.Unlock()
	if err := c.cfg.Driver.Kill(ctx, spec); err != nil {
		return fmt.Errorf("kill %s: %w", name, err)
	}
	c.mu.Lock()
	program := m.program
	m.state, m.detail = StateOff, ""
	c.mu.Unlock()
	if program != nil {
		// Already dead, unless it lives in this process.
		if err := program.Stop(ctx); err != nil {
			return fmt.Errorf("kill %s: %w", name, err)
		}
	}
	c.cfg.Report(fmt.Sprintf("%s %s killed, as by a power cut; `holdfast dev start %s` brings it back", spec.Role, spec.Name, spec.Name))
	return nil
}

// shutdown stops programs politely, then pods, then takes away what machines
// were made of. Nodes go first, so that their agents can still report; pods are
// stopped once no agent would start them again.
func (c *Cluster) shutdown(ctx context.Context) error {
	c.mu.Lock()
	c.closing = true
	for _, m := range c.machines {
		m.asked = true
	}
	specs := slices.Clone(c.layout.Machines)
	c.mu.Unlock()

	end := func(spec Spec) error {
		_, m, err := c.find(spec.Name)
		if err != nil {
			return err
		}
		c.mu.Lock()
		program := m.program
		c.mu.Unlock()
		if program == nil {
			return c.cfg.Driver.Kill(ctx, spec)
		}
		polite, cancel := context.WithTimeout(ctx, stopTimeout)
		defer cancel()
		stopped := program.Stop(polite)
		halted := c.cfg.Driver.Halt(polite, spec)
		hard, cancel := context.WithTimeout(ctx, killTimeout)
		defer cancel()
		if err := c.cfg.Driver.Kill(hard, spec); err != nil {
			return errors.Join(stopped, halted, err)
		}
		// What the kill has ended is no failure, but people should know.
		if err := errors.Join(stopped, halted); err != nil {
			c.cfg.Report(fmt.Sprintf("%s %s had to be killed: %v", spec.Role, spec.Name, err))
		}
		return nil
	}
	nodes := slices.DeleteFunc(slices.Clone(specs), func(s Spec) bool { return s.Role != RoleNode })
	peers := slices.DeleteFunc(specs, func(s Spec) bool { return s.Role != RolePeer })
	err := errors.Join(inParallel(nodes, end), inParallel(peers, end))
	c.watchers.Wait()
	return errors.Join(err, c.cfg.Driver.Close(ctx))
}

func (c *Cluster) find(name string) (Spec, *machine, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, spec := range c.layout.Machines {
		if spec.Name == name {
			return spec, c.machines[name], nil
		}
	}
	return Spec{}, nil, noMachine(name, c.layout.Machines)
}

func noMachine(name string, there []Spec) error {
	if len(there) == 0 {
		return fmt.Errorf("%w: %q; there is no development cluster in this data directory", ErrNoMachine, name)
	}
	var names []string
	for _, spec := range there {
		names = append(names, spec.Name)
	}
	return fmt.Errorf("%w: %q; there are %s", ErrNoMachine, name, strings.Join(names, ", "))
}

// inParallel calls f for each spec at once and returns all errors.
func inParallel(specs []Spec, f func(Spec) error) error {
	errs := make([]error, len(specs))
	var wg sync.WaitGroup
	for i, spec := range specs {
		wg.Go(func() { errs[i] = f(spec) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func orEnded(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// tailOf returns the end of a log for an error message, on lines of its own.
func tailOf(path string) string {
	data, err := os.ReadFile(path)
	if err != nil || len(data) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	if len(lines) > 10 {
		lines = lines[len(lines)-10:]
	}
	return "\n  the end of " + path + ":\n    " + strings.Join(lines, "\n    ")
}

func isEmpty(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return len(entries) == 0, err
}
