package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) patchCommand() *cobra.Command {
	var f changeFlags
	var patch, file, kind, subresource string
	cmd := &cobra.Command{
		Use:   "patch KIND NAME -p PATCH",
		Short: "Change fields of objects by a patch",
		Long: `Change fields of objects by a patch, in JSON or YAML:

  strategic  lists are merged by their items' names, as Kubernetes defines it (the default)
  merge      RFC 7386: lists are replaced as a whole
  json       RFC 6902: a list of operations`,
		Example: `  holdfast patch deployment web -p '{"spec":{"replicas":3}}'
  holdfast patch node n1 --type merge -p 'spec: {unschedulable: true}'
  holdfast patch pod web-7f2ab --type json -p '[{"op":"remove","path":"/metadata/labels/tier"}]'`,
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := edit{verb: "patched", idle: "not patched: it is so already", subresource: subresource}
			switch kind {
			case "strategic":
				c.kind = holdfastv1.PatchType_PATCH_TYPE_STRATEGIC
			case "merge":
				c.kind = holdfastv1.PatchType_PATCH_TYPE_MERGE
			case "json":
				c.kind = holdfastv1.PatchType_PATCH_TYPE_JSON
			default:
				return failf(exitUsage, "--type %s: want strategic, merge or json", kind)
			}
			if (patch == "") == (file == "") {
				return failf(exitUsage, "say what to change, with -p PATCH or --patch-file FILE")
			}
			text := []byte(patch)
			if file != "" {
				var err error
				if text, err = os.ReadFile(file); err != nil {
					return err
				}
			}
			data, err := yaml.YAMLToJSON(text)
			if err != nil {
				return failf(exitUsage, "the patch is neither JSON nor YAML: %w", err)
			}
			c.patch = data
			return a.changeAll(cmd.Context(), f, args, func(t doomed) (edit, error) {
				if t.resource.Custom && c.kind == holdfastv1.PatchType_PATCH_TYPE_STRATEGIC && !cmd.Flags().Changed("type") {
					merge := c
					merge.kind = holdfastv1.PatchType_PATCH_TYPE_MERGE // custom kinds have no other
					return merge, nil
				}
				return c, nil
			})
		},
	}
	f.add(cmd.Flags())
	f.wait.add(cmd.Flags())
	flags := cmd.Flags()
	flags.StringVarP(&patch, "patch", "p", "", "the patch")
	flags.StringVar(&file, "patch-file", "", "file with the patch")
	flags.StringVar(&kind, "type", "strategic", "strategic, merge or json")
	flags.StringVar(&subresource, "subresource", "", "change this part instead: status, scale or, of pods, resize or ephemeralcontainers")
	return cmd
}

func (a *app) scaleCommand() *cobra.Command {
	var f changeFlags
	var want, current int32
	cmd := &cobra.Command{
		Use:   "scale KIND NAME --replicas N",
		Short: "Set how many pods a workload has",
		Example: `  holdfast scale deployment web --replicas 5
  holdfast scale deploy/web --current-replicas 2 --replicas 3   # only if there are 2 now`,
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("replicas") {
				return failf(exitUsage, "say how many, with --replicas N")
			}
			if want < 0 {
				return failf(exitUsage, "--replicas %d: want 0 or more", want)
			}
			return a.changeAll(cmd.Context(), f, args, func(t doomed) (edit, error) {
				if !t.resource.Scale {
					return edit{}, failf(exitUsage, "%s cannot be scaled", t.resource.Plural)
				}
				if !cmd.Flags().Changed("current-replicas") {
					return merge(map[string]any{"spec": map[string]any{"replicas": want}}, "scaled", fmt.Sprintf("not scaled: it has %d already", want))
				}
				// A test before the change: whoever scaled it meanwhile is not overruled.
				patch := fmt.Sprintf(`[{"op":"test","path":"/spec/replicas","value":%d},{"op":"replace","path":"/spec/replicas","value":%d}]`, current, want)
				return edit{kind: holdfastv1.PatchType_PATCH_TYPE_JSON, patch: []byte(patch), verb: "scaled", idle: fmt.Sprintf("not scaled: it has %d already", want)}, nil
			})
		},
	}
	f.add(cmd.Flags())
	f.wait.add(cmd.Flags())
	flags := cmd.Flags()
	flags.Int32Var(&want, "replicas", 0, "how many pods there are to be")
	flags.Int32Var(&current, "current-replicas", 0, "only if it is to have this many now")
	return cmd
}
