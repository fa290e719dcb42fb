//go:build linux

package devcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	apiPort    = 7443
	gossipPort = 7946
)

// NetnsConfig is what VMs in the small are made of.
type NetnsConfig struct {
	DataDir string // required; absolute
	// Want is the subnet to use. Zero: the first free one.
	Want netip.Prefix
	// Command returns the command line of a machine's program. Required.
	Command func(spec Spec, boot Boot, dirs Dirs) *exec.Cmd
	// Halt stops the pods of a node; it is called in the node's network
	// namespace. Required.
	Halt func(ctx context.Context, spec Spec, dirs Dirs) error
	// Sweep frees what a killed node leaves outside of its directories and
	// namespaces, such as control groups. Required.
	Sweep func(spec Spec, dirs Dirs) error
}

// Dirs are a machine's directories.
type Dirs struct {
	Data string // its disk
	Run  string // emptied by a power cut
	Pods string // bind mounts of its pods' namespaces; below Run
}

// netnsDriver makes each machine a network namespace and each program a process
// inside. It needs root.
type netnsDriver struct {
	cfg NetnsConfig
	net *network

	mu sync.Mutex // the network's methods must not overlap
}

// NewNetns returns the driver that makes VMs in the small. It fails, saying
// what to do, when the process may not make network namespaces.
func NewNetns(cfg NetnsConfig) (Driver, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces and containers need root: run this with sudo, or take --runtime fake, which needs none")
	}
	return &netnsDriver{cfg: cfg, net: newNetwork(cfg.DataDir, netip.Prefix{})}, nil
}

func (d *netnsDriver) Runtime() string { return "embedded" }

func (d *netnsDriver) Subnet() (netip.Prefix, error) {
	routes, err := hostRoutes(d.net.leg)
	if err != nil {
		return netip.Prefix{}, err
	}
	return freeSubnet(d.cfg.Want, routes)
}

// Place numbers peers from .11 and nodes from .31 on, so that an address tells
// what it belongs to.
func (d *netnsDriver) Place(role Role, index int, subnet netip.Prefix) (Spec, error) {
	first, room := 11, 20
	spec := Spec{Gossip: gossipPort, API: apiPort}
	if role == RoleNode {
		first, room = 31, 1<<(32-subnet.Bits())-33
		spec.API = 0
	}
	if index >= room {
		return Spec{}, fmt.Errorf("subnet %s has no room for more than %d %ss", subnet, room, role)
	}
	spec.Address = subnet.Masked().Addr()
	for range first + index {
		spec.Address = spec.Address.Next()
	}
	return spec, nil
}

func (d *netnsDriver) Prepare(_ context.Context, subnet netip.Prefix) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.net.subnet = subnet
	if err := os.MkdirAll(d.net.dir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.net.dir, "data-dir"), []byte(d.cfg.DataDir+"\n"), 0o600); err != nil {
		return err
	}
	return d.net.ensureSwitch()
}

func (d *netnsDriver) dirs(spec Spec) Dirs { return machineDirs(d.cfg.DataDir, spec.Name) }

func machineDirs(dataDir, machine string) Dirs {
	run := filepath.Join(runDir(dataDir), machine)
	return Dirs{Data: filepath.Join(dataDir, machine), Run: run, Pods: filepath.Join(run, "netns")}
}

func (d *netnsDriver) DataDir(spec Spec) string { return d.dirs(spec).Data }

func (d *netnsDriver) Log(spec Spec) string {
	return filepath.Join(d.cfg.DataDir, spec.Name+".log")
}

func (d *netnsDriver) Start(spec Spec, boot Boot) (Program, error) {
	dirs := d.dirs(spec)
	d.mu.Lock()
	err := d.net.ensureMachine(spec.Name, spec.Address)
	d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{dirs.Data, dirs.Run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	log, err := os.OpenFile(d.Log(spec), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := d.cfg.Command(spec, boot, dirs)
	cmd.Stdout, cmd.Stderr = log, log
	p, err := startProcess(cmd, d.net.nsPath(spec.Name), filepath.Join(dirs.Run, "notify"))
	_ = log.Close() // the child has its own
	return p, err
}

// Kill unplugs the machine first: its sockets would say goodbye otherwise, and a
// power cut does not.
func (d *netnsDriver) Kill(ctx context.Context, spec Spec) error {
	dirs, ns := d.dirs(spec), d.net.nsPath(spec.Name)
	if exists(d.net.nsPath(switchName)) {
		d.mu.Lock()
		err := d.net.unplug(spec.Name)
		d.mu.Unlock()
		if err != nil {
			return err
		}
	}
	err := killResidents(ctx, func() (map[uint64]bool, error) {
		// Pods' namespaces are found by their bind mounts.
		mounts, err := mountsBelow(ns, dirs.Run, dirs.Data)
		namespaces := map[uint64]bool{}
		for _, m := range mounts {
			if m.inode != 0 {
				namespaces[m.inode] = true
			}
		}
		return namespaces, err
	})
	if err != nil {
		return err
	}
	if err := unmountBelow(dirs.Run, dirs.Data); err != nil {
		return err
	}
	if spec.Role == RoleNode {
		if err := d.cfg.Sweep(spec, dirs); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dirs.Run); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.net.removeMachine(spec.Name)
}

func (d *netnsDriver) Halt(ctx context.Context, spec Spec) error {
	if spec.Role != RoleNode {
		return nil
	}
	return inNamespace(d.net.nsPath(spec.Name), func() error {
		return d.cfg.Halt(ctx, spec, d.dirs(spec))
	})
}

func (d *netnsDriver) Close(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.net.remove(); err != nil {
		return err
	}
	if err := os.RemoveAll(d.net.dir); err != nil {
		return err
	}
	_ = os.Remove(runRoot) // fails while other clusters use it
	return nil
}

// Clean ends and removes all that a cluster in dataDir left on the host, after
// it was itself killed: processes, mounts, namespaces, links. It needs root if
// there can be any, and fails while a cluster runs there. Data stay unless
// removeData.
func Clean(ctx context.Context, cfg NetnsConfig, removeData bool) error {
	lock, err := takeLock(cfg.DataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	l, err := loadLayout(cfg.DataDir)
	if err != nil {
		return err
	}
	if removeData && l.Runtime == "" {
		return fmt.Errorf("%s holds no development cluster (it has no %s): nothing was removed", cfg.DataDir, layoutFile)
	}
	if l.Runtime == "embedded" { // in one process nothing outlives it
		driver, err := NewNetns(cfg)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeoutCause(ctx, killTimeout, fmt.Errorf("still there after %v", killTimeout))
		defer cancel()
		if err := inParallel(l.Machines, func(spec Spec) error { return driver.Kill(ctx, spec) }); err != nil {
			return err
		}
		if err := driver.Close(ctx); err != nil {
			return err
		}
	}
	if removeData {
		return os.RemoveAll(cfg.DataDir)
	}
	return nil
}

// Namespace returns the path of a machine's network namespace. It fails when
// the machine is not on.
func Namespace(dataDir, machine string) (string, error) {
	l, err := loadLayout(dataDir)
	if err != nil {
		return "", err
	}
	if l.Runtime == "fake" {
		return "", fmt.Errorf("the machines of the development cluster in %s share this machine's network: run the command as it is", dataDir)
	}
	if !slices.ContainsFunc(l.Machines, func(m Spec) bool { return m.Name == machine }) {
		return "", noMachine(machine, l.Machines)
	}
	path := newNetwork(dataDir, netip.Prefix{}).nsPath(machine)
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil || st.Type != unix.NSFS_MAGIC {
		return "", fmt.Errorf("machine %s of the development cluster in %s is not on: `holdfast dev ps` shows the machines", machine, dataDir)
	}
	return path, nil
}

// processProgram is a program that is a process of its own.
type processProgram struct {
	pid   int
	ready chan struct{}
	done  chan struct{}
	err   error // set before done is closed
}

// startProcess starts cmd inside the network namespace ns. The child dies with
// this process, whichever way that ends, so that a killed development cluster
// leaves no server behind. It says that it is ready by sending READY=1 to
// notify, as sd_notify(3) has it.
func startProcess(cmd *exec.Cmd, ns, notify string) (*processProgram, error) {
	if err := os.Remove(notify); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for readiness: %w", err)
	}
	cmd.Env = append(cmd.Environ(), "NOTIFY_SOCKET="+notify)
	// A process group of its own: Ctrl-C in the terminal is for us, who then
	// stop everything in order.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	p := &processProgram{ready: make(chan struct{}), done: make(chan struct{})}
	go p.awaitReady(conn)
	started := make(chan error, 1)
	go func() {
		// The thread is never unlocked: it lives in the machine's namespace, and
		// the kernel delivers the parent's death when the thread that forked
		// ends. So it stays as long as the child does, then ends with this
		// goroutine.
		runtime.LockOSThread()
		err := EnterNamespace(ns)
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
		_ = conn.Close() // ends awaitReady
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *processProgram) awaitReady(conn *net.UnixConn) {
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if string(buf[:n]) == readyMessage {
			close(p.ready)
			_ = conn.Close()
			return
		}
	}
}

const readyMessage = "READY=1"

func (p *processProgram) PID() int               { return p.pid }
func (p *processProgram) Ready() <-chan struct{} { return p.ready }
func (p *processProgram) Done() <-chan struct{}  { return p.done }
func (p *processProgram) Err() error             { return p.err }

func (p *processProgram) Stop(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := unix.Kill(p.pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d did not end in time", p.pid)
	}
}

// inNamespace calls f on a thread inside the namespace and returns its error.
// Goroutines that f starts are outside.
func inNamespace(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so the thread ends with the goroutine
		err := EnterNamespace(path)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// NotifyReady tells whoever started this process that it serves, in the way of
// sd_notify(3). It does nothing when nobody asked.
func NotifyReady() error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	conn, err := net.DialTimeout("unixgram", path, 5*time.Second)
	if err != nil {
		return fmt.Errorf("notify %s: %w", path, err)
	}
	defer conn.Close()
	_, err = conn.Write([]byte(readyMessage))
	return err
}
