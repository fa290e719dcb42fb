package fake

import (
	"fmt"
	"slices"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// identity is as whom a container runs; images are root's.
func identity(s runtime.Security) (user, group int64, groups []int64) {
	if s.User != nil {
		user = *s.User
	}
	if s.Group != nil {
		group = *s.Group
	}
	groups = []int64{group}
	for _, g := range s.Groups {
		if !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
	}
	return user, group, groups
}

// The usual capabilities, and all, as the kernel's bits.
const (
	usualCapabilities = 0xa80425fb
	everyCapability   = 0x1ffffffffff
)

// capabilityBits are those that scripts of tests change.
var capabilityBits = map[string]uint{"CHOWN": 0, "KILL": 5, "NET_BIND_SERVICE": 10, "NET_ADMIN": 12, "NET_RAW": 13, "SYS_ADMIN": 21, "SYS_TIME": 25}

// processStatus is /proc/self/status, as far as it is about privileges.
func processStatus(s runtime.Security) []byte {
	caps := uint64(usualCapabilities)
	all := func(names []string) bool { return slices.Contains(names, "ALL") }
	switch {
	case s.Privileged:
		caps = everyCapability
	case all(s.DropCapabilities):
		caps = 0
	case all(s.AddCapabilities):
		caps = everyCapability
	}
	if !s.Privileged {
		for _, name := range s.AddCapabilities {
			if bit, ok := capabilityBits[name]; ok {
				caps |= 1 << bit
			}
		}
		for _, name := range s.DropCapabilities {
			if bit, ok := capabilityBits[name]; ok {
				caps &^= 1 << bit
			}
		}
	}
	effective := caps
	if user, _, _ := identity(s); user != 0 {
		effective = 0
	}
	filter, locked := 2, 0
	if s.Privileged || s.Seccomp == runtime.SeccompUnconfined {
		filter = 0
	}
	if s.NoNewPrivileges {
		locked = 1
	}
	return fmt.Appendf(nil, "Name:\tsh\nCapEff:\t%016x\nCapBnd:\t%016x\nNoNewPrivs:\t%d\nSeccomp:\t%d\n", effective, caps, locked, filter)
}
