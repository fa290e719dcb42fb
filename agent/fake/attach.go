package fake

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// audience is those who are attached to a container that runs a command.
type audience struct {
	mu      sync.Mutex
	members map[*member]struct{}
}

type member struct{ stdout, stderr io.Writer }

func (a *audience) join(m *member) (leave func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.members == nil {
		a.members = map[*member]struct{}{}
	}
	a.members[m] = struct{}{}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.members, m)
	}
}

// stream returns a writer to the log that those attached see too. As with a real
// container, whoever is slow to take it holds the container back.
func (a *audience) stream(log io.Writer, of func(*member) io.Writer) io.Writer {
	return streamWriter{a, log, of}
}

type streamWriter struct {
	a   *audience
	log io.Writer
	of  func(*member) io.Writer
}

func (w streamWriter) Write(p []byte) (int, error) {
	w.a.mu.Lock()
	var all []io.Writer
	for m := range w.a.members {
		if to := w.of(m); to != nil {
			all = append(all, to)
		}
	}
	w.a.mu.Unlock()
	for _, to := range all {
		_, _ = to.Write(p) // whoever is gone leaves by itself
	}
	return w.log.Write(p)
}

// Attach takes part in a container. One that runs no command of the shell has
// nothing to say but its log.
func (r *Runtime) Attach(ctx context.Context, id runtime.ContainerID, options runtime.AttachOptions) (int, error) {
	c, err := r.findRunning(id)
	if err != nil {
		return 0, err
	}
	if options.Stdin != nil && (!c.spec.Stdin || c.in.over()) {
		return 0, fmt.Errorf("fake: container %s: %w", id.Name, runtime.ErrNoStdin)
	}
	actx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c.term != nil {
		defer c.audience.join(&member{options.Stdout, options.Stderr})()
	}
	if options.Started != nil {
		options.Started(c.spec.TTY)
	}
	if options.Stdin != nil {
		if c.spec.StdinOnce {
			defer c.in.close()
		}
		go c.feed(options.Stdin)
	}
	if c.terminal != nil {
		go func() {
			for {
				select {
				case size, ok := <-options.Resize:
					if !ok {
						return
					}
					c.terminal.resize(size)
				case <-actx.Done():
					return
				}
			}
		}()
	}
	if c.term == nil && options.Stdout != nil {
		if err := c.log.copy(actx, runtime.LogOptions{Follow: true}, options.Stdout); err != nil {
			return 0, err
		}
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return c.state.ExitCode, nil
}

// findRunning returns a container that runs.
func (r *Runtime) findRunning(id runtime.ContainerID) (*container, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.find(id)
	switch {
	case !r.running:
		return nil, errNotUp
	case c == nil:
		return nil, fmt.Errorf("fake: container %s attempt %d: %w", id.Name, id.Attempt, runtime.ErrNotFound)
	case c.state.State != runtime.StateRunning:
		return nil, fmt.Errorf("fake: container %s attempt %d: %w", id.Name, id.Attempt, runtime.ErrNotRunning)
	}
	return c, nil
}

// feed passes stdin on to the container until it ends.
func (c *container) feed(stdin io.Reader) {
	buf := make([]byte, 4096)
	for {
		n, err := stdin.Read(buf)
		if c.terminal != nil {
			c.terminal.typed(buf[:n])
		} else {
			c.in.put(buf[:n])
		}
		if err != nil {
			if c.spec.StdinOnce && c.terminal == nil {
				c.in.close()
			}
			return
		}
		if c.in.full() {
			return
		}
	}
}

// Usage says that a container uses a thousandth of a CPU and 2 MiB.
func (r *Runtime) Usage(_ context.Context, id runtime.ContainerID) (runtime.Usage, error) {
	c, err := r.findRunning(id)
	if err != nil {
		return runtime.Usage{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return runtime.Usage{CPU: time.Since(c.state.StartedAt) / 1000, MemoryBytes: c.usesMemory(), PIDs: 1}, nil
}

// DiskUsage returns what Fills said, and a block for each container beside.
func (r *Runtime) DiskUsage(_ context.Context, podUID string) ([]runtime.ContainerDisk, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pods[podUID]
	if p == nil {
		return nil, fmt.Errorf("fake: pod %s: %w", podUID, runtime.ErrNotFound)
	}
	sums := map[string]runtime.ContainerDisk{}
	for _, c := range p.containers {
		sum := sums[c.spec.ID.Name]
		sum.Name = c.spec.ID.Name
		sum.RootBytes += c.disk + 4096
		sum.Inodes++
		sums[sum.Name] = sum
	}
	var all []runtime.ContainerDisk
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		all = append(all, sums[name])
	}
	return all, nil
}

// Fills makes the latest run of a container use so much memory and so much of the disk.
// It returns false if there is none.
func (r *Runtime) Fills(podUID, name string, memory, disk int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pods[podUID]
	if p == nil {
		return false
	}
	for _, c := range slices.Backward(p.containers) { // oldest first
		if c.spec.ID.Name == name {
			c.memory, c.disk = memory, disk
			return true
		}
	}
	return false
}
