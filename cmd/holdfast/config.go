package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/client"
)

// configCommand is context by kubectl's words.
func (a *app) configCommand() *cobra.Command {
	group := &cobra.Command{
		Use: "config", Short: "The commands of 'context' by kubectl's names",
		Example: "  holdfast config get-contexts\n  holdfast config use-context dev", Args: groupArgs, RunE: showHelp,
	}
	group.AddCommand(
		&cobra.Command{
			Use: "view", Short: "Show the file of contexts, without keys", Example: "  holdfast config view", Args: noArgs,
			RunE: func(*cobra.Command, []string) error { return a.runConfigView() },
		},
		&cobra.Command{
			Use: "current-context", Short: "Show the name of the context in use", Example: "  holdfast config current-context", Args: noArgs,
			RunE: func(*cobra.Command, []string) error {
				c, err := a.currentContext()
				if err == nil {
					fmt.Fprintln(a.stdout, c.Name)
				}
				return err
			},
		},
		&cobra.Command{
			Use: "get-contexts", Short: "Show all contexts", Example: "  holdfast config get-contexts", Args: noArgs,
			RunE: func(*cobra.Command, []string) error { return a.runContextList() },
		},
		&cobra.Command{
			Use: "use-context NAME", Short: "Make a context the current one", Example: "  holdfast config use-context dev",
			Args: exactArgs(1, "the NAME of a context"), ValidArgsFunction: a.completeContexts,
			RunE: func(_ *cobra.Command, args []string) error { return a.runContextUse(args[0]) },
		},
	)
	return group
}

func (a *app) runConfigView() error {
	config, _, err := a.loadConfig()
	if err != nil {
		return err
	}
	shown := client.ConfigFile{Current: config.Current}
	for _, c := range config.Contexts {
		c.Key = "REDACTED"
		shown.Contexts = append(shown.Contexts, c)
	}
	text, err := yaml.Marshal(shown)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(text)
	return err
}
