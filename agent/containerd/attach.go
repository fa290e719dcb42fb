package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// exitPause is how often a container that has said all is asked whether it has
// ended, beside being told.
const exitPause = 200 * time.Millisecond

// Attach takes part in a running container's streams and returns its exit code. It
// returns runtime.ErrNotFound, runtime.ErrNotRunning or runtime.ErrNoStdin when it
// cannot be had.
func (r *Runtime) Attach(ctx context.Context, id runtime.ContainerID, options runtime.AttachOptions) (int, error) {
	if err := checkContainerID(id); err != nil {
		return 0, err
	}
	code, err := r.attach(ctx, id, options)
	if err != nil {
		return 0, fmt.Errorf("attach to container %s: %w", id.Name, err)
	}
	return code, nil
}

func (r *Runtime) attach(ctx context.Context, id runtime.ContainerID, options runtime.AttachOptions) (int, error) {
	setup, cancel, err := r.call(ctx, readTimeout)
	if err != nil {
		return 0, err
	}
	defer cancel()
	handle := handleOf(id)
	if _, err := r.client.ContainerService().Get(setup, handle); errdefs.IsNotFound(err) {
		return 0, runtime.ErrNotFound
	} else if err != nil {
		return 0, err
	}
	if p, err := r.task(setup, handle); err != nil {
		return 0, err
	} else if p.GetStatus() != tasktypes.Status_RUNNING {
		return 0, runtime.ErrNotRunning
	}
	conn, err := dialHub(r.filesOf(id.PodUID).logs(id))
	if err != nil {
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
			return 0, fmt.Errorf("%w to those who attach: it ends now, or was started by an older version, or its log process is gone; what it writes is in its log", runtime.ErrNotRunning)
		}
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	hello := []byte{frameHello, 0}
	if options.Stdin != nil {
		hello[1] = 1
	}
	buf := make([]byte, 1+maxFrame)
	n, err := 0, error(nil)
	if _, err = conn.Write(hello); err == nil {
		n, err = conn.Read(buf)
	}
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case err != nil:
		return 0, fmt.Errorf("%w any more", runtime.ErrNotRunning)
	case buf[0] == frameNoStdin:
		return 0, runtime.ErrNoStdin
	case n != 2 || buf[0] != frameHello:
		return 0, errors.New("its shim speaks another version")
	}
	tty := buf[1] != 0
	if options.Started != nil {
		options.Started(tty)
	}
	if options.Stdin != nil {
		go sendStdin(conn, options.Stdin) // ends with its reader, or when conn is closed
	}
	stop := make(chan struct{})
	var resizing sync.WaitGroup
	defer resizing.Wait()
	defer close(stop)
	if tty {
		resizing.Go(func() { r.resize(r.containerdContext(ctx), handle, "", options.Resize, stop) })
	}
	err = receiveOutput(conn, options, buf)
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err != nil {
		return 0, err
	}
	return r.awaitExit(ctx, id)
}

func sendStdin(conn *net.UnixConn, stdin io.Reader) {
	frame := make([]byte, 1+maxFrame)
	for {
		n, err := stdin.Read(frame[1:])
		frame[0] = frameStdin
		if n > 0 {
			if _, err := conn.Write(frame[:1+n]); err != nil {
				return
			}
		}
		if err != nil {
			_, _ = conn.Write([]byte{frameEnd})
			return
		}
	}
}

// receiveOutput writes what comes until the container has said all.
func receiveOutput(conn *net.UnixConn, options runtime.AttachOptions, buf []byte) error {
	for {
		n, err := conn.Read(buf)
		if err != nil || n == 0 {
			return nil
		}
		w := options.Stdout
		if buf[0] == frameStderr {
			w = options.Stderr
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(buf[1:n]); err != nil {
			return err
		}
	}
}

// resize passes sizes on to the terminal of a container's process until stop is
// closed.
func (r *Runtime) resize(ctx context.Context, handle, execID string, sizes <-chan [2]uint32, stop <-chan struct{}) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			ctx, cancel := context.WithTimeout(ctx, readTimeout)
			_, _ = r.client.TaskService().ResizePty(ctx, &tasks.ResizePtyRequest{ContainerID: handle, ExecID: execID, Width: size[0], Height: size[1]})
			cancel()
		case <-stop:
			return
		}
	}
}

// awaitExit returns the exit code of a container that has said all. It may live on
// without its output.
func (r *Runtime) awaitExit(ctx context.Context, id runtime.ContainerID) (int, error) {
	for {
		changed := r.Changed()
		state, err := r.state(ctx, id)
		if err != nil {
			return 0, err
		}
		if state.State == runtime.StateExited {
			return state.ExitCode, nil
		}
		select {
		case <-changed:
		case <-time.After(exitPause):
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// state returns one container as List would.
func (r *Runtime) state(ctx context.Context, id runtime.ContainerID) (runtime.ContainerState, error) {
	ctx, cancel, err := r.call(ctx, readTimeout)
	if err != nil {
		return runtime.ContainerState{}, err
	}
	defer cancel()
	record, err := r.client.ContainerService().Get(ctx, handleOf(id))
	if errdefs.IsNotFound(err) {
		return runtime.ContainerState{}, fmt.Errorf("it was removed: %w", runtime.ErrNotFound)
	}
	if err != nil {
		return runtime.ContainerState{}, err
	}
	process, err := r.task(ctx, record.ID)
	if err != nil {
		return runtime.ContainerState{}, err
	}
	if process == nil && record.Labels[labelFinished] == "" {
		// Between the end of its task and the record of that.
		if record, process, err = r.lookAgain(ctx, record); err != nil {
			return runtime.ContainerState{}, err
		}
	}
	state, _ := r.containerState(record, process)
	return state, nil
}
