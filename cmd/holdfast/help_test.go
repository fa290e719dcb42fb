package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestHelpIsComplete walks the tree of commands: each says what it does, shows how
// it is used, and explains each of its flags.
func TestHelpIsComplete(t *testing.T) {
	commands := 0
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
		if cmd.Hidden {
			return
		}
		commands++
		path := cmd.CommandPath()
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: Short is %q, want a phrase without full stop", path, cmd.Short)
		}
		if !strings.Contains(cmd.Example, "holdfast ") {
			t.Errorf("%s: has no example", path)
		}
		if cmd.RunE == nil && cmd.Run == nil && !cmd.HasSubCommands() {
			t.Errorf("%s: does nothing", path)
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s: has no explanation", path, f.Name)
			}
		})
	}
	walk(newApp().root())
	if commands < 20 {
		t.Errorf("%d commands were found, want all", commands)
	}
}

// TestUsageErrors: what is typed wrongly is named, with the nearest thing that
// exists, and exits with 2.
func TestUsageErrors(t *testing.T) {
	for _, test := range []struct{ line, want string }{
		{"aply", `did you mean "apply"?`},
		{"get pods --outptu json", "did you mean --output?"},
		{"--foo", "unknown flag: --foo"},
		{"get", "kind"},
		{"token create --role king", "want peer or node"},
		{"dev sart p1", `did you mean "start"?`},
	} {
		app := newApp()
		var out, errs strings.Builder
		app.stdout, app.stderr = &out, &errs
		code := app.run(t.Context(), strings.Fields(test.line))
		if code != exitUsage || !strings.Contains(errs.String(), test.want) {
			t.Errorf("holdfast %s: exit code %d, %q; want %d and %q", test.line, code, errs.String(), exitUsage, test.want)
		}
	}
}
