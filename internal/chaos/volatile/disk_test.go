//go:build linux

package volatile

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func mountTest(t *testing.T) (*Disk, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := Mount(dir, filepath.Join(t.TempDir(), "backing"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return d, dir
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// syncFile is what a careful program does.
func syncFile(t *testing.T, path string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	must(t, err)
	_, err = f.Write(data)
	must(t, err, f.Sync(), f.Close())
}

func syncDir(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	must(t, f.Sync(), f.Close())
}

// lose loses power, with the seed of a loss of all that is not synced.
func lose(t *testing.T, d *Disk) Lost {
	t.Helper()
	for seed := uint64(0); ; seed++ {
		if rand.New(rand.NewPCG(seed, 0)).IntN(5) == 0 {
			lost, err := d.Lose(rand.New(rand.NewPCG(seed, 0)))
			must(t, err)
			return lost
		}
	}
}

func want(t *testing.T, path string, data []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if data == nil {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %q, %v; it should not exist", filepath.Base(path), got, err)
		}
		return
	}
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%s has %d bytes (%v), want %d: %.40q", filepath.Base(path), len(got), err, len(data), got)
	}
}

func TestWhatIsSyncedStays(t *testing.T) {
	d, dir := mountTest(t)
	old := bytes.Repeat([]byte("old "), 1000)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	syncFile(t, a, old)
	syncFile(t, b, old)
	syncDir(t, dir)

	f, err := os.OpenFile(a, os.O_RDWR|os.O_APPEND, 0)
	must(t, err)
	_, err = f.Write([]byte("not synced"))
	must(t, err)
	g, err := os.OpenFile(b, os.O_RDWR, 0)
	must(t, err)
	_, err = g.WriteAt([]byte("new!"), 512)
	must(t, err, g.Sync())
	_, err = g.WriteAt([]byte("lost"), 600)
	must(t, err, g.Truncate(100), g.Truncate(2000))
	want(t, a, append(bytes.Clone(old), "not synced"...)) // until then it is there
	must(t, f.Close(), g.Close())

	lost := lose(t, d)
	if lost.Sectors == 0 || lost.Files != 2 {
		t.Errorf("lost %+v", lost)
	}
	want(t, a, old)
	kept := bytes.Clone(old)
	copy(kept[512:], "new!")
	want(t, b, kept)
	if d.Syncs() != 4 {
		t.Errorf("%d syncs, want 4", d.Syncs())
	}
}

func TestNamesNeedASyncOfTheirDirectory(t *testing.T) {
	d, dir := mountTest(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	syncFile(t, path("a"), []byte("a"))
	syncFile(t, path("b"), []byte("b"))
	syncFile(t, path("gone"), []byte("gone"))
	must(t, os.Mkdir(path("d"), 0o700))
	syncFile(t, path("d/x"), []byte("x"))
	syncDir(t, path("d"))
	syncDir(t, dir)

	must(t, os.Rename(path("a"), path("b")), os.Remove(path("gone")), os.Rename(path("d"), path("e")))
	syncFile(t, path("e/y"), []byte("y"))
	syncFile(t, path("new"), []byte("new"))
	want(t, path("b"), []byte("a"))
	lost := lose(t, d)
	if lost.Names != 5 {
		t.Errorf("lost %+v, want 5 names", lost)
	}
	want(t, path("a"), []byte("a"))
	want(t, path("b"), []byte("b"))
	want(t, path("gone"), []byte("gone"))
	want(t, path("d/x"), []byte("x"))
	want(t, path("d/y"), nil)
	want(t, path("new"), nil)

	must(t, os.Rename(path("a"), path("b")), os.Remove(path("gone")), os.Rename(path("d"), path("e")))
	syncFile(t, path("e/y"), []byte("y"))
	syncDir(t, dir)
	if lost := lose(t, d); lost.Names != 1 { // e/y, in e
		t.Errorf("lost %+v, want 1 name", lost)
	}
	want(t, path("a"), nil)
	want(t, path("b"), []byte("a"))
	want(t, path("gone"), nil)
	want(t, path("e/x"), []byte("x"))
	want(t, path("e/y"), nil)
}

// TestSomeSectorsAreLost demands that what is left of a file that was not synced is
// old or new, sector by sector, and that mixtures happen.
func TestSomeSectorsAreLost(t *testing.T) {
	d, dir := mountTest(t)
	path := filepath.Join(dir, "f")
	r := rand.New(rand.NewPCG(1, 2))
	mixed := 0
	for range 30 {
		syncFile(t, path, bytes.Repeat([]byte{'o'}, 64*sectorSize))
		syncDir(t, dir)
		must(t, os.WriteFile(path, bytes.Repeat([]byte{'n'}, 64*sectorSize), 0o600))
		_, err := d.Lose(r)
		must(t, err)
		got, err := os.ReadFile(path)
		must(t, err)
		seen := map[byte]bool{}
		for s := 0; s < len(got); s += sectorSize {
			sector := got[s : s+sectorSize]
			if seen[sector[0]] = true; !bytes.Equal(sector, bytes.Repeat(sector[:1], sectorSize)) {
				t.Fatal("a sector is half written")
			}
		}
		if seen[0] && len(got) < 64*sectorSize {
			t.Fatalf("%d bytes with holes", len(got))
		}
		if seen['o'] && seen['n'] {
			mixed++
		}
	}
	if mixed == 0 {
		t.Error("no loss was partial")
	}
}
