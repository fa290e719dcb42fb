package raftstore

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/holdfast-io/holdfast/raftstore/seal"
)

// rows is a LogStore in memory whose contents a test can see and damage. It fails
// after a number of writes, as a process that was killed between two of them.
type rows struct {
	m     map[uint64]raft.Log
	fuse  int // writes that still work; -1: all
	wrote int
}

func newRows() *rows { return &rows{m: make(map[uint64]raft.Log), fuse: -1} }

func (r *rows) clone() *rows {
	c := &rows{m: maps.Clone(r.m), fuse: -1}
	for index, e := range c.m {
		e.Data = bytes.Clone(e.Data)
		c.m[index] = e
	}
	return c
}

var errKilled = errors.New("killed")

func (r *rows) write() error {
	if r.fuse == 0 {
		return errKilled
	}
	r.fuse--
	r.wrote++
	return nil
}

func (r *rows) FirstIndex() (uint64, error) {
	if len(r.m) == 0 {
		return 0, nil
	}
	return slices.Min(slices.Collect(maps.Keys(r.m))), nil
}

func (r *rows) LastIndex() (uint64, error) {
	if len(r.m) == 0 {
		return 0, nil
	}
	return slices.Max(slices.Collect(maps.Keys(r.m))), nil
}

func (r *rows) GetLog(index uint64, e *raft.Log) error {
	have, ok := r.m[index]
	if !ok {
		return raft.ErrLogNotFound
	}
	have.Data = bytes.Clone(have.Data) // as a database does
	*e = have
	return nil
}

func (r *rows) StoreLog(e *raft.Log) error { return r.StoreLogs([]*raft.Log{e}) }

func (r *rows) StoreLogs(entries []*raft.Log) error {
	if err := r.write(); err != nil {
		return err
	}
	for _, e := range entries {
		r.m[e.Index] = *e
	}
	return nil
}

func (r *rows) DeleteRange(first, last uint64) error {
	if err := r.write(); err != nil {
		return err
	}
	maps.DeleteFunc(r.m, func(index uint64, _ raft.Log) bool { return index >= first && index <= last })
	return nil
}

func ringIn(t testing.TB, dir string, owner seal.Owner) *seal.Ring {
	t.Helper()
	keys, err := seal.NewKeys(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := seal.OpenRing(filepath.Join(dir, "ring"), owner, keys)
	if errors.Is(err, fs.ErrNotExist) {
		ring, err = seal.MakeRing(filepath.Join(dir, "ring"), owner, keys)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func testRing(t testing.TB) *seal.Ring {
	return ringIn(t, t.TempDir(), seal.Owner{Cluster: "c", Peer: "p1"})
}

// mustOpen opens a log, which gets an end if it has none.
func mustOpen(t testing.TB, under raft.LogStore, ring *seal.Ring) *sealedLog {
	t.Helper()
	l, err := openSealedLog(under, ring)
	if err == nil {
		err = l.establish()
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func entry(index, term uint64) *raft.Log {
	e := &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: []byte(fmt.Sprintf("entry %d of term %d", index, term))}
	switch index % 4 {
	case 0:
		e.Type, e.Data = raft.LogNoop, nil
	case 1:
		e.Extensions = []byte("more")
	}
	return e
}

func appendTo(t testing.TB, l raft.LogStore, first, last, term uint64) {
	t.Helper()
	var entries []*raft.Log
	for index := first; index <= last; index++ {
		entries = append(entries, entry(index, term))
	}
	if err := l.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
}

// text is what a log holds.
func text(t testing.TB, l raft.LogStore) string {
	t.Helper()
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	var b strings.Builder
	for index := first; index <= last && first > 0; index++ {
		var e raft.Log
		if err := l.GetLog(index, &e); err == nil {
			fmt.Fprintf(&b, "%d/%d/%d %s+%s\n", e.Index, e.Term, e.Type, e.Data, e.Extensions)
		} else if !errors.Is(err, raft.ErrLogNotFound) {
			t.Fatalf("entry %d: %v", index, err)
		}
	}
	return b.String()
}

// TestSealedLog compares the log with a plain one over random appends, gaps as
// installed snapshots leave them, cuts at both ends, restarts, and new keys with the
// old ones dropped.
func TestSealedLog(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 9))
		dir := t.TempDir()
		open := func(under raft.LogStore) (*sealedLog, *seal.Ring) {
			ring := ringIn(t, dir, seal.Owner{Cluster: "c", Peer: "p1"})
			return mustOpen(t, under, ring), ring
		}
		under, plain := newRows(), newRows()
		l, ring := open(under)
		last, term := uint64(0), uint64(1)
		for range 150 {
			first, _ := plain.FirstIndex()
			var err, want error
			switch n := r.IntN(14); {
			case n == 0 && last > 0 && first > 0:
				cut := first + r.Uint64N(last-first+1)
				err, want = l.DeleteRange(first, cut), plain.DeleteRange(first, cut)
			case n == 1 && last > 0 && first > 0:
				from := first + r.Uint64N(last-first+1)
				err, want = l.DeleteRange(from, last), plain.DeleteRange(from, last)
				last, _ = plain.LastIndex()
				term++
			case n == 2:
				last += r.Uint64N(5)
			case n == 3:
				l, ring = open(under)
			case n == 4:
				if err = ring.Rotate(); err == nil {
					err = l.establish()
				}
				needed := map[uint32]bool{}
				l.addKeys(needed)
				err = errors.Join(err, ring.Keep(needed))
			case n == 5 && first > 0 && last > first: // over what is there
				from := first + 1 + r.Uint64N(last-first)
				want = plain.DeleteRange(from, last)
				term++
				err = l.StoreLog(entry(from, term))
				want = errors.Join(want, plain.StoreLog(entry(from, term)))
				last = from
			default:
				k := r.Uint64N(5) + 1
				appendTo(t, l, last+1, last+k, term)
				appendTo(t, plain, last+1, last+k, term)
				last += k
			}
			if err != nil || want != nil {
				t.Fatal(err, want)
			}
			if have, want := text(t, l), text(t, plain); have != want {
				t.Fatalf("seed %d: log is\n%swant\n%s", seed, have, want)
			}
			end, _ := l.LastIndex()
			if want, _ := plain.LastIndex(); end != want {
				t.Fatalf("seed %d: last index %d, want %d", seed, end, want)
			}
		}
	}
}

// TestSealedLogDamage damages each row in each way: the log is refused when opened,
// and the entry never served when it is open already.
func TestSealedLogDamage(t *testing.T) {
	ring := testRing(t)
	under := newRows()
	l := mustOpen(t, under, ring)
	appendTo(t, l, 1, 6, 1)
	older := under.clone() // what a lost write leaves
	if err := l.DeleteRange(4, 6); err != nil {
		t.Fatal(err)
	}
	appendTo(t, l, 4, 9, 2)

	otherRows := newRows()
	otherRing := ringIn(t, t.TempDir(), seal.Owner{Cluster: "c", Peer: "p2"})
	other := mustOpen(t, otherRows, otherRing)
	appendTo(t, other, 1, 3, 1)
	appendTo(t, other, 4, 9, 2)

	refused := func(what string, damage func(*rows)) {
		t.Helper()
		copied := under.clone()
		damage(copied)
		if _, err := openSealedLog(copied, ring); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: opened with %v", what, err)
		}
		// And while it is open, where it is an entry that is asked for.
		live := under.clone()
		l := mustOpen(t, live, ring)
		want := text(t, l)
		damage(live)
		seen := 0
		for index := range uint64(10) {
			var e raft.Log
			switch err := l.GetLog(index, &e); {
			case errors.Is(err, ErrDamaged), errors.Is(err, raft.ErrLogNotFound) && index == 0:
				seen++
			case err != nil:
				t.Errorf("%s: entry %d: %v", what, index, err)
			case !strings.Contains(want, fmt.Sprintf("%d/%d/%d %s+%s\n", e.Index, e.Term, e.Type, e.Data, e.Extensions)):
				t.Errorf("%s: served entry %d as %+v", what, index, e)
			}
		}
	}
	for index := range under.m {
		name := fmt.Sprintf("row %d", index)
		for at := range under.m[index].Data {
			refused(fmt.Sprintf("%s, byte %d flipped", name, at), func(r *rows) { r.m[index].Data[at] ^= 4 })
		}
		refused(name+" cut short", func(r *rows) {
			e := r.m[index]
			e.Data = e.Data[:len(e.Data)-1]
			r.m[index] = e
		})
		if index != 1 { // which may have been cut off; see TestDirectoryDamage
			refused(name+" missing", func(r *rows) { delete(r.m, index) })
		}
		refused(name+" from another peer", func(r *rows) { r.m[index] = otherRows.clone().m[index] })
		refused(name+" from before", func(r *rows) {
			if e, ok := older.clone().m[index]; ok && index > 3 {
				r.m[index] = e
			} else {
				delete(r.m, endIndex) // nothing older: as the others
			}
		})
		if index != endIndex {
			refused(name+" not sealed", func(r *rows) { r.m[index] = *entry(index, 2) })
		}
		refused(name+" in the place of another", func(r *rows) {
			a, b := r.m[index], r.m[2]
			if index == 2 {
				b = r.m[3]
			}
			a.Data, b.Data = b.Data, a.Data
			r.m[index] = a
		})
	}
	// The whole of an older state is whole; see files.agree for what finds it.
	if _, err := openSealedLog(older, ring); err != nil {
		t.Error(err)
	}
}

// TestSealedLogCrash kills the process between any two writes: what was acknowledged
// is there, and nothing that was not asked for.
func TestSealedLogCrash(t *testing.T) {
	ring := testRing(t)
	for fuse := 0; ; fuse++ {
		under := newRows()
		l := mustOpen(t, under, ring)
		appendTo(t, l, 1, 5, 1)
		before := text(t, l)
		under.fuse, under.wrote = fuse, 0
		err := func() error {
			if err := l.DeleteRange(3, 5); err != nil {
				return err
			}
			if err := l.StoreLogs([]*raft.Log{entry(3, 2), entry(4, 2)}); err != nil {
				return err
			}
			if err := l.DeleteRange(1, 2); err != nil {
				return err
			}
			return l.DeleteRange(3, 9) // all
		}()
		under.fuse = -1
		after := mustOpen(t, under, ring)
		var states []string // in order of the writes
		model := newRows()
		appendTo(t, model, 1, 5, 1)
		states = append(states, before)
		_ = model.DeleteRange(3, 5)
		states = append(states, text(t, model), text(t, model))
		appendTo(t, model, 3, 4, 2)
		states = append(states, text(t, model))
		_ = model.DeleteRange(1, 2)
		states = append(states, text(t, model), "", "")
		if have := text(t, after); have != states[min(fuse, len(states)-1)] {
			t.Errorf("killed after %d writes: log is\n%swant\n%s", fuse, have, states[fuse])
		}
		appendTo(t, after, 20, 21, 3)
		again := mustOpen(t, under, ring)
		if have, want := text(t, again), text(t, after); have != want {
			t.Errorf("killed after %d writes, then appended and opened again:\n%swant\n%s", fuse, have, want)
		}
		if err == nil {
			if fuse != len(states)-1 {
				t.Errorf("%d writes, want %d", fuse, len(states)-1)
			}
			break
		}
	}
}

// dirConfig is the configuration of a peer in dir.
func dirConfig(t testing.TB, dir string) Config {
	return Config{ID: "p1", ClusterID: "c", Dir: dir, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

// opened opens a directory, or returns the error. It is closed by the test.
func opened(t testing.TB, dir string) (*files, error) {
	t.Helper()
	storage, done, err := openStorage(dirConfig(t, dir))
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = done() })
	return storage.files, nil
}

// use opens a directory for a while.
func use(t testing.TB, dir string, fn func(*files)) {
	t.Helper()
	storage, done, err := openStorage(dirConfig(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	fn(storage.files)
	if err := done(); err != nil {
		t.Fatal(err)
	}
}

func vote(t testing.TB, s raft.StableStore, term uint64, candidate string) {
	t.Helper()
	err := errors.Join(s.SetUint64([]byte(keyTerm), term), s.SetUint64([]byte(keyVoteTerm), term), s.Set([]byte(keyVoteCand), []byte(candidate)))
	if err != nil {
		t.Fatal(err)
	}
}

func snapshotTo(t testing.TB, s raft.SnapshotStore, index, term uint64, content string) {
	t.Helper()
	conf := raft.Configuration{Servers: []raft.Server{{ID: "p1", Address: "a:1"}}}
	_, transport := raft.NewInmemTransport("") // of use for the format before
	sink, err := s.Create(1, index, term, conf, 1, transport)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(sink, content); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sink.Close(), sink.Close()); err != nil {
		t.Fatal(err)
	}
}

func snapshotText(t testing.TB, s raft.SnapshotStore) string {
	t.Helper()
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 {
		return "none"
	}
	meta, r, err := s.Open(list[0].ID)
	if err != nil {
		return err.Error()
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil || int64(len(data)) != meta.Size || meta.Size != list[0].Size {
		t.Errorf("snapshot %s: %d bytes of %d, %v", meta.ID, len(data), meta.Size, err)
	}
	return fmt.Sprintf("%d/%d %s %v", meta.Index, meta.Term, data, meta.Configuration)
}

// contents is all that a directory says.
func contents(t testing.TB, f *files) string {
	t.Helper()
	v := f.votes.get()
	return fmt.Sprintf("%d %d %s %d\n%s\n%s", v.term, v.voteTerm, v.candidate, v.floor, snapshotText(t, f.snaps), text(t, f.log))
}

// filled makes a directory with some of everything: a log that was cut at both ends,
// and two snapshots, the older of which it reaches back to, if reach is set.
func filled(t testing.TB, reach bool) (dir, want string) {
	dir = t.TempDir()
	use(t, dir, func(f *files) {
		vote(t, f.votes, 1, "p1")
		appendTo(t, f.log, 1, 30, 1)
		for index := uint64(31); index < 40; index++ { // pages of their own
			e := entry(index, 1)
			e.Data = bytes.Repeat([]byte{byte(index)}, 3000)
			if err := f.log.StoreLog(e); err != nil {
				t.Fatal(err)
			}
		}
		vote(t, f.votes, 2, "p2")
		if err := f.log.DeleteRange(38, 39); err != nil {
			t.Fatal(err)
		}
		appendTo(t, f.log, 38, 45, 2)
		snapshotTo(t, f.snaps, 10, 1, strings.Repeat("older", 50_000))
		snapshotTo(t, f.snaps, 20, 1, strings.Repeat("newer", 50_000))
		cut := uint64(8)
		if !reach {
			cut = 15
		}
		if err := f.log.DeleteRange(1, cut); err != nil {
			t.Fatal(err)
		}
	})
	use(t, dir, func(f *files) { want = contents(t, f) })
	return dir, want
}

// copied copies a directory, as a crash would leave it.
func copied(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	_ = os.Chmod(filepath.Join(to, keyFile), 0o600)
	return to
}

// flip changes a bit of a file.
func flip(t testing.TB, path string, at int64, bit int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << bit
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// TestBitFlips flips bits in each file of a peer. The directory is refused, or it
// says exactly what it said before: the bit was in a part that nothing uses, or
// another copy took over.
func TestBitFlips(t *testing.T) {
	t.Parallel()
	dir, want := filled(t, true)
	r := rand.New(rand.NewPCG(5, 5))
	paths := []string{logFile, votesName, ringFile, keyFile, identityFile}
	snaps, _ := filepath.Glob(filepath.Join(dir, snapshotDir, "*"+snapshotSuffix))
	if len(snaps) != 2 {
		t.Fatalf("snapshots: %v", snaps)
	}
	for _, path := range snaps {
		paths = append(paths, filepath.Join(snapshotDir, filepath.Base(path)))
	}
	older := strings.Replace(want, "20/1 "+strings.Repeat("newer", 50_000), "10/1 "+strings.Repeat("older", 50_000), 1)
	for _, path := range paths {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		tries := 15
		if path == logFile {
			tries = 80
		}
		refused, same, stoodIn := 0, 0, 0
		for i := range tries {
			at := r.Int64N(info.Size())
			if path == logFile && i%2 == 0 { // the pages' headers and first elements
				at = at/4096*4096 + r.Int64N(120)
			}
			damagedDir := copied(t, dir)
			flip(t, filepath.Join(damagedDir, path), at, r.IntN(8))
			f, err := opened(t, damagedDir)
			switch {
			case err != nil:
				refused++
				if path != identityFile && path != keyFile && !errors.Is(err, ErrDamaged) && !strings.Contains(err.Error(), ringFile) {
					t.Errorf("%s, byte %d flipped: %v", path, at, err)
				}
			case contents(t, f) == want:
				same++
			case contents(t, f) == older && path == paths[len(paths)-1]:
				stoodIn++
			default:
				t.Errorf("%s, byte %d flipped: it says\n%s", path, at, contents(t, f))
			}
		}
		t.Logf("%s: %d flips, %d refused, %d without effect, %d where the older one stood in", path, tries, refused, same, stoodIn)
		if path == logFile && refused < tries/10 {
			t.Errorf("only %d of %d flips in %s were refused", refused, tries, path)
		}
	}
}

// TestDirectoryDamage covers files that are missing, cut short, or older copies: the
// directory is refused, with a sentence that names what is wrong and says what to do.
func TestDirectoryDamage(t *testing.T) {
	whole, want := filled(t, true)
	short, _ := filled(t, false)
	newest := func(dir string) string {
		snaps, _ := filepath.Glob(filepath.Join(dir, snapshotDir, "1-20-*"))
		return snaps[0]
	}
	oldest := func(dir string) string {
		snaps, _ := filepath.Glob(filepath.Join(dir, snapshotDir, "1-10-*"))
		return snaps[0]
	}
	remove := func(t *testing.T, paths ...string) {
		for _, path := range paths {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	replace := func(t *testing.T, from, to string) {
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		dir    string
		damage func(t *testing.T, dir string)
		says   string // empty: it opens
	}{
		"nothing": {whole, func(*testing.T, string) {}, ""},
		"no log":  {whole, func(t *testing.T, dir string) { remove(t, filepath.Join(dir, logFile)) }, logFile + ": it is missing"},
		"log cut short": {whole, func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, logFile), 20000); err != nil {
				t.Fatal(err)
			}
		}, logFile + ": it has 20000 bytes"},
		"log empty": {whole, func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, logFile), 0); err != nil {
				t.Fatal(err)
			}
		}, logFile},
		"no votes": {whole, func(t *testing.T, dir string) { remove(t, filepath.Join(dir, votesName)) }, "no telling how this peer has voted"},
		"votes cut short": {whole, func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, votesName), 100); err != nil {
				t.Fatal(err)
			}
		}, "votes file"},
		"half of the votes": {whole, func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, votesName), voteSlot); err != nil {
				t.Fatal(err)
			}
		}, ""},
		"no keys":         {whole, func(t *testing.T, dir string) { remove(t, filepath.Join(dir, ringFile)) }, "the keys to everything"},
		"no key of keys":  {whole, func(t *testing.T, dir string) { remove(t, filepath.Join(dir, keyFile)) }, keyFile},
		"no identity":     {whole, func(t *testing.T, dir string) { remove(t, filepath.Join(dir, identityFile)) }, "says whose it is"},
		"no old snapshot": {whole, func(t *testing.T, dir string) { remove(t, oldest(dir)) }, ""},
		"no snapshots, log cut": {
			whole, func(t *testing.T, dir string) { remove(t, oldest(dir), newest(dir)) },
			"a snapshot of index 20 is missing",
		},
		"newest snapshot damaged, log cut": {
			short, func(t *testing.T, dir string) { flip(t, newest(dir), 70_000, 1) },
			"the log does not reach back",
		},
		"newest snapshot missing, log cut": {
			short, func(t *testing.T, dir string) { remove(t, newest(dir)) },
			"a snapshot of index 20 is missing",
		},
		"log begins too late": {whole, func(t *testing.T, dir string) {
			use(t, dir, func(f *files) {
				if err := f.log.DeleteRange(1, 25); err != nil {
					t.Fatal(err)
				}
			})
		}, "all entries from 21"},
		"a snapshot under another's name": {
			short, func(t *testing.T, dir string) { replace(t, oldest(dir), newest(dir)) },
			"under another's name",
		},
		"another peer's snapshot": {
			short, func(t *testing.T, dir string) { replace(t, newest(whole), newest(dir)) },
			"damaged",
		},
		"another peer's votes": {whole, func(t *testing.T, dir string) {
			replace(t, filepath.Join(short, votesName), filepath.Join(dir, votesName))
		}, "votes file"},
		"another peer's log": {whole, func(t *testing.T, dir string) {
			replace(t, filepath.Join(short, logFile), filepath.Join(dir, logFile))
		}, "the end of the log"},
		"what a crash left": {whole, func(t *testing.T, dir string) {
			for _, path := range []string{"snapshots/1-30-1.snap.tmp", "keys.json.1.tmp"} {
				if err := os.WriteFile(filepath.Join(dir, path), []byte("half"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copied(t, c.dir)
			c.damage(t, dir)
			f, err := opened(t, dir)
			switch {
			case c.says == "" && err != nil:
				t.Fatal(err)
			case c.says == "":
				if have := contents(t, f); have != want {
					t.Errorf("it says\n%s", have)
				}
				if left, _ := filepath.Glob(filepath.Join(dir, snapshotDir, "*"+seal.TempSuffix)); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
			case err == nil:
				t.Errorf("opened; want an error with %q", c.says)
			case !strings.Contains(err.Error(), c.says):
				t.Errorf("refused with %q; want %q in it", err, c.says)
			case errors.Is(err, ErrDamaged) && !strings.Contains(err.Error(), "join as a new peer"):
				t.Errorf("%q does not say what to do", err)
			}
		})
	}
}

// TestOlderVotes covers votes put back from before: whole, and a lie, which the log's
// term gives away. (Without a new term in the log nothing on this machine could.)
func TestOlderVotes(t *testing.T) {
	dir := t.TempDir()
	use(t, dir, func(f *files) {
		vote(t, f.votes, 1, "p1")
		appendTo(t, f.log, 1, 10, 1)
	})
	before, err := os.ReadFile(filepath.Join(dir, votesName))
	if err != nil {
		t.Fatal(err)
	}
	use(t, dir, func(f *files) {
		vote(t, f.votes, 5, "p2")
		appendTo(t, f.log, 11, 20, 5)
	})
	if err := os.WriteFile(filepath.Join(dir, votesName), before, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := opened(t, dir); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "older copy") {
		t.Errorf("votes of an older term: %v", err)
	}
}

// TestVotesCrash kills a write of the votes after any number of bytes: what is read
// next is the state before, or the new one once it may have been told to anybody.
func TestVotesCrash(t *testing.T) {
	ring := testRing(t)
	path := filepath.Join(t.TempDir(), "votes")
	v, err := makeVotes(path, ring, votes{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.GetUint64([]byte(keyTerm)); err == nil || err.Error() != stableAbsent {
		t.Errorf("term of new votes: %v", err)
	}
	vote(t, v, 7, "p1")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The vote's term alone is no vote yet.
	if err := v.SetUint64([]byte(keyVoteTerm), 9); err != nil {
		t.Fatal(err)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(now, before) {
		t.Error("half a vote was written")
	}
	if err := v.SetUint64([]byte(keyTerm), 7); err != nil {
		t.Fatal(err)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(now, before) {
		t.Error("a term that had not changed was written")
	}
	if err := v.Set([]byte(keyVoteCand), []byte("p2")); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n <= len(after); n += 97 {
		for _, tear := range []bool{false, true} {
			now := append(bytes.Clone(after[:n]), before[n:]...)
			if tear && n < len(now) { // the sector at the edge has neither
				clear(now[n/512*512 : min(n/512*512+512, len(now))])
			}
			if err := os.WriteFile(path, now, 0o600); err != nil {
				t.Fatal(err)
			}
			v, _, err := openVotes(path, ring)
			if err != nil {
				t.Fatalf("%d bytes written: %v", n, err)
			}
			have := fmt.Sprintf("%d %d %s", v.get().term, v.get().voteTerm, v.get().candidate)
			if have != "7 7 p1" && have != "7 9 p2" || n >= voteSlot && !tear && have != "7 9 p2" {
				t.Errorf("%d bytes written: %s", n, have)
			}
			if err := errors.Join(v.rewrite(), v.close()); err != nil {
				t.Fatal(err)
			}
			if v, note, err := openVotes(path, ring); err != nil || note != "" {
				t.Errorf("%d bytes written, and mended: %q, %v", n, note, err)
			} else {
				v.close()
			}
		}
	}
	// A write that fails is the last.
	v.close()
	if err := v.SetUint64([]byte(keyTerm), 10); err == nil {
		t.Error("wrote to a closed file")
	}
	v.file, _ = os.OpenFile(path, os.O_RDWR, 0)
	if err := v.SetUint64([]byte(keyTerm), 10); err == nil {
		t.Error("wrote after a write that failed")
	}
	v.close()
	if err := v.Set([]byte("else"), nil); err == nil {
		t.Error("kept something else")
	}
	if _, err := v.encode(0, &votes{candidate: make([]byte, maxVotes)}); err == nil {
		t.Error("a candidate that does not fit")
	}
}

// TestFirstStartCrash interrupts the first start between any two files: the next one
// goes on.
func TestFirstStartCrash(t *testing.T) {
	whole := t.TempDir()
	use(t, whole, func(*files) {})
	order := []string{identityFile, logFile, keyFile, ringFile, votesName}
	for n := range order {
		dir := copied(t, whole)
		for _, name := range order[n+1:] {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		if n < len(order)-1 { // the log's end is written last
			bolt, err := raftboltdb.NewBoltStore(filepath.Join(dir, logFile))
			if err == nil {
				err = errors.Join(bolt.DeleteRange(endIndex, endIndex), bolt.Close())
			}
			if n == 0 {
				err = errors.Join(err, os.Remove(filepath.Join(dir, logFile)))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if n == 1 { // half of the database
			if err := os.Truncate(filepath.Join(dir, logFile), 8192); err != nil {
				t.Fatal(err)
			}
		}
		use(t, dir, func(f *files) {
			vote(t, f.votes, 1, "p1")
			appendTo(t, f.log, 1, 3, 1)
		})
		use(t, dir, func(f *files) {
			if last := f.log.last().Index; last != 3 || f.votes.get().term != 1 {
				t.Errorf("after %d files: last %d, term %d", n+1, last, f.votes.get().term)
			}
		})
	}
}

// TestUpgrade covers a directory of the format before: it says the same, and what is
// written from then on is sealed.
func TestUpgrade(t *testing.T) {
	for _, withSnapshot := range []bool{false, true} {
		t.Run(fmt.Sprint(withSnapshot), func(t *testing.T) {
			dir := t.TempDir()
			bolt, err := raftboltdb.NewBoltStore(filepath.Join(dir, logFile))
			if err != nil {
				t.Fatal(err)
			}
			vote(t, bolt, 3, "p2")
			appendTo(t, bolt, 1, 20, 3)
			snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, newRaftLogger(slog.New(slog.DiscardHandler)))
			if err != nil {
				t.Fatal(err)
			}
			snapshot := "none"
			if withSnapshot {
				snapshotTo(t, snaps, 5, 3, "older")
				snapshotTo(t, snaps, 12, 3, strings.Repeat("state", 40_000))
				snapshot = snapshotText(t, snaps)
				if err := bolt.DeleteRange(1, 9); err != nil {
					t.Fatal(err)
				}
			}
			plain := text(t, bolt)
			if err := bolt.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, identityFile), []byte(`{"cluster":"c","peer":"p1"}`), 0o600); err != nil {
				t.Fatal(err)
			}
			before := copied(t, dir)

			check := func(f *files, log string) {
				t.Helper()
				if v := f.votes.get(); v.term != 3 || v.voteTerm != 3 || string(v.candidate) != "p2" {
					t.Errorf("votes %+v", v)
				}
				if have := snapshotText(t, f.snaps); have != snapshot {
					t.Errorf("snapshot %.100s", have)
				}
				if have := text(t, f.log); have != log {
					t.Errorf("log\n%s", have)
				}
			}
			var both string
			use(t, dir, func(f *files) {
				check(f, plain)
				appendTo(t, f.log, 21, 25, 3)
				both = text(t, f.log)
			})
			if old, _ := filepath.Glob(filepath.Join(dir, snapshotDir, "*", "meta.json")); len(old) > 0 {
				t.Errorf("left: %v", old)
			}
			use(t, dir, func(f *files) { check(f, both) })
			data, err := os.ReadFile(filepath.Join(dir, logFile))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(data, []byte("entry 22 of")) || !bytes.Contains(data, []byte("entry 18 of")) {
				t.Error("entries are readable that should not be, or the test looks in the wrong place")
			}
			// The votes of before, which are still in the database, do not come back.
			lost := copied(t, dir)
			if err := os.Remove(filepath.Join(lost, votesName)); err != nil {
				t.Fatal(err)
			}
			if _, err := opened(t, lost); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "how this peer has voted") {
				t.Errorf("without votes: %v", err)
			}
			// The log from before the upgrade, put back.
			old, err := os.ReadFile(filepath.Join(before, logFile))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, logFile), old, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := opened(t, dir); !errors.Is(err, ErrDamaged) {
				t.Errorf("the log of before: %v", err)
			}
			// Votes that were lost before the upgrade.
			bolt, err = raftboltdb.NewBoltStore(filepath.Join(before, logFile))
			if err == nil {
				err = errors.Join(bolt.SetUint64([]byte(keyTerm), 0), bolt.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := opened(t, before); !errors.Is(err, ErrDamaged) {
				t.Errorf("a log without votes: %v", err)
			}
		})
	}
}

// TestKeysFromElsewhere covers Config.Keys: no key lies in the directory, and it opens
// with these keys alone.
func TestKeysFromElsewhere(t *testing.T) {
	cfg := dirConfig(t, t.TempDir())
	open := func(key byte) error {
		cfg.Keys = nil
		if key != 0 {
			var err error
			if cfg.Keys, err = seal.NewKeys(bytes.Repeat([]byte{key}, 32)); err != nil {
				t.Fatal(err)
			}
		}
		_, done, err := openStorage(cfg)
		if err == nil {
			err = done()
		}
		return err
	}
	if err := errors.Join(open(1), open(1)); err != nil {
		t.Fatal(err)
	}
	if err := open(2); !errors.Is(err, ErrDamaged) {
		t.Errorf("with other keys: %v", err)
	}
	if err := open(0); err == nil || !strings.Contains(err.Error(), keyFile) {
		t.Errorf("with a key file that is not there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, keyFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key file: %v", err)
	}
}

// TestKeysAreForgotten covers rotation: old keys stay while something needs them, and
// go with the log's cut.
func TestKeysAreForgotten(t *testing.T) {
	dir := t.TempDir()
	use(t, dir, func(f *files) {
		d := testDisk(func(err error) { t.Error(err) })
		rotate := func() {
			t.Helper()
			if err := errors.Join(f.rotate(d), f.dropKeys()); err != nil {
				t.Fatal(err)
			}
		}
		keys := func(want string) {
			t.Helper()
			if have := fmt.Sprint(f.ring.Numbers()); have != want {
				t.Errorf("keys %s, want %s", have, want)
			}
		}
		vote(t, f.votes, 1, "p1")
		appendTo(t, f.log, 1, 3, 1)
		rotate()
		rotate() // nothing was sealed with key 2
		keys("[1 3]")
		appendTo(t, f.log, 4, 6, 1)
		sink, err := f.snaps.Create(1, 5, 1, raft.Configuration{}, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		rotate()
		if err := errors.Join(f.log.DeleteRange(1, 5), f.log.DeleteRange(6, 6)); err != nil {
			t.Fatal(err)
		}
		appendTo(t, f.log, 6, 7, 1)
		if err := f.dropKeys(); err != nil {
			t.Fatal(err)
		}
		keys("[3 4]") // the snapshot that is being written
		if err := sink.Close(); err != nil {
			t.Fatal(err)
		}
		rotate()
		keys("[3 4 5]")
		snapshotTo(t, f.snaps, 6, 1, "x")
		snapshotTo(t, f.snaps, 7, 1, "x")
		if err := f.log.DeleteRange(6, 6); err != nil {
			t.Fatal(err)
		}
		rotate()
		keys("[4 5 6]")
	})
	use(t, dir, func(f *files) {
		if text(t, f.log) == "" || snapshotText(t, f.snaps) == "none" {
			t.Error("lost something")
		}
	})
}

// TestSnapshotIsReadBack covers a disk that did not write what it was given: the
// snapshot does not become visible, and raft does not cut its log.
func TestSnapshotIsReadBack(t *testing.T) {
	use(t, t.TempDir(), func(f *files) {
		snapshotTo(t, f.snaps, 1, 1, "first")
		for what, damage := range map[string]func(path string) error{
			"flipped":   func(path string) error { flip(t, path, 60, 3); return nil },
			"cut short": func(path string) error { return os.Truncate(path, 50) },
			"gone":      os.Remove,
		} {
			sink, err := f.snaps.Create(1, 2, 1, raft.Configuration{}, 0, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := sink.Write(bytes.Repeat([]byte("x"), 200_000)); err != nil {
				t.Fatal(err)
			}
			// What is in the file by now; the rest follows with Close.
			if err := damage(filepath.Join(f.snaps.dir, sink.ID()+snapshotSuffix+seal.TempSuffix)); err != nil {
				t.Fatal(err)
			}
			if err := sink.Close(); err == nil {
				t.Errorf("%s: the snapshot counts", what)
			}
			if err := sink.Close(); err == nil {
				t.Errorf("%s: the snapshot counts when closed again", what)
			}
			if have := snapshotText(t, f.snaps); !strings.HasPrefix(have, "1/1 first") {
				t.Errorf("%s: newest snapshot %s", what, have)
			}
		}
		left, _ := filepath.Glob(filepath.Join(f.snaps.dir, "*"))
		if len(left) != 1 {
			t.Errorf("files: %v", left)
		}
		if f.votes.get().floor != 1 {
			t.Errorf("floor %d", f.votes.get().floor)
		}
		// Damaged later: nothing of that chunk is read, and it is reported.
		reported := 0
		f.onDamage(func(error) { reported++ })
		flip(t, left[0], 60, 0)
		if have := snapshotText(t, f.snaps); strings.Contains(have, "first") || reported == 0 {
			t.Errorf("a damaged snapshot reads as %q, reported %d times", have, reported)
		}
		// No room to write another.
		f.snaps.space = func() (Space, error) { return Space{Free: 5, Total: 100}, nil }
		if _, err := f.snaps.Create(1, 3, 1, raft.Configuration{}, 0, nil); !errors.Is(err, ErrNoSpace) {
			t.Errorf("a snapshot without room: %v", err)
		}
	})
}

// unreadable is a log whose entries cannot be read.
type unreadable struct{ *rows }

func (unreadable) GetLog(uint64, *raft.Log) error { return damaged("log entry 1", seal.ErrDamaged) }

// TestUnreadableEntryStopsThePeer covers damage found while running: the disk is
// given up, as after a failed sync.
func TestUnreadableEntryStopsThePeer(t *testing.T) {
	var failed error
	d := testDisk(func(err error) { failed = err })
	l := newLogStore(unreadable{newRows()}, d, 0)
	if err := l.GetLog(1, new(raft.Log)); !errors.Is(err, ErrDamaged) || !errors.Is(failed, ErrDamaged) {
		t.Errorf("%v, failed with %v", err, failed)
	}
	if err := l.StoreLog(entry(2, 1)); !errors.Is(err, ErrDamaged) {
		t.Errorf("an append after that: %v", err)
	}
}

// TestMetaPageDamage covers the pages at the beginning of the log's database: bbolt
// takes the one of two that is whole, and so forgets the last append, if that is the
// older one.
func TestMetaPageDamage(t *testing.T) {
	dir := t.TempDir()
	use(t, dir, func(f *files) {
		vote(t, f.votes, 1, "p1")
		appendTo(t, f.log, 1, 3, 1)
		appendTo(t, f.log, 4, 4, 1) // the last transaction: closing writes nothing
	})
	path := filepath.Join(dir, logFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for page := range int64(2) {
		for at := int64(boltPageHeader); at < boltPageHeader+64; at++ {
			flip(t, path, page*int64(os.Getpagesize())+at, 5)
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := checkBolt(f); err == nil {
				t.Errorf("byte %d of meta page %d flipped, unnoticed", at, page)
			}
			f.Close()
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	flip(t, path, boltPageHeader+50, 0)
	if _, err := opened(t, dir); !errors.Is(err, ErrDamaged) {
		t.Errorf("opened: %v", err)
	}
}

var update = flag.Bool("update", false, "write the golden directory anew; only ever for a new version of a format")

// TestGoldenDirectory opens a directory that the first version of these formats has
// written. It must open for ever.
func TestGoldenDirectory(t *testing.T) {
	const golden = "testdata/dir-v1"
	if *update {
		if err := os.RemoveAll(golden); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		use(t, dir, func(f *files) {
			vote(t, f.votes, 2, "p2")
			appendTo(t, f.log, 1, 9, 2)
			snapshotTo(t, f.snaps, 7, 2, "the state")
			if err := f.log.DeleteRange(1, 5); err != nil {
				t.Fatal(err)
			}
		})
		if err := os.CopyFS(golden, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
	}
	use(t, copied(t, golden), func(f *files) {
		const want = `2 2 p2 7
7/2 the state {[{Voter p1 a:1}]}
6/2/0 entry 6 of term 2+
7/2/0 entry 7 of term 2+
8/2/1 +
9/2/0 entry 9 of term 2+more
`
		if have := contents(t, f); have != want {
			t.Errorf("it says\n%s", have)
		}
	})
}

// TestOpenIsFast bounds the time to open 64 MiB of log, all of it checked. It takes a
// tenth of a second of one core; the bound leaves room for a busy machine.
func TestOpenIsFast(t *testing.T) {
	dir := t.TempDir()
	use(t, dir, func(f *files) {
		vote(t, f.votes, 1, "p1")
		data := bytes.Repeat([]byte("entry..."), 32<<10)
		for index := uint64(1); index <= 256; index += 32 {
			var entries []*raft.Log
			for i := range uint64(32) {
				entries = append(entries, &raft.Log{Index: index + i, Term: 1, Data: data})
			}
			if err := f.log.StoreLogs(entries); err != nil {
				t.Fatal(err)
			}
		}
	})
	begin := time.Now()
	use(t, dir, func(f *files) {
		took := time.Since(begin)
		t.Logf("opened in %v", took)
		if took > 5*time.Second {
			t.Errorf("opening took %v", took)
		}
		if last := f.log.last().Index; last != 256 {
			t.Errorf("last index %d", last)
		}
	})
}
