package devcluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeHost is a Driver without machines. It writes down what is asked of it, and
// refuses what no host can do: to start a machine that runs, or one in a switch
// that is not there.
type fakeHost struct {
	t       *testing.T
	dataDir string
	kind    string

	mu       sync.Mutex
	calls    []string
	prepared bool
	programs map[string]*fakeProgram
	fails    map[string]error // starts of these machines end with an error at once
	never    map[string]bool  // these machines never get ready
}

type fakeProgram struct {
	ready, done chan struct{}
	once        sync.Once
	err         error
}

func (p *fakeProgram) PID() int               { return 4711 }
func (p *fakeProgram) Ready() <-chan struct{} { return p.ready }
func (p *fakeProgram) Done() <-chan struct{}  { return p.done }
func (p *fakeProgram) Err() error             { return p.err }
func (p *fakeProgram) Stop(context.Context) error {
	p.end(nil)
	return nil
}

func (p *fakeProgram) end(err error) {
	p.once.Do(func() {
		p.err = err
		close(p.done)
	})
}

func newFakeHost(t *testing.T) *fakeHost {
	return &fakeHost{
		t: t, dataDir: t.TempDir(), kind: "fake", programs: map[string]*fakeProgram{},
		fails: map[string]error{}, never: map[string]bool{},
	}
}

func (h *fakeHost) note(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, fmt.Sprintf(format, args...))
}

// taken returns what was asked since the last call, sorted: machines start in
// parallel.
func (h *fakeHost) taken() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := h.calls
	h.calls = nil
	slices.Sort(out)
	return out
}

func (h *fakeHost) program(name string) *fakeProgram {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.programs[name]
}

func (h *fakeHost) Runtime() string               { return h.kind }
func (h *fakeHost) Subnet() (netip.Prefix, error) { return DefaultSubnet, nil }
func (h *fakeHost) DataDir(s Spec) string         { return filepath.Join(h.dataDir, s.Name) }
func (h *fakeHost) Log(s Spec) string             { return filepath.Join(h.dataDir, s.Name+".log") }

func (h *fakeHost) Place(_ Role, index int, subnet netip.Prefix) (Spec, error) {
	return Spec{Address: subnet.Addr(), API: uint16(7000 + index), Gossip: 7946}, nil
}

func (h *fakeHost) Prepare(context.Context, netip.Prefix) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.prepared = true
	return nil
}

func (h *fakeHost) Start(spec Spec, boot Boot) (Program, error) {
	how := "resume"
	if boot.Init {
		how = "init"
	} else if len(boot.Join) > 0 {
		how = "join " + boot.Token
	}
	h.note("start %s: %s", spec.Name, how)
	if err := os.MkdirAll(filepath.Join(h.DataDir(spec), "disk"), 0o700); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.prepared {
		h.t.Errorf("%s was started before Prepare", spec.Name)
	}
	if old := h.programs[spec.Name]; old != nil {
		select {
		case <-old.done:
		default:
			h.t.Errorf("%s was started while it runs", spec.Name)
		}
	}
	p := &fakeProgram{ready: make(chan struct{}), done: make(chan struct{})}
	h.programs[spec.Name] = p
	if err := h.fails[spec.Name]; err != nil {
		p.end(err)
	} else if !h.never[spec.Name] {
		close(p.ready)
	}
	return p, nil
}

func (h *fakeHost) Kill(_ context.Context, spec Spec) error {
	h.note("kill %s", spec.Name)
	if p := h.program(spec.Name); p != nil {
		p.end(errors.New("signal: killed"))
	}
	return nil
}

func (h *fakeHost) Halt(_ context.Context, spec Spec) error {
	h.note("halt %s", spec.Name)
	select {
	case <-h.program(spec.Name).done:
	default:
		h.t.Errorf("pods of %s were stopped while its agent runs, which starts them again", spec.Name)
	}
	return nil
}

func (h *fakeHost) Close(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.prepared = false
	return nil
}

// running is a cluster that is up, over a fakeHost.
type running struct {
	*Cluster
	reports chan string
	stop    func() error
}

func (h *fakeHost) config(reports chan string) Config {
	return Config{
		DataDir: h.dataDir, Driver: h, Peers: -1, Nodes: -1,
		Token:   func(_ context.Context, role Role) (string, error) { return "token-" + string(role), nil },
		Settled: func(context.Context) error { return nil },
		Report:  func(s string) { reports <- s },
	}
}

func (h *fakeHost) up() *running {
	h.t.Helper()
	reports := make(chan string, 100)
	c, err := Open(h.config(reports))
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(h.t.Context())
	serving, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- c.Run(ctx, func(ctx context.Context) error {
			listener, err := Listen(c)
			if err != nil {
				return err
			}
			close(serving)
			return Serve(ctx, c, listener)
		})
	}()
	select {
	case <-serving:
	case err := <-ended:
		h.t.Fatalf("Run ended: %v", err)
	}
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return errors.Join(<-ended, c.Close())
	}
	h.t.Cleanup(func() { _ = stop() })
	return &running{c, reports, stop}
}

func states(c *Cluster) string {
	var out []string
	for _, m := range c.Machines() {
		out = append(out, m.Name+"="+string(m.State))
	}
	return strings.Join(out, " ")
}

func wantCalls(t *testing.T, h *fakeHost, want ...string) {
	t.Helper()
	if got := h.taken(); !slices.Equal(got, want) {
		t.Errorf("asked of the host:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// TestFirstStartJoinsAndLaterOnesResume: the first peer makes the cluster, all
// others join with a token of their role; afterwards nobody needs one.
func TestFirstStartJoinsAndLaterOnesResume(t *testing.T) {
	h := newFakeHost(t)
	r := h.up()
	wantCalls(t, h, "start n1: join token-node", "start n2: join token-node", "start p1: init", "start p2: join token-peer", "start p3: join token-peer")
	if got, want := states(r.Cluster), "p1=running p2=running p3=running n1=running n2=running"; got != want {
		t.Errorf("states %s, want %s", got, want)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	wantCalls(t, h, "halt n1", "halt n2", "halt p1", "halt p2", "halt p3", "kill n1", "kill n2", "kill p1", "kill p2", "kill p3")
	h.up()
	wantCalls(t, h, "start n1: resume", "start n2: resume", "start p1: init", "start p2: resume", "start p3: resume")
}

// TestDeathIsReportedNotRepaired: a program that dies is reported with the
// command that brings it back, and stays dead until that comes.
func TestDeathIsReportedNotRepaired(t *testing.T) {
	h := newFakeHost(t)
	r := h.up()
	h.taken()
	h.program("p2").end(errors.New("signal: killed"))
	if got, want := <-r.reports, "peer p2 died: signal: killed; `holdfast dev start p2` brings it back"; got != want {
		t.Errorf("reported %q, want %q", got, want)
	}
	if got := states(r.Cluster); !strings.Contains(got, "p2=dead") {
		t.Errorf("states %s, want p2 dead", got)
	}
	wantCalls(t, h)
	control := Dial(h.dataDir)
	if err := control.Start(t.Context(), "p2"); err != nil {
		t.Fatal(err)
	}
	wantCalls(t, h, "start p2: resume")
	if err := control.Start(t.Context(), "p2"); err != nil {
		t.Errorf("starting what runs: %v, want nothing", err)
	}
	wantCalls(t, h)
}

// TestKillIsReportedAsAsked: what was killed on purpose is off, not dead.
func TestKillIsReportedAsAsked(t *testing.T) {
	h := newFakeHost(t)
	r := h.up()
	h.taken()
	control := Dial(h.dataDir)
	if err := control.Kill(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	wantCalls(t, h, "kill n1")
	if got, want := <-r.reports, "node n1 killed, as by a power cut; `holdfast dev start n1` brings it back"; got != want {
		t.Errorf("reported %q, want %q", got, want)
	}
	machines, err := control.Machines(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m := machines[3]; m.Name != "n1" || m.State != StateOff || m.PID != 0 {
		t.Errorf("n1 is shown as %+v, want off and without a process", m)
	}
	if m := machines[0]; m.PID != 4711 || m.Log == "" || m.DataDir == "" {
		t.Errorf("p1 is shown as %+v, want its process, log and data", m)
	}
}

// TestKillEndsAStartThatHangs: a machine that never gets ready can be killed.
func TestKillEndsAStartThatHangs(t *testing.T) {
	h := newFakeHost(t)
	r := h.up()
	if err := r.Kill(t.Context(), "n2"); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	h.never["n2"] = true
	old := h.programs["n2"]
	h.mu.Unlock()
	started := make(chan error, 1)
	go func() { started <- r.Start(t.Context(), "n2") }()
	for h.program("n2") == old {
		time.Sleep(time.Millisecond) // until the start has begun
	}
	if err := r.Kill(t.Context(), "n2"); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err == nil || !strings.Contains(err.Error(), "start n2: its program ended: signal: killed") {
		t.Errorf("start: %v, want that the program ended", err)
	}
}

// TestUnknownMachine: the error names those that there are, on the wire too.
func TestUnknownMachine(t *testing.T) {
	h := newFakeHost(t)
	h.up()
	err := Dial(h.dataDir).Kill(t.Context(), "n9")
	if !errors.Is(err, ErrNoMachine) || !strings.Contains(err.Error(), `"n9"; there are p1, p2, p3, n1, n2`) {
		t.Errorf("kill n9: %v, want ErrNoMachine and the names", err)
	}
}

// TestFailedStartEndsTheRun: a program that ends at once fails the start, with
// the end of its log, and everything is taken down again.
func TestFailedStartEndsTheRun(t *testing.T) {
	h := newFakeHost(t)
	h.fails["n1"] = errors.New("exit status 1")
	if err := os.WriteFile(filepath.Join(h.dataDir, "n1.log"), []byte("error: no runc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Open(h.config(make(chan string, 100)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	err = c.Run(t.Context(), func(context.Context) error {
		t.Error("it serves, though n1 did not start")
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "start n1: its program ended: exit status 1") || !strings.Contains(err.Error(), "error: no runc") {
		t.Errorf("Run: %v, want why n1 did not start, with its log", err)
	}
	for _, name := range []string{"p1", "p2", "p3", "n2"} {
		select {
		case <-h.program(name).done:
		default:
			t.Errorf("%s still runs", name)
		}
	}
}

// TestDirectoryHasOneOwner: a second cluster on the same directory is refused,
// and one of another kind too.
func TestDirectoryHasOneOwner(t *testing.T) {
	h := newFakeHost(t)
	r := h.up()
	if _, err := Open(h.config(nil)); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("already runs on %s (process %d)", h.dataDir, os.Getpid())) {
		t.Errorf("second Open: %v, want a refusal that names the process", err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	h.kind = "embedded"
	if _, err := Open(h.config(nil)); err == nil || !strings.Contains(err.Error(), "was made with --runtime fake") {
		t.Errorf("Open with another runtime: %v, want a refusal", err)
	}
	h.kind = "fake"
	h.up()
}

// TestGrowth: more machines than there are join; fewer are refused, since an
// absent peer counts against the quorum.
func TestGrowth(t *testing.T) {
	h := newFakeHost(t)
	if err := h.up().stop(); err != nil {
		t.Fatal(err)
	}
	cfg := h.config(make(chan string, 100))
	cfg.Peers = 1
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "has 3 peers, and 1 were asked for") {
		t.Errorf("fewer peers: %v, want a refusal", err)
	}
	cfg.Peers, cfg.Nodes = 5, -1
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h.taken()
	err = c.Run(t.Context(), func(context.Context) error {
		wantCalls(t, h, "start n1: resume", "start n2: resume", "start p1: init", "start p2: resume", "start p3: resume", "start p4: join token-peer", "start p5: join token-peer")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := len(c.Peers()); got != 5 {
		t.Errorf("%d peers' addresses, want 5", got)
	}
}

// TestLostDisk: a machine that has joined and whose data are gone is not started:
// it would make a new cluster, or forget its votes.
func TestLostDisk(t *testing.T) {
	h := newFakeHost(t)
	if err := h.up().stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(h.dataDir, "p1")); err != nil {
		t.Fatal(err)
	}
	c, err := Open(h.config(make(chan string, 100)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	err = c.Run(t.Context(), func(context.Context) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "start p1: its data") {
		t.Errorf("Run: %v, want that p1's data are gone", err)
	}
}

// TestNotUp: a control socket that nobody answers says what to do, whether it is
// there or not.
func TestNotUp(t *testing.T) {
	h := newFakeHost(t)
	if _, err := Dial(h.dataDir).Machines(t.Context()); !errors.Is(err, ErrNotUp) {
		t.Errorf("no socket: %v, want ErrNotUp", err)
	}
	r := h.up()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(h.dataDir).Machines(t.Context()); !errors.Is(err, ErrNotUp) {
		t.Errorf("after a stop: %v, want ErrNotUp", err)
	}
}

// TestLongDataDir: a socket's address holds 108 bytes, and data directories may
// have longer names.
func TestLongDataDir(t *testing.T) {
	h := newFakeHost(t)
	h.dataDir = filepath.Join(h.dataDir, strings.Repeat("long/", 40))
	h.up()
	machines, err := Dial(h.dataDir).Machines(t.Context())
	if err != nil || len(machines) != 5 {
		t.Errorf("%d machines, %v; want 5", len(machines), err)
	}
}
