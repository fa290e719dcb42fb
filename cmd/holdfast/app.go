package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/holdfast-io/holdfast/object"
)

// app is one run of the command line: where it reads and writes, how it reaches
// a cluster, and the flags that every command has.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	// terminal tells whether a stream is one, with its width in columns.
	terminal func(stream any) (width int, ok bool)
	getenv   func(string) string
	now      func() time.Time
	// connect makes the connection that the flags ask for.
	connect func() (*remote, error)
	// connectPeer makes one to the peer at an address, and to no other; addresses
	// returns those that are known beforehand.
	connectPeer func(address string) (*remote, error)
	addresses   func() ([]string, error)

	contextName string
	as          somebody
	peers       []string

	color          colorMode
	namespace      string
	requestTimeout time.Duration
	// patience is how long a request may go without an answer before the cluster
	// is asked why.
	patience time.Duration

	catalogMu sync.Mutex
	catalog   *object.Catalog // with the custom kinds that were asked for, or nil
	learned   bool            // the cluster has been asked for them

	noteMu sync.Mutex // notes come from two goroutines
	began  bool       // a command's arguments are right, and it has begun
	dialed *remote
}

// newApp returns the app of this process.
func newApp() *app {
	a := &app{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		terminal: func(stream any) (int, bool) {
			f, ok := stream.(*os.File)
			if !ok || !term.IsTerminal(int(f.Fd())) {
				return 0, false
			}
			width, _, err := term.GetSize(int(f.Fd()))
			if err != nil || width <= 0 {
				width = 80
			}
			return width, true
		},
		getenv:   os.Getenv,
		now:      time.Now,
		patience: 2 * time.Second,
	}
	a.connect = a.connectContext
	a.connectPeer, a.addresses = a.connectContextPeer, a.contextPeers
	return a
}

// run executes a command line and returns its exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if a.dialed != nil {
		a.dialed.close()
	}
	if err == nil {
		return exitOK
	}
	var failure *failure
	if !errors.As(err, &failure) {
		code := exitError
		if !a.began {
			code = exitUsage
		}
		failure = failf(code, "%w", err)
	}
	if message := failure.Error(); message != "" {
		fmt.Fprintf(a.stderr, "error: %s\n", message)
	}
	if failure.code == exitUsage {
		fmt.Fprintf(a.stderr, "See '%s --help'.\n", cmd.CommandPath())
	}
	return failure.code
}

// root builds the tree of commands.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Run containers on a cluster of plain Linux machines",
		Long: `Holdfast runs containers on a cluster of plain Linux machines, with Kubernetes'
vocabulary and manifests, in one binary.

Exit codes: 0 done; 1 error; 2 wrong usage; 3 not found; 4 refused; 5 rollout
failed; 6 timed out waiting; 7 no quorum or no peer reachable; 130 interrupted.
exec and attach pass on the exit code of what they ran.`,
		Example: `  holdfast dev                        # a cluster on this machine
  holdfast apply -f examples/web.yaml # run something on it
  holdfast get pods -o wide`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          groupArgs,
		RunE:          showHelp,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			a.began = true
			return nil
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetFlagErrorFunc(flagError)
	root.AddGroup(
		&cobra.Group{ID: "objects", Title: "What runs:"},
		&cobra.Group{ID: "cluster", Title: "The cluster:"},
		&cobra.Group{ID: "machines", Title: "On a machine:"},
		&cobra.Group{ID: "cli", Title: "The command line:"},
	)
	flags := root.PersistentFlags()
	flags.StringVar(&a.contextName, "context", "", "which cluster to talk to, of those that 'holdfast context list' shows (default: HOLDFAST_CONTEXT, or the current one)")
	flags.StringSliceVar(&a.peers, "peer", nil, "talk to this peer, host:port of its API, instead of any that the context names; may be repeated")
	flags.StringVar(&a.as.user, "as", "", "act as this user, if you may impersonate him; a service account is system:serviceaccount:NAMESPACE:NAME")
	flags.StringArrayVar(&a.as.groups, "as-group", nil, "with --as: be in this group; may be repeated")
	flags.StringVar(&a.as.uid, "as-uid", "", "with --as: have this uid")
	flags.DurationVar(&a.requestTimeout, "request-timeout", 30*time.Second, "how long one request may take; 0 means without limit")
	flags.Var(&a.color, "color", "always, never or auto: on a terminal, unless NO_COLOR is set")
	flags.StringVarP(&a.namespace, "namespace", "n", "", "namespace of the objects (default \"default\")")
	for _, group := range []struct {
		id       string
		commands []*cobra.Command
	}{
		{"objects", []*cobra.Command{a.applyCommand(), a.diffCommand(), a.createCommand(), a.runCommand(), a.exposeCommand(), a.getCommand(), a.describeCommand(), a.explainCommand(), a.eventsCommand(), a.whyCommand(), a.waitCommand(), a.deleteCommand(), a.editCommand(), a.replaceCommand(), a.setCommand(), a.patchCommand(), a.scaleCommand(), a.autoscaleCommand(), a.rolloutCommand(), a.labelCommand(), a.annotateCommand(), a.logsCommand(), a.execCommand(), a.attachCommand(), a.debugCommand(), a.portForwardCommand(), a.copyCommand(), a.topCommand()}},
		{"cluster", []*cobra.Command{a.clusterCommand(), a.statusCommand("status"), a.tokenCommand(), a.peerCommand(), a.nodeCommand(), a.storeCommand(), a.verifyCommand(), a.netCommand(), a.cordonCommand(), a.uncordonCommand(), a.drainCommand(), a.taintCommand(), a.backupCommand(), a.recoverCommand(), a.secretsCommand(), a.auditCommand()}},
		{"machines", a.machineCommands()},
		{"cli", []*cobra.Command{a.apiResourcesCommand(), a.apiVersionsCommand(), a.kustomizeCommand(), a.inspectCommand(), a.authCommand(), a.contextCommand(), a.configCommand(), a.kubeconfigCommand(), a.proxyCommand(), a.versionCommand(), a.completionCommand()}},
	} {
		for _, cmd := range group.commands {
			cmd.GroupID = group.id
			root.AddCommand(cmd)
		}
	}
	a.completeFlags(root)
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.GroupID = "cli"
		help.Short = "Help about any command"
		help.Example = "  holdfast help apply"
	}
	return root
}

// colorMode is the value of --color.
type colorMode string

func (m *colorMode) String() string { return string(*m) }
func (m *colorMode) Type() string   { return "string" }

func (m *colorMode) Set(s string) error {
	if s != "auto" && s != "always" && s != "never" {
		return errors.New("want auto, always or never")
	}
	*m = colorMode(s)
	return nil
}

// groupArgs refuses arguments to a command that only groups others, with the
// nearest of those.
func groupArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	message := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		message += fmt.Sprintf(": did you mean %q?", near[0])
	}
	return failf(exitUsage, "%s", message)
}

// showHelp is what a command that only groups others does.
func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// flagError adds the nearest flag to the message about an unknown one.
func flagError(cmd *cobra.Command, err error) error {
	message := err.Error()
	if word, ok := strings.CutPrefix(message, "unknown flag: --"); ok {
		if near := nearestFlag(cmd, word); near != "" {
			message += fmt.Sprintf(": did you mean --%s?", near)
		}
	}
	return failf(exitUsage, "%s", message)
}

// inNamespace returns the namespace that the flags ask for.
func (a *app) inNamespace() string {
	if a.namespace == "" {
		return "default"
	}
	return a.namespace
}

// request returns a context for one request. When no answer comes for a while,
// the cluster is asked why; without a quorum the request is given up before its
// time, with noQuorum as the cause.
func (a *app) request(ctx context.Context) (context.Context, context.CancelFunc) {
	stop := context.CancelFunc(func() {})
	if a.requestTimeout > 0 {
		ctx, stop = context.WithTimeout(ctx, a.requestTimeout)
	}
	ctx, unwatch := a.watchQuorum(ctx)
	return ctx, func() {
		unwatch()
		stop()
	}
}

// watchQuorum returns a context that ends with noQuorum as its cause when the
// cluster has been without a quorum for too long. The returned function ends the
// watching, and the context.
func (a *app) watchQuorum(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, giveUp := context.WithCancelCause(ctx)
	r := a.dialed
	if r == nil {
		return ctx, func() { giveUp(nil) }
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.watchQuorum(ctx, a.patience, a.note, giveUp)
	}()
	return ctx, func() {
		giveUp(nil)
		<-done
	}
}

// colours tells whether to colour what goes to w.
func (a *app) colours(w io.Writer) bool {
	switch {
	case a.color == "always":
		return true
	case a.color == "never", a.getenv("NO_COLOR") != "":
		return false
	case a.getenv("CLICOLOR_FORCE") != "" && a.getenv("CLICOLOR_FORCE") != "0":
		return true
	}
	_, ok := a.terminal(w)
	return ok && a.getenv("TERM") != "dumb"
}

// paint colours text, when w takes colours. code is an SGR number: 31 is red.
func (a *app) paint(w io.Writer, code int, text string) string {
	if !a.colours(w) {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", code, text)
}

// note tells people something that is no result.
func (a *app) note(format string, args ...any) {
	a.noteMu.Lock()
	defer a.noteMu.Unlock()
	fmt.Fprintf(a.stderr, format+"\n", args...)
}

// confirm asks before something that cannot be undone. Without a terminal to
// ask on it wants yes to have been said beforehand.
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if _, ok := a.terminal(a.stdin); !ok {
		return failf(exitUsage, "%s Say --yes: there is no terminal to ask on", question)
	}
	fmt.Fprintf(a.stderr, "%s [y/N] ", question)
	var answer string
	_, _ = fmt.Fscanln(a.stdin, &answer)
	if answer = strings.ToLower(answer); answer != "y" && answer != "yes" {
		return failf(exitError, "nothing was done")
	}
	return nil
}
