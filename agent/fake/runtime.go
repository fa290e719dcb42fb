package fake

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

var _ runtime.Runtime = (*Runtime)(nil)

const (
	// tickEvery is how often a container that runs until stopped writes a line.
	tickEvery = 10 * time.Second
	// shortLife is how long containers of fake/exit:N and fake/oom run.
	shortLife = time.Second
	slowPull  = 10 * time.Second
	killed    = 128 + 9
)

// Config has nothing that must be set.
type Config struct {
	// Version is what Version returns. Optional; "fake://1".
	Version string
}

// Runtime is an in-memory container runtime. Its containers outlive Run, which
// may be called again after it has returned, as when an agent starts anew. All
// methods may be called concurrently.
type Runtime struct {
	version string

	mu      sync.Mutex
	ready   chan struct{} // closed while it runs
	running bool
	changed chan struct{}
	images  map[string]runtime.Image
	pods    map[string]*pod
	kept    map[string]*keptLogs // of removed pods, by uid
	busy    map[string][]string  // by pod: names of the changing calls under way
	faults  []string
	pullErr map[string]error
	listErr error
	serial  int
	// otherBytes are taken on the disk that images are on, beside them.
	otherBytes int64
}

type pod struct {
	spec       runtime.Pod
	containers []*container                 // oldest first
	logs       map[runtime.ContainerID]*log // of removed containers too
	health     int                          // what servers answer: an HTTP status, or 0
}

type container struct {
	spec     runtime.Container
	pod      runtime.Pod // as it was when the container was run
	state    runtime.ContainerState
	log      *log
	files    *files
	stubborn bool
	// memory and disk are what it uses, beside what every container does.
	memory, disk int64
	in           *input             // stdin; nil: none
	terminal     *terminal          // nil: none
	audience     audience           // of a command
	term         chan struct{}      // closed by a stop; nil unless it runs a command
	kill         context.CancelFunc // of a command; nil otherwise
	timer        *time.Timer        // of a short life; nil otherwise
	done         chan struct{}      // closed when it has ended
	// visible returns the containers whose processes it sees, itself included.
	visible func() []*container
}

// New returns a runtime that has nothing.
func New(cfg Config) *Runtime {
	return &Runtime{
		version: cmp.Or(cfg.Version, "fake://1"),
		ready:   make(chan struct{}),
		changed: make(chan struct{}),
		images:  map[string]runtime.Image{},
		pods:    map[string]*pod{},
		kept:    map[string]*keptLogs{},
		busy:    map[string][]string{},
		pullErr: map[string]error{},
	}
}

// Run makes the runtime answer until ctx ends. Two at a time are refused.
func (r *Runtime) Run(ctx context.Context) error {
	r.mu.Lock()
	if r.running {
		r.mu.Unlock()
		return errors.New("fake: the runtime runs already")
	}
	r.running = true
	close(r.ready)
	r.mu.Unlock()
	<-ctx.Done()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = false
	r.ready = make(chan struct{})
	return nil
}

// Ready is closed while the runtime runs. It is another channel after Run has
// returned.
func (r *Runtime) Ready() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ready
}

// Version returns what the configuration says.
func (r *Runtime) Version() string { return r.version }

var errNotUp = errors.New("fake: the runtime does not run")

// begin is called first by each call that changes a pod. It refuses calls that
// may not overlap, as a real runtime would get them wrong.
func (r *Runtime) begin(uid, call string) (end func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.running {
		return nil, errNotUp
	}
	for _, other := range r.busy[uid] {
		if call != "StopContainer" || other != call {
			fault := fmt.Sprintf("%s called for pod %s during %s", call, uid, other)
			r.faults = append(r.faults, fault)
			return nil, errors.New("fake: " + fault)
		}
	}
	r.busy[uid] = append(r.busy[uid], call)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.busy[uid] = slices.Delete(r.busy[uid], 0, 1) // all are of the same name
		if len(r.busy[uid]) == 0 {
			delete(r.busy, uid)
		}
	}, nil
}

// touch wakes those that wait for a change. r.mu is held.
func (r *Runtime) touch() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// EnsureImage has every image, but for those that the package's documentation
// names and those that PullFails was called for.
func (r *Runtime) EnsureImage(ctx context.Context, ref string, policy corev1.PullPolicy, progress func(string), credentials ...runtime.Credential) (runtime.Image, error) {
	if progress == nil {
		progress = func(string) {}
	}
	r.mu.Lock()
	image, present := r.images[ref]
	up, perr := r.running, r.pullErr[ref]
	r.mu.Unlock()
	switch {
	case !up:
		return runtime.Image{}, errNotUp
	case ref == "":
		return runtime.Image{}, errors.New("fake: the image's name is empty")
	case present && policy != corev1.PullAlways:
		return image, nil
	case policy == corev1.PullNever:
		return runtime.Image{}, fmt.Errorf("image %s: %w", ref, runtime.ErrImageNeverPull)
	case perr != nil:
		return runtime.Image{}, perr
	}
	repository, _, _ := strings.Cut(ref, ":")
	switch repository {
	case "fake/missing":
		return runtime.Image{}, fmt.Errorf("image %s: %w in the registry", ref, runtime.ErrNotFound)
	case "fake/private":
		if !slices.Contains(credentials, runtime.Credential{Username: "fake", Password: "fake"}) {
			return runtime.Image{}, fmt.Errorf("image %s: the registry asks for a credential, and takes none of those given", ref)
		}
	case "fake/slow":
		progress("pulling " + ref)
		select {
		case <-ctx.Done():
			return runtime.Image{}, ctx.Err()
		case <-time.After(slowPull):
		}
	}
	progress("pulled " + ref)
	sum := sha256.Sum256([]byte(ref))
	image = runtime.Image{Ref: ref, Digest: "sha256:" + hex.EncodeToString(sum[:])}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[ref] = image
	return image, nil
}

// imageBytes is what each image takes.
const imageBytes = 64 << 20

// Images returns what was pulled, by digest.
func (r *Runtime) Images(context.Context) ([]runtime.ImageState, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.running {
		return nil, errNotUp
	}
	var out []runtime.ImageState
	for _, image := range r.images {
		out = append(out, runtime.ImageState{Digest: image.Digest, Names: []string{image.Ref}, Bytes: imageBytes})
	}
	slices.SortFunc(out, func(a, b runtime.ImageState) int { return strings.Compare(a.Digest, b.Digest) })
	return out, nil
}

// RemoveImage forgets an image.
func (r *Runtime) RemoveImage(_ context.Context, digest string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.running {
		return errNotUp
	}
	maps.DeleteFunc(r.images, func(_ string, image runtime.Image) bool { return image.Digest == digest })
	return nil
}

// ImageDisk returns a disk on which what FillDisk says is free beside the images.
func (r *Runtime) ImageDisk(context.Context) (runtime.Disk, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	const size = 100 << 30
	return runtime.Disk{Bytes: size, FreeBytes: max(0, size-r.otherBytes-int64(len(r.images))*imageBytes), Inodes: 1 << 20, FreeInodes: 1 << 19}, nil
}

// FillDisk takes so many bytes of the disk that images are on, 100 GiB in all.
func (r *Runtime) FillDisk(bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.otherBytes = bytes
}

// CreatePod makes a pod, or updates what its next containers get.
func (r *Runtime) CreatePod(_ context.Context, spec runtime.Pod) error {
	end, err := r.begin(spec.UID, "CreatePod")
	if err != nil {
		return err
	}
	defer end()
	if spec.UID == "" {
		return errors.New("fake: a pod needs a uid")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pods {
		if p.spec.UID != spec.UID && p.spec.NetNS != "" && p.spec.NetNS == spec.NetNS {
			return fmt.Errorf("fake: pod %s has network namespace %s already", p.spec.UID, spec.NetNS)
		}
	}
	if p := r.pods[spec.UID]; p != nil {
		p.spec = spec
		return nil
	}
	r.pods[spec.UID] = &pod{spec: spec, logs: map[runtime.ContainerID]*log{}, health: http.StatusOK}
	r.touch()
	return nil
}

// RunContainer starts a container. Beside ErrExists it refuses a pod or an image
// that is not there, an attempt that is not the next, and a second run while one
// goes on.
func (r *Runtime) RunContainer(_ context.Context, spec runtime.Container) error {
	end, err := r.begin(spec.ID.PodUID, "RunContainer")
	if err != nil {
		return err
	}
	defer end()
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pods[spec.ID.PodUID]
	if p == nil {
		return fmt.Errorf("fake: pod %s: %w", spec.ID.PodUID, runtime.ErrNotFound)
	}
	image, ok := r.images[spec.Image]
	if !ok {
		return fmt.Errorf("fake: image %s: %w", spec.Image, runtime.ErrNotFound)
	}
	for _, other := range p.containers {
		switch {
		case other.spec.ID == spec.ID:
			return fmt.Errorf("fake: container %s attempt %d: %w", spec.ID.Name, spec.ID.Attempt, runtime.ErrExists)
		case other.spec.ID.Name != spec.ID.Name:
		case other.state.State == runtime.StateRunning:
			return fmt.Errorf("fake: container %s runs already, as attempt %d", spec.ID.Name, other.spec.ID.Attempt)
		case other.spec.ID.Attempt > spec.ID.Attempt:
			return fmt.Errorf("fake: container %s was at attempt %d already", spec.ID.Name, other.spec.ID.Attempt)
		}
	}
	if sec := spec.Security; sec.NonRoot && (sec.User == nil || *sec.User == 0) {
		return fmt.Errorf("fake: %w: it must not run as root, and its image does", runtime.ErrConfig)
	}
	if file := spec.Security.Seccomp; file != "" && file != runtime.SeccompUnconfined && !spec.Security.Privileged {
		if _, err := os.ReadFile(file); err != nil {
			return fmt.Errorf("fake: %w: %w", runtime.ErrConfig, err)
		}
	}
	var target *container
	if spec.Target != nil {
		if target = r.find(*spec.Target); target == nil || target.state.State != runtime.StateRunning {
			return fmt.Errorf("fake: %w: container %s, whose processes it is to see, does not run", runtime.ErrConfig, spec.Target.Name)
		}
	}
	r.serial++
	now, resources := time.Now(), spec.Resources
	c := &container{
		spec: spec,
		pod:  p.spec,
		state: runtime.ContainerState{
			ID: spec.ID, Handle: fmt.Sprintf("fake://%012x", r.serial), Image: spec.Image,
			ImageID: spec.Image + "@" + image.Digest, SpecHash: spec.SpecHash, Resources: &resources,
			State: runtime.StateRunning, CreatedAt: now, StartedAt: now,
		},
		log:  newLog(),
		done: make(chan struct{}),
	}
	c.files = newFiles(c)
	c.visible = func() []*container { return r.visibleTo(p, c) }
	if target != nil {
		c.visible = func() []*container { return append(target.visible(), c) }
	}
	p.containers = append(p.containers, c)
	p.logs[spec.ID] = c.log
	r.start(c)
	r.touch()
	return nil
}

// visibleTo returns the containers whose processes c, of p, sees.
func (r *Runtime) visibleTo(p *pod, c *container) []*container {
	if !c.pod.SharePID {
		return []*container{c}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*container
	for _, other := range p.containers {
		if other.state.State == runtime.StateRunning {
			out = append(out, other)
		}
	}
	return out
}

// start begins what the container does. r.mu is held.
func (r *Runtime) start(c *container) {
	argv := append(slices.Clone(c.spec.Command), c.spec.Args...)
	if c.spec.Stdin || c.spec.TTY {
		c.in = newInput(nil)
		c.in.ended = false
	}
	if len(argv) > 0 && knownCommand(argv[0]) {
		ctx, cancel := context.WithCancel(context.Background())
		c.term, c.kill = make(chan struct{}), cancel
		out := c.audience.stream(c.log.writer(), func(m *member) io.Writer { return m.stdout })
		sh := newShell(ctx, c, c.term, c.in, out, c.audience.stream(c.log.writer(), func(m *member) io.Writer { return m.stderr }))
		if c.spec.TTY {
			c.terminal = newTerminal(out, c.in, nil, nil)
			sh.terminal, sh.out, sh.err = c.terminal, c.terminal, c.terminal
		}
		go func() {
			defer cancel()
			code := sh.exec(argv)
			if ctx.Err() != nil {
				code = killed
			}
			r.finish(c, code, false)
		}()
		return
	}
	repository, tag, _ := strings.Cut(c.spec.Image, ":")
	c.log.add("%s started as pod %s/%s on %s", c.spec.Image, c.pod.Namespace, c.pod.Name, c.pod.Hostname)
	if len(argv) > 0 {
		c.log.add("running %q until stopped (the fake runtime does not know it)", argv)
	}
	after := func(d time.Duration, code int, oom bool) {
		c.timer = time.AfterFunc(d, func() { r.finish(c, code, oom) })
	}
	switch repository {
	case "fake/crash":
		c.log.add("panic: crash was asked for")
		c.log.add("goroutine 1 [running]:")
		c.log.add("main.main()")
		after(0, 1, false)
	case "fake/exit":
		code, err := strconv.Atoi(tag)
		if err != nil {
			code = 2
			c.log.add("usage: the image fake/exit:N exits with N")
		}
		after(shortLife, code, false)
	case "fake/oom":
		after(shortLife, killed, true)
	case "fake/stubborn":
		c.stubborn = true
		c.log.tick(time.Now(), tickEvery)
	default:
		c.log.tick(time.Now(), tickEvery)
	}
}

// finish ends a container; only the first call has an effect.
func (r *Runtime) finish(c *container, code int, oom bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.state.State != runtime.StateRunning {
		return
	}
	c.state.State = runtime.StateExited
	c.state.ExitCode, c.state.OOMKilled = code, oom
	c.state.FinishedAt = time.Now()
	if c.timer != nil {
		c.timer.Stop()
	}
	c.log.close()
	close(c.done)
	r.touch()
}

func (r *Runtime) find(id runtime.ContainerID) *container {
	if p := r.pods[id.PodUID]; p != nil {
		for _, c := range p.containers {
			if c.spec.ID == id {
				return c
			}
		}
	}
	return nil
}

// StopContainer asks a container to end, and kills it after grace.
func (r *Runtime) StopContainer(ctx context.Context, id runtime.ContainerID, grace time.Duration) error {
	end, err := r.begin(id.PodUID, "StopContainer")
	if err != nil {
		return err
	}
	defer end()
	r.mu.Lock()
	c := r.find(id)
	if c == nil || c.state.State != runtime.StateRunning {
		r.mu.Unlock()
		return nil
	}
	if c.term != nil {
		select {
		case <-c.term: // an earlier stop was broken off
		default:
			close(c.term)
		}
	}
	r.mu.Unlock()
	if c.term == nil && !c.stubborn {
		c.log.addTail("received %s, stopping", cmp.Or(c.spec.StopSignal, "SIGTERM"))
		r.finish(c, 0, false)
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	}
	r.kill(c)
	return nil
}

// kill ends a container at once, and returns when it has ended.
func (r *Runtime) kill(c *container) {
	if c.kill != nil {
		c.kill()
		<-c.done
		return
	}
	r.finish(c, killed, false)
}

// RemoveContainer forgets an ended container but for its log.
func (r *Runtime) RemoveContainer(_ context.Context, id runtime.ContainerID) error {
	end, err := r.begin(id.PodUID, "RemoveContainer")
	if err != nil {
		return err
	}
	defer end()
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.find(id)
	if c == nil {
		return nil
	}
	if c.state.State == runtime.StateRunning {
		return fmt.Errorf("fake: container %s attempt %d runs: stop it first", id.Name, id.Attempt)
	}
	p := r.pods[id.PodUID]
	p.containers = slices.DeleteFunc(p.containers, func(o *container) bool { return o == c })
	r.touch()
	return nil
}

// RemovePod kills what runs and forgets the pod, but for its logs.
func (r *Runtime) RemovePod(_ context.Context, uid string) error {
	end, err := r.begin(uid, "RemovePod")
	if err != nil {
		return err
	}
	defer end()
	r.mu.Lock()
	p := r.pods[uid]
	r.mu.Unlock()
	if p == nil {
		return nil
	}
	for _, c := range p.containers { // nobody changes it meanwhile: see begin
		r.kill(c)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range p.logs {
		l.close()
	}
	delete(r.pods, uid)
	if len(p.logs) > 0 {
		r.kept[uid] = &keptLogs{pod: p, at: time.Now()}
	}
	r.touch()
	return nil
}

// List returns all pods, by uid.
func (r *Runtime) List(context.Context) ([]runtime.PodState, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.running {
		return nil, errNotUp
	}
	if r.listErr != nil {
		return nil, r.listErr
	}
	var out []runtime.PodState
	for _, uid := range slices.Sorted(maps.Keys(r.pods)) {
		p := r.pods[uid]
		bounds := p.spec.Resources
		s := runtime.PodState{UID: uid, Namespace: p.spec.Namespace, Name: p.spec.Name, NetNS: p.spec.NetNS, Resources: &bounds}
		for _, c := range p.containers {
			s.Containers = append(s.Containers, c.state)
		}
		out = append(out, s)
	}
	return out, nil
}

// Changed is closed at the next change.
func (r *Runtime) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// Logs writes what a container wrote.
func (r *Runtime) Logs(ctx context.Context, id runtime.ContainerID, options runtime.LogOptions, w io.Writer) error {
	r.mu.Lock()
	var l *log
	if p := r.pods[id.PodUID]; p != nil {
		l = p.logs[id]
	}
	if k := r.kept[id.PodUID]; k != nil && l == nil {
		l = k.pod.logs[id]
	}
	up := r.running
	r.mu.Unlock()
	switch {
	case !up:
		return errNotUp
	case l == nil:
		return fmt.Errorf("fake: log of container %s attempt %d: %w", id.Name, id.Attempt, runtime.ErrNotFound)
	}
	return l.copy(ctx, options, w)
}

// keptLogs is a pod that was removed.
type keptLogs struct {
	pod *pod
	at  time.Time
}

// keptBytes is what each log of a removed pod takes.
const keptBytes = 4096

// KeptLogs returns the removed pods whose logs are still there, by uid.
func (r *Runtime) KeptLogs(context.Context) ([]runtime.KeptLogs, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.running {
		return nil, errNotUp
	}
	var all []runtime.KeptLogs
	for _, uid := range slices.Sorted(maps.Keys(r.kept)) {
		k := r.kept[uid]
		out := runtime.KeptLogs{UID: uid, Namespace: k.pod.spec.Namespace, Name: k.pod.spec.Name, RemovedAt: k.at, Bytes: keptBytes * int64(len(k.pod.logs))}
		out.Runs = slices.SortedFunc(maps.Keys(k.pod.logs), func(a, b runtime.ContainerID) int {
			return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Attempt, b.Attempt))
		})
		all = append(all, out)
	}
	return all, nil
}

// RemoveLogs forgets the logs of a removed pod.
func (r *Runtime) RemoveLogs(_ context.Context, podUID string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.kept, podUID)
	return nil
}

// Exec runs a command of the small shell.
func (r *Runtime) Exec(ctx context.Context, id runtime.ContainerID, options runtime.ExecOptions) (int, error) {
	c, err := r.findRunning(id)
	if err != nil {
		return 0, err
	}
	if len(options.Command) == 0 {
		return 0, errors.New("fake: no command")
	}
	// The command dies with its container.
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-c.done:
			cancel()
		case <-sctx.Done():
		}
	}()
	stdout, stderr := options.Stdout, options.Stderr
	if stdout == nil {
		stdout = io.Discard
	}
	if stderr == nil {
		stderr = io.Discard
	}
	in := newInput(options.Stdin)
	defer in.close()
	var sh *shell
	if options.TTY {
		t := newTerminal(stdout, in, options.Resize, sctx.Done())
		sh = newShell(sctx, c, nil, in, t, t)
		sh.terminal = t
	} else {
		sh = newShell(sctx, c, nil, in, &lockedWriter{w: stdout}, &lockedWriter{w: stderr})
	}
	in.begin(sh.terminal)
	if options.Started != nil {
		options.Started()
	}
	code := sh.exec(options.Command)
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case sctx.Err() != nil:
		return killed, nil
	}
	return code, nil
}

// What follows is for tests, and for people who want to see what happens when.

// PullFails makes every later pull of an image fail with err, or succeed again
// if err is nil. An image that is present stays so.
func (r *Runtime) PullFails(ref string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pullErr[ref] = err
}

// ListFails makes List fail with err, or work again if err is nil.
func (r *Runtime) ListFails(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listErr = err
	r.touch()
}

// Crash ends the running run of a container with the given exit code, as if it
// had ended by itself. It returns false if there is none.
func (r *Runtime) Crash(podUID, name string, code int) bool {
	r.mu.Lock()
	var c *container
	if p := r.pods[podUID]; p != nil {
		for _, o := range p.containers {
			if o.spec.ID.Name == name && o.state.State == runtime.StateRunning {
				c = o
			}
		}
	}
	r.mu.Unlock()
	if c == nil {
		return false
	}
	r.finish(c, code, false)
	if c.kill != nil {
		c.kill()
	}
	return true
}

// Wipe forgets everything at once, as a machine does that lost its disk.
func (r *Runtime) Wipe() {
	r.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pods = map[string]*pod{}
	r.kept = map[string]*keptLogs{}
	r.images = map[string]runtime.Image{}
	r.touch()
}

// Close kills every container, so that nothing of the runtime goes on.
func (r *Runtime) Close() {
	r.mu.Lock()
	var all []*container
	for _, p := range r.pods {
		all = append(all, p.containers...)
	}
	r.mu.Unlock()
	for _, c := range all {
		r.kill(c)
	}
}

// Faults returns what callers did that the interface forbids.
func (r *Runtime) Faults() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.faults)
}
