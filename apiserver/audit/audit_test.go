package audit

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func open(t testing.TB, dir string, options ...func(*Config)) *Log {
	t.Helper()
	cfg := Config{Dir: dir, Peer: "p1"}
	for _, option := range options {
		option(&cfg)
	}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func record(n int) Record {
	return Record{User: "alice", Role: "admin", Verb: "create", Resource: "secrets", Namespace: "default", Name: fmt.Sprint("s", n), Outcome: "ok", Revision: int64(n)}
}

func faults(t testing.TB, l *Log) []string {
	t.Helper()
	v, err := l.Verify(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return v.Faults
}

// filled returns the directory of a log of 20 records beside its start, and its only
// file's lines, the header first.
func filled(t testing.TB) (dir string, lines []string) {
	t.Helper()
	dir = t.TempDir()
	l := open(t, dir)
	for n := range 20 {
		l.Append(record(n))
	}
	if found := faults(t, l); len(found) > 0 {
		t.Fatalf("a log that nobody touched: %q", found)
	}
	data, err := os.ReadFile(filepath.Join(dir, fileName(1)))
	if err != nil {
		t.Fatal(err)
	}
	return dir, strings.SplitAfter(strings.TrimSuffix(string(data), "\n"), "\n")
}

// TestTampering: whatever is done to the records, verifying tells, and names the place.
func TestTampering(t *testing.T) {
	for name, c := range map[string]struct {
		change func(lines []string) []string
		want   string
	}{
		"a word changed":      {func(l []string) []string { l[5] = strings.Replace(l[5], "alice", "mallo", 1); return l }, "record 5, or the one before it, was changed"},
		"a hash changed":      {func(l []string) []string { l[5] = "0" + l[5][1:]; return l }, "record 5, or the one before it, was changed"},
		"one removed":         {func(l []string) []string { return slices.Delete(l, 5, 6) }, "record 6 follows 4: some are missing"},
		"two swapped":         {func(l []string) []string { l[5], l[6] = l[6], l[5]; return l }, "record 6 follows 4"},
		"one added":           {func(l []string) []string { return slices.Insert(l, 5, l[5]) }, "record 5 follows 5"},
		"one that is nothing": {func(l []string) []string { return slices.Insert(l, 5, "hello\n") }, "line 6: is no record"},
		"another's":           {func(l []string) []string { l[0] = strings.Replace(l[0], "p1", "p2", 1); return l }, "the first line is not this log's"},
		"the first removed":   {func(l []string) []string { return slices.Delete(l, 1, 2) }, "record 2 follows 0"},
		"the last removed":    {func(l []string) []string { return l[:len(l)-1] }, "records 21 to 21 were cut off at the end"},
		"made anew": {func(l []string) []string {
			at := Head{}
			for i := 1; i < len(l); i++ {
				_, body, r, _ := parseLine([]byte(strings.TrimSuffix(l[i], "\n")))
				body = bytes.Replace(body, []byte("alice"), []byte("mallory"), 1)
				at = Head{r.Sequence, chain(at.Hash, body)}
				l[i] = fmt.Sprintf("%x %s\n", at.Hash, body)
			}
			return l
		}, "record 21, the newest, is not the one that was written"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, dir)
			for n := range 20 {
				l.Append(record(n))
			}
			path := filepath.Join(dir, fileName(1))
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			lines := c.change(strings.SplitAfter(strings.TrimSuffix(string(data), "\n"), "\n"))
			if err := os.WriteFile(path, []byte(strings.TrimSuffix(strings.Join(lines, ""), "\n")+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			found := faults(t, l)
			if len(found) == 0 || !strings.Contains(found[0], c.want) {
				t.Errorf("found %q, want %q", found, c.want)
			}
		})
	}
}

// TestWitnesses: a log that was made anew, or cut off, while its peer was down agrees
// with itself; what another peer has written down of it does not.
func TestWitnesses(t *testing.T) {
	dir, lines := filled(t)
	_, _, last, _ := parseLine([]byte(strings.TrimSuffix(lines[20], "\n")))
	hash, _, _, _ := parseLine([]byte(strings.TrimSuffix(lines[20], "\n")))
	other := open(t, t.TempDir(), func(c *Config) { c.Peer = "p2" })
	other.Witness("p1", Head{last.Sequence, hash})
	other.Witness("p1", Head{last.Sequence, hash}) // nothing new
	theirs, err := other.Verify(t.Context(), nil)
	if err != nil || len(theirs.Heads) != 1 || theirs.Heads[0].Peer != "p1" || theirs.Last != 2 {
		t.Fatalf("%+v, %v", theirs, err)
	}
	compare := func(l *Log) []string {
		v, err := l.Verify(t.Context(), map[uint64]bool{last.Sequence: true})
		if err != nil || len(v.Faults) > 0 {
			t.Fatalf("%+v, %v: by itself it is to look whole", v, err)
		}
		return Compare(v, []Head{theirs.Heads[0].Head})
	}
	if found := compare(open(t, dir)); len(found) > 0 {
		t.Errorf("untouched: %q", found)
	}
	path := filepath.Join(dir, fileName(1))
	if err := os.WriteFile(path, []byte(strings.Join(lines[:10], "")), 0o600); err != nil {
		t.Fatal(err)
	}
	l := open(t, dir)
	if found := compare(l); len(found) != 1 || !strings.Contains(found[0], "cut off at the end") {
		t.Errorf("cut off: %q", found)
	}
	for n := range 20 { // as many as there were
		l.Append(record(n))
	}
	if found := compare(l); len(found) != 1 || !strings.Contains(found[0], "made anew") {
		t.Errorf("made anew: %q", found)
	}
	if other.Head().Sequence != 1 {
		t.Errorf("the head to be witnessed is %d: a witness is no news, or two peers would never rest", other.Head().Sequence)
	}
}

// TestCrash: an unfinished record is dropped, which is recorded, and the chain goes on.
func TestCrash(t *testing.T) {
	dir, lines := filled(t)
	path := filepath.Join(dir, fileName(1))
	whole := strings.Join(lines, "") + "\n"
	for _, rest := range []string{"", "abc", strings.Repeat("0", 100)} {
		if err := os.WriteFile(path, []byte(whole+rest), 0o600); err != nil {
			t.Fatal(err)
		}
		l := open(t, dir)
		l.Append(record(1))
		if found := faults(t, l); len(found) > 0 {
			t.Errorf("%d bytes left over: %q", len(rest), found)
		}
		starts, err := l.Query(t.Context(), Filter{Verb: VerbStart}, 10)
		if err != nil || len(starts) != 2 || (starts[1].Reason == "") != (rest == "") {
			t.Errorf("%+v, %v", starts, err)
		}
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if found := faults(t, open(t, dir)); len(found) > 0 {
		t.Errorf("a crash before the first line: %q", found)
	}
}

// TestRotation: the files together stay below the bound, the chain goes over them, and
// across restarts; a file that is removed is missed.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	small := func(c *Config) { c.MaxBytes = 64 << 10 }
	l := open(t, dir, small)
	for n := range 1000 {
		if n%300 == 299 {
			l = open(t, dir, small)
		}
		l.Append(record(n))
	}
	if found := faults(t, l); len(found) > 0 {
		t.Fatalf("%q", found)
	}
	first, err := list(dir)
	if err != nil || len(first) != files || first[0] == 1 {
		t.Fatalf("files %v, %v: want %d, the oldest gone", first, err, files)
	}
	size := int64(0)
	for _, n := range first {
		info, err := os.Stat(filepath.Join(dir, fileName(n)))
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > 64<<10+files*1024 {
		t.Errorf("%d bytes are kept", size)
	}
	found, err := l.Query(t.Context(), Filter{Verb: "create", Name: "s99*"}, 5)
	if err != nil || len(found) != 5 || found[4].Name != "s999" || found[0].Name != "s995" {
		t.Errorf("%+v, %v", found, err)
	}
	for _, n := range []uint64{first[5], first[0], first[files-1]} {
		path := filepath.Join(dir, fileName(n))
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		os.Remove(path)
		if found := faults(t, l); len(found) == 0 {
			t.Errorf("the file of record %d was removed, and nothing is missed", n)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFullDisk: records wait in memory while they cannot be written, then Ready says no;
// when there is room again all of them are there, in order.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	l.Append(record(0))
	whole := l.file
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	l.file = full
	n := 1
	for ; l.Ready() == nil; n++ {
		l.Append(record(n))
		if n > 1e5 {
			t.Fatal("it never says no")
		}
	}
	if err := l.Ready(); !strings.Contains(err.Error(), "no space left") {
		t.Errorf("%v does not say why", err)
	}
	l.file = whole
	l.sync()
	if err := l.Ready(); err != nil {
		t.Error(err)
	}
	if found := faults(t, l); len(found) > 0 {
		t.Errorf("%q", found)
	}
	if all, err := l.Query(t.Context(), Filter{Verb: "create"}, 1<<20); err != nil || len(all) != n {
		t.Errorf("%d records, want %d (%v)", len(all), n, err)
	}
}

// TestStrangersDoNotPushOut: those whom nobody knows are recorded some a second, and the
// rest counted.
func TestStrangersDoNotPushOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := open(t, t.TempDir())
		refused := Record{Verb: "list", Outcome: "unauthenticated", Source: "192.0.2.1"}
		for range 1000 {
			l.Append(refused)
		}
		time.Sleep(time.Second)
		l.Append(refused)
		found, err := l.Query(context.Background(), Filter{Outcome: "refused"}, 10000)
		if err != nil || len(found) != strangersBurst+1 || found[strangersBurst].More != 1000-strangersBurst {
			t.Fatalf("%d records, the last counts %d more (%v)", len(found), found[len(found)-1].More, err)
		}
	})
}

// TestFilter says what is found by what.
func TestFilter(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r := Record{Time: at, User: "system:serviceaccount:shop:web", Verb: "patch", Resource: "deployments.apps", Namespace: "shop", Name: "web", Others: []string{"shop/api", "secrets shop/db"}, Outcome: "permission_denied"}
	for _, c := range []struct {
		f    Filter
		want bool
	}{
		{Filter{}, true},
		{Filter{User: "system:serviceaccount:*"}, true},
		{Filter{User: "system:serviceaccount"}, false},
		{Filter{Resource: "deployments.apps", Name: "api"}, true},
		{Filter{Resource: "secrets", Namespace: "shop", Name: "db"}, true},
		{Filter{Resource: "secrets", Name: "web"}, false},
		{Filter{Outcome: "refused"}, true},
		{Filter{Outcome: "ok"}, false},
		{Filter{From: at.Add(time.Second)}, false},
		{Filter{Until: at.Add(-time.Second)}, false},
		{Filter{From: at, Until: at, Verb: "patch"}, true},
	} {
		if got := c.f.Matches(&r); got != c.want {
			t.Errorf("%+v: %t", c.f, got)
		}
	}
}

// FuzzOpen: whatever is in a file, it is opened or refused, verified and searched.
func FuzzOpen(f *testing.F) {
	_, lines := filled(f)
	f.Add([]byte(strings.Join(lines, "") + "\n"))
	f.Add([]byte(header("p1", 1, [hashSize]byte{}) + "x"))
	f.Add([]byte("#holdfast-audit 1 p1 1 "))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, fileName(1)), data, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Open(Config{Dir: dir, Peer: "p1"})
		if err != nil {
			return
		}
		l.Append(record(1))
		if _, err := l.Verify(t.Context(), nil); err != nil {
			t.Error(err)
		}
		if found, err := l.Query(t.Context(), Filter{Name: "s1"}, 1); err == nil && len(found) != 1 {
			t.Error("what was appended is not found")
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	l := open(b, b.TempDir())
	b.ReportAllocs()
	for n := range b.N {
		l.Append(record(n))
	}
}
