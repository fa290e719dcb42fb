//go:build linux

// Package volatile is a disk that forgets at a loss of power what was not synced: a file system in user space (FUSE)
// over a directory. What a page cache would still hold, the disk knows: which sectors were written since their file's
// last fsync, and which names were made, moved or taken away since their directory's. The idea is LazyFS's
// (Ramos et al., VLDB 2024); this one also loses only some of the sectors, and a part of the directories' changes.
package volatile

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// sectorSize is what a disk writes whole or not at all.
const sectorSize = 512

// Disk is a mounted directory. Its methods may be called from several goroutines,
// but Lose and Unmount only once nobody has a file open.
type Disk struct {
	dir     string // where it is mounted
	backing string // where the files are
	graves  string // files whose name was taken away, until that is synced
	server  *fuse.Server

	mu     sync.Mutex
	files  map[uint64]*file // by inode; those that differ from what is on the disk
	names  []*change        // in order
	buried int
	synced int64 // calls of fsync that were answered
}

// file is what is on the disk of a file of which more has been written.
type file struct {
	f       *os.File
	size    int64
	sectors map[int64][]byte // by number; nil is beyond the end
}

// change is a change of a directory that is not synced.
type change struct {
	dirs   map[uint64]bool // that have to be
	undo   func() error
	forget func() // once it cannot be undone any more
}

// Lost counts what a loss of power took.
type Lost struct{ Sectors, Files, Names int }

// Mount makes a disk at dir, which must be an empty directory, with its files at
// backing, which need not exist.
func Mount(dir, backing string) (*Disk, error) {
	d := &Disk{dir: dir, backing: filepath.Join(backing, "files"), graves: filepath.Join(backing, "graves"), files: map[uint64]*file{}}
	for _, dir := range []string{d.backing, d.graves} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	return d, d.mount()
}

func (d *Disk) mount() (err error) {
	d.server, err = fs.Mount(d.dir, &node{d: d}, &fs.Options{MountOptions: fuse.MountOptions{
		DirectMountStrict: true, FsName: "volatile", Name: "volatile", DisableXAttrs: true, MaxWrite: 1 << 20,
	}})
	if err != nil {
		return fmt.Errorf("mount a volatile disk at %s: %w", d.dir, err)
	}
	return nil
}

// Unmount ends the disk; what was not synced stays written.
func (d *Disk) Unmount() error {
	if err := unix.Unmount(d.dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	d.server.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	for ino := range d.files {
		d.clean(ino)
	}
	return nil
}

// Syncs returns how many calls of fsync and fdatasync were answered.
func (d *Disk) Syncs() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.synced
}

// Lose is a loss of power: of what was not synced some is on the disk, and the rest
// is not. Which is random: all, none, or each sector by itself.
func (d *Disk) Lose(r *rand.Rand) (lost Lost, err error) {
	if err := unix.Unmount(d.dir, 0); err != nil { // and with it what the kernel has cached
		return lost, fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	d.server.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	kept := []float64{0, 0, 0.3, 0.7, 1}[r.IntN(5)]
	for ino, f := range d.files {
		n, err := f.lose(r, kept)
		if err != nil {
			return lost, err
		}
		if n > 0 {
			lost.Files++
		}
		lost.Sectors += n
		d.clean(ino)
	}
	// A journal of metadata loses its end.
	keep := 0
	if kept > 0 {
		keep = r.IntN(len(d.names) + 1)
	}
	for i := len(d.names) - 1; i >= keep; i-- {
		if err := d.names[i].undo(); err != nil {
			return lost, err
		}
		lost.Names++
	}
	for _, c := range d.names[:keep] {
		c.forget()
	}
	d.names = nil
	return lost, d.mount()
}

// lose takes back what was not synced, but for a share of it, and returns how many
// sectors it took.
func (f *file) lose(r *rand.Rand, kept float64) (lost int, err error) {
	if r.Float64() >= kept {
		if err := f.f.Truncate(f.size); err != nil {
			return 0, err
		}
	}
	st, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	for n, old := range f.sectors {
		if r.Float64() < kept {
			continue
		}
		lost++
		at := n * sectorSize
		room := min(sectorSize, st.Size()-at)
		if room <= 0 {
			continue
		}
		sector := make([]byte, room)
		copy(sector, old)
		if _, err := f.f.WriteAt(sector, at); err != nil {
			return lost, err
		}
	}
	return lost, nil
}

// written is told of each write of n bytes at off to an open file before it happens.
// Callers hold mu.
func (d *Disk) written(open *os.File, off, n int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(open.Fd()), &st); err != nil {
		return err
	}
	f := d.files[st.Ino]
	if f == nil {
		again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", open.Fd()), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		f = &file{f: again, size: st.Size, sectors: map[int64][]byte{}}
		d.files[st.Ino] = f
	}
	for s := off / sectorSize; s*sectorSize < off+n; s++ {
		if _, known := f.sectors[s]; known {
			continue
		}
		var old []byte
		if s*sectorSize < f.size { // what a smaller file of since then lacks was seen when it shrank
			old = make([]byte, min(sectorSize, f.size-s*sectorSize))
			if _, err := f.f.ReadAt(old, s*sectorSize); err != nil {
				return fmt.Errorf("read sector %d of %s: %w", s, open.Name(), err)
			}
		}
		f.sectors[s] = old
	}
	return nil
}

// resize gives an open file another size. Callers hold mu.
func (d *Disk) resize(open *os.File, size int64) error {
	st, err := open.Stat()
	if err != nil {
		return err
	}
	if err := d.written(open, size, max(st.Size()-size, 0)); err != nil {
		return err
	}
	return open.Truncate(size)
}

// sync makes the content of an open file or directory last.
func (d *Disk) sync(open *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(open.Fd()), &st); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.synced++
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		d.clean(st.Ino)
		return nil
	}
	var left []*change
	for _, c := range d.names {
		if delete(c.dirs, st.Ino); len(c.dirs) == 0 {
			c.forget()
		} else {
			left = append(left, c)
		}
	}
	d.names = left
	return nil
}

func (d *Disk) clean(ino uint64) {
	if f := d.files[ino]; f != nil {
		f.f.Close()
		delete(d.files, ino)
	}
}

// renamed notes a change of names in dirs, which are held open: they may get other
// names themselves. Callers hold mu.
func (d *Disk) renamed(undo func() error, forget func(), dirs ...*os.File) error {
	c := &change{dirs: map[uint64]bool{}}
	c.forget = func() {
		if forget != nil {
			forget()
		}
		for _, dir := range dirs {
			dir.Close()
		}
	}
	c.undo = func() error {
		defer func() {
			for _, dir := range dirs {
				dir.Close()
			}
		}()
		return undo()
	}
	for _, dir := range dirs {
		var st unix.Stat_t
		if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
			return err
		}
		c.dirs[st.Ino] = true
	}
	d.names = append(d.names, c)
	return nil
}

// bury keeps the file of that name under another one, and returns that. A directory
// has to be empty, and is remembered only.
func (d *Disk) bury(dir *os.File, name string) (grave string, err error) {
	d.buried++
	grave = filepath.Join(d.graves, fmt.Sprint(d.buried))
	return grave, unix.Linkat(int(dir.Fd()), name, unix.AT_FDCWD, grave, 0)
}

func open(dir string) (*os.File, error) {
	return os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
}

func in(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// made notes that a name is new.
func (d *Disk) made(path string) error {
	dir, err := open(filepath.Dir(path))
	if err != nil {
		return err
	}
	name := filepath.Base(path)
	return d.renamed(func() error { return os.RemoveAll(in(dir, name)) }, nil, dir)
}

// remove takes a file's name away.
func (d *Disk) remove(path string) error {
	dir, err := open(filepath.Dir(path))
	if err != nil {
		return err
	}
	name := filepath.Base(path)
	grave, err := d.bury(dir, name)
	if err == nil {
		err = unix.Unlinkat(int(dir.Fd()), name, 0)
	}
	if err != nil {
		dir.Close()
		return err
	}
	return d.renamed(func() error { return os.Rename(grave, in(dir, name)) }, func() { os.Remove(grave) }, dir)
}

// removeDir takes an empty directory away.
func (d *Disk) removeDir(path string) error {
	dir, err := open(filepath.Dir(path))
	if err != nil {
		return err
	}
	name := filepath.Base(path)
	if err := unix.Rmdir(path); err != nil {
		dir.Close()
		return err
	}
	return d.renamed(func() error { return os.Mkdir(in(dir, name), 0o700) }, nil, dir)
}

// rename moves a file or directory, over a file if there is one.
func (d *Disk) rename(from, to string) error {
	fromDir, err := open(filepath.Dir(from))
	if err != nil {
		return err
	}
	toDir, err := open(filepath.Dir(to))
	if err != nil {
		fromDir.Close()
		return err
	}
	fromName, toName := filepath.Base(from), filepath.Base(to)
	grave, err := d.bury(toDir, toName)
	if errors.Is(err, os.ErrNotExist) {
		grave, err = "", nil
	}
	if err == nil {
		err = os.Rename(from, to)
	}
	if err != nil {
		fromDir.Close()
		toDir.Close()
		return err
	}
	undo := func() error {
		if err := os.Rename(in(toDir, toName), in(fromDir, fromName)); err != nil || grave == "" {
			return err
		}
		return os.Rename(grave, in(toDir, toName))
	}
	return d.renamed(undo, func() { os.Remove(grave) }, fromDir, toDir)
}
