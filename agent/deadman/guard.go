package deadman

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	leaseFile = "lease"
	seenFile  = "seen"
	cellsDir  = "pods"
	// lookPeriod is how often the agent looks whether its dead-man is there.
	lookPeriod = time.Second
)

// Config says what a Guard watches over.
type Config struct {
	// Dir keeps the lease and the names of the pods. Required; made if it is missing.
	Dir string
	// BootID tells this start of the machine from others. Required.
	BootID string
	// Program is the file of a program that calls [Main], under the name [Name].
	// Optional: without it there is no process, and the agent alone ends pods.
	Program func() (string, error)
	// Cgroup is the control group that the process is in. Optional; the agent's.
	Cgroup string
	// CgroupOf returns a pod's control group, "/holdfast/n1/<uid>". Required with
	// Program.
	CgroupOf func(uid string) string
	Logger   *slog.Logger // optional; discards
}

// Guard is the agent's side: what it keeps of the lease, and the life of the process.
// Its methods may be called concurrently, once Open has returned.
type Guard struct {
	cfg         Config
	log         *slog.Logger
	lease, seen record
	poke        chan struct{} // of capacity 1: look now

	mu    sync.Mutex
	until time.Duration
	pods  map[string]bool
}

// New returns a Guard. It touches nothing before Open.
func New(cfg Config) *Guard {
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	return &Guard{cfg: cfg, log: cfg.Logger, poke: make(chan struct{}, 1), pods: map[string]bool{}}
}

// Open takes up what was kept in an earlier life of the agent.
func (g *Guard) Open() error {
	if err := os.MkdirAll(filepath.Join(g.cfg.Dir, cellsDir), 0o700); err != nil {
		return fmt.Errorf("dead-man: %w", err)
	}
	var err error
	if g.lease, err = openRecord(filepath.Join(g.cfg.Dir, leaseFile)); err != nil {
		return err
	}
	if g.seen, err = openRecord(filepath.Join(g.cfg.Dir, seenFile)); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(g.cfg.Dir, cellsDir))
	if err != nil {
		return fmt.Errorf("dead-man: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range entries {
		g.pods[e.Name()] = true
	}
	if g.until, err = g.lease.read(g.cfg.BootID); err != nil && !errors.Is(err, errNoRecord) {
		return fmt.Errorf("dead-man: read the lease: %w", err)
	}
	return nil
}

// Until returns until when the lease lasts; 0: there has been none since the
// machine's start.
func (g *Guard) Until() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.until
}

// Renew makes the lease last until then. What is not later than it was changes
// nothing. It is recorded when Renew returns without an error; otherwise it is not
// to be relied upon.
func (g *Guard) Renew(until time.Duration) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if until <= g.until {
		return nil
	}
	if err := g.lease.write(g.cfg.BootID, until); err != nil {
		return fmt.Errorf("dead-man: record the lease: %w", err)
	}
	g.until = until
	return nil
}

// Seen returns until when the process lets pods run, by the last lease that it has
// read. Without a process that is Until.
func (g *Guard) Seen() time.Duration {
	if g.cfg.Program == nil {
		return g.Until()
	}
	until, err := g.seen.read(g.cfg.BootID)
	if err != nil {
		return 0
	}
	return until
}

// Watch names a pod that is to end with the lease. To be called after the pod was
// made and before its first container; repeated calls are harmless.
func (g *Guard) Watch(uid string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cfg.Program != nil {
		path := filepath.Join(g.cfg.Dir, cellsDir, uid)
		fresh := filepath.Join(g.cfg.Dir, "new")
		if err := os.WriteFile(fresh, []byte(g.cfg.CgroupOf(uid)), 0o600); err != nil {
			return fmt.Errorf("dead-man: name the pod: %w", err)
		}
		if err := os.Rename(fresh, path); err != nil {
			return fmt.Errorf("dead-man: name the pod: %w", err)
		}
	}
	g.pods[uid] = true
	select {
	case g.poke <- struct{}{}:
	default:
	}
	return nil
}

// Forget takes a pod's name back, of which nothing is left.
func (g *Guard) Forget(uid string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.pods[uid] {
		return nil
	}
	if err := os.Remove(filepath.Join(g.cfg.Dir, cellsDir, uid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("dead-man: take the pod's name back: %w", err)
	}
	delete(g.pods, uid)
	return nil
}

// Run starts the process while there are pods to watch, and again when it is gone,
// until ctx ends. The process goes on after that.
func (g *Guard) Run(ctx context.Context) error {
	if g.cfg.Program == nil {
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(lookPeriod)
	defer ticker.Stop()
	failing := false
	for {
		err := g.ensure()
		if err != nil && !failing {
			g.log.Error("fenced pods cannot be started: the dead-man is not there; trying again each second", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-g.poke:
		}
	}
}

// ensure starts the process if there is none and there are pods.
func (g *Guard) ensure() error {
	g.mu.Lock()
	pods := len(g.pods)
	g.mu.Unlock()
	if pods == 0 {
		return nil
	}
	lock, err := lockFile(g.cfg.Dir)
	if err != nil || lock == nil {
		return err
	}
	lock.Close()
	program, err := g.cfg.Program()
	if err != nil {
		return err
	}
	cmd := exec.Command(program)
	cmd.Args = []string{program, g.cfg.Dir, g.cfg.BootID, g.cfg.Cgroup}
	cmd.Env = []string{"GOMAXPROCS=1", "GOMEMLIMIT=16MiB"}
	cmd.Dir = "/"
	// A session of its own, and no signal at the end of its parent: it outlives that.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the dead-man: %w", err)
	}
	g.log.Info("dead-man started", "pid", cmd.Process.Pid)
	go func() { _ = cmd.Wait() }() // ends with the process; the agent may end before
	return nil
}
