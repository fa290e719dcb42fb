package devcluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
)

// InProcessConfig is what machines inside this process are made of.
type InProcessConfig struct {
	DataDir string // required; absolute
	// Run is a machine's program. It calls ready once it serves, and returns
	// when ctx ends. Required.
	Run func(ctx context.Context, spec Spec, boot Boot, dataDir string, ready func()) error
	// LogPath is the file that all programs write to. Required.
	LogPath string
}

// inProcess runs every machine's program in this process, on loopback ports.
type inProcess struct{ cfg InProcessConfig }

// NewInProcess returns the driver that needs no privileges. Killing a machine
// cancels its program: in one process nothing dies as it does in a power cut.
func NewInProcess(cfg InProcessConfig) Driver { return &inProcess{cfg} }

func (d *inProcess) Runtime() string                             { return "fake" }
func (d *inProcess) Subnet() (netip.Prefix, error)               { return netip.Prefix{}, nil }
func (d *inProcess) Prepare(context.Context, netip.Prefix) error { return nil }
func (d *inProcess) Halt(context.Context, Spec) error            { return nil }
func (d *inProcess) Close(context.Context) error                 { return nil }
func (d *inProcess) DataDir(spec Spec) string                    { return filepath.Join(d.cfg.DataDir, spec.Name) }
func (d *inProcess) Log(Spec) string                             { return d.cfg.LogPath }

// Kill has nothing to do: Cluster cancels programs through Stop.
func (d *inProcess) Kill(context.Context, Spec) error { return nil }

// Place picks ports that are free now. They are kept for the life of the data,
// as a peer keeps its address.
func (d *inProcess) Place(role Role, _ int, _ netip.Prefix) (Spec, error) {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	spec := Spec{Address: loopback}
	var err error
	if spec.Gossip, err = freePort(loopback); err != nil {
		return Spec{}, err
	}
	if role == RolePeer {
		spec.API, err = freePort(loopback)
	}
	return spec, err
}

// freePort returns a port that is free for TCP and UDP.
func freePort(addr netip.Addr) (uint16, error) {
	for range 20 {
		l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		if err != nil {
			return 0, fmt.Errorf("find a free port: %w", err)
		}
		port := uint16(l.Addr().(*net.TCPAddr).Port)
		u, err := net.ListenPacket("udp", netip.AddrPortFrom(addr, port).String())
		_ = l.Close()
		if err == nil {
			_ = u.Close()
			return port, nil
		}
	}
	return 0, errors.New("find a free port: none of 20 tries was free for TCP and UDP")
}

func (d *inProcess) Start(spec Spec, boot Boot) (Program, error) {
	dir := d.DataDir(spec)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// The program lives until it is stopped, not as long as whoever started it.
	ctx, cancel := context.WithCancel(context.Background())
	p := &inProcessProgram{cancel: cancel, ready: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = d.cfg.Run(ctx, spec, boot, dir, func() { close(p.ready) })
	}()
	return p, nil
}

type inProcessProgram struct {
	cancel context.CancelFunc
	ready  chan struct{}
	done   chan struct{}
	err    error // set before done is closed
}

func (p *inProcessProgram) PID() int               { return 0 }
func (p *inProcessProgram) Ready() <-chan struct{} { return p.ready }
func (p *inProcessProgram) Done() <-chan struct{}  { return p.done }
func (p *inProcessProgram) Err() error             { return p.err }

func (p *inProcessProgram) Stop(ctx context.Context) error {
	p.cancel()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return errors.New("the program did not end in time")
	}
}
