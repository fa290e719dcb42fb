//go:build linux

package volatile

import (
	"context"
	"os"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// node is a file or directory. What it cannot do (links, extended attributes)
// the kernel refuses.
type node struct {
	fs.Inode
	d *Disk
}

// handle is an open file.
type handle struct{ f *os.File }

var (
	_ fs.NodeLookuper  = (*node)(nil)
	_ fs.NodeGetattrer = (*node)(nil)
	_ fs.NodeSetattrer = (*node)(nil)
	_ fs.NodeReaddirer = (*node)(nil)
	_ fs.NodeOpener    = (*node)(nil)
	_ fs.NodeCreater   = (*node)(nil)
	_ fs.NodeMkdirer   = (*node)(nil)
	_ fs.NodeMknoder   = (*node)(nil)
	_ fs.NodeUnlinker  = (*node)(nil)
	_ fs.NodeRmdirer   = (*node)(nil)
	_ fs.NodeRenamer   = (*node)(nil)
	_ fs.NodeReader    = (*node)(nil)
	_ fs.NodeWriter    = (*node)(nil)
	_ fs.NodeFlusher   = (*node)(nil)
	_ fs.NodeReleaser  = (*node)(nil)
	_ fs.NodeFsyncer   = (*node)(nil)
	_ fs.NodeAllocater = (*node)(nil)
	_ fs.NodeStatfser  = (*node)(nil)
)

func (n *node) path() string             { return filepath.Join(n.d.backing, n.Path(nil)) }
func (n *node) child(name string) string { return filepath.Join(n.path(), name) }

// locked calls f with the disk locked.
func (n *node) locked(f func() error) syscall.Errno {
	n.d.mu.Lock()
	defer n.d.mu.Unlock()
	return fs.ToErrno(f())
}

func (n *node) entry(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	var st syscall.Stat_t
	if err := syscall.Lstat(n.child(name), &st); err != nil {
		return nil, fs.ToErrno(err)
	}
	out.FromStat(&st)
	return n.NewInode(ctx, &node{d: n.d}, fs.StableAttr{Mode: st.Mode, Ino: st.Ino}), 0
}

func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return n.entry(ctx, name, out)
}

func (n *node) Getattr(_ context.Context, h fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	var st syscall.Stat_t
	var err error
	if h, ok := h.(*handle); ok { // which may have no name any more
		err = syscall.Fstat(int(h.f.Fd()), &st)
	} else {
		err = syscall.Lstat(n.path(), &st)
	}
	out.FromStat(&st)
	return fs.ToErrno(err)
}

func (n *node) Setattr(ctx context.Context, h fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	errno := n.locked(func() error {
		if mode, ok := in.GetMode(); ok {
			if err := os.Chmod(n.path(), os.FileMode(mode&0o777)); err != nil {
				return err
			}
		}
		size, ok := in.GetSize()
		if !ok {
			return nil
		}
		if h, ok := h.(*handle); ok {
			return n.d.resize(h.f, int64(size))
		}
		return n.resize(int64(size))
	})
	if errno != 0 {
		return errno
	}
	return n.Getattr(ctx, h, out)
}

func (n *node) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	entries, err := os.ReadDir(n.path())
	if err != nil {
		return nil, fs.ToErrno(err)
	}
	var list []fuse.DirEntry
	for _, e := range entries {
		mode := uint32(syscall.S_IFREG)
		if e.IsDir() {
			mode = syscall.S_IFDIR
		}
		list = append(list, fuse.DirEntry{Name: e.Name(), Mode: mode})
	}
	return fs.NewListDirStream(list), 0
}

func (n *node) resize(size int64) error {
	f, err := os.OpenFile(n.path(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return n.d.resize(f, size)
}

// flags are those of an open that the file below gets: the kernel knows where the end
// is, and a shrunk file has to be noticed.
func flags(of uint32) int {
	return int(of) &^ (syscall.O_APPEND | syscall.O_TRUNC | syscall.O_DIRECT | fuse.FMODE_EXEC)
}

func (n *node) Open(_ context.Context, how uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if how&syscall.O_TRUNC != 0 {
		errno := n.locked(func() error { return n.resize(0) })
		if errno != 0 {
			return nil, 0, errno
		}
	}
	f, err := os.OpenFile(n.path(), flags(how), 0)
	if err != nil {
		return nil, 0, fs.ToErrno(err)
	}
	return &handle{f}, 0, 0
}

func (n *node) Create(ctx context.Context, name string, how, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	var f *os.File
	errno := n.locked(func() (err error) {
		if f, err = os.OpenFile(n.child(name), flags(how)|os.O_CREATE|os.O_EXCL, os.FileMode(mode&0o777)); err != nil {
			return err
		}
		return n.d.made(n.child(name))
	})
	if errno != 0 {
		return nil, nil, 0, errno
	}
	inode, errno := n.entry(ctx, name, out)
	return inode, &handle{f}, 0, errno
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	errno := n.locked(func() error {
		if err := os.Mkdir(n.child(name), os.FileMode(mode&0o777)); err != nil {
			return err
		}
		return n.d.made(n.child(name))
	})
	if errno != 0 {
		return nil, errno
	}
	return n.entry(ctx, name, out)
}

// Mknod makes sockets: the programs on the disk have some.
func (n *node) Mknod(ctx context.Context, name string, mode, dev uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	errno := n.locked(func() error {
		if err := unix.Mknod(n.child(name), mode, int(dev)); err != nil {
			return err
		}
		return n.d.made(n.child(name))
	})
	if errno != 0 {
		return nil, errno
	}
	return n.entry(ctx, name, out)
}

func (n *node) Unlink(_ context.Context, name string) syscall.Errno {
	return n.locked(func() error { return n.d.remove(n.child(name)) })
}

func (n *node) Rmdir(_ context.Context, name string) syscall.Errno {
	return n.locked(func() error { return n.d.removeDir(n.child(name)) })
}

func (n *node) Rename(_ context.Context, name string, to fs.InodeEmbedder, newName string, how uint32) syscall.Errno {
	if how != 0 {
		return syscall.EINVAL
	}
	return n.locked(func() error { return n.d.rename(n.child(name), to.(*node).child(newName)) })
}

func (n *node) Read(_ context.Context, h fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return fuse.ReadResultFd(h.(*handle).f.Fd(), off, len(dest)), 0
}

func (n *node) Write(_ context.Context, h fs.FileHandle, data []byte, off int64) (written uint32, _ syscall.Errno) {
	f := h.(*handle).f
	return uint32(len(data)), n.locked(func() error {
		if err := n.d.written(f, off, int64(len(data))); err != nil {
			return err
		}
		_, err := f.WriteAt(data, off)
		return err
	})
}

func (n *node) Allocate(_ context.Context, h fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	f := h.(*handle).f
	return n.locked(func() error {
		if mode&^unix.FALLOC_FL_KEEP_SIZE != 0 {
			return syscall.EOPNOTSUPP
		}
		if err := n.d.written(f, 0, 0); err != nil { // its size
			return err
		}
		return unix.Fallocate(int(f.Fd()), mode, int64(off), int64(size))
	})
}

// Flush is a close, which syncs nothing.
func (n *node) Flush(context.Context, fs.FileHandle) syscall.Errno { return 0 }

func (n *node) Release(_ context.Context, h fs.FileHandle) syscall.Errno {
	return fs.ToErrno(h.(*handle).f.Close())
}

func (n *node) Fsync(_ context.Context, h fs.FileHandle, _ uint32) syscall.Errno {
	if h, ok := h.(*handle); ok {
		return fs.ToErrno(n.d.sync(h.f))
	}
	dir, err := os.Open(n.path())
	if err != nil {
		return fs.ToErrno(err)
	}
	defer dir.Close()
	return fs.ToErrno(n.d.sync(dir))
}

func (n *node) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	var st syscall.Statfs_t
	if err := syscall.Statfs(n.d.backing, &st); err != nil {
		return fs.ToErrno(err)
	}
	out.FromStatfsT(&st)
	return 0
}
