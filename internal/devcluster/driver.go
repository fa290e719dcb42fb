package devcluster

import (
	"context"
	"net/netip"
)

// Driver makes machines. Calls for one machine never overlap; calls for
// different machines may.
type Driver interface {
	// Runtime names the container runtime of the nodes, "embedded" or "fake". A
	// data directory belongs to one.
	Runtime() string
	// Subnet is asked once for a new data directory, and says where machines
	// get their addresses. The zero prefix: this driver has no subnet.
	Subnet() (netip.Prefix, error)
	// Place gives the index-th machine of a role (from 0) its address and ports.
	Place(role Role, index int, subnet netip.Prefix) (Spec, error)
	// Prepare makes what all machines share. Finding it made is not an error.
	Prepare(ctx context.Context, subnet netip.Prefix) error
	// Start makes the machine, or takes over what is left of it, and starts its
	// program. It does not wait for the program to be ready.
	Start(spec Spec, boot Boot) (Program, error)
	// Kill ends everything on the machine at once and leaves nothing but its
	// disk, as a power cut does. A machine that is off is not an error. It
	// returns once all is gone, or ctx ends.
	Kill(ctx context.Context, spec Spec) error
	// Halt stops the pods of a node whose program has ended. For a peer it does
	// nothing.
	Halt(ctx context.Context, spec Spec) error
	// Close takes away what Prepare made.
	Close(ctx context.Context) error
	// DataDir is the machine's disk.
	DataDir(spec Spec) string
	// Log is the file that the machine's program writes to.
	Log(spec Spec) string
}

// Boot says how a machine's program finds its cluster. The zero value is for a
// machine that belongs to one: it resumes.
type Boot struct {
	// Init makes a new cluster of this peer, or resumes the one it has.
	Init bool
	// Join holds API addresses of peers, Token what they ask for.
	Join  []string
	Token string
}

// Program is the running program of a machine.
type Program interface {
	// PID is the program's process; 0 when it has none of its own.
	PID() int
	// Ready is closed once the program serves.
	Ready() <-chan struct{}
	// Done is closed once the program has ended; Err says how after that.
	Done() <-chan struct{}
	Err() error
	// Stop asks the program to end, and returns once it has or ctx ends.
	Stop(ctx context.Context) error
}
