package raftstore

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// syncData makes what was written over existing bytes of a file durable.
func syncData(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// dropCache asks the kernel to forget what it caches of a synced file, so that
// reading shows what the disk has. It is a hint.
func dropCache(f *os.File) { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }

// allocate gives a file blocks of its own. Not every file system can.
func allocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return errors.ErrUnsupported
	}
	return err
}

// diskSpace returns what a process without privileges can use of the file system
// that dir is on.
func diskSpace(dir string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Space{}, err
	}
	return Space{Free: int64(st.Bavail) * st.Frsize, Total: int64(st.Blocks) * st.Frsize}, nil
}

// tryLock takes the lock that bbolt takes, and reports whether it was free. Closing
// the file lets go of it.
func tryLock(f *os.File) bool { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil }
