package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mounts is what volumes ask of the kernel. Calls for one path never overlap.
type Mounts interface {
	// Memory makes the existing directory at path one in memory, empty, unless it
	// is one already.
	Memory(path string, options MemoryOptions) error
	// Bind makes what is open as f appear at target, for as long as it is not
	// unmounted, and returns the path at which it does. What was at target is
	// replaced; its parents are made.
	Bind(f *os.File, target string) (path string, err error)
	// MakeImage makes a file that holds an empty file system of size bytes.
	MakeImage(ctx context.Context, path string, size int64) error
	// Image mounts such a file at target, unless it is already.
	Image(ctx context.Context, image, target string) error
	// Unmount undoes all mounts at dir and below, whoever made them. It returns an
	// error if any is left.
	Unmount(dir string) error
}

// MemoryOptions says how a directory in memory is to be.
type MemoryOptions struct {
	Size  int64 // bytes; 0: half of the machine's memory
	Mode  fs.FileMode
	Group *int // nil: root's
}

// Kernel is the real [Mounts]. It needs root.
type Kernel struct{}

// Memory mounts a tmpfs.
func (Kernel) Memory(path string, options MemoryOptions) error {
	var here, parent unix.Stat_t
	if err := unix.Lstat(path, &here); err != nil {
		return &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	if err := unix.Lstat(filepath.Dir(path), &parent); err != nil {
		return &fs.PathError{Op: "lstat", Path: filepath.Dir(path), Err: err}
	}
	var f unix.Statfs_t
	if err := unix.Statfs(path, &f); err != nil {
		return &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	if here.Dev != parent.Dev && f.Type == unix.TMPFS_MAGIC {
		return nil
	}
	data := "mode=" + strconv.FormatUint(uint64(bits(options.Mode)), 8)
	if options.Size > 0 {
		data += ",size=" + strconv.FormatInt(options.Size, 10)
	}
	if options.Group != nil {
		data += ",gid=" + strconv.Itoa(*options.Group)
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, data); err != nil {
		return fmt.Errorf("mount memory at %s: %w", path, err)
	}
	return nil
}

// bits converts what package os means to what the kernel does.
func bits(mode fs.FileMode) uint32 {
	b := uint32(mode.Perm())
	if mode&fs.ModeSetgid != 0 {
		b |= unix.S_ISGID
	}
	if mode&fs.ModeSticky != 0 {
		b |= unix.S_ISVTX
	}
	return b
}

// Bind binds by the open file, not by its path, which may lead elsewhere by now.
func (k Kernel) Bind(f *os.File, target string) (string, error) {
	if err := k.Unmount(target); err != nil {
		return "", err
	}
	var info unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &info); err != nil {
		return "", &fs.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	if info.Mode&unix.S_IFMT == unix.S_IFLNK {
		return "", fmt.Errorf("bind %s: it is a symbolic link", f.Name())
	}
	if err := os.RemoveAll(target); err != nil { // of the other type, maybe
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(target), pathMode); err != nil {
		return "", err
	}
	if info.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.Mkdir(target, 0o700); err != nil {
			return "", err
		}
	} else if err := os.WriteFile(target, nil, 0o600); err != nil {
		return "", err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("bind %s at %s: %w", f.Name(), target, err)
	}
	return target, nil
}

// Unmount takes mounts away at once, even those that are in use: whoever uses
// them keeps them until it ends.
func (Kernel) Unmount(dir string) error {
	dir, err := resolved(dir)
	if err != nil {
		return err
	}
	const rounds = 10 // mounts may lie over mounts
	var left []string
	for range rounds {
		data, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return err
		}
		if left = mountsBelow(data, dir); len(left) == 0 {
			return nil
		}
		for i := len(left) - 1; i >= 0; i-- { // the latest first
			if err := unix.Unmount(left[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("unmount %s: %w", left[i], err)
			}
		}
	}
	return fmt.Errorf("unmount %s: it was mounted again and again", left[0])
}

// resolved returns a path as the kernel lists it. The path itself need not exist.
func resolved(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return path, nil
	}
	return filepath.Join(real, filepath.Base(path)), err
}

// mountsBelow returns the mount points at dir and below, in the order of
// /proc/self/mountinfo, which is that of their making.
func mountsBelow(mountinfo []byte, dir string) []string {
	var found []string
	for line := range bytes.Lines(mountinfo) {
		words := bytes.Fields(line)
		if len(words) < 5 {
			continue
		}
		if point := unescape(string(words[4])); point == dir || strings.HasPrefix(point, dir+"/") {
			found = append(found, point)
		}
	}
	return found
}

// unescape undoes the kernel's \040 for a space and the like.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Folders is a [Mounts] for nodes that run nothing in earnest: what would be
// mounted are plain directories. Secrets are on the disk, sizes are not bounded.
type Folders struct{}

// Memory gives the directory its mode.
func (Folders) Memory(path string, options MemoryOptions) error {
	return os.Chmod(path, options.Mode)
}

// Bind returns where f is.
func (Folders) Bind(f *os.File, _ string) (string, error) {
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// Unmount has nothing to undo.
func (Folders) Unmount(string) error { return nil }
