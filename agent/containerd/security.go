package containerd

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// withNamespaces makes a container join its pod's namespaces, or the node's.
func withNamespaces(pod podRecord, files podFiles) []oci.SpecOpts {
	join := func(kind specs.LinuxNamespaceType, host bool, path string) oci.SpecOpts {
		if host {
			return oci.WithHostNamespace(kind)
		}
		return oci.WithLinuxNamespace(specs.LinuxNamespace{Type: kind, Path: path})
	}
	options := []oci.SpecOpts{
		join(specs.NetworkNamespace, pod.NetNS == "", pod.NetNS),
		join(specs.UTSNamespace, false, files.uts()),
		join(specs.IPCNamespace, pod.HostIPC, files.ipc()),
	}
	if pod.HostPID || pod.SharePID {
		options = append(options, join(specs.PIDNamespace, pod.HostPID, files.pid()))
	}
	return options
}

// withSecurity gives a container its privileges. It comes last: the filter of
// system calls depends on the capabilities.
func withSecurity(want runtime.Security) []oci.SpecOpts {
	var options []oci.SpecOpts
	if want.ReadOnlyRoot {
		options = append(options, oci.WithRootFSReadonly())
	}
	if want.NoNewPrivileges {
		options = append(options, oci.WithNoNewPrivileges)
	} else {
		options = append(options, oci.WithNewPrivileges)
	}
	if want.Privileged {
		return append(options, oci.WithPrivileged, oci.WithHostDevices, oci.WithAllDevicesAllowed)
	}
	options = append(options, withCapabilities(want.AddCapabilities, want.DropCapabilities)...)
	switch want.Seccomp {
	case "":
		return append(options, seccomp.WithDefaultProfile())
	case runtime.SeccompUnconfined:
		return append(options, oci.WithSeccompUnconfined)
	default:
		return append(options, func(ctx context.Context, client oci.Client, c *containers.Container, s *oci.Spec) error {
			if err := seccomp.WithProfile(want.Seccomp)(ctx, client, c, s); err != nil {
				return fmt.Errorf("%w: %w", runtime.ErrConfig, err)
			}
			return nil
		})
	}
}

const allCapabilities = "ALL"

// withCapabilities changes the usual capabilities. ALL goes before names, and what
// is added before what is dropped, as other runtimes have it.
func withCapabilities(add, drop []string) []oci.SpecOpts {
	var options []oci.SpecOpts
	if slices.Contains(add, allCapabilities) {
		options = append(options, oci.WithAllKnownCapabilities)
	}
	if slices.Contains(drop, allCapabilities) {
		options = append(options, oci.WithCapabilities(nil))
	}
	names := func(all []string) []string {
		var out []string
		for _, name := range all {
			if name != allCapabilities {
				out = append(out, "CAP_"+name)
			}
		}
		return out
	}
	return append(options, oci.WithAddedCapabilities(names(add)), oci.WithDroppedCapabilities(names(drop)))
}

// userText is the user that a container is asked to run as, in the image's own form,
// "user[:group]": what want says in the place of what the image does. "" is root.
func userText(want runtime.Security, image string) string {
	user, group, _ := strings.Cut(image, ":")
	if want.User != nil {
		user, group = strconv.FormatInt(*want.User, 10), ""
	}
	if want.Group != nil {
		user, group = cmp.Or(user, "0"), strconv.FormatInt(*want.Group, 10)
	}
	if group == "" {
		return user
	}
	return user + ":" + group
}

// userWith is found, a user of the image, with the groups that want adds to it.
func userWith(found specs.User, want runtime.Security) (specs.User, error) {
	if want.NonRoot && found.UID == 0 {
		return found, fmt.Errorf("%w: it must not run as root (runAsNonRoot), and its user is root: set runAsUser, or use an image with another user", runtime.ErrConfig)
	}
	groups := slices.Clone(found.AdditionalGids)
	if want.StrictGroups {
		groups = []uint32{found.GID}
	}
	for _, gid := range want.Groups {
		if !slices.Contains(groups, uint32(gid)) {
			groups = append(groups, uint32(gid))
		}
	}
	found.AdditionalGids = groups
	return found, nil
}

// userOf resolves a user against the image's own /etc/passwd and /etc/group, which
// are in the container's snapshot: containerd mounts it for that, hence the caller
// remembers the answer.
func userOf(ctx context.Context, client oci.Client, c *containers.Container, user string) (specs.User, error) {
	s := &oci.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
	if user != "" {
		if err := oci.WithUser(user)(ctx, client, c, s); err != nil {
			return specs.User{}, fmt.Errorf("%w: find the user %q: %w", runtime.ErrConfig, user, err)
		}
	}
	name, _, _ := strings.Cut(user, ":")
	if err := oci.WithAdditionalGIDs(cmp.Or(name, "root"))(ctx, client, c, s); err != nil {
		return specs.User{}, fmt.Errorf("%w: find the groups of the user %q: %w", runtime.ErrConfig, user, err)
	}
	return s.Process.User, nil
}
