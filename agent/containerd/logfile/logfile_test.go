package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// at is the time of the nth line of a test's log.
func at(n int) time.Time { return time.Date(2026, 1, 2, 3, 4, n, 0, time.UTC) }

// newWriter makes a writer whose lines are one second apart.
func newWriter(t *testing.T, dir string, segmentBytes int64) *Writer {
	t.Helper()
	w, err := Create(dir, Size{SegmentBytes: segmentBytes, Segments: 2})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	w.now = func() time.Time { n++; return at(n) }
	t.Cleanup(func() { w.Close() })
	return w
}

func write(t *testing.T, w *Writer, stream Stream, text string) {
	t.Helper()
	if err := w.Copy(stream, strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dir string, options Options) string {
	t.Helper()
	var b strings.Builder
	if err := Read(context.Background(), dir, options, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestForm(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, 0)
	write(t, w, Stdout, "one\n\ntwo")
	write(t, w, Stderr, "three\r\n")
	data, err := os.ReadFile(filepath.Join(dir, "00000001.log"))
	if err != nil {
		t.Fatal(err)
	}
	want := "2026-01-02T03:04:01.000000000Z stdout F one\n" +
		"2026-01-02T03:04:02.000000000Z stdout F \n" +
		"2026-01-02T03:04:03.000000000Z stdout F two\n" +
		"2026-01-02T03:04:04.000000000Z stderr F three\r\n"
	if string(data) != want {
		t.Errorf("the segment holds\n%s\nwant\n%s", data, want)
	}
}

func TestSelect(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, 0)
	write(t, w, Stdout, "1\n2\n3\n4\n5\n")
	for _, c := range []struct {
		name    string
		options Options
		want    string
	}{
		{"all", Options{Tail: -1}, "1\n2\n3\n4\n5\n"},
		{"none", Options{Tail: 0}, ""},
		{"the last two", Options{Tail: 2}, "4\n5\n"},
		{"more than there are", Options{Tail: 50}, "1\n2\n3\n4\n5\n"},
		{"since the third", Options{Tail: -1, Since: at(3)}, "3\n4\n5\n"},
		{"the last two since the third", Options{Tail: 2, Since: at(3)}, "4\n5\n"},
		{"the last four since the third", Options{Tail: 4, Since: at(3)}, "3\n4\n5\n"},
		{"since after the end", Options{Tail: -1, Since: at(9)}, ""},
		{"with times", Options{Tail: 1, Timestamps: true}, "2026-01-02T03:04:05.000000000Z 5\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := read(t, dir, c.options); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestLongLines covers lines that take several pieces: whole again when read,
// counted as one, with one time.
func TestLongLines(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, 0)
	long := strings.Repeat("x", 3*maxPiece+7)
	exact := strings.Repeat("y", maxPiece)
	write(t, w, Stdout, "short\n"+long+"\n"+exact+"\nend\n")
	if got, want := read(t, dir, Options{Tail: -1}), "short\n"+long+"\n"+exact+"\nend\n"; got != want {
		t.Errorf("got %d bytes, want %d", len(got), len(want))
	}
	if got, want := read(t, dir, Options{Tail: 3}), long+"\n"+exact+"\nend\n"; got != want {
		t.Errorf("the last three: got %d bytes, want %d", len(got), len(want))
	}
	timed := read(t, dir, Options{Tail: 3, Timestamps: true})
	if n := strings.Count(timed, "2026-"); n != 3 {
		t.Errorf("three lines have %d times", n)
	}
}

// TestRandomChunks compares what is read with what was written, cut into reads
// and segments at random places.
func TestRandomChunks(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		dir := t.TempDir()
		w := newWriter(t, dir, 1<<30)
		var text bytes.Buffer
		for range rng.IntN(50) {
			text.WriteString(strings.Repeat("z", rng.IntN(3*maxPiece)>>rng.IntN(14)))
			text.WriteByte('\n')
		}
		all := text.String()
		r, pipe := io.Pipe()
		go func() {
			for rest := all; rest != ""; {
				n := min(len(rest), 1+rng.IntN(40_000))
				_, _ = io.WriteString(pipe, rest[:n])
				rest = rest[n:]
			}
			pipe.Close()
		}()
		if err := w.Copy(Stdout, r); err != nil {
			t.Fatal(err)
		}
		if got := read(t, dir, Options{Tail: -1}); got != all {
			t.Fatalf("wrote %d bytes, read %d others", len(all), len(got))
		}
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, 200) // four lines of 47 bytes
	for i := range 23 {
		write(t, w, Stdout, fmt.Sprintf("line-%02d\n", i))
	}
	if got := fmt.Sprint(segments(dir)); got != "[5 6]" {
		t.Errorf("segments %s are kept, want the newest two, [5 6]", got)
	}
	want := "line-16\nline-17\nline-18\nline-19\nline-20\nline-21\nline-22\n"
	if got := read(t, dir, Options{Tail: -1}); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := read(t, dir, Options{Tail: 5}); got != want[2*8:] {
		t.Errorf("the last five: got %q", got)
	}
	// A second writer, after the first, goes on behind it.
	w.Close()
	write(t, newWriter(t, dir, 200), Stdout, "again\n")
	if got := read(t, dir, Options{Tail: 2}); got != "line-22\nagain\n" {
		t.Errorf("after another writer: got %q", got)
	}
}

// TestFollow reads while it is written, through rotations, and ends with the
// writer: not before, and with nothing missing.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, 400)
	var want strings.Builder
	r, pipe := io.Pipe()
	var group sync.WaitGroup
	group.Go(func() {
		_ = w.Copy(Stdout, r)
		w.Close()
	})
	got, out := io.Pipe()
	ended := make(chan error, 1)
	group.Go(func() {
		err := Read(context.Background(), dir, Options{Tail: -1, Ended: func(context.Context) bool { return true }}, out)
		out.Close()
		ended <- err
	})
	buf := make([]byte, 64)
	for i := range 50 {
		text := fmt.Sprintf("line-%02d\n", i)
		want.WriteString(text)
		if _, err := io.WriteString(pipe, text); err != nil {
			t.Fatal(err)
		}
		// In step with the reader, so that no rotation can overtake it.
		if _, err := io.ReadFull(got, buf[:len(text)]); err != nil || string(buf[:len(text)]) != text {
			t.Fatalf("read %q, error %v; want %q", buf[:len(text)], err, text)
		}
		select {
		case err := <-ended:
			t.Fatalf("reading ended with the writer still there: %v", err)
		default:
		}
	}
	if _, err := io.WriteString(pipe, "last"); err != nil {
		t.Fatal(err)
	}
	pipe.Close()
	rest, err := io.ReadAll(got)
	if err != nil || string(rest) != "last\n" {
		t.Errorf("after the end: %q, error %v; want the last line", rest, err)
	}
	group.Wait()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if len(segments(dir)) != 2 {
		t.Error("the log was never rotated: the test shows less than it says")
	}
}

// TestFollowWaits covers a log without a writer whose container has not ended:
// it has not begun yet, or its writer is being replaced.
func TestFollowWaits(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not-yet")
	asked := make(chan struct{}, 1000)
	var over bool
	var mu sync.Mutex
	got := make(chan string, 1)
	go func() {
		var b strings.Builder
		_ = Read(context.Background(), dir, Options{Tail: -1, Ended: func(context.Context) bool {
			asked <- struct{}{}
			mu.Lock()
			defer mu.Unlock()
			return over
		}}, &b)
		got <- b.String()
	}()
	<-asked
	w := newWriter(t, dir, 0)
	write(t, w, Stdout, "late\n")
	w.Close()
	mu.Lock()
	over = true
	mu.Unlock()
	if text := <-got; text != "late\n" {
		t.Errorf("got %q, want the line that came late", text)
	}
}

func TestFollowEndsWithContext(t *testing.T) {
	dir := t.TempDir()
	newWriter(t, dir, 0)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- Read(ctx, dir, Options{Tail: -1, Ended: func(context.Context) bool { return false }}, io.Discard)
	}()
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want that of the context", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Read goes on 5 s after its context has ended")
	}
}

func TestNoLog(t *testing.T) {
	err := Read(context.Background(), filepath.Join(t.TempDir(), "none"), Options{Tail: -1}, io.Discard)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want fs.ErrNotExist", err)
	}
}

func TestOneWriter(t *testing.T) {
	dir := t.TempDir()
	if Live(dir) {
		t.Error("a log nobody ever wrote is live")
	}
	w := newWriter(t, dir, 0)
	if !Live(dir) {
		t.Error("a log with a writer is not live")
	}
	if other, err := Create(dir, Size{}); err == nil {
		other.Close()
		t.Error("a second writer got the log")
	}
	w.Close()
	if Live(dir) {
		t.Error("a log whose writer is gone is live")
	}
}

// TestFullDisk fills a small file system. The container must not be held up, and
// the log must say what is missing.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	w := newWriter(t, filepath.Join(dir, "log"), 0)
	hog := filepath.Join(dir, "hog")
	if err := os.WriteFile(hog, make([]byte, 20<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 99) + "\n"
	write(t, w, Stdout, strings.Repeat(line, 500)) // returns, though there is no room
	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	write(t, w, Stdout, "there is room again\n")
	got := read(t, filepath.Join(dir, "log"), Options{Tail: -1})
	before := strings.Count(got, line)
	var lost int
	tail := got[before*len(line):]
	if strings.HasPrefix(tail, "x") { // the beginning of the first lost line still had room
		_, tail, _ = strings.Cut(tail, "\n")
	}
	if _, err := fmt.Sscanf(tail, "[holdfast: %d lines were lost here:", &lost); err != nil {
		t.Fatalf("after the lines that had room, %d, the log goes on with %q", before, tail)
	}
	if before == 0 || lost == 0 || before+lost != 500 {
		t.Errorf("%d lines are there and %d are said to be lost, of 500", before, lost)
	}
	if !strings.HasSuffix(got, "no space left on device]\nthere is room again\n") {
		t.Errorf("the log ends with %q", tail)
	}
}
