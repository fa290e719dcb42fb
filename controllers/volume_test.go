package controllers

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// parseAll reads a list of objects in YAML.
func parseAll[T any](t *testing.T, data []byte) []*T {
	t.Helper()
	var all []*T
	if err := yaml.UnmarshalStrict(data, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

func claimState(c *corev1.PersistentVolumeClaim) string {
	q := c.Status.Capacity[corev1.ResourceStorage]
	return fmt.Sprintf("claim %s: volume=%q phase=%s capacity=%s class=%s finalizers=%v annotations=%v", c.Name, c.Spec.VolumeName, c.Status.Phase, q.String(), textOf(c.Spec.StorageClassName), c.Finalizers, c.Annotations)
}

func textOf(s *string) string {
	if s == nil {
		return "<nil>"
	}
	return *s
}

func volumeState(pv *corev1.PersistentVolume) string {
	ref := "<none>"
	if r := pv.Spec.ClaimRef; r != nil {
		ref = r.Namespace + "/" + r.Name + "/" + string(r.UID)
	}
	text := fmt.Sprintf("volume %s: claim=%s phase=%s policy=%s finalizers=%v", pv.Name, ref, pv.Status.Phase, pv.Spec.PersistentVolumeReclaimPolicy, pv.Finalizers)
	if pv.Status.Message != "" {
		text += " message=" + pv.Status.Message
	}
	if csi := pv.Spec.CSI; csi != nil {
		text += fmt.Sprintf(" %s %s %v", csi.Driver, csi.VolumeHandle, csi.VolumeAttributes)
	}
	return text
}

// TestPlanVolumes runs testdata/volume/*.txtar: a claim or a volume, what else
// there is, and what is done.
func TestPlanVolumes(t *testing.T) {
	golden.Run(t, "testdata/volume/*.txtar", func(t *testing.T, in golden.Input) string {
		var b strings.Builder
		line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
		var claims []*corev1.PersistentVolumeClaim
		var volumes []*corev1.PersistentVolume
		var classes []*storagev1.StorageClass
		var nodes []*corev1.Node
		used := false
		for _, name := range in.Names() {
			switch data := in.File(name); name {
			case "claim":
				claims = parseAll[corev1.PersistentVolumeClaim](t, data)
			case "volumes", "volume":
				volumes = parseAll[corev1.PersistentVolume](t, data)
			case "classes":
				classes = parseAll[storagev1.StorageClass](t, data)
			case "node":
				nodes = parseAll[corev1.Node](t, data)
			case "used":
				used = true
			}
		}
		for _, pv := range volumes {
			object.Default(pv)
		}
		for _, c := range classes {
			object.Default(c)
		}
		for _, c := range claims {
			object.Default(c)
		}
		if _, ok := in.Lookup("volume"); ok {
			var claim *corev1.PersistentVolumeClaim
			if len(claims) > 0 {
				claim = claims[0]
			}
			p := planVolume(volumes[0], claim, len(nodes) > 0)
			switch {
			case p.gone:
				line("gone")
			case p.remove:
				line("remove")
			case p.changed:
				line("write")
			default:
				line("nothing to do")
			}
			line("%s", volumeState(volumes[0]))
			if p.reason != "" {
				line("event %s: %s", p.reason, p.message)
			}
			line("its node removes the data: %v", object.LocalVolumeToRemove(volumes[0]))
			return b.String()
		}
		input := claimInput{claim: claims[0], used: used, classes: classes, volumes: volumes}
		if len(nodes) > 0 {
			input.node = nodes[0]
		}
		p := planClaim(input)
		switch {
		case p.gone:
			line("gone")
		case p.changed:
			line("write %s", claimState(claims[0]))
		default:
			line("as it was: %s", claimState(claims[0]))
		}
		if p.create != nil {
			line("create %s, %s", volumeState(p.create), p.create.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values)
		}
		if p.update != nil {
			line("write %s", volumeState(p.update))
		}
		if p.reason != "" {
			line("event %s (warning: %v): %s", p.reason, p.warning, p.message)
		}
		return b.String()
	})
}
