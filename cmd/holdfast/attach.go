package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

func (a *app) attachCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "attach POD | KIND/NAME",
		Short: "Take part in what a running container reads and writes",
		Long: `Show what a container writes from now on and, with -i, pass standard input on to it:
its spec must say stdin: true. With -it this terminal is the container's, if it has
one (tty: true). When the container ends, its exit code becomes that of holdfast.

Ctrl-C leaves and lets the container go on. In a container's terminal Ctrl-C is the
container's: there Ctrl-P Ctrl-Q leaves. What was written before is in the log.`,
		Example: `  holdfast attach web-7f2ab
  holdfast attach -it shell
  echo hello | holdfast attach -i reader -c main`,
		Args:              exactArgs(1, "one POD or KIND/NAME"),
		ValidArgsFunction: a.completePods,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runAttach(cmd.Context(), f, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.container, "container", "c", "", "which container, if the pod has several")
	flags.BoolVarP(&f.stdin, "stdin", "i", false, "pass standard input on")
	flags.BoolVarP(&f.tty, "tty", "t", false, "make this terminal the container's, if it has one")
	return cmd
}

func (a *app) runAttach(ctx context.Context, f execFlags, arg string) error {
	r, pod, err := a.dialPod(ctx, arg)
	if err != nil {
		return err
	}
	console := a.console()
	if !f.tty {
		console = nil
	}
	start := &holdfastv1.AttachStart{Namespace: a.inNamespace(), Pod: pod, Container: f.container, Stdin: f.stdin}
	if console != nil {
		start.Size = console.size()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.pods.Attach(ctx)
	if err != nil {
		return a.explain(ctx, r, "attach to pod/"+pod, err)
	}
	defer stream.Close()
	closeWith(ctx, stream)
	if err := stream.Send(&holdfastv1.AttachRequest{Message: &holdfastv1.AttachRequest_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return a.explain(ctx, r, "attach to pod/"+pod, err)
	}
	first, err := stream.Receive()
	if err != nil {
		return a.explain(ctx, r, "attach to pod/"+pod, err)
	}
	s := &execSession{stream: attachStream{stream}}
	left := make(chan struct{})
	input := a.stdin
	switch tty := first.GetStarted().GetTty(); {
	case tty && console != nil:
		restore, err := console.raw()
		if err != nil {
			return fmt.Errorf("make the terminal raw: %w", err)
		}
		defer restore()
		defer console.onResize(s.resize)()
		input = &leaveKeys{from: a.stdin, left: func() { close(left); cancel() }}
		a.note("Attached; if nothing is to be seen, press Enter. Ctrl-P Ctrl-Q leaves the container as it is.\r")
	case f.tty && !tty:
		a.note("Container has no terminal (tty: true in its spec): attached without one.")
	}
	if f.stdin {
		go s.pump(input) // see runExec
	}
	code, err := s.receive(a.stdout, a.stderr)
	select {
	case <-left:
		a.note("\r\nLeft pod/%s, which goes on.\r", pod)
		return nil
	default:
	}
	switch {
	case err != nil && connect.CodeOf(err) == connect.CodeUnavailable:
		return failf(exitUnavailable, "attach to pod/%s: %v: the container goes on; attach again", pod, err)
	case err != nil:
		return a.explain(ctx, r, "attach to pod/"+pod, err)
	case code != 0:
		return exit(code)
	}
	return nil
}

// attachStream is an attach that speaks as an exec does.
type attachStream struct {
	holdfastv1connect.PodServiceAttachClientStream
}

func (s attachStream) Send(m *holdfastv1.ExecRequest) error {
	out := &holdfastv1.AttachRequest{}
	switch m := m.GetMessage().(type) {
	case *holdfastv1.ExecRequest_Stdin:
		out.Message = &holdfastv1.AttachRequest_Stdin{Stdin: m.Stdin}
	case *holdfastv1.ExecRequest_Resize:
		out.Message = &holdfastv1.AttachRequest_Resize{Resize: m.Resize}
	case *holdfastv1.ExecRequest_CloseStdin:
		out.Message = &holdfastv1.AttachRequest_CloseStdin{CloseStdin: m.CloseStdin}
	}
	return s.PodServiceAttachClientStream.Send(out)
}

func (s attachStream) Receive() (*holdfastv1.ExecResponse, error) {
	m, err := s.PodServiceAttachClientStream.Receive()
	if err != nil {
		return nil, err
	}
	out := &holdfastv1.ExecResponse{}
	switch m := m.GetMessage().(type) {
	case *holdfastv1.AttachResponse_Stdout:
		out.Message = &holdfastv1.ExecResponse_Stdout{Stdout: m.Stdout}
	case *holdfastv1.AttachResponse_Stderr:
		out.Message = &holdfastv1.ExecResponse_Stderr{Stderr: m.Stderr}
	case *holdfastv1.AttachResponse_ExitCode:
		out.Message = &holdfastv1.ExecResponse_ExitCode{ExitCode: m.ExitCode}
	}
	return out, nil
}

// leaveKeys passes on what is typed, but for Ctrl-P Ctrl-Q.
type leaveKeys struct {
	from io.Reader
	left func()
	held bool // a Ctrl-P that may be the first of the two
	rest []byte
}

const ctrlP, ctrlQ = 0x10, 0x11

func (k *leaveKeys) Read(p []byte) (int, error) {
	for len(k.rest) == 0 {
		buf := make([]byte, len(p))
		n, err := k.from.Read(buf)
		in := buf[:n]
		if k.held {
			in, k.held = append([]byte{ctrlP}, in...), false
		}
		if at := bytes.Index(in, []byte{ctrlP, ctrlQ}); at >= 0 {
			k.left()
			return 0, io.EOF
		}
		if err == nil && len(in) > 0 && in[len(in)-1] == ctrlP {
			in, k.held = in[:len(in)-1], true
		}
		k.rest = in
		if err != nil {
			n := copy(p, k.rest)
			k.rest = k.rest[n:]
			return n, err
		}
	}
	n := copy(p, k.rest)
	k.rest = k.rest[n:]
	return n, nil
}
