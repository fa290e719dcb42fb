package rig

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// Members is how many peers there are.
const Members = 3

// Peers are three `holdfast server`: the product, with its authentication,
// authorization, metrics and logs.
type Peers struct {
	// Dir is for their data, Binary the product.
	Dir, Binary string
	// Begin starts a process instead of its own Start, if set.
	Begin func(cmd *exec.Cmd) error
	// Patience is for how long clients wait for a peer that is silent before they take
	// it for dead; 0: as the product's clients do, which on a busy machine may be wrong.
	Patience time.Duration
	// Addresses are those of the API, Credentials an administrator's, once started.
	Addresses   []string
	Credentials *pki.Credentials

	gossip []string
	procs  [Members]*Process
}

// Config is the file with the administrator's context.
func (h *Peers) Config() string { return filepath.Join(h.Dir, "config.yaml") }

// Start makes a new cluster and returns once all of it votes.
func (h *Peers) Start(ctx context.Context) error {
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return err
	}
	addresses, err := FreeAddresses(2 * Members)
	if err != nil {
		return err
	}
	h.Addresses, h.gossip = addresses[:Members], addresses[Members:]
	if err := h.serve(ctx, 0, "--init"); err != nil {
		return err
	}
	file, err := client.LoadConfig(h.Config())
	if err != nil {
		return err
	}
	admin, err := file.Context("")
	if err != nil {
		return err
	}
	if h.Credentials, err = admin.Credentials(); err != nil {
		return err
	}
	token, err := h.Token(ctx, holdfastv1.Role_ROLE_PEER)
	if err != nil {
		return err
	}
	for i := 1; i < Members; i++ {
		if err := h.serve(ctx, i, "--join", h.Addresses[0], "--token", token); err != nil {
			return err
		}
	}
	return h.settled(ctx)
}

// serve starts a peer.
func (h *Peers) serve(ctx context.Context, i int, more ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	name := fmt.Sprintf("p%d", i)
	log := filepath.Join(h.Dir, name+".log")
	p, err := Begin(ctx, Command{
		Args: append([]string{
			h.Binary, "server", "--name", name, "--data-dir", filepath.Join(h.Dir, name),
			"--listen", h.Addresses[i], "--gossip", h.gossip[i],
		}, more...),
		Env: []string{client.EnvConfig + "=" + h.Config(), "JOURNAL_STREAM="},
		Log: log, Start: h.Begin,
	})
	if err != nil {
		return err
	}
	h.procs[i] = p
	if h.Credentials == nil {
		return h.admitted(ctx, p)
	}
	return h.ready(ctx, i)
}

// admitted waits until the first peer has written the administrator's context and
// serves.
func (h *Peers) admitted(ctx context.Context, p *Process) error {
	for {
		token := exec.CommandContext(ctx, h.Binary, "cluster", "status")
		token.Env = append(os.Environ(), client.EnvConfig+"="+h.Config())
		if out, err := token.CombinedOutput(); err == nil && strings.Contains(string(out), "p0") {
			return nil
		}
		select {
		case <-p.Exited:
			return fmt.Errorf("the first peer ended:\n%s", Tail(p.Log))
		default:
		}
		if err := Pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("the first peer is not ready: %w\n%s", err, Tail(p.Log))
		}
	}
}

// Client returns a client of some peers. Close it.
func (h *Peers) Client(to ...int) *client.Client {
	var peers []string
	for _, i := range to {
		peers = append(peers, h.Addresses[i])
	}
	return client.New(client.Config{Peers: peers, Credentials: h.Credentials, PingTimeout: h.Patience})
}

// Token makes a join token.
func (h *Peers) Token(ctx context.Context, role holdfastv1.Role) (string, error) {
	c := h.Client(0)
	defer c.Close()
	resp, err := c.Cluster().CreateToken(ctx, &holdfastv1.CreateTokenRequest{Role: role})
	return resp.GetToken(), err
}

// Status asks one peer.
func (h *Peers) Status(ctx context.Context, i int) (*holdfastv1.StatusResponse, error) {
	c := h.Client(i)
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return c.Cluster().Status(ctx, &holdfastv1.StatusRequest{})
}

// ready waits until a peer knows a leader.
func (h *Peers) ready(ctx context.Context, i int) error {
	for {
		status, err := h.Status(ctx, i)
		if err == nil && status.GetLeader() != "" {
			return nil
		}
		select {
		case <-h.procs[i].Exited:
			return fmt.Errorf("peer %d ended:\n%s", i, Tail(h.procs[i].Log))
		default:
		}
		if err := Pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("peer %d is not ready: %w\n%s", i, err, Tail(h.procs[i].Log))
		}
	}
}

// settled waits until all peers vote.
func (h *Peers) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		status, err := h.Status(ctx, 0)
		voters := 0
		for _, p := range status.GetPeers() {
			if p.GetVoter() {
				voters++
			}
		}
		if err == nil && voters == Members {
			return nil
		}
		if err := Pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("%d of %d peers vote: %w", voters, Members, err)
		}
	}
}

// Restart starts a peer that has ended.
func (h *Peers) Restart(ctx context.Context, i int) error { return h.serve(ctx, i) }

// Stop kills all peers and removes their data.
func (h *Peers) Stop() {
	for i, p := range h.procs {
		if p != nil {
			p.Kill()
			h.procs[i] = nil
		}
	}
	_ = os.RemoveAll(h.Dir)
}

// Member returns a peer's process.
func (h *Peers) Member(i int) *Process { return h.procs[i] }

// PIDs are those of the peers that run.
func (h *Peers) PIDs() []int { return PIDsOf(h.procs[:]) }

// Leader returns the number of the leader.
func (h *Peers) Leader(ctx context.Context) (int, error) {
	for {
		for i := range Members {
			status, err := h.Status(ctx, i)
			if err == nil && status.GetLeader() != "" && status.GetLeader() == status.GetServedBy() {
				return i, nil
			}
		}
		if err := Pause(ctx, 20*time.Millisecond); err != nil {
			return 0, fmt.Errorf("holdfast has no leader: %w", err)
		}
	}
}
