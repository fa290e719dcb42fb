package main

import (
	"context"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) labelCommand() *cobra.Command {
	return a.pairsCommand("label", "labels", "labeled", `  holdfast label pod web-7f2ab tier=front
  holdfast label nodes n1 disk=ssd --overwrite
  holdfast label deployments -l app=web owner=shop
  holdfast label pod web-7f2ab tier-             # removes it`)
}

func (a *app) annotateCommand() *cobra.Command {
	return a.pairsCommand("annotate", "annotations", "annotated", `  holdfast annotate deployment web why="more memory, see ticket 12"
  holdfast annotate deployment web why-          # removes it`)
}

// pairsCommand is label or annotate: both change a map of the metadata.
func (a *app) pairsCommand(verb, field, done, example string) *cobra.Command {
	var f changeFlags
	var overwrite bool
	cmd := &cobra.Command{
		Use:   verb + " KIND NAME... KEY=VALUE... KEY-...",
		Short: "Set or remove " + field + " of objects",
		Long: "Set or remove " + field + ` of objects. A value that is there already is changed only with
--overwrite.`,
		Example:           example,
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			names, set, err := splitPairs(args)
			if err != nil {
				return err
			}
			if len(set) == 0 {
				return failf(exitUsage, "say which %s: KEY=VALUE to set one, KEY- to remove one", field)
			}
			if !overwrite && len(set) > 0 {
				if err := a.refuseOverwrite(cmd.Context(), f, names, field, set); err != nil {
					return err
				}
			}
			return a.changeAll(cmd.Context(), f, names, func(doomed) (edit, error) {
				return merge(map[string]any{"metadata": map[string]any{field: set}}, done, "not "+done+": it is so already")
			})
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "change values that are there already")
	return cmd
}

// refuseOverwrite fails if one of the targets has another value under a key that
// is to be set. Nothing has been changed then.
func (a *app) refuseOverwrite(ctx context.Context, f changeFlags, args []string, field string, set map[string]*string) error {
	targets, r, err := a.targets(ctx, f, args)
	if err != nil {
		return err
	}
	for _, t := range targets {
		obj, _, err := a.get(ctx, r, t.resource, t.namespace, t.name, &holdfastv1.ReadOptions{})
		if err != nil {
			return err
		}
		has := obj.GetLabels()
		if field == "annotations" {
			has = obj.GetAnnotations()
		}
		for _, key := range slices.Sorted(maps.Keys(set)) {
			if old, ok := has[key]; ok && set[key] != nil && *set[key] != old {
				return failf(exitRefused, "%s has %s=%s already: say --overwrite to change it; nothing was changed", t, key, old)
			}
		}
	}
	return nil
}
