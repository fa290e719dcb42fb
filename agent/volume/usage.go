package volume

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// Usage is what a volume takes of the node's disk.
type Usage struct {
	Volume string
	Bytes  int64
	Limit  int64 // emptyDir's sizeLimit; 0: none
}

// Usage measures the volumes of a pod that count as its ephemeral storage: those
// that the pod fills itself, on the disk and not in memory. It walks all files,
// so it is not for every second.
func (m *Manager) Usage(ctx context.Context, pod *corev1.Pod) ([]Usage, error) {
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
		if u.Bytes, err = diskUsage(ctx, m.path(pod, v.Name)); err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	return all, nil
}

// diskUsage returns the bytes that a directory takes on its disk. A file with
// several names counts once; what is mounted below does not count.
func diskUsage(ctx context.Context, root string) (int64, error) {
	var top unix.Stat_t
	if err := unix.Lstat(root, &top); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return 0, nil
		}
		return 0, &fs.PathError{Op: "lstat", Path: root, Err: err}
	}
	var sum int64
	seen := map[uint64]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
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
		return nil
	})
	return sum, err
}
