package probe

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestState: results by answers, y and n and ? for one that says nothing.
func TestState(t *testing.T) {
	for _, test := range []struct {
		name             string
		kind             Kind
		initial          Result
		success, failure int32
		answers          string
		want             string // the result after each answer: y, n or ?
		settled          bool
	}{
		{"one success is enough by default", Readiness, Unknown, 0, 0, "y", "y", false},
		{"three failures by default", Readiness, Unknown, 0, 0, "nnn", "??n", false},
		{"thresholds count in a row", Readiness, Success, 2, 2, "nynnyny" + "y", "yyynnnny", false},
		{"no answer counts for nothing", Liveness, Unknown, 1, 2, "n?n", "??n", true},
		{"a failed liveness probe is final", Liveness, Unknown, 1, 1, "yn", "yn", true},
		{"a liveness probe goes on after a success", Liveness, Unknown, 1, 3, "ynn", "yyy", false},
		{"a startup probe ends with its first success", Startup, Unknown, 1, 3, "nny", "??y", true},
		{"or with its failure", Startup, Unknown, 1, 3, "nnn", "??n", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := Target{Key: Key{Kind: test.kind}, Spec: &corev1.Probe{SuccessThreshold: test.success, FailureThreshold: test.failure}}
			s := State{Result: test.initial}
			var got strings.Builder
			for _, a := range test.answers {
				before := s.Result
				if changed := s.Take(target, Result(strings.IndexRune("?yn", a))); changed != (before != s.Result) {
					t.Errorf("Take said %v, but the result went from %v to %v", changed, before, s.Result)
				}
				got.WriteByte("?yn"[s.Result])
			}
			if got.String() != test.want || s.Settled(test.kind) != test.settled {
				t.Errorf("results are %s, settled %v; want %s, %v", got.String(), s.Settled(test.kind), test.want, test.settled)
			}
		})
	}
}

// TestFirst: the initial delay counts from the container's start.
func TestFirst(t *testing.T) {
	now := time.Date(2026, 1, 1, 10, 0, 0, 0, time.UTC)
	target := Target{Spec: &corev1.Probe{InitialDelaySeconds: 30}, Since: now.Add(-10 * time.Second)}
	if got := target.first(now); !got.Equal(now.Add(20 * time.Second)) {
		t.Errorf("the first probe is at %v, want 20 s from now", got)
	}
	target.Since = now.Add(-time.Hour)
	if got := target.first(now); !got.Equal(now) {
		t.Errorf("the first probe of an old container is at %v, want now", got)
	}
}
