package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
)

// A local volume is the directory claims/HANDLE:
//
//	data    what pods mount: a directory, or the mount point of
//	image   a file that holds an ext4 file system, if the size is enforced
//
// It is made when a pod first uses it, and removed when its PersistentVolume says
// so and not when that is missing: an agent that was told too little must not
// remove data. A pod that uses a local volume has a link to its directory among
// its volumes, so that the last one to go unmounts the image.

// ErrInUse is returned by RemoveClaim while a pod has the volume.
var ErrInUse = errors.New("a pod still has it")

const imageName, dataName = "image", "data"

// claimed returns the volume behind a claim of the pod, once both are bound to
// each other.
func claimed(pod *corev1.Pod, v *corev1.Volume, src Sources) (*corev1.PersistentVolume, error) {
	name := object.ClaimName(pod, v)
	claim := src.Claim(name)
	switch {
	case claim == nil:
		return nil, fmt.Errorf("claim %q %w", name, ErrMissing)
	case object.ClaimFault(pod, v, claim) != "":
		return nil, errors.New(object.ClaimFault(pod, v, claim))
	case claim.Spec.VolumeName == "" || claim.Status.Phase != corev1.ClaimBound:
		return nil, fmt.Errorf("claim %q is not bound to a volume yet", name)
	}
	pv := src.Volume(claim.Spec.VolumeName)
	switch {
	case pv == nil:
		return nil, fmt.Errorf("volume %q of claim %q %w", claim.Spec.VolumeName, name, ErrMissing)
	case pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != claim.UID:
		return nil, fmt.Errorf("volume %q is not bound to claim %q", pv.Name, name)
	}
	return pv, nil
}

// claimPath returns where the data of a volume is on this node.
func (m *Manager) claimPath(pv *corev1.PersistentVolume) (string, error) {
	switch node := object.LocalVolumeNode(pv); {
	case node == m.node:
		dir, err := m.claimDir(pv.Spec.CSI.VolumeHandle)
		return filepath.Join(dir, dataName), err
	case node != "":
		return "", fmt.Errorf("volume %q is on node %s, this is %s", pv.Name, node, m.node)
	case pv.Spec.Local != nil:
		return pv.Spec.Local.Path, nil
	case pv.Spec.HostPath != nil:
		return pv.Spec.HostPath.Path, nil
	default:
		return "", fmt.Errorf("volume %q is of a type that nodes here cannot mount: local, hostPath and those of %s can be", pv.Name, object.LocalProvisioner)
	}
}

func (m *Manager) claimDir(handle string) (string, error) {
	if handle == "" || handle != filepath.Base(handle) || strings.HasPrefix(handle, ".") {
		return "", fmt.Errorf("volume handle %q is no name of a directory", handle)
	}
	return filepath.Join(m.dir, claimsDir, handle), nil
}

// setUpClaim makes the volume behind a claim ready for the pod.
func (m *Manager) setUpClaim(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, src Sources) error {
	pv, err := claimed(pod, v, src)
	if err != nil {
		return err
	}
	path, err := m.claimPath(pv)
	if err != nil {
		return err
	}
	switch {
	case pv.Spec.Local != nil:
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("local volume %q: %w", pv.Name, err)
		}
	case pv.Spec.HostPath != nil:
		if err := hostPath(pv.Spec.HostPath); err != nil {
			return err
		}
		return nil // as Kubernetes, which gives no hostPath to another group
	default:
		m.claims.Lock()
		defer m.claims.Unlock()
		// The link comes first: from now on the volume is in use.
		link := m.path(pod, v.Name)
		if err := os.Symlink(filepath.Dir(path), link); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := m.makeClaim(ctx, filepath.Dir(path), pv); err != nil {
			return fmt.Errorf("local volume %q: %w", pv.Name, err)
		}
	}
	if group := fsGroup(pod); group != nil && !claimReadOnly(v) {
		return own(path, *group, pod.Spec.SecurityContext.FSGroupChangePolicy)
	}
	return nil
}

// makeClaim makes the directory of a local volume, and mounts its image.
func (m *Manager) makeClaim(ctx context.Context, dir string, pv *corev1.PersistentVolume) error {
	data := filepath.Join(dir, dataName)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		// It appears complete or not at all.
		if err := os.MkdirAll(filepath.Dir(dir), pathMode); err != nil {
			return err
		}
		fresh := filepath.Join(filepath.Dir(dir), ".new")
		if err := os.RemoveAll(fresh); err != nil { // of a crash
			return err
		}
		err := os.Mkdir(fresh, pathMode)
		if err != nil {
			return err
		}
		defer os.RemoveAll(fresh)
		if err := os.Mkdir(filepath.Join(fresh, dataName), 0o777); err != nil {
			return err
		}
		if err := os.Chmod(filepath.Join(fresh, dataName), 0o777); err != nil { // past the umask
			return err
		}
		if pv.Spec.CSI.VolumeAttributes[object.LocalVolumeEnforceKey] == object.EnforceLoop {
			size := pv.Spec.Capacity[corev1.ResourceStorage]
			if err := m.mounts.MakeImage(ctx, filepath.Join(fresh, imageName), size.Value()); err != nil {
				return err
			}
		}
		if err := os.Rename(fresh, dir); err != nil {
			return err
		}
	}
	image := filepath.Join(dir, imageName)
	if _, err := os.Lstat(image); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return m.mounts.Image(ctx, image, data)
}

// claimReadOnly says whether the pod only reads the claim's volume.
func claimReadOnly(v *corev1.Volume) bool {
	return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly
}

// users returns how many pods have the local volume in dir, but for one. m.claims
// is held.
func (m *Manager) users(dir, butFor string) (int, error) {
	uids, err := m.List()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, uid := range uids {
		if uid != butFor && slices.Contains(m.claimsOf(uid), dir) {
			n++
		}
	}
	return n, nil
}

// claimsOf returns the directories of the local volumes that a pod has.
func (m *Manager) claimsOf(uid string) []string {
	volumes := filepath.Join(m.podDir(uid), "volumes")
	entries, _ := os.ReadDir(volumes)
	var dirs []string
	for _, e := range entries {
		if e.Type() != fs.ModeSymlink {
			continue
		}
		if to, err := os.Readlink(filepath.Join(volumes, e.Name())); err == nil && filepath.Dir(to) == filepath.Join(m.dir, claimsDir) {
			dirs = append(dirs, to)
		}
	}
	return dirs
}

// rest unmounts the images of the local volumes that a pod has had and no other
// has.
func (m *Manager) rest(uid string) error {
	m.claims.Lock()
	defer m.claims.Unlock()
	for _, dir := range m.claimsOf(uid) {
		n, err := m.users(dir, uid)
		if err == nil && n == 0 {
			err = m.mounts.Unmount(dir)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// RemoveClaim removes a local volume with its data. Removing what is not there is
// not an error. It returns ErrInUse while a pod has it.
func (m *Manager) RemoveClaim(handle string) error {
	dir, err := m.claimDir(handle)
	if err != nil {
		return err
	}
	m.claims.Lock()
	defer m.claims.Unlock()
	if n, err := m.users(dir, ""); err != nil || n > 0 {
		if err == nil {
			err = ErrInUse
		}
		return fmt.Errorf("remove volume %s: %w", handle, err)
	}
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := m.mounts.Unmount(dir); err != nil {
		return fmt.Errorf("remove volume %s: %w", handle, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove volume %s: %w", handle, err)
	}
	return nil
}

// own gives a volume to a group that may then read and write all of it, and whose
// directories hand the group on. Under OnRootMismatch nothing is looked at if the
// top is as it should be.
func own(root string, group int, policy *corev1.PodFSGroupChangePolicy) error {
	const directory, plain = 0o770 | fs.ModeSetgid, fs.FileMode(0o660)
	if policy != nil && *policy == corev1.FSGroupChangeOnRootMismatch {
		info, err := os.Stat(root)
		if err != nil {
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Gid) == group && info.Mode()&directory == directory {
			return nil
		}
	}
	// By way of an os.Root: another pod may swap what is there for links meanwhile.
	top, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer top.Close()
	err = fs.WalkDir(top.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if err == nil {
			err = top.Lchown(path, -1, group)
		}
		switch {
		case err != nil:
		case d.IsDir():
			err = top.Chmod(path, info.Mode()|directory)
		case info.Mode().IsRegular():
			err = top.Chmod(path, info.Mode()|plain)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went while we looked
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("give the volume to group %d: %w", group, err)
	}
	return nil
}

// MakeImage makes a sparse file with an ext4 file system, by mkfs.ext4.
func (Kernel) MakeImage(ctx context.Context, path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	// No blocks kept for root; the top of the file system open to all, as a directory is.
	out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-m", "0", "-E", "root_perms=777", path).CombinedOutput()
	if err != nil {
		out, err = exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", path).CombinedOutput() // older than root_perms
	}
	if err != nil {
		return fmt.Errorf("make a file system of %d bytes: %w: %s", size, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Image mounts an image by a loop device, by mount(8).
func (Kernel) Image(ctx context.Context, image, target string) error {
	here, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	real, err := resolved(target)
	if err != nil {
		return err
	}
	for _, point := range mountsBelow(here, real) {
		if point == real {
			return nil
		}
	}
	if out, err := exec.CommandContext(ctx, "mount", "-o", "loop,nodev,nosuid", image, target).CombinedOutput(); err != nil {
		return fmt.Errorf("mount the volume's image: %w: %s", err, strings.TrimSpace(string(out)))
	}
	// An older mkfs.ext4 leaves the top to root. Only the first time: later it is the pod's.
	if info, err := os.Stat(target); err == nil && info.Mode().Perm() == 0o755 && emptyFileSystem(target) {
		return os.Chmod(target, 0o777)
	}
	return nil
}

func emptyFileSystem(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && (len(entries) == 0 || len(entries) == 1 && entries[0].Name() == "lost+found")
}

// MakeImage makes an empty file.
func (Folders) MakeImage(_ context.Context, path string, _ int64) error {
	return os.WriteFile(path, nil, 0o600)
}

// Image mounts nothing.
func (Folders) Image(context.Context, string, string) error { return nil }
