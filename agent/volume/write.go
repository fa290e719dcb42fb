package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The layout is Kubernetes': programs know it. The files lie in a directory of
// one generation, the link ..data leads to it, and each name at the top is a link
// into ..data. Renaming ..data changes all files at once.
const (
	dataLink         = "..data"
	generationPrefix = "..2" // of the year
	generationFormat = "..2006_01_02_15_04_05."
)

// write makes files what dir shows, all at once, and returns whether anything
// changed. A reader sees the old files or the new ones. The generation before
// stays until the next change, for readers that have opened its directory just
// before. group, if there is one, owns the files and may read them.
func write(dir string, files map[string]file, group *int) (changed bool, err error) {
	want := make(map[string]file, len(files))
	for name, f := range files {
		if !filepath.IsLocal(name) || strings.HasPrefix(name, "..") {
			return false, fmt.Errorf("file %q would be outside of the volume", name)
		}
		if group != nil {
			f.mode |= 0o440
		}
		want[name] = f
	}
	before, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if before != "" && holds(filepath.Join(dir, before), want) {
		return false, link(dir, want) // a crash may have left links undone
	}
	fresh, err := os.MkdirTemp(dir, time.Now().UTC().Format(generationFormat))
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil && !changed {
			os.RemoveAll(fresh)
		}
	}()
	if err := fill(fresh, want, group); err != nil {
		return false, err
	}
	temporary := filepath.Join(dir, "..data_tmp")
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.Symlink(filepath.Base(fresh), temporary); err != nil {
		return false, err
	}
	if err := os.Rename(temporary, filepath.Join(dir, dataLink)); err != nil {
		return false, err
	}
	changed = true
	if err := link(dir, want); err != nil {
		return true, err
	}
	return true, forget(dir, before, filepath.Base(fresh))
}

// fill writes the files of a generation.
func fill(dir string, files map[string]file, group *int) error {
	open := func(path string, mode fs.FileMode) error {
		if group != nil {
			if err := os.Lchown(path, -1, *group); err != nil {
				return err
			}
			if mode.IsDir() {
				mode |= fs.ModeSetgid
			}
		}
		return os.Chmod(path, mode) // past the umask
	}
	if err := open(dir, fs.ModeDir|0o755); err != nil {
		return err
	}
	for name, f := range files {
		path := filepath.Join(dir, name)
		for parent := filepath.Dir(name); parent != "."; parent = filepath.Dir(parent) {
			if err := os.MkdirAll(filepath.Join(dir, parent), 0o755); err != nil {
				return err
			}
			if err := open(filepath.Join(dir, parent), fs.ModeDir|0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(path, f.data, 0o600); err != nil {
			return err
		}
		if err := open(path, f.mode); err != nil {
			return err
		}
		if f.owner != nil {
			if err := os.Lchown(path, *f.owner, -1); err != nil {
				return err
			}
		}
	}
	return nil
}

// holds says whether a generation is made of exactly these files.
func holds(dir string, want map[string]file) bool {
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, ok := want[name]
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !ok || info.Mode() != f.mode || info.Size() != int64(len(f.data)) {
			return fs.ErrInvalid
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(data, f.data) {
			return fs.ErrInvalid
		}
		seen++
		return nil
	})
	return err == nil && seen == len(want)
}

// link makes the names at the top what the files are, and removes others.
func link(dir string, files map[string]file) error {
	names := map[string]bool{}
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		names[top] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		if names[e.Name()] {
			if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && to == dataLink+"/"+e.Name() {
				delete(names, e.Name())
				continue
			}
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	for name := range maps.Keys(names) {
		if err := os.Symlink(dataLink+"/"+name, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// forget removes all generations but those to keep.
func forget(dir string, keep ...string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if !e.IsDir() || !strings.HasPrefix(name, generationPrefix) || name == keep[0] || name == keep[1] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
