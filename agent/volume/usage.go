package volume

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
)

// Usage is what a volume takes of the node's disk.
type Usage struct {
	Volume string
	Claim  string // whose volume it is; empty: the pod's own
	Bytes  int64
	Inodes int64
	Limit  int64 // emptyDir's sizeLimit, or the size of a claim's volume; 0: none
}

// Usage measures the volumes of a pod that count as its ephemeral storage: those
// that the pod fills itself, on the disk and not in memory. It walks all files,
// so it is not for every second.
//
// Beside them it measures the local volumes of claims whose size is enforced by ending
// pods (object.EnforceEvict), as LimitedClaims returns them.
func (m *Manager) Usage(ctx context.Context, pod *corev1.Pod, src Sources) ([]Usage, error) {
	var all []Usage
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.Medium == corev1.StorageMediumMemory {
			continue
		}
		u := Usage{Volume: v.Name}
		if v.EmptyDir.SizeLimit != nil {
			u.Limit = v.EmptyDir.SizeLimit.Value()
		}
		var err error
		if u.Bytes, u.Inodes, err = diskUsage(ctx, m.path(pod, v.Name)); err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	for _, u := range m.LimitedClaims(pod, src) {
		pv := src.Volume(src.Claim(u.Claim).Spec.VolumeName)
		path, err := m.claimPath(pv)
		if err != nil {
			return nil, err
		}
		if u.Bytes, u.Inodes, err = diskUsage(ctx, path); err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	return all, nil
}

// LimitedClaims returns the pod's volumes of claims on this node that it may write to and
// whose size is enforced by ending pods, not measured.
func (m *Manager) LimitedClaims(pod *corev1.Pod, src Sources) []Usage {
	var all []Usage
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if object.ClaimName(pod, v) == "" || claimReadOnly(v) {
			continue
		}
		pv, err := claimed(pod, v, src)
		if err != nil || object.LocalVolumeNode(pv) != m.node || pv.Spec.CSI.VolumeAttributes[object.LocalVolumeEnforceKey] != object.EnforceEvict {
			continue
		}
		size := pv.Spec.Capacity[corev1.ResourceStorage]
		all = append(all, Usage{Volume: v.Name, Claim: object.ClaimName(pod, v), Limit: size.Value()})
	}
	return all
}

// diskUsage returns the bytes and the inodes that a directory takes on its disk. A file with
// several names counts once; what is mounted below does not count.
func diskUsage(ctx context.Context, root string) (sum, inodes int64, err error) {
	var top unix.Stat_t
	if err := unix.Lstat(root, &top); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return 0, 0, nil
		}
		return 0, 0, &fs.PathError{Op: "lstat", Path: root, Err: err}
	}
	seen := map[uint64]bool{}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var s unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &s)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // it went while we looked
		case err != nil:
			return err
		case s.Dev != top.Dev:
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case s.Nlink > 1 && !d.IsDir():
			if seen[s.Ino] {
				return nil
			}
			seen[s.Ino] = true
		}
		sum += s.Blocks * 512
		inodes++
		return nil
	})
	return sum, inodes, err
}
