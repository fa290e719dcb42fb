package containerd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/fifo"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// drainIdle is how long the output of a command that has ended may be silent
// before it is taken to be complete, although a process that the command has left
// behind still has it open.
const drainIdle = time.Second

// Exec runs a command in a running container, with the container's environment,
// user and working directory, and returns its exit code. It ends the command
// when ctx ends. It returns runtime.ErrNotFound or runtime.ErrNotRunning when
// there is nothing to run it in, and an error when the command cannot be started.
func (r *Runtime) Exec(ctx context.Context, id runtime.ContainerID, options runtime.ExecOptions) (int, error) {
	if err := checkContainerID(id); err != nil {
		return 0, err
	}
	if len(options.Command) == 0 {
		return 0, errors.New("exec: no command given")
	}
	// No deadline of our own: a shell may live for days. Single steps have one.
	setup, cancel, err := r.call(ctx, changeTimeout)
	if err != nil {
		return 0, err
	}
	defer cancel()
	code, err := r.exec(ctx, setup, id, options)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id.Name, err)
	}
	return code, nil
}

func (r *Runtime) exec(ctx, setup context.Context, id runtime.ContainerID, options runtime.ExecOptions) (int, error) {
	handle := handleOf(id)
	record, err := r.client.ContainerService().Get(setup, handle)
	if errdefs.IsNotFound(err) {
		return 0, runtime.ErrNotFound
	}
	if err != nil {
		return 0, err
	}
	if p, err := r.task(setup, handle); err != nil {
		return 0, err
	} else if p.GetStatus() != tasktypes.Status_RUNNING {
		return 0, runtime.ErrNotRunning
	}
	spec, err := typeurl.UnmarshalAny(record.Spec)
	if err != nil {
		return 0, err
	}
	oci, ok := spec.(*specs.Spec)
	if !ok || oci.Process == nil {
		return 0, fmt.Errorf("its spec is a %T", spec)
	}
	process := *oci.Process
	process.Args, process.Terminal = options.Command, options.TTY
	if options.TTY {
		process.Env = mergeEnv([]string{"TERM=xterm"}, process.Env)
	}
	processAny, err := typeurl.MarshalAnyToProto(&process)
	if err != nil {
		return 0, err
	}

	execID := rand.Text()
	pipes, err := openPipes(filepath.Join(r.cfg.State, "exec", execID), options)
	if err != nil {
		return 0, err
	}
	defer pipes.close()
	service := r.client.TaskService()
	if _, err := service.Exec(setup, &tasks.ExecProcessRequest{
		ContainerID: handle, ExecID: execID, Terminal: options.TTY, Spec: processAny,
		Stdin: pipes.stdin, Stdout: pipes.stdout, Stderr: pipes.stderr,
	}); err != nil {
		return 0, taskError(err)
	}
	// From here on the process must be taken away, whatever happens.
	after, cancelAfter := context.WithCancel(context.WithoutCancel(setup))
	defer cancelAfter()
	// Not to be waited for: the shim takes its time if the command has left a
	// process behind that has its output open.
	defer func() {
		go r.deleteExec(context.WithoutCancel(after), handle, execID)
	}()

	type exit struct {
		code int
		err  error
	}
	ended := make(chan exit, 1)
	go func() {
		resp, err := service.Wait(after, &tasks.WaitRequest{ContainerID: handle, ExecID: execID})
		ended <- exit{int(resp.GetExitStatus()), errgrpc.ToNative(err)}
	}()
	if _, err := service.Start(setup, &tasks.StartRequest{ContainerID: handle, ExecID: execID}); err != nil {
		cancelAfter()
		<-ended
		return 0, taskError(err)
	}
	if options.Started != nil {
		options.Started()
	}
	pipes.start(options, func() {
		_, _ = service.CloseIO(after, &tasks.CloseIORequest{ContainerID: handle, ExecID: execID, Stdin: true})
	})
	stopResize := make(chan struct{})
	var resizing sync.WaitGroup
	resizing.Go(func() { r.resize(after, handle, execID, options.Resize, stopResize) })
	defer resizing.Wait()
	defer close(stopResize)

	var got exit
	select {
	case got = <-ended:
	case <-ctx.Done():
		kill, cancel := context.WithTimeout(after, r.killTimeout)
		_, _ = service.Kill(kill, &tasks.KillRequest{ContainerID: handle, ExecID: execID, Signal: uint32(unix.SIGKILL)})
		select {
		case <-ended:
		case <-kill.Done():
		}
		cancel()
		return 0, context.Cause(ctx)
	}
	if got.err != nil {
		return 0, fmt.Errorf("the command was lost: %w", taskError(got.err))
	}
	pipes.drain(ctx)
	return got.code, nil
}

// deleteExec has the shim forget a command that has ended, or was never started.
func (r *Runtime) deleteExec(ctx context.Context, handle, execID string) {
	ctx, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	_, err := r.client.TaskService().DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerID: handle, ExecID: execID})
	if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) && !shimGone(err) {
		r.log.Warn("ended command is not cleared away", "container", handle, "error", err)
	}
}

// execPipes are the named pipes between a command's shim and us.
type execPipes struct {
	dir                   string
	stdin, stdout, stderr string // paths; empty for none
	in                    io.WriteCloser
	out, err              io.ReadCloser

	moved atomic.Int64  // bytes of output, to notice silence
	busy  atomic.Int32  // writes to the caller in progress
	done  chan struct{} // closed once all output has ended
}

func openPipes(dir string, options runtime.ExecOptions) (_ *execPipes, failed error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	p := &execPipes{dir: dir, done: make(chan struct{})}
	defer func() {
		if failed != nil {
			p.close()
		}
	}()
	// The context is for the opening in the background only, which close ends too.
	ctx := context.Background()
	var err error
	if options.Stdin != nil {
		p.stdin = filepath.Join(dir, "stdin")
		if p.in, err = fifo.OpenFifo(ctx, p.stdin, unix.O_WRONLY|unix.O_CREAT|unix.O_NONBLOCK, 0o600); err != nil {
			return nil, err
		}
	}
	p.stdout = filepath.Join(dir, "stdout")
	if p.out, err = fifo.OpenFifo(ctx, p.stdout, unix.O_RDONLY|unix.O_CREAT|unix.O_NONBLOCK, 0o600); err != nil {
		return nil, err
	}
	if !options.TTY {
		p.stderr = filepath.Join(dir, "stderr")
		if p.err, err = fifo.OpenFifo(ctx, p.stderr, unix.O_RDONLY|unix.O_CREAT|unix.O_NONBLOCK, 0o600); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// start copies the streams. stdinEnded is called once the input is at its end.
func (p *execPipes) start(options runtime.ExecOptions, stdinEnded func()) {
	if p.in != nil {
		go func() {
			_, _ = io.Copy(p.in, options.Stdin) // ends with the input, or when the command does
			p.in.Close()
			stdinEnded()
		}()
	}
	var outputs sync.WaitGroup
	output := func(w io.Writer, r io.Reader) {
		if r == nil {
			return
		}
		if w == nil {
			w = io.Discard
		}
		outputs.Go(func() { p.copyOut(w, r) })
	}
	output(options.Stdout, p.out)
	if p.err != nil {
		output(options.Stderr, p.err)
	}
	go func() {
		outputs.Wait()
		close(p.done)
	}()
}

// copyOut goes on reading when w fails, or the command would block.
func (p *execPipes) copyOut(w io.Writer, r io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			p.busy.Add(1)
			if _, writeErr := w.Write(buf[:n]); writeErr != nil {
				w = io.Discard
			}
			p.busy.Add(-1)
			p.moved.Add(int64(n))
		}
		if err != nil {
			return
		}
	}
}

// drain waits until all output is with the caller, or nothing comes any more.
func (p *execPipes) drain(ctx context.Context) {
	last := p.moved.Load()
	idle := time.NewTicker(drainIdle)
	defer idle.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-ctx.Done():
			return
		case <-idle.C:
			now := p.moved.Load()
			if now == last && p.busy.Load() == 0 {
				return
			}
			last = now
		}
	}
}

func (p *execPipes) close() {
	for _, c := range []io.Closer{p.in, p.out, p.err} {
		if c != nil {
			c.Close()
		}
	}
	_ = os.RemoveAll(p.dir)
}
