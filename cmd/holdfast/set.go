package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) setCommand() *cobra.Command {
	group := &cobra.Command{
		Use: "set", Short: "Change what workloads run: images, variables, resources",
		Example: "  holdfast set image deployment/web web=nginx:1.29", Args: groupArgs, RunE: showHelp,
	}
	group.AddCommand(a.setImageCommand(), a.setEnvCommand(), a.setResourcesCommand(), a.setServiceAccountCommand(), a.setSelectorCommand())
	return group
}

// setter is a command that changes the pod spec of objects.
func (a *app) setter(cmd *cobra.Command, run func(ctx context.Context, f changeFlags, args []string) error) *cobra.Command {
	var f changeFlags
	cmd.ValidArgsFunction = a.completeObjects
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), f, args) }
	f.add(cmd.Flags())
	f.wait.add(cmd.Flags())
	return cmd
}

// changeSpecs changes the pod specs of all targets by strategic patches: of says,
// given a spec, which part of it becomes what.
func (a *app) changeSpecs(ctx context.Context, f changeFlags, names []string, verb string, of func(title string, spec *corev1.PodSpec) (map[string]any, error)) error {
	return a.changeAll(ctx, f, names, func(t doomed) (edit, error) {
		path := podSpecPath(t.resource)
		if path == nil {
			return edit{}, failf(exitUsage, "%s have no containers", t.resource.Plural)
		}
		r, err := a.dial()
		if err != nil {
			return edit{}, err
		}
		obj, _, err := a.get(ctx, r, t.resource, t.namespace, t.name, &holdfastv1.ReadOptions{})
		if err != nil {
			return edit{}, err
		}
		spec := podSpecOf(obj)
		if spec == nil {
			return edit{}, fmt.Errorf("%s has no pod spec", t)
		}
		part, err := of(t.String(), spec)
		if err != nil {
			return edit{}, err
		}
		return edit{kind: holdfastv1.PatchType_PATCH_TYPE_STRATEGIC, patch: jsonOf(within(path, part)), verb: verb, idle: "not changed: it is so already"}, nil
	})
}

// containersOf returns those containers of a spec that names mean: "*" and "" mean
// all of the ordinary ones.
func containersOf(title string, spec *corev1.PodSpec, name string) (field string, found []corev1.Container, err error) {
	if name == "" || name == "*" {
		return "containers", spec.Containers, nil
	}
	var all []string
	for field, list := range map[string][]corev1.Container{"containers": spec.Containers, "initContainers": spec.InitContainers} {
		for _, c := range list {
			if c.Name == name {
				return field, []corev1.Container{c}, nil
			}
			all = append(all, c.Name)
		}
	}
	slices.Sort(all)
	return "", nil, failf(exitNotFound, "%s has no container %s; it has %s", title, name, strings.Join(all, ", "))
}

func (a *app) setImageCommand() *cobra.Command {
	return a.setter(&cobra.Command{
		Use: "image KIND NAME CONTAINER=IMAGE...", Short: "Set the images of containers",
		Example: "  holdfast set image deployment/web web=nginx:1.29\n  holdfast set image deployments -l app=shop '*=shop:2'",
	}, func(ctx context.Context, f changeFlags, args []string) error {
		names, set, err := splitPairs(args)
		if err != nil {
			return err
		}
		if len(set) == 0 {
			return failf(exitUsage, "say which container runs what: CONTAINER=IMAGE, or *=IMAGE for all")
		}
		return a.changeSpecs(ctx, f, names, "image updated", func(title string, spec *corev1.PodSpec) (map[string]any, error) {
			part := map[string]any{}
			for _, name := range slices.Sorted(maps.Keys(set)) {
				if set[name] == nil || *set[name] == "" {
					return nil, failf(exitUsage, "%s: want CONTAINER=IMAGE", name)
				}
				field, found, err := containersOf(title, spec, name)
				if err != nil {
					return nil, err
				}
				for _, c := range found {
					list, _ := part[field].([]any)
					part[field] = append(list, map[string]any{"name": c.Name, "image": *set[name]})
				}
			}
			return part, nil
		})
	})
}

func (a *app) setEnvCommand() *cobra.Command {
	var container, from, prefix string
	var list bool
	cmd := a.setter(&cobra.Command{
		Use: "env KIND NAME NAME=VALUE... NAME-...", Short: "Set or remove environment variables of containers",
		Example: `  holdfast set env deployment/web MODE=fast DEBUG-
  holdfast set env deployment/web --from configmap/app --prefix APP_
  holdfast set env deployment/web --list`,
	}, func(ctx context.Context, f changeFlags, args []string) error {
		names, set, err := splitPairs(args)
		if err != nil {
			return err
		}
		if list {
			return a.listEnv(ctx, names, container)
		}
		var vars []any
		for _, key := range slices.Sorted(maps.Keys(set)) {
			if set[key] == nil {
				vars = append(vars, map[string]any{"name": key, "$patch": "delete"})
				continue
			}
			vars = append(vars, map[string]any{"name": key, "value": *set[key], "valueFrom": nil})
		}
		if from != "" {
			more, err := a.envFrom(ctx, from, prefix)
			if err != nil {
				return err
			}
			vars = append(vars, more...)
		}
		if len(vars) == 0 {
			return failf(exitUsage, "say which: NAME=VALUE to set one, NAME- to remove one, or --from configmap/NAME")
		}
		return a.changeSpecs(ctx, f, names, "env updated", func(title string, spec *corev1.PodSpec) (map[string]any, error) {
			field, found, err := containersOf(title, spec, container)
			if err != nil {
				return nil, err
			}
			var out []any
			for _, c := range found {
				out = append(out, map[string]any{"name": c.Name, "env": vars})
			}
			return map[string]any{field: out}, nil
		})
	})
	flags := cmd.Flags()
	flags.StringVarP(&container, "container", "c", "", "only in this container (default: all)")
	flags.StringVar(&from, "from", "", "a variable for each entry of this configmap/NAME or secret/NAME")
	flags.StringVar(&prefix, "prefix", "", "what names of --from begin with")
	flags.BoolVar(&list, "list", false, "only show what is set")
	return cmd
}

// envFrom returns a variable for each entry of a config map or secret.
func (a *app) envFrom(ctx context.Context, from, prefix string) ([]any, error) {
	obj, err := a.one(ctx, []string{from})
	if err != nil {
		return nil, err
	}
	var keys []string
	ref := "configMapKeyRef"
	switch o := obj.(type) {
	case *corev1.ConfigMap:
		keys = slices.Sorted(maps.Keys(o.Data))
	case *corev1.Secret:
		keys, ref = slices.Sorted(maps.Keys(o.Data)), "secretKeyRef"
	default:
		return nil, failf(exitUsage, "--from %s: want configmap/NAME or secret/NAME", from)
	}
	var out []any
	for _, key := range keys {
		name := prefix + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(key))
		out = append(out, map[string]any{"name": name, "value": nil, "valueFrom": map[string]any{ref: map[string]any{"name": obj.GetName(), "key": key}}})
	}
	return out, nil
}

func (a *app) listEnv(ctx context.Context, names []string, container string) error {
	obj, err := a.one(ctx, names)
	if err != nil {
		return err
	}
	spec := podSpecOf(obj)
	if spec == nil {
		return failf(exitUsage, "%s has no containers", title(obj))
	}
	_, found, err := containersOf(title(obj), spec, container)
	if err != nil {
		return err
	}
	for _, c := range found {
		fmt.Fprintf(a.stdout, "# %s, container %s\n", title(obj), c.Name)
		for _, v := range c.Env {
			if v.ValueFrom != nil {
				fmt.Fprintf(a.stdout, "# %s from %s\n", v.Name, sourceOf(v.ValueFrom))
				continue
			}
			fmt.Fprintf(a.stdout, "%s=%s\n", v.Name, v.Value)
		}
	}
	return nil
}

func sourceOf(v *corev1.EnvVarSource) string {
	switch {
	case v.ConfigMapKeyRef != nil:
		return fmt.Sprintf("config map %s, key %s", v.ConfigMapKeyRef.Name, v.ConfigMapKeyRef.Key)
	case v.SecretKeyRef != nil:
		return fmt.Sprintf("secret %s, key %s", v.SecretKeyRef.Name, v.SecretKeyRef.Key)
	case v.FieldRef != nil:
		return "field " + v.FieldRef.FieldPath
	case v.ResourceFieldRef != nil:
		return "resource " + v.ResourceFieldRef.Resource
	}
	return "elsewhere"
}

func (a *app) setResourcesCommand() *cobra.Command {
	var container string
	var requests, limits []string
	cmd := a.setter(&cobra.Command{
		Use: "resources KIND NAME --requests RESOURCE=AMOUNT,... --limits RESOURCE=AMOUNT,...", Short: "Set what containers request and may use at most",
		Example: "  holdfast set resources deployment/web --requests cpu=100m,memory=64Mi --limits memory=128Mi\n  holdfast set resources deployment/web -c web --limits memory=0    # removes it",
	}, func(ctx context.Context, f changeFlags, args []string) error {
		if len(requests)+len(limits) == 0 {
			return failf(exitUsage, "say what, with --requests or --limits")
		}
		amounts := map[string]any{}
		for field, pairs := range map[string][]string{"requests": requests, "limits": limits} {
			found, err := resourceList("--"+field, pairs)
			if err != nil {
				return failf(exitUsage, "%w", err)
			}
			if len(found) == 0 {
				continue
			}
			part := map[string]any{}
			for name, q := range found {
				part[string(name)] = q.String()
				if q.IsZero() {
					part[string(name)] = nil
				}
			}
			amounts[field] = part
		}
		return a.changeSpecs(ctx, f, args, "resources updated", func(title string, spec *corev1.PodSpec) (map[string]any, error) {
			field, found, err := containersOf(title, spec, container)
			if err != nil {
				return nil, err
			}
			var out []any
			for _, c := range found {
				out = append(out, map[string]any{"name": c.Name, "resources": amounts})
			}
			return map[string]any{field: out}, nil
		})
	})
	flags := cmd.Flags()
	flags.StringVarP(&container, "container", "c", "", "only of this container (default: all)")
	flags.StringSliceVar(&requests, "requests", nil, "what is kept for each, such as cpu=100m,memory=64Mi; 0 removes one")
	flags.StringSliceVar(&limits, "limits", nil, "what each gets at most, such as memory=128Mi; 0 removes one")
	return cmd
}

func (a *app) setServiceAccountCommand() *cobra.Command {
	return a.setter(&cobra.Command{
		Use: "serviceaccount KIND NAME ACCOUNT", Aliases: []string{"sa"}, Short: "Set which service account pods run as",
		Example: "  holdfast set serviceaccount deployment/web robot",
	}, func(ctx context.Context, f changeFlags, args []string) error {
		if len(args) < 2 {
			return failf(exitUsage, "want KIND NAME ACCOUNT")
		}
		account := args[len(args)-1]
		return a.changeSpecs(ctx, f, args[:len(args)-1], "service account updated", func(string, *corev1.PodSpec) (map[string]any, error) {
			return map[string]any{"serviceAccountName": account, "serviceAccount": account}, nil
		})
	})
}

func (a *app) setSelectorCommand() *cobra.Command {
	return a.setter(&cobra.Command{
		Use: "selector service NAME LABELS", Short: "Set which pods a service sends to",
		Example: "  holdfast set selector service web app=web,color=green",
	}, func(ctx context.Context, f changeFlags, args []string) error {
		if len(args) < 2 {
			return failf(exitUsage, "want service NAME LABELS")
		}
		labels, err := pairsOf(args[len(args)-1])
		if err != nil {
			return failf(exitUsage, "%w", err)
		}
		return a.changeAll(ctx, f, args[:len(args)-1], func(t doomed) (edit, error) {
			if t.resource.Kind != "Service" {
				return edit{}, failf(exitUsage, "the selector of %s cannot change: only that of services can", t.resource.Plural)
			}
			patch := []map[string]any{{"op": "add", "path": "/spec/selector", "value": labels}}
			return edit{kind: holdfastv1.PatchType_PATCH_TYPE_JSON, patch: jsonOf(patch), verb: "selector updated", idle: "not changed: it is so already"}, nil
		})
	})
}

// pairsOf reads "app=web,tier=front".
func pairsOf(text string) (map[string]string, error) {
	out := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%q: want KEY=VALUE,KEY=VALUE", text)
		}
		out[key] = value
	}
	return out, nil
}
