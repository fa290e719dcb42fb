package main

import (
	"os"
	"path/filepath"
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

// TestExamples: each line that help shows as an example is one that the command
// line takes, with its flags and as many arguments.
func TestExamples(t *testing.T) {
	lines := 0
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
		for line := range strings.Lines(cmd.Example) {
			line, _, _ = strings.Cut(line, " #")
			_, typed, ok := strings.Cut(line, "holdfast ")
			if !ok || strings.Contains(line, "<(") || strings.Contains(line, "$(") || strings.Contains(line, `"$`) || strings.Contains(line, "| tar") {
				continue // a shell's doing
			}
			typed, _, _ = strings.Cut(typed, " | ")
			typed, _, _ = strings.Cut(typed, " > ")
			lines++
			root := newApp().root()
			root.InitDefaultHelpCmd()
			found, args, err := root.Find(words(t, strings.ReplaceAll(strings.TrimSpace(typed), `"`, "'")))
			if err == nil {
				err = found.ParseFlags(args)
			}
			if err == nil {
				err = found.ValidateArgs(found.Flags().Args())
			}
			if err != nil {
				t.Errorf("%s: the example %q: %v", cmd.CommandPath(), strings.TrimSpace(line), err)
			}
		}
	}
	walk(newApp().root())
	if lines < 100 {
		t.Errorf("%d examples were tried, want all", lines)
	}
}

// TestManual holds docs/cli: a page for each command, made of its help.
func TestManual(t *testing.T) {
	root := newApp().root()
	pages := map[string]string{"README.md": "# The command line\n\nMade of the help by `make generate`.\n\n```\n" + root.Long + "\n```\n"}
	for _, group := range root.Groups() {
		pages["README.md"] += "\n## " + strings.TrimSuffix(group.Title, ":") + "\n\n"
		for _, cmd := range root.Commands() {
			if cmd.GroupID == group.ID && !cmd.Hidden {
				pages["README.md"] += "- [holdfast " + cmd.Name() + "](" + cmd.Name() + ".md): " + cmd.Short + "\n"
				pages[cmd.Name()+".md"] = manual(cmd, "#")
			}
		}
	}
	dir := filepath.Join("..", "..", "docs", "cli")
	if *rewrite {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range pages {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(pages) {
		t.Errorf("docs/cli has %d pages, want %d: run make generate", len(files), len(pages))
	}
	for name, want := range pages {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("docs/cli/%s is not what the help says (%v): run make generate", name, err)
		}
	}
}

// manual writes a command's help as Markdown, with its subcommands below it.
func manual(cmd *cobra.Command, level string) string {
	long := cmd.Long
	if long == "" {
		long = cmd.Short
	}
	text := level + " " + cmd.CommandPath() + "\n\n```\n" + strings.TrimSpace(long) + "\n```\n\n```\n" + cmd.UseLine() + "\n```\n\nExamples:\n\n```\n" + cmd.Example + "\n```\n"
	if flags := cmd.NonInheritedFlags(); flags.HasAvailableFlags() {
		text += "\nOptions:\n\n```\n" + strings.TrimRight(flags.FlagUsages(), "\n") + "\n```\n"
	}
	for _, sub := range cmd.Commands() {
		if !sub.Hidden {
			text += "\n" + manual(sub, level+"#")
		}
	}
	return text
}
