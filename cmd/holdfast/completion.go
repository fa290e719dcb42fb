package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// completionTime bounds what a completion asks of the cluster: somebody is holding
// the tab key.
const completionTime = 2 * time.Second

// completionNames bounds how many live names are offered.
const completionNames = 1000

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Write a script that completes commands and live names in a shell",
		Example: `  source <(holdfast completion bash)
  holdfast completion zsh > "${fpath[1]}/_holdfast"`,
		Args:      exactArgs(1, "one of bash, zsh, fish, powershell"),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.stdout)
			case "fish":
				return root.GenFishCompletion(a.stdout, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.stdout)
			}
			return failf(exitUsage, "shell %q: want bash, zsh, fish or powershell", args[0])
		},
	}
}

// completeFlags lets the values of flags be completed, of cmd and all below it.
func (a *app) completeFlags(cmd *cobra.Command) {
	complete := map[string]cobra.CompletionFunc{
		"namespace": func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return a.liveNames(cmd, mustResource("namespaces")), cobra.ShellCompDirectiveNoFileComp
		},
		"context": func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
			return a.completeContexts(cmd, nil, word)
		},
		"container":   a.completeContainers,
		"output":      fixed("table", "wide", "name", "json", "yaml", "jsonpath=", "go-template=", "custom-columns="),
		"color":       fixed("always", "never", "auto"),
		"dry-run":     fixed("none", "client", "server"),
		"consistency": fixed("linearizable", "session", "bounded", "local"),
		"for":         fixed("condition=", "jsonpath=", "create", "delete"),
		"kustomize": func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
	}
	register := func(f *pflag.Flag) {
		if _, known := cmd.GetFlagCompletionFunc(f.Name); !known && complete[f.Name] != nil && f.Value.Type() != "bool" {
			_ = cmd.RegisterFlagCompletionFunc(f.Name, complete[f.Name]) // fails for flags that do not exist
		}
	}
	cmd.PersistentFlags().VisitAll(register)
	cmd.Flags().VisitAll(register)
	for _, sub := range cmd.Commands() {
		a.completeFlags(sub)
	}
}

// fixed completes one of some words. After one that ends with = no space follows.
func fixed(words ...string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
		directive := cobra.ShellCompDirectiveNoFileComp
		if slices.ContainsFunc(words, func(w string) bool { return strings.HasSuffix(w, "=") && strings.HasPrefix(w, begun) }) {
			directive |= cobra.ShellCompDirectiveNoSpace
		}
		return words, directive
	}
}

// completeObjects completes the kind, custom ones as well, then live names that are
// not there yet; or both at once, as KIND/NAME.
func (a *app) completeObjects(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if kind, _, slashed := strings.Cut(begun, "/"); slashed {
		return a.completeSlashed(cmd, kind, args), cobra.ShellCompDirectiveNoFileComp
	}
	if len(args) == 0 {
		return a.completeKinds(cmd.Context(), begun), cobra.ShellCompDirectiveNoFileComp
	}
	if strings.Contains(args[0], "/") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	a.hurry()
	res, err := a.resourceFor(cmd.Context(), args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return without(a.liveNames(cmd, res), args[1:]), cobra.ShellCompDirectiveNoFileComp
}

// completePods completes live names of pods, or KIND/NAME of what has pods.
func (a *app) completePods(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if kind, _, slashed := strings.Cut(begun, "/"); slashed {
		return a.completeSlashed(cmd, kind, nil), cobra.ShellCompDirectiveNoFileComp
	}
	return a.liveNames(cmd, mustResource("pods")), cobra.ShellCompDirectiveNoFileComp
}

// completeNodes completes live names of nodes.
func (a *app) completeNodes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return without(a.liveNames(cmd, mustResource("nodes")), args), cobra.ShellCompDirectiveNoFileComp
}

// completeContainers completes the containers of the pod, or of what makes pods, that
// the arguments name.
func (a *app) completeContainers(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	none := cobra.ShellCompDirectiveNoFileComp
	if len(args) == 0 {
		return nil, none
	}
	word := args[0]
	if cmd.Name() == "cp" {
		for _, arg := range args {
			if pod, _, ok := strings.Cut(arg, ":"); ok {
				if ns, name, ok := strings.Cut(pod, "/"); ok {
					a.namespace, pod = ns, name
				}
				word = pod
			}
		}
	}
	res, name, err := parseWorkload(word)
	if err != nil {
		return nil, none
	}
	r, err := a.dial()
	if err != nil {
		return nil, none
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	answer, err := r.objects.Get(ctx, &holdfastv1.GetRequest{
		Kind: wireKind(res), Namespace: a.scope(res), Name: name,
		Read: &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL},
	})
	if err != nil {
		return nil, none
	}
	obj, err := a.decode(answer.GetObject())
	if err != nil {
		return nil, none
	}
	spec := podSpecOf(obj)
	if spec == nil {
		return nil, none
	}
	var names []string
	for _, c := range spec.Containers {
		names = append(names, c.Name)
	}
	for _, c := range spec.InitContainers {
		names = append(names, c.Name)
	}
	return names, none
}

// completeKinds returns the kinds' plurals, and "all"; after a comma, with what stands
// before it.
func (a *app) completeKinds(ctx context.Context, begun string) []string {
	a.hurry()
	a.learnKinds(ctx)
	before := begun[:strings.LastIndex(begun, ",")+1]
	var words []string
	for _, r := range a.kinds().Resources() {
		words = append(words, before+r.Plural)
	}
	return append(words, before+"all")
}

// completeSlashed returns KIND/NAME of the live objects of a kind but those in args.
func (a *app) completeSlashed(cmd *cobra.Command, kind string, args []string) []string {
	a.hurry()
	res, err := a.resourceFor(cmd.Context(), kind)
	if err != nil {
		return nil
	}
	var words []string
	for _, name := range a.liveNames(cmd, res) {
		words = append(words, kind+"/"+name)
	}
	return without(words, args)
}

// without returns words but those that are said already.
func without(words, said []string) []string {
	return slices.DeleteFunc(words, func(w string) bool { return slices.Contains(said, w) })
}

// hurry bounds what is asked of the cluster, and keeps complaints to itself.
func (a *app) hurry() {
	a.requestTimeout, a.patience = completionTime, 2*completionTime
}

// liveNames asks any peer for the names of a kind's objects.
func (a *app) liveNames(cmd *cobra.Command, res object.Resource) []string {
	a.hurry()
	r, err := a.dial()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	answer, err := r.objects.List(ctx, &holdfastv1.ListRequest{
		Kind: wireKind(res), Namespace: a.scope(res), Limit: completionNames,
		Read: &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL},
	})
	if err != nil {
		return nil
	}
	var names []string
	for _, o := range answer.GetObjects() {
		names = append(names, o.GetName())
	}
	return names
}
