package volume

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/object"
)

// ContainerMounts returns how the pod's volumes are mounted in a container, after
// SetUp. expand replaces the variables of a subPathExpr. What is mounted for an
// earlier run of the container is replaced.
func (m *Manager) ContainerMounts(pod *corev1.Pod, c *corev1.Container, src Sources, expand func(string) (string, error)) ([]runtime.Mount, error) {
	var mounts []runtime.Mount
	for i := range c.VolumeMounts {
		mount, err := m.containerMount(pod, c, i, src, expand)
		if err != nil {
			return nil, fmt.Errorf("mount of volume %q at %s: %w", c.VolumeMounts[i].Name, c.VolumeMounts[i].MountPath, err)
		}
		mounts = append(mounts, mount)
	}
	return mounts, nil
}

func (m *Manager) containerMount(pod *corev1.Pod, c *corev1.Container, i int, src Sources, expand func(string) (string, error)) (mount runtime.Mount, err error) {
	vm := &c.VolumeMounts[i]
	v := volumeOf(pod, vm.Name)
	if v == nil {
		return mount, errors.New("the pod has no such volume")
	}
	mount = runtime.Mount{ContainerPath: path.Join("/", vm.MountPath), ReadOnly: vm.ReadOnly || isShown(v)}
	if p := vm.MountPropagation; p != nil {
		switch *p {
		case corev1.MountPropagationHostToContainer:
			mount.Propagation = "rslave"
		case corev1.MountPropagationBidirectional:
			mount.Propagation = "rshared"
		}
	}
	switch {
	case v.HostPath != nil:
		mount.HostPath = v.HostPath.Path
	case object.ClaimName(pod, v) != "":
		pv, err := claimed(pod, v, src)
		if err != nil {
			return mount, err
		}
		if mount.HostPath, err = m.claimPath(pv); err != nil {
			return mount, err
		}
		mount.ReadOnly = mount.ReadOnly || claimReadOnly(v)
	default:
		mount.HostPath = m.path(pod, v.Name)
	}
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		if sub, err = expand(vm.SubPathExpr); err != nil {
			return mount, fmt.Errorf("subPathExpr %q: %w", vm.SubPathExpr, err)
		}
	}
	if sub == "" {
		return mount, nil
	}
	target := filepath.Join(m.podDir(string(pod.UID)), "subpaths", c.Name, strconv.Itoa(i))
	mount.HostPath, err = m.subPath(mount.HostPath, sub, target, !isShown(v))
	return mount, err
}

func volumeOf(pod *corev1.Pod, name string) *corev1.Volume {
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name == name {
			return &pod.Spec.Volumes[i]
		}
	}
	return nil
}

// subPath returns a path of the node that leads to sub within root and nowhere
// else, whatever links the pod's containers have made or will make there: the file
// or directory is opened, without leaving root, and what was opened is bound at
// target. A directory that does not exist is made if create says so.
func (m *Manager) subPath(root, sub, target string, create bool) (string, error) {
	if !filepath.IsLocal(sub) {
		return "", fmt.Errorf("subPath %q does not lie within the volume", sub)
	}
	f, err := openBeneath(root, sub)
	if errors.Is(err, unix.ENOENT) && create {
		if err := makeBeneath(root, sub); err != nil {
			return "", fmt.Errorf("make subPath %q: %w", sub, err)
		}
		f, err = openBeneath(root, sub)
	}
	switch {
	case errors.Is(err, unix.EXDEV):
		return "", fmt.Errorf("subPath %q leads out of the volume through a link", sub)
	case errors.Is(err, unix.ENOENT):
		return "", fmt.Errorf("subPath %q %w in the volume", sub, ErrMissing)
	case err != nil:
		return "", fmt.Errorf("subPath %q: %w", sub, err)
	}
	defer f.Close()
	return m.mounts.Bind(f, target)
}

// openBeneath opens a path below root for its place only. Links are followed as
// long as they stay below root.
func openBeneath(root, sub string) (*os.File, error) {
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	for range 100 {
		fd, err := unix.Openat2(int(dir.Fd()), sub, how)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue // something was renamed meanwhile, somewhere
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), sub), nil
	}
	return nil, unix.EAGAIN
}

// makeBeneath makes a directory below root, with root's permissions.
func makeBeneath(root, sub string) error {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	info, err := dir.Stat(".")
	if err != nil {
		return err
	}
	made := sub // the first that does not exist: all from there on are new
	for parent := filepath.Dir(sub); parent != "."; parent = filepath.Dir(parent) {
		if _, err := dir.Stat(parent); err == nil {
			break
		}
		made = parent
	}
	if err := dir.MkdirAll(sub, info.Mode().Perm()); err != nil {
		return err
	}
	for at := sub; ; at = filepath.Dir(at) { // past the umask
		if err := dir.Chmod(at, info.Mode().Perm()|info.Mode()&os.ModeSetgid); err != nil {
			return err
		}
		if at == made || at == "." {
			return nil
		}
	}
}
