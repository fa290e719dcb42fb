package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) cordonCommand() *cobra.Command {
	return a.schedulableCommand("cordon", "Keep new pods away from nodes; those that run there stay", "cordoned", true)
}

func (a *app) uncordonCommand() *cobra.Command {
	return a.schedulableCommand("uncordon", "Let new pods onto nodes again", "uncordoned", false)
}

func (a *app) schedulableCommand(verb, short, done string, unschedulable bool) *cobra.Command {
	var f changeFlags
	cmd := &cobra.Command{
		Use:               verb + " NODE...",
		Short:             short,
		Example:           "  holdfast " + verb + " n1\n  holdfast " + verb + " -l rack=4",
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeAll(cmd.Context(), f, append([]string{"nodes"}, bareNodes(args)...), func(doomed) (edit, error) {
				// null and not false: uncordoned nodes are as they were before.
				var value any
				if unschedulable {
					value = true
				}
				return merge(map[string]any{"spec": map[string]any{"unschedulable": value}}, done, "already "+done)
			})
		},
	}
	f.add(cmd.Flags())
	return cmd
}

// bareNodes takes "node/" off names of nodes.
func bareNodes(args []string) []string {
	out := make([]string, len(args))
	for i, arg := range args {
		out[i] = arg
		for _, prefix := range []string{"node/", "nodes/", "no/"} {
			out[i] = strings.TrimPrefix(out[i], prefix)
		}
	}
	return out
}

func (a *app) taintCommand() *cobra.Command {
	var f changeFlags
	var overwrite bool
	cmd := &cobra.Command{
		Use:   "taint nodes NAME... KEY[=VALUE]:EFFECT... KEY[:EFFECT]-...",
		Short: "Set or remove taints of nodes, which keep pods away that do not tolerate them",
		Long: `Set or remove taints of nodes, which keep pods away that do not tolerate them.

EFFECT is NoSchedule (no new pods), PreferNoSchedule (no new pods if it can be
helped) or NoExecute (running pods have to go as well).`,
		Example: `  holdfast taint nodes n1 gpu=yes:NoSchedule
  holdfast taint nodes n1 gpu:NoSchedule-        # removes it
  holdfast taint nodes n1 gpu-                   # with any effect`,
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			i := slices.IndexFunc(args, func(s string) bool { return strings.ContainsAny(s, ":") || strings.HasSuffix(s, "-") })
			if i < 0 {
				return failf(exitUsage, "say which taint: KEY=VALUE:EFFECT to set one, KEY:EFFECT- to remove one")
			}
			edits, err := parseTaints(args[i:])
			if err != nil {
				return err
			}
			return a.runTaint(cmd.Context(), f, args[:i], edits, overwrite)
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "change the value of a taint that is there already")
	return cmd
}

// taintEdit sets or removes a taint. An empty effect, in a removal, is any.
type taintEdit struct {
	taint  corev1.Taint
	remove bool
}

func parseTaints(args []string) ([]taintEdit, error) {
	effects := []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}
	var out []taintEdit
	for _, arg := range args {
		text, remove := strings.CutSuffix(arg, "-")
		left, effect, hasEffect := strings.Cut(text, ":")
		key, value, _ := strings.Cut(left, "=")
		switch {
		case key == "":
			return nil, failf(exitUsage, "%q: a key must come first, as in gpu=yes:NoSchedule", arg)
		case !hasEffect && !remove:
			return nil, failf(exitUsage, "%q: say what it does, as in %s:NoSchedule", arg, left)
		case hasEffect && !slices.Contains(effects, corev1.TaintEffect(effect)):
			return nil, failf(exitUsage, "%q: %s is no effect; there are NoSchedule, PreferNoSchedule and NoExecute", arg, effect)
		}
		out = append(out, taintEdit{corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)}, remove})
	}
	return out, nil
}

// editTaints returns taints after the edits.
func editTaints(taints []corev1.Taint, edits []taintEdit, overwrite bool) ([]corev1.Taint, error) {
	out := slices.Clone(taints)
	for _, e := range edits {
		is := func(t corev1.Taint) bool {
			return t.Key == e.taint.Key && (t.Effect == e.taint.Effect || e.remove && e.taint.Effect == "")
		}
		i := slices.IndexFunc(out, is)
		switch {
		case e.remove && i < 0:
			return nil, fmt.Errorf("has no taint %s", strings.TrimSuffix(e.taint.Key+":"+string(e.taint.Effect), ":"))
		case e.remove:
			out = slices.DeleteFunc(out, is)
		case i < 0:
			out = append(out, e.taint)
		case out[i].Value != e.taint.Value && !overwrite:
			return nil, fmt.Errorf("has the taint %s already: say --overwrite to change it", out[i].ToString())
		default:
			out[i].Value = e.taint.Value
		}
	}
	return out, nil
}

func (a *app) runTaint(ctx context.Context, f changeFlags, args []string, edits []taintEdit, overwrite bool) error {
	targets, r, err := a.targets(ctx, f, args)
	if err != nil {
		return err
	}
	for _, t := range targets {
		if t.resource.Kind != "Node" {
			return failf(exitUsage, "only nodes have taints, not %s", t.resource.Plural)
		}
		obj, _, err := a.get(ctx, r, t.resource, "", t.name, &holdfastv1.ReadOptions{})
		if err != nil {
			return err
		}
		node, ok := obj.(*corev1.Node)
		if !ok {
			return fmt.Errorf("%s is a %T", t, obj)
		}
		taints, err := editTaints(node.Spec.Taints, edits, overwrite)
		if err != nil {
			return failf(exitRefused, "%s %w", t, err)
		}
		// The version goes along: another's taint set meanwhile must not be lost.
		c, err := merge(map[string]any{
			"metadata": map[string]any{"resourceVersion": node.ResourceVersion},
			"spec":     map[string]any{"taints": taints},
		}, "tainted", "not tainted: it is so already")
		if err != nil {
			return err
		}
		if len(edits) > 0 && !slices.ContainsFunc(edits, func(e taintEdit) bool { return !e.remove }) {
			c.verb = "untainted"
		}
		if _, _, err := a.patchOne(ctx, r, f, t, c); err != nil {
			return err
		}
	}
	return nil
}
