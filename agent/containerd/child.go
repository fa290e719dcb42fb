package containerd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/version"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

const (
	serverStartTimeout = 30 * time.Second
	serverStopTimeout  = 10 * time.Second
	serverLogBytes     = 10 << 20 // at which a start puts the log aside
)

// serverChild is our containerd: a process that we start, or that an agent
// before us has started.
type serverChild struct {
	serve   ServeConfig
	command []string
	logPath string
	log     *slog.Logger

	mu    sync.Mutex
	ended chan struct{} // closed when the process has; nil before the first start
}

func newServerChild(cfg Config, log *slog.Logger) *serverChild {
	serve := ServeConfig{
		Root:      filepath.Join(cfg.Root, "containerd"),
		State:     filepath.Join(cfg.State, "containerd"),
		Socket:    filepath.Join(cfg.State, "containerd.sock"),
		SocketDir: filepath.Join(cfg.State, "s"),
	}
	if len(serve.SocketDir) > 42 { // containerd's own bound
		serve.SocketDir = fmt.Sprintf("/run/holdfast/s/%x", sha256.Sum256([]byte(cfg.State)))[:32]
	}
	return &serverChild{
		serve:   serve,
		command: cfg.Command,
		logPath: filepath.Join(cfg.Root, "containerd.log"),
		log:     log,
	}
}

// ensure makes a containerd of this program's version answer: the one that runs,
// if it does, or a new one.
func (s *serverChild) ensure(ctx context.Context) error {
	if pid := serverPID(s.serve.State); pid != 0 {
		have, err := s.answer(ctx, func() bool { return serverPID(s.serve.State) == pid })
		switch {
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && serverPID(s.serve.State) == 0:
			// It was just ending.
		case err != nil:
			s.log.Warn("containerd runs but does not answer; it is started anew", "pid", pid, "error", err)
			s.kill(ctx)
		case have != version.Version:
			s.log.Info("containerd runs in another version; it is started anew", "have", have, "want", version.Version)
			if err := s.stop(ctx); err != nil {
				return err
			}
		default:
			s.follow(pid)
			return nil
		}
	}
	return s.start(ctx)
}

// start starts containerd and returns once it answers. Its output goes to the
// log file, whose last words an error carries.
func (s *serverChild) start(ctx context.Context) error {
	if info, err := os.Stat(s.logPath); err == nil && info.Size() > serverLogBytes {
		_ = os.Rename(s.logPath, s.logPath+".1")
	}
	output, err := os.OpenFile(s.logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("open containerd's log: %w", err)
	}
	defer output.Close()
	logStart, _ := output.Seek(0, io.SeekEnd)
	if err := os.MkdirAll(s.serve.SocketDir, 0o711); err != nil {
		return fmt.Errorf("make directory for shims' sockets: %w", err)
	}

	// Not CommandContext, no death signal, a session of its own: it is to outlive us.
	cmd := exec.Command(s.command[0], append(s.command[1:len(s.command):len(s.command)], s.serve.args()...)...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = output, output
	cmd.Env = append(os.Environ(), "PATH="+pathWithSystem())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	ended := make(chan struct{})
	// The one goroutine that outlives its caller: it ends with the child, and
	// with it our need to reap it.
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	s.mu.Lock()
	s.ended = ended
	s.mu.Unlock()

	answered := make(chan error, 1)
	answerCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, err := s.answer(answerCtx, func() bool { return true })
		answered <- err
	}()
	select {
	case err := <-answered:
		if err != nil && ctx.Err() == nil {
			_ = cmd.Process.Kill()
			return fmt.Errorf("containerd did not answer within %s: %w%s", serverStartTimeout, err, s.lastWords(logStart))
		}
		return err
	case <-ended:
		cancel()
		<-answered
		return fmt.Errorf("containerd ended at once: %s%s", cmd.ProcessState, s.lastWords(logStart))
	}
}

// lastWords is the end of what containerd has logged since offset.
func (s *serverChild) lastWords(offset int64) string {
	f, err := os.Open(s.logPath)
	if err != nil {
		return ""
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return ""
	}
	data, _ := io.ReadAll(io.LimitReader(f, 1<<20))
	text := strings.TrimSpace(string(data))
	if text == "" {
		return ""
	}
	return "; its log ends with: " + text[strings.LastIndexByte(text, '\n')+1:]
}

// answer waits up to serverStartTimeout, and while alive says so, for the socket
// to answer, and returns the version.
func (s *serverChild) answer(ctx context.Context, alive func() bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, serverStartTimeout)
	defer cancel()
	for {
		have, err := askVersion(ctx, s.serve.Socket)
		if err == nil {
			return have, nil
		}
		if !alive() || pause(ctx, 5*time.Millisecond) != nil {
			return "", err
		}
	}
}

func askVersion(ctx context.Context, socket string) (string, error) {
	if _, err := os.Stat(socket); err != nil {
		return "", err // spares the connection's own, longer, waiting
	}
	c, err := client.New(socket, client.WithDefaultNamespace("holdfast"), client.WithTimeout(2*time.Second))
	if err != nil {
		return "", err
	}
	defer c.Close()
	v, err := c.Version(ctx)
	return v.Version, err
}

// follow notices the end of a containerd that is not our child.
func (s *serverChild) follow(pid int) {
	ended := make(chan struct{})
	s.mu.Lock()
	s.ended = ended
	s.mu.Unlock()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // the periodic look at the lock serves too
	}
	go func() { // ends with that process
		defer unix.Close(fd)
		defer close(ended)
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			if n, err := unix.Poll(poll, -1); n > 0 || (err != nil && !errors.Is(err, unix.EINTR)) {
				return
			}
		}
	}()
}

// died returns a channel that is closed once containerd has ended, for the next
// start to be made at once.
func (s *serverChild) died() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// stop ends containerd, politely if it can be, and returns once it has ended.
func (s *serverChild) stop(ctx context.Context) error {
	pid := serverPID(s.serve.State)
	if pid == 0 {
		return nil
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end containerd, process %d: %w", pid, err)
	}
	if s.waitGone(ctx, pid, serverStopTimeout) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.kill(ctx)
	if serverPID(s.serve.State) == pid {
		return fmt.Errorf("containerd, process %d, does not end, not even by SIGKILL: it probably waits for a disk", pid)
	}
	return nil
}

// kill ends containerd at once.
func (s *serverChild) kill(ctx context.Context) {
	if pid := serverPID(s.serve.State); pid != 0 {
		_ = unix.Kill(pid, unix.SIGKILL)
		s.waitGone(ctx, pid, serverStopTimeout)
	}
}

// waitGone waits until process pid does not have the state directory any more.
func (s *serverChild) waitGone(ctx context.Context, pid int, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for serverPID(s.serve.State) == pid {
		if pause(ctx, 5*time.Millisecond) != nil {
			return false
		}
	}
	return true
}

// pathWithSystem is PATH with the directories in which systems keep mount,
// modprobe and the like: a service's PATH is often short.
func pathWithSystem() string {
	return strings.Trim(os.Getenv("PATH")+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", ":")
}

// resetBackoff lets c try its connection again now, not seconds later.
func resetBackoff(c *client.Client) {
	if conn, ok := c.Conn().(*grpc.ClientConn); ok {
		conn.ResetConnectBackoff()
	}
}
