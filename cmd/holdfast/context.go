package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/object"
)

func (a *app) contextCommand() *cobra.Command {
	group := &cobra.Command{
		Use:   "context",
		Short: "Choose which cluster to talk to",
		Long: `Choose which cluster to talk to. Contexts are kept in ~/.config/holdfast/config.yaml
(HOLDFAST_CONFIG names another file): each has a cluster's peers, its CA, and the
certificate to show there. --context or HOLDFAST_CONTEXT choose one for a while.`,
		Example: `  holdfast context list
  holdfast context use dev`,
		Args: groupArgs,
		RunE: showHelp,
	}
	group.AddCommand(
		&cobra.Command{
			Use: "list", Short: "Show all contexts", Example: "  holdfast context list", Args: noArgs,
			RunE: func(*cobra.Command, []string) error { return a.runContextList() },
		},
		&cobra.Command{
			Use: "use NAME", Short: "Make a context the current one", Example: "  holdfast context use dev",
			Args: exactArgs(1, "the NAME of a context"), ValidArgsFunction: a.completeContexts,
			RunE: func(_ *cobra.Command, args []string) error { return a.runContextUse(args[0]) },
		},
		&cobra.Command{
			Use: "show [NAME]", Short: "Show a context, without its key", Example: "  holdfast context show", Args: atMost(1),
			ValidArgsFunction: a.completeContexts,
			RunE:              func(_ *cobra.Command, args []string) error { return a.runContextShow(args) },
		},
		a.contextExportCommand(),
	)
	return group
}

func contextNames(config *client.ConfigFile) []string {
	var names []string
	for _, c := range config.Contexts {
		names = append(names, c.Name)
	}
	return names
}

func (a *app) completeContexts(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	config, _, err := a.loadConfig()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return contextNames(config), cobra.ShellCompDirectiveNoFileComp
}

func (a *app) runContextList() error {
	config, path, err := a.loadConfig()
	if err != nil {
		return err
	}
	if len(config.Contexts) == 0 {
		a.note("No contexts in %s.", path)
		return nil
	}
	used, _ := a.currentContext()
	t := object.Table{Columns: []object.Column{{Name: "CURRENT"}, {Name: "NAME"}, {Name: "CLUSTER"}, {Name: "PEERS"}}}
	for _, c := range config.Contexts {
		mark := ""
		if c.Name == used.Name {
			mark = "*"
		}
		t.Rows = append(t.Rows, []string{mark, c.Name, c.Cluster, strings.Join(c.Peers, ",")})
	}
	(&grid{w: a.stdout, header: true}).write(t)
	return nil
}

func (a *app) runContextUse(name string) error {
	err := client.UpdateConfig("", func(config *client.ConfigFile) error {
		if !hasContext(config, name) {
			return failf(exitNotFound, "there is no context %s; there are %s", name, orNone(contextNames(config)))
		}
		config.Current = name
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "context %s is current now\n", name)
	return nil
}

func hasContext(config *client.ConfigFile, name string) bool {
	for _, c := range config.Contexts {
		if c.Name == name {
			return true
		}
	}
	return false
}

func orNone(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}

func (a *app) runContextShow(args []string) error {
	if len(args) == 1 {
		a.contextName = args[0]
	}
	c, err := a.currentContext()
	if err != nil {
		return err
	}
	creds, err := c.Credentials()
	if err != nil {
		return err
	}
	id := creds.Identity()
	fmt.Fprintf(a.stdout, "Name      %s\nCluster   %s\nPeers     %s\nIdentity  %s %s\n", c.Name, c.Cluster, strings.Join(c.Peers, ", "), id.Role, id.Name)
	if _, expires := creds.Validity(); !expires.IsZero() {
		left := "expired"
		if d := expires.Sub(a.now()); d > 0 {
			left = fmt.Sprintf("%d days left", int(d.Hours()/24))
		}
		fmt.Fprintf(a.stdout, "Valid to  %s (%s)\n", expires.Format("2006-01-02 15:04 MST"), left)
	}
	return nil
}
