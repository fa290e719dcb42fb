package containerd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	// The plugins that make containerd a server for our purpose. Left out: CRI,
	// NRI, metrics, tracing and the snapshotters that need other software.
	_ "github.com/containerd/containerd/v2/core/runtime/v2"
	_ "github.com/containerd/containerd/v2/plugins/content/local/plugin"
	_ "github.com/containerd/containerd/v2/plugins/diff/walking/plugin"
	_ "github.com/containerd/containerd/v2/plugins/events"
	_ "github.com/containerd/containerd/v2/plugins/gc"
	_ "github.com/containerd/containerd/v2/plugins/leases"
	_ "github.com/containerd/containerd/v2/plugins/metadata"
	_ "github.com/containerd/containerd/v2/plugins/mount"
	_ "github.com/containerd/containerd/v2/plugins/server/grpc"
	_ "github.com/containerd/containerd/v2/plugins/server/ttrpc"
	_ "github.com/containerd/containerd/v2/plugins/services/containers"
	_ "github.com/containerd/containerd/v2/plugins/services/content"
	_ "github.com/containerd/containerd/v2/plugins/services/diff"
	_ "github.com/containerd/containerd/v2/plugins/services/events"
	_ "github.com/containerd/containerd/v2/plugins/services/healthcheck"
	_ "github.com/containerd/containerd/v2/plugins/services/images"
	_ "github.com/containerd/containerd/v2/plugins/services/introspection"
	_ "github.com/containerd/containerd/v2/plugins/services/leases"
	_ "github.com/containerd/containerd/v2/plugins/services/namespaces"
	_ "github.com/containerd/containerd/v2/plugins/services/snapshots"
	_ "github.com/containerd/containerd/v2/plugins/services/tasks"
	_ "github.com/containerd/containerd/v2/plugins/services/version"
	_ "github.com/containerd/containerd/v2/plugins/services/warning"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/native/plugin"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/overlay/plugin"
)

// ServeConfig is what [Serve] needs. All fields are required and absolute paths.
type ServeConfig struct {
	Root   string // persistent data
	State  string // data that a reboot may take
	Socket string // where to listen; a Unix socket, at most 100 bytes long
	// SocketDir is where shims listen, at most 42 bytes long.
	SocketDir string
}

// ServeCommand is the hidden command that [Runtime] starts containerd with, by
// default "holdfast containerd". args are what follows the command. It ends
// with SIGTERM or SIGINT, or when ctx does.
func ServeCommand(ctx context.Context, args []string) error {
	var cfg ServeConfig
	flags := flag.NewFlagSet("containerd", flag.ContinueOnError)
	flags.StringVar(&cfg.Root, "root", "", "directory of persistent data")
	flags.StringVar(&cfg.State, "state", "", "directory of transient data")
	flags.StringVar(&cfg.Socket, "socket", "", "socket to listen on")
	flags.StringVar(&cfg.SocketDir, "socket-dir", "", "directory of the shims' sockets")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	// The terminal's hang-up is not for us, nor is a log that has gone away.
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	return Serve(ctx, cfg)
}

func (cfg ServeConfig) args() []string {
	return []string{"--root", cfg.Root, "--state", cfg.State, "--socket", cfg.Socket, "--socket-dir", cfg.SocketDir}
}

// Serve runs a containerd server in this process until ctx ends. It returns an
// error at once when another one serves the same state. It changes globals of
// the process (log, out-of-memory score), hence belongs in a process of its own.
// Containers do not end with it.
func Serve(ctx context.Context, cfg ServeConfig) error {
	for name, path := range map[string]string{"root": cfg.Root, "state": cfg.State, "socket": cfg.Socket, "socket-dir": cfg.SocketDir} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("containerd's %s %q is not an absolute path", name, path)
		}
	}
	_ = log.SetLevel("warn")
	_ = log.SetFormat(log.JSONFormat)
	// containerd must be among the last that the kernel kills for want of memory.
	// Without the privilege for that it still works.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0)

	config := &srvconfig.Config{
		Version: version.ConfigVersion,
		Root:    cfg.Root,
		State:   cfg.State,
		// The shim's plugin is in this binary too; a server has no use for it.
		DisabledPlugins: []string{"io.containerd.ttrpc.v1.task"},
		RequiredPlugins: []string{"io.containerd.grpc.v1.tasks", "io.containerd.server.v1.grpc"},
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc": map[string]any{
				"address":               cfg.Socket,
				"max_recv_message_size": defaults.DefaultMaxRecvMsgSize,
				"max_send_message_size": defaults.DefaultMaxSendMsgSize,
			},
			"io.containerd.server.v1.ttrpc":  map[string]any{"address": cfg.Socket + ".ttrpc"},
			"io.containerd.shim.v1.manager":  map[string]any{"socket_dir": cfg.SocketDir},
			"io.containerd.gc.v1.scheduler":  map[string]any{},
			"io.containerd.metadata.v1.bolt": map[string]any{},
		},
	}
	if err := server.CreateTopLevelDirectories(config); err != nil {
		return fmt.Errorf("make containerd's directories: %w", err)
	}
	if err := lockState(cfg.State); err != nil {
		return err
	}
	// What a killed server left would be "address already in use". The lock says
	// that nobody listens.
	for _, socket := range []string{cfg.Socket, cfg.Socket + ".ttrpc"} {
		if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove containerd's old socket: %w", err)
		}
	}
	s, err := server.New(ctx, config)
	if err != nil {
		return fmt.Errorf("make containerd: %w", err)
	}
	if err := s.Start(ctx); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	s.Wait()
	<-ctx.Done()
	s.Stop()
	return nil
}

const lockName = "holdfast.lock"

// lockState takes the lock that the server of a state directory holds, and writes
// its process id there. Only the end of the process gives it back, so that who
// sees it free knows that all of the server is gone.
func lockState(state string) error {
	// No os.File, which would be closed when nothing refers to it any more.
	lock, err := unix.Open(filepath.Join(state, lockName), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("open containerd's lock: %w", err)
	}
	if err := unix.FcntlFlock(uintptr(lock), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		unix.Close(lock)
		return fmt.Errorf("lock %s, which another containerd seems to serve: %w", state, err)
	}
	if err = unix.Ftruncate(lock, 0); err == nil {
		_, err = unix.Pwrite(lock, []byte(strconv.Itoa(os.Getpid())), 0)
	}
	if err != nil {
		unix.Close(lock)
		return fmt.Errorf("write containerd's lock: %w", err)
	}
	return nil
}

// serverPID returns the process id of the server that has the state directory,
// 0 when there is none.
func serverPID(state string) int {
	lock, err := os.OpenFile(filepath.Join(state, lockName), os.O_RDWR, 0)
	if err != nil {
		return 0
	}
	defer lock.Close()
	held := &unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_GETLK, held); err != nil || held.Type == unix.F_UNLCK {
		return 0
	}
	data, err := io.ReadAll(io.LimitReader(lock, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return 0
	}
	return pid
}

// discardIfNil is log, or one that discards.
func discardIfNil(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}
