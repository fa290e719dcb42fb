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
)

const (
	// shimName follows containerd's convention, name "holdfast", protocol v2.
	shimName   = "containerd-shim-holdfast-v2"
	loggerName = "holdfast-logger"

	// logDirArg is the name of the log's directory in the logging URI that
	// containerd passes from us to the shim or the logger.
	logDirArg = "dir"

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
	dir, ours := logDirOf(r.GetStdout())
	if !ours {
		return s.TTRPCTaskService.Create(ctx, r)
	}
	l, err := openShimLog(dir, r.GetBundle(), r.GetTerminal())
	if err != nil {
		return nil, fmt.Errorf("open the container's log: %w", err)
	}
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
	go s.noteExit(r.GetID(), dir, cgroupOfBundle(r.GetBundle()), l.noted)
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

// shimLog copies one container's output from pipes to its log.
type shimLog struct {
	writer *logfile.Writer
	paths  []string // of the pipes: stdout and, without a terminal, stderr
	pipes  []*os.File
	done   chan struct{} // closed once both pipes have ended
	noted  chan struct{} // closed once the container's end has been noted
}

func openShimLog(dir, bundle string, terminal bool) (*shimLog, error) {
	writer, err := logfile.Create(dir, 0)
	if err != nil {
		return nil, err
	}
	_ = os.Remove(filepath.Join(dir, exitName)) // of an earlier try
	l := &shimLog{writer: writer, done: make(chan struct{}), noted: make(chan struct{})}
	names := []string{"stdout", "stderr"}
	if terminal {
		names = names[:1]
	}
	for _, name := range names {
		path := filepath.Join(bundle, name+".pipe")
		if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
			l.abandon()
			return nil, fmt.Errorf("make pipe %s: %w", path, err)
		}
		// Without O_NONBLOCK this would wait for a writer, which waits for us.
		pipe, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			l.abandon()
			return nil, fmt.Errorf("open pipe %s: %w", path, err)
		}
		l.paths, l.pipes = append(l.paths, path), append(l.pipes, pipe)
	}
	return l, nil
}

func (l *shimLog) start() {
	readers := make([]io.Reader, len(l.pipes))
	for i, p := range l.pipes {
		readers[i] = p
	}
	go func() {
		defer close(l.done)
		defer l.abandon()
		copyLog(l.writer, readers)
	}()
}

func (l *shimLog) abandon() {
	for _, p := range l.pipes {
		p.Close()
	}
	l.writer.Close()
}

// copyLog copies stdout and, if there, stderr to w until both end.
func copyLog(w *logfile.Writer, streams []io.Reader) {
	var group sync.WaitGroup
	for i, r := range streams {
		stream := logfile.Stdout
		if i == 1 {
			stream = logfile.Stderr
		}
		group.Go(func() { _ = w.Copy(stream, r) })
	}
	group.Wait()
}

// RunLogger is the whole life of a container's log process, which shims of a
// containerd that is not ours start: the container's output comes as files 3
// and 4, and closing 5 says that we are ready. It exits the process on errors.
func RunLogger() {
	var dir string
	for i := 1; i+1 < len(os.Args); i += 2 {
		if os.Args[i] == logDirArg {
			dir = os.Args[i+1]
		}
	}
	// The shim sends SIGTERM when the container is deleted; but the log ends with
	// the pipes, and not before all of them has been read.
	signal.Ignore(unix.SIGTERM)
	stdout, stderr, ready := os.NewFile(3, "stdout"), os.NewFile(4, "stderr"), os.NewFile(5, "ready")
	writer, err := logfile.Create(dir, 0)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", loggerName, err)
		os.Exit(1)
	}
	ready.Close()
	copyLog(writer, []io.Reader{stdout, stderr})
	writer.Close()
}

// logURI is what the shim is told to do with a container's output.
func logURI(logger, dir string) string {
	u := url.URL{Scheme: "binary", Path: logger, RawQuery: url.Values{logDirArg: {dir}}.Encode()}
	return u.String()
}

// logDirOf returns the log's directory if uri is one that logURI has made.
func logDirOf(uri string) (string, bool) {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "binary" || filepath.Base(u.Path) != loggerName {
		return "", false
	}
	dir := u.Query().Get(logDirArg)
	return dir, dir != ""
}

// installPrograms makes the shim's and the logger's names in dir be this
// program. A hard link costs nothing, keeps old versions running when the
// program is replaced, and unlike a symbolic link keeps its name through
// os.Executable, which the shim starts itself by. Across file systems it is a
// copy.
func installPrograms(dir, program string) (shim, logger string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", fmt.Errorf("make directory for programs: %w", err)
	}
	for _, name := range []string{shimName, loggerName} {
		if err := installProgram(filepath.Join(dir, name), program); err != nil {
			return "", "", fmt.Errorf("install %s: %w", name, err)
		}
	}
	return filepath.Join(dir, shimName), filepath.Join(dir, loggerName), nil
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
