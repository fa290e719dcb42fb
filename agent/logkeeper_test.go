package agent

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

func TestPlanKeptLogs(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	kept := func(uid string, age time.Duration, bytes int64) runtime.KeptLogs {
		return runtime.KeptLogs{UID: uid, RemovedAt: now.Add(-age), Bytes: bytes}
	}
	for _, c := range []struct {
		name  string
		all   []runtime.KeptLogs
		bytes int64
		want  []string
	}{
		{"what is young and little stays", []runtime.KeptLogs{kept("a", time.Hour, 50), kept("b", 23*time.Hour, 50)}, 100, nil},
		{"what is too old goes", []runtime.KeptLogs{kept("a", 25*time.Hour, 1), kept("b", 24*time.Hour, 1)}, 100, []string{"a"}},
		{"the oldest go first beyond the size", []runtime.KeptLogs{kept("a", 3*time.Hour, 60), kept("b", time.Hour, 60), kept("c", 2*time.Hour, 40)}, 100, []string{"a"}},
		{"one that is too big goes, and what is older", []runtime.KeptLogs{kept("a", time.Hour, 101), kept("b", 2*time.Hour, 1)}, 100, []string{"a", "b"}},
		{"no room at all", []runtime.KeptLogs{kept("a", time.Hour, 1)}, 0, []string{"a"}},
		{"an unreadable record counts as old", []runtime.KeptLogs{{UID: "a"}}, 100, []string{"a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := planKeptLogs(c.all, 24*time.Hour, c.bytes, now); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", fmt.Sprint(got), c.want)
			}
		})
	}
}
