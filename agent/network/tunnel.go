package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// TunnelName is by which name this program is the process of the tunnels, for kernels
// without WireGuard.
const TunnelName = "holdfast-tunnels"

// IsTunnel tells whether this process was started to be the tunnels; then main must
// call [TunnelMain] and nothing else. args are os.Args.
func IsTunnel(args []string) bool { return len(args) > 0 && filepath.Base(args[0]) == TunnelName }

// TunnelMain is the whole life of the tunnels' process: args are its name, the
// directory of its sockets, and the names of the links. It ends when one of its links
// is removed, and goes on without the agent: packets do not wait for that. It returns
// the exit code.
func TunnelMain(args []string) int {
	if len(args) < 3 {
		fmt.Fprintf(os.Stderr, "%s is started by the agent\n", TunnelName)
		return 2
	}
	if err := runTunnels(args[1], args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "tunnels:", err)
		return 1
	}
	return 0
}

func runTunnels(dir string, links []string) error {
	signal.Ignore(unix.SIGHUP)
	lock, err := lockTunnels(dir)
	if err != nil || lock == nil {
		return err // another has them
	}
	defer lock.Close()
	// What pods say must not stop because the machine is short of memory.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0)
	ended := make(chan struct{}, len(links))
	for _, name := range links {
		t, err := tun.CreateTUN(name, minMTU)
		if err != nil {
			return fmt.Errorf("make link %s: %w", name, err)
		}
		d := device.NewDevice(t, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, name+": "))
		defer d.Close()
		path := processTunnels{dir}.socket(name)
		_ = os.Remove(path) // of a process that is gone: we have the lock
		l, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		defer l.Close() // which removes the socket too
		go func() {
			<-d.Wait()
			ended <- struct{}{}
		}()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go d.IpcHandle(c)
			}
		}()
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, unix.SIGTERM, unix.SIGINT)
	select {
	case <-ended:
	case <-told:
	}
	return nil
}

// lockTunnels takes the lock that the one process of a directory holds; nil: another
// has it.
func lockTunnels(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, err
	}
	return f, nil
}

// tunnelsStart bounds how long the process takes until it answers.
const tunnelsStart = 10 * time.Second

// startTunnels makes the process run and answer for both links. It is in the network
// namespace of the calling thread.
func (t processTunnels) startTunnels(program string) error {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	lock, err := lockTunnels(t.dir)
	if err != nil {
		return fmt.Errorf("start the tunnels: %w", err)
	}
	if lock != nil { // nobody has them
		lock.Close()
		cmd := exec.Command(program)
		cmd.Args = append([]string{TunnelName, t.dir}, tunnelLinks[:]...)
		cmd.Dir = "/"
		log, err := os.OpenFile(filepath.Join(t.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return fmt.Errorf("start the tunnels: %w", err)
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		// A session of its own: it outlives the agent.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("start the tunnels: %w", err)
		}
		go func() { _ = cmd.Wait() }() // ends with the process; the agent may end before
	}
	for deadline := time.Now().Add(tunnelsStart); ; time.Sleep(5 * time.Millisecond) {
		var failed error
		for _, link := range tunnelLinks {
			_, err := t.read(link)
			failed = errors.Join(failed, err)
		}
		if failed == nil {
			return nil
		}
		if time.Now().After(deadline) {
			words, _ := os.ReadFile(filepath.Join(t.dir, "log"))
			return fmt.Errorf("the tunnels' process does not answer: %w; its log: %.500s", failed, words)
		}
	}
}
