package golden

import (
	"strings"
	"testing"
)

// TestRun runs the runner over two cases of its own.
func TestRun(t *testing.T) {
	seen := 0
	Run(t, "testdata/*.txtar", func(t *testing.T, in Input) string {
		seen++
		if _, ok := in.Lookup("want"); ok {
			t.Error("the expected output is among the inputs")
		}
		if !strings.HasPrefix(in.Comment, "Words are ") {
			t.Errorf("comment is %q", in.Comment)
		}
		return in.Name + " " + strings.Join(in.Names(), ",") + " " + strings.ToUpper(string(in.File("in")))
	})
	if seen != 2 {
		t.Errorf("%d cases ran, want 2", seen)
	}
}

// TestCheck: when a case passes, fails, and what an update writes.
func TestCheck(t *testing.T) {
	const both = "Rule.\n-- in --\na\n-- want --\nA\n-- more --\nb\n"
	for _, c := range []struct {
		name, archive, got, complaint, updated string
	}{
		{"equal", both, "A\n", "", both},
		{"a missing final newline counts as there", both, "A", "", both},
		{"different", both, "B\n", "output differs", "Rule.\n-- in --\na\n-- want --\nB\n-- more --\nb\n"},
		{"more than expected", both, "A\nA\n", "output differs", "Rule.\n-- in --\na\n-- want --\nA\nA\n-- more --\nb\n"},
		{"nothing instead of something", both, "", "output differs", "Rule.\n-- in --\na\n-- want --\n-- more --\nb\n"},
		{"nothing expected", "-- in --\n-- want --\n", "", "", "-- in --\n-- want --\n"},
		{"no want", "Rule.\n-- in --\na\n", "A\n", `has no file "want"`, "Rule.\n-- in --\na\n-- want --\nA\n"},
	} {
		tc := parse([]byte(c.archive))
		complaint := tc.check(c.got)
		if c.complaint == "" && complaint != "" || !strings.Contains(complaint, c.complaint) {
			t.Errorf("%s: complaint is %q, want %q", c.name, complaint, c.complaint)
		}
		if updated := string(tc.update(c.got)); updated != c.updated {
			t.Errorf("%s: updated to %q, want %q", c.name, updated, c.updated)
		}
	}
}
