package controllers

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/internal/golden"
)

// TestPlanCollection runs testdata/collector/*.txtar: an object, its owners, and
// what becomes of it.
func TestPlanCollection(t *testing.T) {
	golden.Run(t, "testdata/collector/*.txtar", func(t *testing.T, in golden.Input) string {
		l := one(t, in.File("pod"))
		nodeGone := l.has("node-removed")
		pod := l.pod()
		var owners []ownerState
		data, _ := in.Lookup("owners")
		for _, l := range parseLines(t, data) {
			owners = append(owners, ownerState{ref: metav1.OwnerReference{Kind: "ReplicaSet", Name: l.name, UID: types.UID(l.name)}, gone: l.has("gone")})
			l.done()
		}
		plan := planCollection(pod, owners, nodeGone)
		var b strings.Builder
		b.WriteString(plan.action.String())
		for _, ref := range plan.keep {
			fmt.Fprintf(&b, " keep %s", ref.Name)
		}
		if plan.reason != "" {
			fmt.Fprintf(&b, " (%s)", plan.reason)
		}
		return b.String()
	})
}
