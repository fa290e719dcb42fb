package eventlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
)

func newPod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)}}
}

func open(t *testing.T, cfg Config) *Log {
	t.Helper()
	if cfg.Peer == "" {
		cfg.Peer = "p1"
	}
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.files.close()
	})
	return l
}

// show is the stable text form of what a log shows.
func show(events []*corev1.Event) string {
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "%s %s %s/%s x%d: %s\n", e.Type, e.Reason, e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Count, e.Message)
	}
	return b.String()
}

func listAll(l *Log) string {
	events, _ := l.List("")
	return show(events)
}

// TestSameEventIsCounted: what makes two events the same, and what does not.
func TestSameEventIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := open(t, Config{})
		l.Record(newPod("a"), "Normal", "Pulled", "image nginx")
		first, _ := l.List("default")
		time.Sleep(90 * time.Second)
		l.Record(newPod("a"), "Normal", "Pulled", "image nginx")
		second, _ := l.List("default")
		if len(second) != 1 || second[0].Count != 2 || second[0].Name != first[0].Name {
			t.Fatalf("after the same event twice:\n%s", show(second))
		}
		if got := second[0].LastTimestamp.Sub(second[0].FirstTimestamp.Time); got != 90*time.Second {
			t.Errorf("last - first = %s, want 90s", got)
		}
		l.Record(newPod("a"), "Warning", "Pulled", "image nginx")
		l.Record(newPod("a"), "Normal", "Pulled", "image redis")
		l.Record(newPod("b"), "Normal", "Pulled", "image nginx")
		l.Recorder("agent", "n1").Record(newPod("a"), "Normal", "Pulled", "image nginx")
		replaced := newPod("a")
		replaced.UID = "another"
		l.Record(replaced, "Normal", "Pulled", "image nginx")
		if events, _ := l.List(""); len(events) != 6 {
			t.Errorf("events that differ in type, message, object, source or uid were taken for one:\n%s", show(events))
		}
		if events, _ := l.List("other"); len(events) != 0 {
			t.Errorf("namespace other shows:\n%s", show(events))
		}
	})
}

// TestEventOfClusterObject: an object without namespace has its events in
// "default", as in Kubernetes, and they can be got by name.
func TestEventOfClusterObject(t *testing.T) {
	l := open(t, Config{})
	l.Record(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, "Warning", "NodeLost", "no heartbeat")
	events, _ := l.List("default")
	if len(events) != 1 || events[0].InvolvedObject.Kind != "Node" {
		t.Fatalf("got:\n%s", show(events))
	}
	if _, ok := l.Get("default", events[0].Name); !ok {
		t.Errorf("Get does not find %s", events[0].Name)
	}
	if _, ok := l.Get("other", events[0].Name); ok {
		t.Errorf("Get finds %s in another namespace", events[0].Name)
	}
}

// TestSurvivesRestart: counts, sequences and the log's id come back from disk,
// and what was half written when the process died is cut off without taking
// anything else with it.
func TestSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Config{Dir: dir})
	l.Record(newPod("a"), "Normal", "Pulled", "one")
	l.Record(newPod("b"), "Warning", "BackOff", "two")
	id, before := l.ID(), listAll(l)
	last := l.sequence

	files, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if err != nil || len(files) != 1 {
		t.Fatalf("segments: %v, %v", files, err)
	}
	file, err := os.OpenFile(files[0], os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	file.Write([]byte{200, 0, 0, 0, 1, 2, 3, 4, 'h', 'a', 'l', 'f'})
	file.Close()

	l = open(t, Config{Dir: dir})
	if l.ID() != id {
		t.Errorf("id changed from %s to %s", id, l.ID())
	}
	if got := listAll(l); got != before {
		t.Errorf("after the restart:\n%swant:\n%s", got, before)
	}
	l.Record(newPod("c"), "Normal", "Pulled", "three")
	l.Record(newPod("b"), "Warning", "BackOff", "two")
	l.flushNow()
	records, _ := l.Own(last, 10)
	if len(records) != 2 || records[0].GetAbout().GetName() != "c" || records[1].GetCount() != 2 || records[0].GetSequence() >= records[1].GetSequence() {
		t.Errorf("records after sequence %d: %v, want c and the second of b", last, records)
	}

	l = open(t, Config{Dir: dir})
	if events, _ := l.List(""); len(events) != 3 {
		t.Errorf("after the second restart:\n%s", show(events))
	}
}

// flushNow is what Run does each second, without regard to what is due.
func (l *Log) flushNow() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for rec := range l.dirty {
		l.emit(rec)
	}
}

// TestSequencesAreNotReused: a crash can take records from the disk that other
// peers have already seen. What is recorded next must reach those peers.
func TestSequencesAreNotReused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		other := open(t, Config{Peer: "p2"})
		l := open(t, Config{Dir: dir})
		l.Record(newPod("a"), "Normal", "Pulled", "m")
		records, _ := l.Own(0, 10)
		if err := other.Merge("p1", l.ID(), records); err != nil {
			t.Fatal(err)
		}
		files, _ := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
		if err := os.Truncate(files[0], int64(len(segmentMagic))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		l = open(t, Config{Dir: dir})
		l.Record(newPod("b"), "Normal", "Pulled", "m")
		_, after := other.Known("p1")
		records, _ = l.Own(after, 10)
		if err := other.Merge("p1", l.ID(), records); err != nil {
			t.Fatal(err)
		}
		if got := listAll(other); !strings.Contains(got, "Pod/b") {
			t.Errorf("the other peer shows:\n%s", got)
		}
	})
}

// TestBoundedByBytes: whatever is recorded, files and memory stay within the
// bound, and the newest survive.
func TestBoundedByBytes(t *testing.T) {
	dir := t.TempDir()
	const bound = 32 << 10
	l := open(t, Config{Dir: dir, MaxBytes: bound})
	for i := range 1000 {
		l.Record(newPod(fmt.Sprintf("pod-%04d", i)), "Normal", "Pulled", strings.Repeat("x", 100))
	}
	var size int64
	files, _ := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > bound {
		t.Errorf("%d files have %d bytes, the bound is %d", len(files), size, bound)
	}
	events, _ := l.List("")
	if len(events) == 0 || len(events) > 200 || events[len(events)-1].InvolvedObject.Name != "pod-0999" {
		t.Errorf("%d events are left", len(events))
	}
	if _, changed := l.Own(0, 1); changed == nil {
		t.Error("no channel")
	}
	reopened := open(t, Config{Dir: dir, MaxBytes: bound})
	if listAll(reopened) != listAll(l) {
		t.Errorf("reopened:\n%swant:\n%s", listAll(reopened), listAll(l))
	}
}

// TestExpires: an event goes MaxAge after it was last recorded, watchers are
// told, and its file goes with it.
func TestExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := open(t, Config{MaxAge: time.Hour})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		l.Record(newPod("old"), "Normal", "Pulled", "m")
		l.Record(newPod("kept"), "Normal", "Pulled", "m")
		_, position := l.List("")
		time.Sleep(30 * time.Minute)
		l.Record(newPod("kept"), "Normal", "Pulled", "m")
		time.Sleep(32 * time.Minute)
		synctest.Wait()
		if got := listAll(l); !strings.Contains(got, "Pod/kept x2") || strings.Contains(got, "Pod/old") {
			t.Errorf("after 62 minutes:\n%s", got)
		}
		changes, _, err := l.Since("", position)
		if err != nil || len(changes) != 2 || !changes[1].Deleted || changes[1].Event.InvolvedObject.Name != "old" {
			t.Errorf("changes: %+v, %v; want kept modified, old deleted", changes, err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestRepeatsAreThrottled: a pod that crashes ten times a second for an hour
// costs about a record a second at first and one a minute at last; no count is
// lost.
func TestRepeatsAreThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := open(t, Config{})
		start := l.sequence
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		for range 36000 {
			l.Record(newPod("a"), "Warning", "BackOff", "m")
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(2 * maxRepeat)
		synctest.Wait()
		l.mu.Lock()
		sequence := l.sequence - start
		l.mu.Unlock()
		if sequence < 20 || sequence > 150 {
			t.Errorf("%d records were written for 36000 repetitions within an hour", sequence)
		}
		if got := listAll(l); !strings.Contains(got, "x36000:") {
			t.Errorf("got %s", got)
		}
		records, _ := l.Own(0, 10)
		if len(records) != 1 || records[0].GetCount() != 36000 {
			t.Errorf("the last record is %v, want all 36000", records)
		}
		cancel()
		<-done
	})
}

// TestMerge: two peers that recorded the same add up, in whatever order and
// however often their records come.
func TestMerge(t *testing.T) {
	a, b := open(t, Config{Peer: "p1"}), open(t, Config{Peer: "p2"})
	for range 2 {
		a.Record(newPod("x"), "Warning", "BackOff", "m")
		a.flushNow()
	}
	for range 3 {
		b.Record(newPod("x"), "Warning", "BackOff", "m")
		b.flushNow()
	}
	b.Record(newPod("y"), "Normal", "Pulled", "m")
	records, _ := b.Own(0, 100)
	for range 2 {
		if err := a.Merge("p2", b.ID(), records); err != nil {
			t.Fatal(err)
		}
	}
	log, after := a.Known("p2")
	if log != b.ID() || after != b.sequence {
		t.Errorf("Known = %q, %d; want %q, %d", log, after, b.ID(), b.sequence)
	}
	const want = "Warning BackOff Pod/x x5: m\nNormal Pulled Pod/y x1: m\n"
	if got := listAll(a); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	if own, _ := a.Own(0, 100); len(own) != 1 || own[0].GetCount() != 2 {
		t.Errorf("p1's own log is %v, want only what it recorded itself", own)
	}
	bad := []*peerv1.EventRecord{{Log: "other", Sequence: 9, About: &peerv1.ObjectReference{Name: "z"}}}
	if err := a.Merge("p2", b.ID(), bad); err == nil {
		t.Error("a record of another log was taken in")
	}
	if err := a.Merge("p2", a.ID(), nil); err == nil {
		t.Error("a peer passed this peer's log for its own")
	}
}

// TestMergeSurvivesRestart: copies of other peers' logs are kept, and reading
// them goes on where it was.
func TestMergeSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, Config{Peer: "p1", Dir: dir}), open(t, Config{Peer: "p2"})
	b.Record(newPod("x"), "Normal", "Pulled", "m")
	records, _ := b.Own(0, 100)
	if err := a.Merge("p2", b.ID(), records); err != nil {
		t.Fatal(err)
	}
	a = open(t, Config{Peer: "p1", Dir: dir})
	if log, after := a.Known("p2"); log != b.ID() || after != b.sequence {
		t.Errorf("Known = %q, %d; want %q, %d", log, after, b.ID(), b.sequence)
	}
	if got := listAll(a); got != "Normal Pulled Pod/x x1: m\n" {
		t.Errorf("got %s", got)
	}
}

// TestSince: changes come in order and once, with what they are to a watcher; a
// position that cannot be told from is refused.
func TestSince(t *testing.T) {
	l := open(t, Config{})
	_, start := l.List("")
	changed := l.Changed()
	l.Record(newPod("a"), "Normal", "Pulled", "m")
	select {
	case <-changed:
	default:
		t.Error("Changed did not fire")
	}
	l.Record(newPod("b"), "Normal", "Pulled", "m")
	changes, middle, err := l.Since("", start)
	if err != nil || len(changes) != 2 || !changes[0].Added || changes[0].Event.InvolvedObject.Name != "a" || changes[1].Position != middle {
		t.Fatalf("first: %+v, %d, %v", changes, middle, err)
	}
	if changes, upTo, err := l.Since("", middle); err != nil || len(changes) != 0 || upTo != middle {
		t.Errorf("nothing new: %+v, %d, %v", changes, upTo, err)
	}
	l.Record(newPod("a"), "Normal", "Pulled", "m")
	l.flushNow()
	if changes, _, err := l.Since("", middle); err != nil || len(changes) != 1 || changes[0].Added || changes[0].Event.Count != 2 {
		t.Errorf("repeated: %+v, %v", changes, err)
	}
	if changes, _, err := l.Since("other", start); err != nil || len(changes) != 0 {
		t.Errorf("other namespace: %+v, %v", changes, err)
	}
	foreign := (start>>epochBits)<<epochBits | (l.epoch ^ 1)
	if _, _, err := l.Since("", foreign); !errors.Is(err, ErrCompacted) {
		t.Errorf("a position of another process: %v, want ErrCompacted", err)
	}
	if _, _, err := l.Since("", l.position(l.counter+1)); !errors.Is(err, ErrCompacted) {
		t.Errorf("a position of the future: %v, want ErrCompacted", err)
	}
}

// TestForgottenRemovals: a watcher that slept through more removals than are
// remembered is told to list again instead of missing some.
func TestForgottenRemovals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := open(t, Config{MaxAge: time.Minute})
		_, start := l.List("")
		for i := range maxTombstones + 10 {
			l.Record(newPod(fmt.Sprint("p", i)), "Normal", "Pulled", "m")
		}
		_, listed := l.List("")
		time.Sleep(2 * time.Minute)
		l.expire()
		for _, position := range []int64{start, listed} {
			if _, _, err := l.Since("", position); !errors.Is(err, ErrCompacted) {
				t.Errorf("position %d: %v, want ErrCompacted", position, err)
			}
		}
		_, now := l.List("")
		if _, _, err := l.Since("", now); err != nil {
			t.Errorf("the current position: %v", err)
		}
	})
}

// TestTextIsMadeFit: messages come from programs and may be anything.
func TestTextIsMadeFit(t *testing.T) {
	l := open(t, Config{})
	l.Record(newPod("a"), "Strange", "R", "broken \xff\xfe utf-8 "+strings.Repeat("ä", 1000))
	events, _ := l.List("")
	if len(events) != 1 || events[0].Type != "Normal" || len(events[0].Message) > maxMessage || !strings.HasSuffix(events[0].Message, "ä…") {
		t.Errorf("got %+v", events)
	}
}

// TestUnwritableDirectory: losing the disk loses no event that is in memory and
// stops nobody.
func TestUnwritableDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "events")
	l := open(t, Config{Dir: dir})
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	l.Record(newPod("a"), "Normal", "Pulled", "m")
	l.Record(newPod("b"), "Normal", "Pulled", "m")
	if events, _ := l.List(""); len(events) != 2 {
		t.Errorf("got:\n%s", show(events))
	}
	if _, err := New(Config{Peer: "p1", Dir: "/dev/null/events"}); err == nil {
		t.Error("a directory that cannot be made is no error")
	}
}
