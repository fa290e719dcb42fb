package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"

	"github.com/holdfast-io/holdfast/agent/containerd/logfile"
	"github.com/holdfast-io/holdfast/agent/runtime"
)

// Deadlines of single calls to containerd. They bound what a hung shim or disk
// costs; on a healthy machine they are a hundred times too long.
const (
	readTimeout    = 20 * time.Second // lists, status
	changeTimeout  = time.Minute      // create, start, delete
	killPatience   = 20 * time.Second // from SIGKILL to the end of a process
	pullTimeout    = 30 * time.Minute // a whole image
	resolveTimeout = 15 * time.Second // the registry's first answer
)

// Config is what a [Runtime] needs.
type Config struct {
	// Node is the node's name, a DNS label. Required. Two runtimes of one machine
	// must not have the same.
	Node string
	// Root is the directory of persistent data: images, container records, pods'
	// files and logs. Required, absolute.
	Root string
	// State is the directory of sockets and mounts, which a reboot may take.
	// Optional; /run/holdfast/<node>. Absolute, at most 80 bytes long.
	State string
	// Address is the socket of a containerd to use instead of one of our own.
	Address string // optional
	// Command is what starts our containerd: [ServeCommand] with the arguments
	// that follow. Optional; this program with the argument "containerd".
	Command []string
	// Program is the executable that knows [IsShim], [IsLogger] and [IsHolder].
	Program string // optional; this program
	// ImageDirs are searched for image archives (*.tar, also compressed) at the
	// start, and again whenever an image is not found.
	ImageDirs []string // optional
	// PlainHTTP names registries ("host" or "host:port") to be spoken to without
	// TLS. Those on the loopback always are.
	PlainHTTP []string
	// RegistryDir says how to reach registries: mirrors, certificates, plain HTTP. A
	// registry has a directory HOST or HOST_PORT_ in it with a file hosts.toml, of
	// containerd's form. It is read at each pull. Optional.
	RegistryDir string
	// LogSize bounds the log of each run of a container. Optional; 5 files of 10 MiB.
	LogSize     logfile.Size
	Snapshotter string       // optional; "overlayfs"
	Logger      *slog.Logger // optional; nil discards
}

// Runtime implements [runtime.Runtime] on containerd. Safe for concurrent use.
type Runtime struct {
	// Set by New.
	cfg       Config
	log       *slog.Logger
	namespace string        // containerd's
	socket    string        // containerd's
	server    *serverChild  // nil with Config.Address
	cgroup    string        // the node's, "/holdfast/<node>"
	starts    chan struct{} // one element for each container being started
	// killTimeout is killPatience, but in tests of what happens after it.
	killTimeout time.Duration
	ready       chan struct{} // closed once all below is set
	shims       keyLock       // by pod; see runContainer
	tiers       tiers

	// Set by Run, or by Purge without it, before ready is closed.
	client   *client.Client
	version  string
	runc     string // path
	programs programs
	images   *images

	// mu protects what follows.
	mu       sync.Mutex
	changed  chan struct{}
	starting map[string]bool // containers between their creation and their start
	watched  map[string]bool // containers that a goroutine waits for
	watch    func(id string) // starts that goroutine; nil while Run does not run
}

var _ runtime.Runtime = (*Runtime)(nil)

// nodeName is what containerd's namespaces, cgroups and paths can all take.
var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`)

// New makes a runtime. It touches nothing; [Runtime.Run] does.
func New(cfg Config) (*Runtime, error) {
	if !nodeName.MatchString(cfg.Node) {
		return nil, fmt.Errorf("node name %q is not a DNS name in lower case of at most 63 characters", cfg.Node)
	}
	if cfg.State == "" {
		cfg.State = "/run/holdfast/" + cfg.Node
	}
	for what, dir := range map[string]string{"root": cfg.Root, "state": cfg.State} {
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("the runtime's %s directory %q is not an absolute path", what, dir)
		}
	}
	if len(cfg.State) > 80 {
		return nil, fmt.Errorf("the runtime's state directory %s is longer than the 80 bytes that leave room for a socket's name in it: choose a shorter one", cfg.State)
	}
	if cfg.Program == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this program's file: %w", err)
		}
		cfg.Program = self
	}
	if len(cfg.Command) == 0 {
		cfg.Command = []string{cfg.Program, "containerd"}
	}
	if cfg.Snapshotter == "" {
		cfg.Snapshotter = "overlayfs"
	}
	r := &Runtime{
		cfg:       cfg,
		log:       discardIfNil(cfg.Logger),
		namespace: "holdfast-" + cfg.Node,
		socket:    cfg.Address,
		cgroup:    "/holdfast/" + cfg.Node,
		// More starts at once than twice the cores only make each slower.
		starts:      make(chan struct{}, max(4, 2*goruntime.NumCPU())),
		killTimeout: killPatience,
		ready:       make(chan struct{}),
		changed:     make(chan struct{}),
		starting:    map[string]bool{},
		watched:     map[string]bool{},
	}
	if cfg.Address == "" {
		r.server = newServerChild(cfg, r.log)
		r.socket = r.server.serve.Socket
	}
	return r, nil
}

// Run starts containerd unless it runs already, adopts what runs in it, and
// keeps both so until ctx ends. It returns an error when runc is missing or
// containerd cannot be started. Containers and containerd outlive it. It may be
// called once.
func (r *Runtime) Run(ctx context.Context) error {
	if err := r.connect(ctx); err != nil {
		return err
	}
	ctx = r.containerdContext(ctx)
	if err := r.recover(ctx); err != nil {
		return fmt.Errorf("adopt the containers of %s: %w", r.version, err)
	}
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	r.mu.Lock()
	r.watch = func(id string) { group.Go(func() { r.await(ctx, id) }) }
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.watch = nil
		r.mu.Unlock()
	}()
	if err := r.sweep(ctx); err != nil {
		return fmt.Errorf("list the containers of %s: %w", r.version, err)
	}
	close(r.ready)
	r.log.Info("container runtime is ready", "runtime", r.Version(), "socket", r.socket)
	group.Go(func() {
		if err := r.images.importDirs(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("not all image archives were imported", "error", err)
		}
	})
	return r.keep(ctx)
}

// keep looks after containerd and the records until ctx ends.
func (r *Runtime) keep(ctx context.Context) error {
	const (
		checkInterval   = time.Second
		restartInterval = 5 * time.Second // after a start that failed
		sweepInterval   = 10 * time.Second
		hungAfter       = time.Minute
	)
	ticker := time.NewTicker(checkInterval)
	defer ticker.Stop()
	lastAnswer, lastSweep := time.Now(), time.Now()
	for {
		var died <-chan struct{}
		if r.server != nil {
			died = r.server.died()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-died:
		}
		if r.server != nil {
			pid := serverPID(r.server.serve.State)
			if pid != 0 && time.Since(lastAnswer) > hungAfter {
				r.log.Error("containerd has not answered for a minute; it is killed and started anew", "pid", pid)
				r.server.kill(ctx)
				pid = 0
			}
			if pid == 0 {
				r.log.Warn("containerd has ended; it is started anew")
				if err := r.server.start(ctx); err != nil {
					if ctx.Err() == nil {
						r.log.Error("containerd does not start; it is tried again", "after", restartInterval, "error", err)
					}
					_ = pause(ctx, restartInterval)
					continue
				}
				resetBackoff(r.client)
				lastAnswer, lastSweep = time.Now(), time.Time{}
			}
		}
		if err := r.ping(ctx); err != nil {
			continue
		}
		lastAnswer = time.Now()
		if time.Since(lastSweep) < sweepInterval {
			continue
		}
		if err := r.sweep(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("containers cannot be listed", "error", err)
		}
		lastSweep = time.Now()
	}
}

func (r *Runtime) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := r.client.Version(ctx)
	return err
}

// connect finds runc, puts the programs in place, and has containerd answer.
func (r *Runtime) connect(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("containers can only be run by root: start the agent as root, or choose the fake runtime")
	}
	var err error
	if r.runc, err = findRunc(); err != nil {
		return err
	}
	for _, dir := range []string{r.cfg.Root, r.cfg.State} {
		// Containers' users must be able to pass through.
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make the runtime's directory: %w", err)
		}
	}
	if r.programs, err = installPrograms(filepath.Join(r.cfg.Root, "bin"), r.cfg.Program); err != nil {
		return err
	}
	if r.server != nil {
		if err := r.server.ensure(ctx); err != nil {
			return err
		}
	} else {
		r.programs.shim = "io.containerd.runc.v2" // theirs: ours speaks to the version it comes with only
	}
	r.client, err = client.New(r.socket, client.WithDefaultNamespace(r.namespace), client.WithTimeout(10*time.Second))
	if err != nil {
		return fmt.Errorf("connect to containerd at %s: %w", r.socket, err)
	}
	versionCtx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	version, err := r.client.Version(versionCtx)
	if err != nil {
		return fmt.Errorf("ask containerd at %s for its version: %w", r.socket, err)
	}
	r.version = version.Version
	r.images = newImages(r)
	return nil
}

// Ready is closed once calls can be made.
func (r *Runtime) Ready() <-chan struct{} { return r.ready }

// Version names the runtime, such as "containerd://2.4.2". Before Ready it has
// no number.
func (r *Runtime) Version() string {
	select {
	case <-r.ready:
		return "containerd://" + r.version
	default:
		return "containerd://"
	}
}

// call begins a call to containerd: it waits until the runtime is ready, and
// returns a context for containerd that ends after timeout.
func (r *Runtime) call(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc, error) {
	select {
	case <-r.ready:
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("wait for containerd: %w", context.Cause(ctx))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("containerd did not answer within %s", timeout))
	return r.containerdContext(ctx), cancel, nil
}

// containerdContext is ctx for containerd's client: it names our namespace, and
// keeps the client from writing a log of its own, since its errors come back.
func (r *Runtime) containerdContext(ctx context.Context) context.Context {
	return log.WithLogger(namespaces.WithNamespace(ctx, r.namespace), silence)
}

var silence = func() *log.Entry {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	return logrus.NewEntry(logger)
}()

// Changed returns a channel that is closed when List would answer otherwise
// than now.
func (r *Runtime) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *Runtime) notify() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.changed = make(chan struct{})
}
