package controllers

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// TestPlanNamespace runs testdata/namespace/*.txtar: a namespace and what is in it,
// and the next step of its deletion.
func TestPlanNamespace(t *testing.T) {
	golden.Run(t, "testdata/namespace/*.txtar", func(t *testing.T, in golden.Input) string {
		l := one(t, in.File("namespace"))
		ns := &corev1.Namespace{ObjectMeta: l.meta()}
		l.done()
		var contents []object.Object
		if data, ok := in.Lookup("pods"); ok {
			for _, pod := range parsePods(t, data) {
				contents = append(contents, pod)
			}
		}
		if data, ok := in.Lookup("configmaps"); ok {
			for _, l := range parseLines(t, data) {
				contents = append(contents, &corev1.ConfigMap{ObjectMeta: l.meta()})
				l.done()
			}
		}
		plan := planNamespace(ns, contents, testNow)
		var b strings.Builder
		for _, obj := range plan.remove {
			fmt.Fprintf(&b, "remove %s\n", object.KeyOf(obj))
		}
		if plan.gone {
			b.WriteString("gone\n")
		}
		if plan.changed {
			for _, c := range ns.Status.Conditions {
				fmt.Fprintf(&b, "condition %s=%s %s: %s\n", c.Type, c.Status, c.Reason, c.Message)
			}
			if planNamespace(ns, contents, testNow).changed {
				b.WriteString("and again, though nothing is new\n")
			}
		}
		if b.Len() == 0 {
			return "nothing"
		}
		return b.String()
	})
}
