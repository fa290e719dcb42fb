package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// exitDifferent is the code of diff when there are changes; what goes wrong is
// above it, so that scripts can tell the two apart.
const exitDifferent = 1

func (a *app) diffCommand() *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Show what apply would change",
		Long: `Show what apply would change: the cluster goes through the apply, with defaults,
field owners and all, and keeps nothing of it. Values of secrets are masked.

Exit codes: 0 nothing would change; 1 something would; more than 1, there is no
answer: 4 if apply would be refused, as for a field that somebody else owns
(--force-conflicts shows what taking it over would change), 2, 3 or 7 as ever.`,
		Example: `  holdfast diff -f examples/web.yaml
  holdfast diff -f shop/ --set shop --prune   # with what would be deleted`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := a.runDiff(cmd.Context(), f)
			if known, ok := err.(*failure); ok && known.code == exitError && known.err != nil {
				known.code = exitRefused // 1 means a difference
			}
			return err
		},
	}
	flags := cmd.Flags()
	f.manifests.add(flags)
	flags.BoolVar(&f.force, "force-conflicts", false, "as if fields that others own were taken over")
	flags.StringVar(&f.set, "set", "", "name of the set, for --prune")
	flags.BoolVar(&f.prune, "prune", false, "also show what apply --prune would delete")
	return cmd
}

func (a *app) runDiff(ctx context.Context, f applyFlags) error {
	if f.prune && f.set == "" {
		return failf(exitUsage, "--prune: say with --set NAME which set of objects these manifests are all of")
	}
	docs, err := a.checkedManifests(f.manifests)
	if err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	req, err := a.applyRequest(docs, f, true)
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	answer, err := r.objects.Apply(ctx, req)
	if err != nil {
		return a.explainAt(ctx, r, docs, "diff", err)
	}
	a.warn(answer.GetAnswer())
	differs := false
	for _, result := range answer.GetResults() {
		if result.GetAction() == holdfastv1.ApplyAction_APPLY_ACTION_UNCHANGED {
			continue
		}
		var before, after object.Object
		if result.GetBefore() != nil {
			if before, err = a.decode(result.GetBefore()); err != nil {
				return err
			}
		}
		if after, err = a.decode(result.GetObject()); err != nil {
			return err
		}
		name := title(after)
		if result.GetAction() == holdfastv1.ApplyAction_APPLY_ACTION_PRUNED {
			if before == nil {
				before = after
			}
			after = nil
		}
		old, now, err := statesOf(before, after)
		if err != nil {
			return err
		}
		if text := unified(name, old, now); text != "" {
			differs = true
			a.writeDiff(text)
		}
	}
	if differs {
		return exit(exitDifferent)
	}
	return nil
}

// statesOf writes two states of an object without what every write changes,
// and without a secret's values. A state that is not there is empty.
func statesOf(before, after object.Object) (old, now string, err error) {
	maskSecrets(&before, &after)
	texts := make([]string, 2)
	for i, obj := range []object.Object{before, after} {
		if obj == nil {
			continue
		}
		obj = obj.DeepCopyObject().(object.Object)
		obj.SetManagedFields(nil)
		obj.SetResourceVersion("")
		obj.SetGeneration(0)
		if texts[i], err = asYAML(obj); err != nil {
			return "", "", err
		}
	}
	return texts[0], texts[1], nil
}

// maskSecrets replaces the values of secrets, so that it still shows which of
// them differ.
func maskSecrets(before, after *object.Object) {
	old, _ := (*before).(*corev1.Secret)
	now, _ := (*after).(*corev1.Secret)
	if old == nil && now == nil {
		return
	}
	masked := func(s, other *corev1.Secret, word string) *corev1.Secret {
		s = s.DeepCopy()
		for key, value := range s.Data {
			mark := "***"
			if other != nil {
				if o, ok := other.Data[key]; ok && string(o) != string(value) {
					mark = "*** (" + word + ")"
				}
			}
			s.Data[key] = nil
			if s.StringData == nil {
				s.StringData = map[string]string{}
			}
			s.StringData[key] = mark
		}
		s.Data = nil
		delete(s.Annotations, corev1.LastAppliedConfigAnnotation)
		return s
	}
	if old != nil {
		*before = masked(old, now, "before")
	}
	if now != nil {
		*after = masked(now, old, "after")
	}
}

// writeDiff writes a diff, coloured on a terminal.
func (a *app) writeDiff(text string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "---"), strings.HasPrefix(line, "+++"):
			line = a.paint(a.stdout, 1, line)
		case strings.HasPrefix(line, "-"):
			line = a.paint(a.stdout, 31, line)
		case strings.HasPrefix(line, "+"):
			line = a.paint(a.stdout, 32, line)
		case strings.HasPrefix(line, "@@"):
			line = a.paint(a.stdout, 36, line)
		}
		fmt.Fprintln(a.stdout, line)
	}
}

// diffContext is how many equal lines stand around a change.
const diffContext = 3

// unified returns the differences of two texts in the unified format; "" if there
// are none.
func unified(name, old, now string) string {
	if old == now {
		return ""
	}
	type line struct {
		sign byte
		text string
		a, b int // lines of old and now before it
	}
	x, y := linesOf(old), linesOf(now)
	// Longest common subsequence; what is equal at both ends needs no table.
	head := 0
	for head < len(x) && head < len(y) && x[head] == y[head] {
		head++
	}
	tail := 0
	for tail < len(x)-head && tail < len(y)-head && x[len(x)-1-tail] == y[len(y)-1-tail] {
		tail++
	}
	mx, my := x[head:len(x)-tail], y[head:len(y)-tail]
	common := make([][]int32, len(mx)+1)
	for i := range common {
		common[i] = make([]int32, len(my)+1)
	}
	for i := len(mx) - 1; i >= 0; i-- {
		for j := len(my) - 1; j >= 0; j-- {
			if mx[i] == my[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var script []line
	i, j := 0, 0
	for i < len(x) || j < len(y) {
		mi, mj := i-head, j-head
		switch {
		case i < len(x) && j < len(y) && x[i] == y[j] && (mi < 0 || mi >= len(mx) || mj < 0 || mj >= len(my) || common[mi][mj] == common[mi+1][mj+1]+1):
			script = append(script, line{' ', x[i], i, j})
			i, j = i+1, j+1
		case mi >= 0 && mi < len(mx) && (mj >= len(my) || common[mi+1][mj] >= common[mi][mj+1]):
			script = append(script, line{'-', x[i], i, j})
			i++
		default:
			script = append(script, line{'+', y[j], i, j})
			j++
		}
	}
	var out strings.Builder
	fmt.Fprintf(&out, "--- %s\n+++ %s\n", name, name)
	for at := 0; at < len(script); {
		if script[at].sign == ' ' {
			at++
			continue
		}
		from, to, last := max(at-diffContext, 0), at, at
		for to < len(script) && to-last <= 2*diffContext {
			if script[to].sign != ' ' {
				last = to
			}
			to++
		}
		to = min(last+1+diffContext, len(script))
		var gone, come int
		for _, l := range script[from:to] {
			if l.sign != '+' {
				gone++
			}
			if l.sign != '-' {
				come++
			}
		}
		fmt.Fprintf(&out, "@@ -%s +%s @@\n", span(script[from].a, gone), span(script[from].b, come))
		for _, l := range script[from:to] {
			fmt.Fprintf(&out, "%c%s\n", l.sign, l.text)
		}
		at = to
	}
	return out.String()
}

func span(before, count int) string {
	if count == 0 {
		return fmt.Sprintf("%d,0", before)
	}
	return fmt.Sprintf("%d,%d", before+1, count)
}

func linesOf(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// jsonOf is json.Marshal of what cannot fail.
func jsonOf(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}
