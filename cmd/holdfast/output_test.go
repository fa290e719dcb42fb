package main

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// TestCutOffAnswersAreLabelled: what a peer without a quorum says is shown, and
// said to be that.
func TestCutOffAnswersAreLabelled(t *testing.T) {
	f := &fakeCluster{list: func(_ context.Context, req *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
		if req.GetRead().GetMaxAge().AsDuration() != time.Minute || req.GetRead().GetConsistency() != holdfastv1.Consistency_CONSISTENCY_BOUNDED {
			t.Errorf("asked for %v, want what is at most a minute old", req.GetRead())
		}
		return &holdfastv1.ListResponse{
			Objects: []*holdfastv1.Object{wire(t, pod("web", 7, nil))},
			Answer:  &holdfastv1.Answer{Revision: 8123, ServedBy: "peer-3", CutOff: durationpb.New(43 * time.Second), Age: durationpb.New(44 * time.Second)},
		}, nil
	}}
	got := f.run(t.Context(), nil, "get", "pods", "--max-age", "1m", "-o", "name")
	got.check(t, exitOK, "Served by peer-3, cut off from the quorum for 43 s, as of revision 8123.")
	if got.stdout != "pod/web\n" {
		t.Errorf("standard output is %q: a label belongs to standard error", got.stdout)
	}
}

// TestUnified: hunks with three lines around each change, as diff -u has them.
func TestUnified(t *testing.T) {
	lines := func(words ...string) string { return strings.Join(words, "\n") + "\n" }
	long := strings.Split("a b c d e f g h i j k l m n", " ")
	changed := slices.Clone(long)
	changed[1], changed[12] = "B", "M"
	for _, test := range []struct{ name, old, now, want string }{
		{"the same", "a\n", "a\n", ""},
		{"all new", "", "a\nb\n", "--- x\n+++ x\n@@ -0,0 +1,2 @@\n+a\n+b\n"},
		{"all gone", "a\n", "", "--- x\n+++ x\n@@ -1,1 +0,0 @@\n-a\n"},
		{"two hunks", lines(long...), lines(changed...), "--- x\n+++ x\n@@ -1,5 +1,5 @@\n a\n-b\n+B\n c\n d\n e\n@@ -10,5 +10,5 @@\n j\n k\n l\n-m\n+M\n n\n"},
		{"repeated lines", "a\na\nb\n", "a\nb\nb\n", "--- x\n+++ x\n@@ -1,3 +1,3 @@\n a\n-a\n b\n+b\n"},
	} {
		if got := unified("x", test.old, test.now); got != test.want {
			t.Errorf("%s: got\n%swant\n%s", test.name, got, test.want)
		}
	}
}

// FuzzUnified: what a diff says is gone and come turns the one text into the other.
func FuzzUnified(f *testing.F) {
	f.Add("a\nb\nc\n", "a\nc\nd\n")
	f.Fuzz(func(t *testing.T, old, now string) {
		if len(old) > 500 || len(now) > 500 || strings.ContainsAny(old+now, "\r") {
			return
		}
		old, now = old+"\n", now+"\n"
		var before []string
		x, y, at := linesOf(old), linesOf(now), 0
		var hunk []string
		if text := unified("x", old, now); text != "" {
			hunk = strings.Split(strings.TrimSuffix(text, "\n"), "\n")[2:]
		}
		gone, come := 0, 0
		for _, line := range hunk {
			switch line[0] {
			case '-':
				gone++
				before = append(before, line[1:])
			case '+':
				come++
			}
		}
		if len(x)-gone != len(y)-come {
			t.Errorf("%d lines less %d, and %d less %d: the rest must be the same\n%q\n%q", len(x), gone, len(y), come, old, now)
		}
		for _, line := range before {
			i := slices.Index(x[at:], line)
			if i < 0 {
				t.Fatalf("%q is said to be gone, and was not there in that place", line)
			}
			at += i + 1
		}
	})
}

// TestDrainable: nothing goes that would be lost without somebody's word.
func TestDrainable(t *testing.T) {
	lonely := pod("lonely", 1, nil)
	static := pod("static", 1, func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} })
	done := pod("done", 1, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
	for _, test := range []struct {
		f              drainFlags
		evicts, forbid int
	}{
		{drainFlags{}, 1, 1},
		{drainFlags{force: true}, 2, 0},
	} {
		evict, stay, forbid := test.f.request().Sort([]*corev1.Pod{lonely, done, static})
		if len(stay) != 1 || stay[0].Name != "static" {
			t.Errorf("%+v: what stays is %v, want the mirror of a static pod", test.f, stay)
		}
		if len(evict) != test.evicts || len(forbid) != test.forbid {
			t.Errorf("%+v: %d are evicted and %q forbid it, want %d and %d", test.f, len(evict), forbid, test.evicts, test.forbid)
		}
	}
}

// TestLearnedPeers: the address that works from here stays.
func TestLearnedPeers(t *testing.T) {
	if got := mergePeers([]string{"10.0.0.1:7443", "10.0.0.2:7443"}, "example.com:7443", []string{"old:7443", "example.com:7443"}); !slices.Equal(got, []string{"example.com:7443", "10.0.0.1:7443", "10.0.0.2:7443", "old:7443"}) {
		t.Errorf("got %v", got)
	}
	if got := mergePeers([]string{"10.0.0.1:7443"}, "10.0.0.1:7443", nil); !slices.Equal(got, []string{"10.0.0.1:7443"}) {
		t.Errorf("got %v", got)
	}
}
