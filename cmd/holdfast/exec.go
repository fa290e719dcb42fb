package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

type execFlags struct {
	container string
	stdin     bool
	tty       bool
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "exec POD | KIND/NAME -- COMMAND [ARGUMENT...]",
		Short: "Run a command in a running container",
		Long: `Run a command in a running container. Its exit code becomes that of holdfast.
With -it it has this terminal: raw, with its size. Of a workload such as deploy/web,
the first pod that is ready is taken.`,
		Example: `  holdfast exec web-7f2ab -- /web env
  holdfast exec deploy/web -- /web env
  holdfast exec -it web-7f2ab -- /web shell`,
		ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return failf(exitUsage, "want POD -- COMMAND, such as: holdfast exec web-7f2ab -- /web env")
			}
			return a.runExec(cmd.Context(), f, args[0], args[1:])
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.container, "container", "c", "", "which container, if the pod has several")
	flags.BoolVarP(&f.stdin, "stdin", "i", false, "pass standard input on")
	flags.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
	return cmd
}

func (a *app) runExec(ctx context.Context, f execFlags, pod string, command []string) error {
	r, pod, err := a.dialPod(ctx, pod)
	if err != nil {
		return err
	}
	start := &holdfastv1.ExecStart{
		Namespace: a.inNamespace(), Pod: pod, Container: f.container,
		Command: command, Tty: f.tty, Stdin: f.stdin,
	}
	console := a.console()
	if f.tty {
		if console == nil && f.stdin {
			a.note("Standard input is no terminal: the command gets one, but without this one's size.")
		}
		if console != nil {
			start.Size = console.size()
			restore, err := console.raw()
			if err != nil {
				return fmt.Errorf("make the terminal raw: %w", err)
			}
			defer restore()
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := openExec(ctx, r, start)
	if err != nil {
		return a.explain(ctx, r, "exec in pod/"+pod, err)
	}
	defer s.stream.Close()
	if f.stdin {
		// It may be blocked in a read of the terminal for ever; it ends with the
		// process.
		go s.pump(a.stdin)
	}
	if f.tty && console != nil {
		defer console.onResize(s.resize)()
	}
	code, err := s.receive(a.stdout, a.stderr)
	if err != nil {
		return a.explain(ctx, r, "exec in pod/"+pod, err)
	}
	if code != 0 {
		return exit(code)
	}
	return nil
}

// dialPod returns the connection, and the name of the pod that POD or KIND/NAME
// means.
func (a *app) dialPod(ctx context.Context, arg string) (*remote, string, error) {
	res, name, err := parseWorkload(arg)
	if err != nil {
		return nil, "", err
	}
	r, err := a.dial()
	if err != nil {
		return nil, "", err
	}
	if res.Kind != "Pod" {
		name, err = a.readyPod(ctx, r, res, name)
	}
	return r, name, err
}

// readyPod returns the name of the first ready pod of a workload.
func (a *app) readyPod(ctx context.Context, r *remote, res object.Resource, name string) (string, error) {
	obj, _, err := a.get(ctx, r, res, a.inNamespace(), name, nil)
	if err != nil {
		return "", err
	}
	selector, err := podSelector(obj)
	if err != nil {
		return "", err
	}
	pods, _, err := a.list(ctx, r, &holdfastv1.ListRequest{Kind: wireKind(mustResource("pods")), Namespace: a.inNamespace(), LabelSelector: selector}, "pods")
	if err != nil {
		return "", err
	}
	for _, pod := range pods {
		if pod := pod.(*corev1.Pod); object.PodReady(pod) && !object.Deleting(pod) {
			return pod.Name, nil
		}
	}
	return "", failf(exitRefused, "none of the %d pods of %s/%s is ready", len(pods), kindName(res), name)
}

// execSession is an open exec or attach, which say the same things. Receive and send
// may go on at once; sends take turns.
type execSession struct {
	stream interface {
		Send(*holdfastv1.ExecRequest) error
		Receive() (*holdfastv1.ExecResponse, error)
		Close() error
	}
	mu sync.Mutex
}

// openExec starts a command.
func openExec(ctx context.Context, r *remote, start *holdfastv1.ExecStart) (*execSession, error) {
	stream, err := r.pods.Exec(ctx)
	if err != nil {
		return nil, err
	}
	s := &execSession{stream: stream}
	closeWith(ctx, stream)
	// io.EOF: receiving says why.
	if err := s.send(&holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		stream.Close()
		return nil, err
	}
	return s, nil
}

// closeWith closes a stream when ctx ends: by itself, a stream that may still be sent
// on goes on waiting for an answer.
func closeWith(ctx context.Context, stream io.Closer) {
	context.AfterFunc(ctx, func() { stream.Close() })
}

func (s *execSession) send(req *holdfastv1.ExecRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream.Send(req)
}

func (s *execSession) resize(size *holdfastv1.TerminalSize) {
	_ = s.send(&holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Resize{Resize: size}})
}

// pump passes input on until it ends.
func (s *execSession) pump(from io.Reader) {
	_, _ = io.Copy(s, from)
	_ = s.send(&holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_CloseStdin{CloseStdin: true}})
}

// Write sends input. It fails once the command has ended.
func (s *execSession) Write(p []byte) (int, error) {
	if err := s.send(&holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Stdin{Stdin: append([]byte(nil), p...)}}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// receive writes what the command writes, and returns its exit code.
func (s *execSession) receive(stdout, stderr io.Writer) (int, error) {
	for {
		res, err := s.stream.Receive()
		if errors.Is(err, io.EOF) {
			return 0, errors.New("the connection ended before the command did; whether it goes on is unknown")
		}
		if err != nil {
			return 0, err
		}
		switch m := res.GetMessage().(type) {
		case *holdfastv1.ExecResponse_Stdout:
			_, err = stdout.Write(m.Stdout)
		case *holdfastv1.ExecResponse_Stderr:
			_, err = stderr.Write(m.Stderr)
		case *holdfastv1.ExecResponse_ExitCode:
			return int(m.ExitCode), nil
		}
		if err != nil {
			return 0, failf(exitError, "write the command's output: %w", err)
		}
	}
}
