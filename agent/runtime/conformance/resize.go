package conformance

import (
	"errors"
	"strings"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// bounds looks at what bounds a container and its pod: by List, and by the node's own
// files if they can be read.
func (s *suite) bounds(what string, id runtime.ContainerID, container, pod runtime.Resources) {
	s.Helper()
	equal := func(who string, got *runtime.Resources, want runtime.Resources) {
		s.Helper()
		if got == nil || got.CPUMillis != want.CPUMillis || got.CPUShares != want.CPUShares || got.MemoryBytes != want.MemoryBytes {
			s.Errorf("%s: %s has %+v, want %+v", what, who, got, want)
		}
	}
	equal("the container as listed", s.state(id).Resources, container)
	equal("the pod as listed", s.list(id.PodUID).Resources, pod)
	if s.o.Bounds == nil {
		return
	}
	c, p := s.o.Bounds(s.T, id)
	c.CPUShares, p.CPUShares = container.CPUShares, pod.CPUShares // of version 2 it is another number
	equal("the container's cgroup", &c, container)
	equal("the pod's cgroup", &p, pod)
}

// resize gives a running container more, then less, then no limit at all, the pod around
// it moving first or last as it must; the container is not restarted. The runtime,
// opened again, still knows.
func (s *suite) resize() {
	first := runtime.Resources{CPUMillis: 200, CPUShares: 102, MemoryBytes: 64 << 20, PIDs: 64}
	uid := s.pod(func(p *runtime.Pod) { p.Resources = first })
	id := s.run(uid, "main", 0, forever, func(c *runtime.Container) {
		c.Resources = first
		c.Resources.PIDs, c.Resources.OOMScoreAdj = 32, 100
	})
	s.ready(id)
	s.bounds("at first", id, first, first)
	begun := s.state(id)

	more := runtime.Resources{CPUMillis: 500, CPUShares: 409, MemoryBytes: 128 << 20}
	must(s, "ResizePod", s.rt.ResizePod(s.ctx(), uid, more))
	must(s, "ResizeContainer", s.rt.ResizeContainer(s.ctx(), id, more))
	s.bounds("with more", id, more, more)
	if r := s.state(id).Resources; r.PIDs != 32 || r.OOMScoreAdj != 100 {
		s.Errorf("PIDs and score are %d and %d after the change, want 32 and 100 as before", r.PIDs, r.OOMScoreAdj)
	}

	less := runtime.Resources{CPUMillis: 100, CPUShares: 51, MemoryBytes: 48 << 20}
	must(s, "ResizeContainer", s.rt.ResizeContainer(s.ctx(), id, less))
	must(s, "ResizePod", s.rt.ResizePod(s.ctx(), uid, less))
	s.bounds("with less", id, less, less)
	s.stop()
	s.start()
	s.bounds("opened again", id, less, less)

	free := runtime.Resources{CPUShares: 51}
	must(s, "ResizePod", s.rt.ResizePod(s.ctx(), uid, free))
	must(s, "ResizeContainer", s.rt.ResizeContainer(s.ctx(), id, free))
	s.bounds("without limits", id, free, free)

	if now := s.state(id); now.State != runtime.StateRunning || !now.StartedAt.Equal(begun.StartedAt) || now.Handle != begun.Handle {
		s.Errorf("after the changes the container is %+v, want the one that was started: %+v", now, begun)
	}
	must(s, "StopContainer", s.rt.StopContainer(s.ctx(), id, 0))
	s.exited(id)
	if err := s.rt.ResizeContainer(s.ctx(), id, more); !errors.Is(err, runtime.ErrNotRunning) {
		s.Errorf("ResizeContainer of one that has ended returned %v, want ErrNotRunning", err)
	}
	id.Name = "unknown"
	if err := s.rt.ResizeContainer(s.ctx(), id, more); !errors.Is(err, runtime.ErrNotFound) {
		s.Errorf("ResizeContainer of an unknown one returned %v, want ErrNotFound", err)
	}
	if err := s.rt.ResizePod(s.ctx(), "unknown", more); !errors.Is(err, runtime.ErrNotFound) {
		s.Errorf("ResizePod of an unknown one returned %v, want ErrNotFound", err)
	}
}

// resizeInUse asks for less memory than is in use: that is refused, and kills nobody.
func (s *suite) resizeInUse() {
	first := runtime.Resources{CPUShares: 2, MemoryBytes: 64 << 20}
	uid := s.pod(func(p *runtime.Pod) { p.Resources = first })
	id := s.run(uid, "main", 0, forever, func(c *runtime.Container) {
		c.Resources = first
		if len(s.o.Holder) > 0 {
			c.Command = s.o.Holder
		}
	})
	s.ready(id)
	less := runtime.Resources{CPUShares: 2, MemoryBytes: 1 << 20}
	if err := s.rt.ResizeContainer(s.ctx(), id, less); !errors.Is(err, runtime.ErrMemoryInUse) {
		s.Errorf("ResizeContainer returned %v, want ErrMemoryInUse", err)
	}
	if err := s.rt.ResizePod(s.ctx(), uid, less); !errors.Is(err, runtime.ErrMemoryInUse) {
		s.Errorf("ResizePod returned %v, want ErrMemoryInUse", err)
	}
	s.bounds("refused", id, first, first)
	if now := s.state(id); now.State != runtime.StateRunning {
		s.Errorf("the container is %+v, want it to go on", now)
	}
}

// targetProcesses runs a container among the processes of another, without the pod's
// sharing them.
func (s *suite) targetProcesses() {
	uid := s.pod()
	id := s.run(uid, "main", 0, "echo marker-of-main; "+forever)
	s.ready(id)
	if got := s.output(uid, "beside", "ps"); strings.Contains(got, "marker-of-main") {
		s.Errorf("a container of the pod sees another's processes:\n%s", got)
	}
	if got := s.output(uid, "within", "ps", func(c *runtime.Container) { c.Target = &id }); !strings.Contains(got, "marker-of-main") {
		s.Errorf("a container with a target sees none of its processes:\n%s", got)
	}
	must(s, "StopContainer", s.rt.StopContainer(s.ctx(), id, 0))
	s.exited(id)
	err := s.rt.RunContainer(s.ctx(), s.container(uid, "late", 0, "true", func(c *runtime.Container) { c.Target = &id }))
	if !errors.Is(err, runtime.ErrConfig) {
		s.Errorf("with a target that has ended RunContainer returned %v, want ErrConfig", err)
	}
}
