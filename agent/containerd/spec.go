package containerd

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

const (
	// groupAnnotation makes containers of the same value share a shim.
	groupAnnotation = "io.containerd.runc.v2.group"

	cpuPeriod = 100_000 // microseconds; the kernel's default
	cpuMin    = 1_000   // microseconds in a period; the kernel takes no less
)

// specInput is all that a container's OCI spec is made from.
type specInput struct {
	container runtime.Container
	pod       podRecord
	files     podFiles
	image     ocispec.ImageConfig
	user      specs.User
	target    int // a process of which it sees the siblings; 0: none
	cgroup    string
	unified   bool // cgroups of version 2
}

// newSpec makes a container's OCI spec. It touches nothing. ctx must carry a
// containerd namespace, for no reason of ours.
//
// It differs from containerd's own defaults where Kubernetes does: privileges may be
// gained by set-user-id programs (allowPrivilegeEscalation is true by default),
// /run is the image's, the limit of open files is the node's, cgroups are seen
// at /sys/fs/cgroup; and the system calls are filtered by containerd's default
// profile, which Kubernetes calls RuntimeDefault.
func newSpec(ctx context.Context, in specInput) (*specs.Spec, error) {
	c := in.container
	args, err := commandOf(c, in.image)
	if err != nil {
		return nil, err
	}
	env := mergeEnv([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, in.image.Env)
	if c.TTY {
		env = mergeEnv([]string{"TERM=xterm"}, env)
	}
	env = mergeEnv(env, []string{"HOSTNAME=" + in.pod.Hostname})
	env = mergeEnv(env, c.Env)

	mounts := podMounts(in.files, in.pod)
	propagation := ""
	for _, m := range c.Mounts {
		mount, wide, err := bindMount(m)
		if err != nil {
			return nil, err
		}
		mounts = slices.DeleteFunc(mounts, func(other specs.Mount) bool { return other.Destination == mount.Destination })
		mounts = append(mounts, mount)
		if wide == "rshared" || propagation == "" {
			propagation = wide
		}
	}
	// What is mounted within another mount must come after it.
	slices.SortStableFunc(mounts, func(a, b specs.Mount) int { return cmp.Compare(depth(a.Destination), depth(b.Destination)) })
	replaced := []string{"/run", "/dev/shm"}
	for _, m := range mounts {
		replaced = append(replaced, m.Destination)
	}

	options := []oci.SpecOpts{
		oci.WithDefaultUnixDevices,
		oci.WithoutMounts(replaced...),
		oci.WithMounts(mounts),
		oci.WithCgroup(in.cgroup),
		oci.WithAnnotations(map[string]string{groupAnnotation: in.pod.UID}),
	}
	options = append(options, withNamespaces(in.pod, in.files)...)
	if in.target != 0 {
		options = append(options, oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.PIDNamespace, Path: fmt.Sprintf("/proc/%d/ns/pid", in.target)}))
	}
	options = append(options, func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Process.Args = args
		s.Process.Env = env
		s.Process.Cwd = cmp.Or(c.WorkingDir, in.image.WorkingDir, "/")
		s.Process.Terminal = c.TTY
		s.Process.User = in.user
		s.Process.Rlimits = nil
		s.Linux.RootfsPropagation = propagation
		if len(in.pod.Sysctls) > 0 {
			s.Linux.Sysctl = in.pod.Sysctls
		}
		setResources(s, c.Resources, in.unified)
		return nil
	})
	options = append(options, withSecurity(c.Security)...)
	return oci.GenerateSpec(ctx, nil, &containers.Container{ID: handleOf(c.ID)}, options...)
}

// commandOf is what to run: as in Kubernetes, a command replaces both entrypoint
// and command of the image.
func commandOf(c runtime.Container, image ocispec.ImageConfig) ([]string, error) {
	entrypoint, args := image.Entrypoint, image.Cmd
	if len(c.Command) > 0 {
		entrypoint, args = c.Command, nil
	}
	if len(c.Args) > 0 {
		args = c.Args
	}
	all := slices.Concat(entrypoint, args)
	if len(all) == 0 {
		return nil, fmt.Errorf("image %s does not say what to run: set the container's command", c.Image)
	}
	return all, nil
}

// mergeEnv returns base with over on top: a variable that is in both keeps its
// place and takes over's value.
func mergeEnv(base, over []string) []string {
	merged := slices.Clone(base)
	at := map[string]int{}
	for i, e := range merged {
		name, _, _ := strings.Cut(e, "=")
		at[name] = i
	}
	for _, e := range over {
		name, _, _ := strings.Cut(e, "=")
		if i, ok := at[name]; ok {
			merged[i] = e
			continue
		}
		at[name] = len(merged)
		merged = append(merged, e)
	}
	return merged
}

// podMounts are those that every container of a pod has.
func podMounts(files podFiles, pod podRecord) []specs.Mount {
	bind := func(from, to string) specs.Mount {
		return specs.Mount{Type: "bind", Source: from, Destination: to, Options: []string{"rbind", "rprivate", "rw"}}
	}
	shm := files.shm()
	if pod.HostIPC {
		shm = "/dev/shm"
	}
	return []specs.Mount{
		{Type: "cgroup", Source: "cgroup", Destination: "/sys/fs/cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		bind(shm, "/dev/shm"),
		bind(files.hosts(), "/etc/hosts"),
		bind(files.hostname(), "/etc/hostname"),
		bind(files.resolv(), "/etc/resolv.conf"),
	}
}

// bindMount is a mount for the spec, and the propagation that the root file
// system needs for it, if any.
func bindMount(m runtime.Mount) (mount specs.Mount, rootPropagation string, err error) {
	if !path.IsAbs(m.HostPath) || !path.IsAbs(m.ContainerPath) || path.Clean(m.ContainerPath) == "/" {
		return mount, "", fmt.Errorf("mount of %q at %q: both must be absolute paths, and not the root of the container", m.HostPath, m.ContainerPath)
	}
	access, propagation := "rw", cmp.Or(m.Propagation, "rprivate")
	if m.ReadOnly {
		access = "ro"
	}
	switch propagation {
	case "rprivate":
	case "rslave", "rshared":
		rootPropagation = propagation
	default:
		return mount, "", fmt.Errorf("mount at %q: propagation %q is none of rprivate, rslave, rshared", m.ContainerPath, m.Propagation)
	}
	return specs.Mount{
		Type: "bind", Source: m.HostPath, Destination: path.Clean(m.ContainerPath),
		Options: []string{"rbind", propagation, access},
	}, rootPropagation, nil
}

func depth(p string) int { return strings.Count(path.Clean(p), "/") }

func setResources(s *specs.Spec, want runtime.Resources, unified bool) {
	s.Process.OOMScoreAdj = &want.OOMScoreAdj
	res := s.Linux.Resources
	if want.CPUMillis > 0 || want.CPUShares > 0 {
		res.CPU = &specs.LinuxCPU{}
	}
	if want.CPUMillis > 0 {
		quota, period := max(want.CPUMillis*cpuPeriod/1000, cpuMin), uint64(cpuPeriod)
		res.CPU.Quota, res.CPU.Period = &quota, &period
	}
	if want.CPUShares > 0 {
		shares := uint64(max(want.CPUShares, 2)) // the kernel takes no less
		res.CPU.Shares = &shares
	}
	if want.MemoryBytes > 0 {
		res.Memory = &specs.LinuxMemory{Limit: &want.MemoryBytes}
		if unified {
			// A container of which one process is gone is rarely of use.
			res.Unified = map[string]string{"memory.oom.group": "1"}
		}
	}
	if want.PIDs > 0 {
		res.Pids = &specs.LinuxPids{Limit: &want.PIDs}
	}
}
