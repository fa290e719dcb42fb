package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"

	"github.com/holdfast-io/holdfast/agent/containerd/logfile"
	"github.com/holdfast-io/holdfast/agent/runtime"
)

// Logs writes a container's log to w. The logs of the last few runs are there,
// until the pod is removed, also when the container was. It returns
// runtime.ErrNotFound when there never was such a container.
func (r *Runtime) Logs(ctx context.Context, id runtime.ContainerID, options runtime.LogOptions, w io.Writer) error {
	if err := checkContainerID(id); err != nil {
		return err
	}
	dir := r.filesOf(id.PodUID).logs(id)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("log of container %s, run %d: %w", id.Name, id.Attempt, runtime.ErrNotFound)
	}
	read := logfile.Options{Tail: options.TailLines, Since: options.Since, Timestamps: options.Timestamps}
	if options.Follow {
		read.Ended = func(ctx context.Context) bool { return r.logEnded(ctx, id) }
	}
	err := logfile.Read(ctx, dir, read, w)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // created, nothing written
	}
	if err != nil {
		return fmt.Errorf("log of container %s: %w", id.Name, err)
	}
	return nil
}

// logEnded tells whether a container whose log nobody has open will not write
// again: it has ended, or is gone. When containerd cannot be asked, it may.
func (r *Runtime) logEnded(ctx context.Context, id runtime.ContainerID) bool {
	ctx, cancel, err := r.call(ctx, readTimeout)
	if err != nil {
		return false
	}
	defer cancel()
	handle := handleOf(id)
	if r.isStarting(handle) {
		return false
	}
	record, err := r.client.ContainerService().Get(ctx, handle)
	if errdefs.IsNotFound(err) {
		return true
	}
	if err != nil {
		return false
	}
	if record.Labels[labelFinished] != "" {
		return true
	}
	ended, err := r.hasEnded(ctx, handle)
	return err == nil && ended
}
