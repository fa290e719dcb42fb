package devcluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
)

// Role is what a machine is for.
type Role string

const (
	// RolePeer is a machine that runs `holdfast server`.
	RolePeer Role = "peer"
	// RoleNode is a machine that runs `holdfast agent`.
	RoleNode Role = "node"
)

// State is where a machine stands.
type State string

const (
	// StateOff is a machine that was never started, or was killed or stopped on
	// purpose.
	StateOff State = "off"
	// StateStarting is a machine whose program is not ready yet.
	StateStarting State = "starting"
	// StateRunning is a machine whose program has said that it is ready.
	StateRunning State = "running"
	// StateDead is a machine whose program ended without being asked to.
	StateDead State = "dead"
)

// Spec is what a machine is, for as long as the cluster's data live.
type Spec struct {
	Name string `json:"name"` // "p1", "n2"
	Role Role   `json:"role"`
	// Address is the machine's own. In one process all have the loopback's.
	Address netip.Addr `json:"address"`
	// API is the port of a peer's API; 0 for nodes.
	API uint16 `json:"api,omitempty"`
	// Gossip is the port of gossip, TCP and UDP.
	Gossip uint16 `json:"gossip"`
	// Joined says that the machine has been ready once, and so has credentials.
	Joined bool `json:"joined"`
}

// APIAddress is the host:port of a peer's API.
func (s Spec) APIAddress() string { return netip.AddrPortFrom(s.Address, s.API).String() }

// Machine is a machine as `holdfast dev ps` shows it.
type Machine struct {
	Spec
	State State `json:"state"`
	// PID of the machine's program; 0 when none runs, or when all machines
	// share this process.
	PID int `json:"pid,omitempty"`
	// Detail says how a dead machine died.
	Detail string `json:"detail,omitempty"`
	// DataDir is the machine's disk, Log the file that its program writes to.
	DataDir string `json:"dataDir"`
	Log     string `json:"log"`
}

// layout is what a data directory remembers, in dev.json.
type layout struct {
	Runtime  string       `json:"runtime"`
	Subnet   netip.Prefix `json:"subnet,omitzero"`
	Machines []Spec       `json:"machines"`
}

const (
	layoutFile = "dev.json"
	lockFile   = "dev.lock"
	socketFile = "dev.sock"
)

func loadLayout(dataDir string) (layout, error) {
	var l layout
	path := filepath.Join(dataDir, layoutFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, err
	}
	if err := json.Unmarshal(data, &l); err != nil {
		return l, fmt.Errorf("read %s: %w", path, err)
	}
	return l, nil
}

// save writes the layout in one step.
func (l layout) save(dataDir string) error {
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dataDir, layoutFile)
	if err := os.WriteFile(path+".new", append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (l layout) count(role Role) int {
	n := 0
	for _, m := range l.Machines {
		if m.Role == role {
			n++
		}
	}
	return n
}

// grow adds machines until there are as many peers and nodes as asked for; 0
// asks for what is there, or for the defaults in a new directory. A cluster
// does not shrink: a peer that is not started would count against the quorum.
func (l *layout) grow(peers, nodes int, place func(Role, int) (Spec, error)) error {
	for _, want := range []struct {
		role          Role
		count, byRule int
		word, prefix  string
	}{{RolePeer, peers, 3, "peers", "p"}, {RoleNode, nodes, 2, "nodes", "n"}} {
		have := l.count(want.role)
		switch {
		case want.count < 0 && have == 0:
			want.count = want.byRule
		case want.count < 0:
			want.count = have
		case want.count < have:
			return fmt.Errorf("the cluster in this data directory has %d %s, and %d were asked for: leave --%s out, or take another --data-dir", have, want.word, want.count, want.word)
		}
		for i := have; i < want.count; i++ {
			spec, err := place(want.role, i)
			if err != nil {
				return err
			}
			spec.Name, spec.Role = fmt.Sprintf("%s%d", want.prefix, i+1), want.role
			l.Machines = append(l.Machines, spec)
		}
	}
	slices.SortStableFunc(l.Machines, func(a, b Spec) int {
		if a.Role == b.Role {
			return 0
		}
		if a.Role == RolePeer {
			return -1
		}
		return 1
	})
	return nil
}
