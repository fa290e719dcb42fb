package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent/containerd/logfile"
	"github.com/holdfast-io/holdfast/agent/runtime"
)

const (
	// shimName follows containerd's convention, name "holdfast", protocol v2.
	shimName   = "containerd-shim-holdfast-v2"
	loggerName = "holdfast-logger"

	// The logging URI that containerd passes from us to the shim or the logger has
	// the log's directory and size, whether the container has a terminal, and its
	// stdin.
	logDirArg      = "dir"
	logBytesArg    = "bytes"
	logSegmentsArg = "segments"
	logTTYArg      = "tty"
	logStdinArg    = "stdin"

	// drainTimeout bounds how long the deletion of a container waits for its log.
	drainTimeout = 5 * time.Second
)

// IsShim tells whether this process was started as containerd's shim; then main
// must call [RunShim] and nothing else. args are os.Args.
func IsShim(args []string) bool { return startedAs(args, shimName) }

// IsLogger tells whether this process was started as a container's log process;
// then main must call [RunLogger] and nothing else. args are os.Args.
func IsLogger(args []string) bool { return startedAs(args, loggerName) }

func startedAs(args []string, name string) bool {
	return len(args) > 0 && filepath.Base(args[0]) == name
}

// RunShim is the whole life of a shim. It exits the process on errors.
func RunShim() {
	// containerd's server is in this binary too, and its plugins would be loaded
	// by the shim, which has no place for them: keep none. The task plugin that we
	// add is containerd's own, with logs on top.
	registry.Reset()
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			publisher, err := ic.GetByID(plugins.EventPlugin, "publisher")
			if err != nil {
				return nil, err
			}
			stop, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
			if err != nil {
				return nil, err
			}
			tasks, err := task.NewTaskService(ic.Context, publisher.(shim.Publisher), stop.(shutdown.Service))
			if err != nil {
				return nil, err
			}
			return &loggingTasks{TTRPCTaskService: tasks, logs: map[string]*shimLog{}}, nil
		},
	})
	shim.RunShim(context.Background(), manager.NewShimManager("io.containerd.runc.v2"))
}

// loggingTasks is the shim's task service, except that it writes the logs of
// containers itself: one process less for each, and nothing to restart.
type loggingTasks struct {
	taskapi.TTRPCTaskService

	mu   sync.Mutex
	logs map[string]*shimLog // by container
}

// RegisterTTRPC makes the service known to the shim's server.
func (s *loggingTasks) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

// Create replaces our logging URI by pipes that a goroutine of the shim reads.
func (s *loggingTasks) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	how, ours := outputOf(r.GetStdout())
	if !ours {
		return s.TTRPCTaskService.Create(ctx, r)
	}
	l, err := openShimLog(how, r.GetBundle(), func() {
		_, _ = s.TTRPCTaskService.CloseIO(context.Background(), &taskapi.CloseIORequest{ID: r.GetID(), Stdin: true})
	})
	if err != nil {
		return nil, fmt.Errorf("open the container's log: %w", err)
	}
	r.Stdin = l.stdin
	r.Stdout, r.Stderr = l.paths[0], ""
	if !r.GetTerminal() {
		r.Stderr = l.paths[1]
	}
	resp, err := s.TTRPCTaskService.Create(ctx, r)
	if err != nil {
		l.abandon()
		return nil, err
	}
	// Only now does the writing end of each pipe exist; before, reading it would
	// look like its end.
	l.start()
	go s.noteExit(r.GetID(), how.dir, cgroupOfBundle(r.GetBundle()), l.noted)
	s.mu.Lock()
	s.logs[r.GetID()] = l
	s.mu.Unlock()
	return resp, nil
}

// Delete ends once the container's log is complete and its end noted: the shim
// may exit after it.
func (s *loggingTasks) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	resp, err := s.TTRPCTaskService.Delete(ctx, r)
	if err != nil || r.GetExecID() != "" {
		return resp, err
	}
	s.mu.Lock()
	l := s.logs[r.GetID()]
	delete(s.logs, r.GetID())
	s.mu.Unlock()
	if l != nil {
		late := time.After(drainTimeout) // then the rest of the log is lost, not the container's end
		for _, done := range []chan struct{}{l.done, l.noted} {
			select {
			case <-done:
			case <-late:
			}
		}
	}
	return resp, nil
}

// noteExit waits for a container's end and writes it down, also for a containerd
// that is not there.
func (s *loggingTasks) noteExit(id, logDir, cgroup string, noted chan<- struct{}) {
	defer close(noted)
	resp, err := s.TTRPCTaskService.Wait(context.Background(), &taskapi.WaitRequest{ID: id})
	if err != nil {
		return // cleared away before it was started
	}
	code := int(resp.GetExitStatus())
	// Without the note the agent learns it from containerd, nearly always.
	_ = writeExit(logDir, exitRecord{Code: code, At: resp.GetExitedAt().AsTime(), OOMKilled: oomKilled(code, cgroup)})
}

// shimLog copies one container's output from pipes to its log, and to whoever is
// attached.
type shimLog struct {
	writer *logfile.Writer
	hub    *hub
	stdin  string   // path of the pipe; empty for none
	paths  []string // of the pipes: stdout and, without a terminal, stderr
	pipes  []*os.File
	done   chan struct{} // closed once both pipes have ended
	noted  chan struct{} // closed once the container's end has been noted
}

// openShimLog makes the pipes of a container. closeStdin has the shim let go of its
// end of stdin.
func openShimLog(how output, bundle string, closeStdin func()) (_ *shimLog, failed error) {
	writer, err := logfile.Create(how.dir, how.size)
	if err != nil {
		return nil, err
	}
	_ = os.Remove(filepath.Join(how.dir, exitName)) // of an earlier try
	l := &shimLog{writer: writer, done: make(chan struct{}), noted: make(chan struct{})}
	defer func() {
		if failed != nil {
			l.abandon()
		}
	}()
	names := []string{"stdout", "stderr"}
	if how.tty {
		names = names[:1]
	}
	for _, name := range names {
		// Without O_NONBLOCK this would wait for a writer, which waits for us.
		path, pipe, err := openPipe(bundle, name, os.O_RDONLY)
		if err != nil {
			return nil, err
		}
		l.paths, l.pipes = append(l.paths, path), append(l.pipes, pipe)
	}
	var stdin *os.File
	if how.stdin != "" {
		// Open for reading too, it has a reader from the start, and no end while we
		// have it.
		if l.stdin, stdin, err = openPipe(bundle, "stdin", os.O_RDWR); err != nil {
			return nil, err
		}
	}
	if l.hub, err = newHub(how, stdin, closeStdin); err != nil {
		if stdin != nil {
			stdin.Close()
		}
		return nil, err
	}
	return l, nil
}

func openPipe(bundle, name string, flags int) (string, *os.File, error) {
	path := filepath.Join(bundle, name+".pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", nil, fmt.Errorf("make pipe %s: %w", path, err)
	}
	pipe, err := os.OpenFile(path, flags|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open pipe %s: %w", path, err)
	}
	return path, pipe, nil
}

func (l *shimLog) start() {
	readers := make([]io.Reader, len(l.pipes))
	for i, p := range l.pipes {
		readers[i] = p
	}
	go func() {
		defer close(l.done)
		defer l.abandon()
		copyLog(l.writer, l.hub, readers)
	}()
}

func (l *shimLog) abandon() {
	for _, p := range l.pipes {
		p.Close()
	}
	l.hub.close()
	l.writer.Close()
}

// copyLog copies stdout and, if there, stderr to w and to those attached, until both
// end.
func copyLog(w *logfile.Writer, h *hub, streams []io.Reader) {
	var group sync.WaitGroup
	for i, r := range streams {
		stream, tag := logfile.Stdout, frameStdout
		if i == 1 {
			stream, tag = logfile.Stderr, frameStderr
		}
		group.Go(func() { _ = w.Copy(stream, h.tee(tag, r)) })
	}
	group.Wait()
}

// RunLogger is the whole life of a container's log process, which shims of a
// containerd that is not ours start: the container's output comes as files 3
// and 4, and closing 5 says that we are ready. It exits the process on errors.
func RunLogger() {
	query := url.Values{}
	for i := 1; i+1 < len(os.Args); i += 2 {
		query.Set(os.Args[i], os.Args[i+1])
	}
	how := outputFrom(query)
	// The shim sends SIGTERM when the container is deleted; but the log ends with
	// the pipes, and not before all of them has been read.
	signal.Ignore(unix.SIGTERM)
	stdout, stderr, ready := os.NewFile(3, "stdout"), os.NewFile(4, "stderr"), os.NewFile(5, "ready")
	writer, err := logfile.Create(how.dir, how.size)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", loggerName, err)
		os.Exit(1)
	}
	hub, err := newHub(how, nil, nil)
	if err != nil { // the log matters more
		fmt.Fprintf(os.Stderr, "%s: nobody can attach: %v\n", loggerName, err)
	}
	ready.Close()
	copyLog(writer, hub, []io.Reader{stdout, stderr})
	hub.close()
	writer.Close()
}

// output says what becomes of a container's streams.
type output struct {
	dir   string // of its log
	tty   bool
	stdin string // "": none; "open", or "once": it ends with the first who was attached
	size  logfile.Size
}

const (
	stdinOpen = "open"
	stdinOnce = "once"
)

func outputFor(c runtime.Container, dir string) output {
	o := output{dir: dir, tty: c.TTY}
	if c.Stdin {
		o.stdin = stdinOpen
		if c.StdinOnce {
			o.stdin = stdinOnce
		}
	}
	return o
}

func outputFrom(query url.Values) output {
	o := output{dir: query.Get(logDirArg), tty: query.Get(logTTYArg) != "", stdin: query.Get(logStdinArg)}
	o.size.SegmentBytes, _ = strconv.ParseInt(query.Get(logBytesArg), 10, 64) // 0: the default, as when an older agent asks
	o.size.Segments, _ = strconv.Atoi(query.Get(logSegmentsArg))
	return o
}

// uri is what the shim is told to do with a container's output.
func (o output) uri(logger string) string {
	query := url.Values{logDirArg: {o.dir}}
	if o.tty {
		query.Set(logTTYArg, "1")
	}
	if o.stdin != "" {
		query.Set(logStdinArg, o.stdin)
	}
	if o.size.SegmentBytes > 0 {
		query.Set(logBytesArg, strconv.FormatInt(o.size.SegmentBytes, 10))
	}
	if o.size.Segments > 0 {
		query.Set(logSegmentsArg, strconv.Itoa(o.size.Segments))
	}
	u := url.URL{Scheme: "binary", Path: logger, RawQuery: query.Encode()}
	return u.String()
}

// outputOf returns what uri was made from, if it was made here.
func outputOf(uri string) (output, bool) {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "binary" || filepath.Base(u.Path) != loggerName {
		return output{}, false
	}
	o := outputFrom(u.Query())
	return o, o.dir != ""
}

// programs are paths of this program under the names by which it knows what to be.
type programs struct{ shim, logger, holder string }

// installPrograms makes those names in dir be this
// program. A hard link costs nothing, keeps old versions running when the
// program is replaced, and unlike a symbolic link keeps its name through
// os.Executable, which the shim starts itself by. Across file systems it is a
// copy.
func installPrograms(dir, program string) (programs, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return programs{}, fmt.Errorf("make directory for programs: %w", err)
	}
	for _, name := range []string{shimName, loggerName, holderName} {
		if err := installProgram(filepath.Join(dir, name), program); err != nil {
			return programs{}, fmt.Errorf("install %s: %w", name, err)
		}
	}
	return programs{
		shim: filepath.Join(dir, shimName), logger: filepath.Join(dir, loggerName), holder: filepath.Join(dir, holderName),
	}, nil
}

func installProgram(path, program string) error {
	want, err := os.Stat(program)
	if err != nil {
		return err
	}
	if have, err := os.Stat(path); err == nil {
		sameCopy := have.Size() == want.Size() && have.ModTime().Equal(want.ModTime())
		if os.SameFile(have, want) || sameCopy {
			return nil
		}
	}
	// By another name first: a shim may be starting at this moment.
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(program, fresh); err != nil {
		if err := copyProgram(fresh, program, want); err != nil {
			return err
		}
	}
	return os.Rename(fresh, path)
}

func copyProgram(to, from string, info fs.FileInfo) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	return os.Chtimes(to, time.Now(), info.ModTime()) // by which the next run knows the copy
}

// findRunc returns the path of runc: in PATH or where systems keep it, since a
// service's PATH is often short.
func findRunc() (string, error) {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin") {
		path := filepath.Join(dir, "runc")
		if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 && strings.HasPrefix(path, "/") {
			return path, nil
		}
	}
	return "", errors.New("runc, which starts containers, is not installed: run `apt-get install runc` and start the agent again")
}
