package kube

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

const (
	// streamIdle is how long a connection on which nothing moves is kept.
	streamIdle = 4 * time.Hour
	// streamOpening is how long a client may take to open the streams of a session.
	streamOpening = 30 * time.Second
	// streamDrain is how long a client may take to read what is left and to hang up:
	// whoever closes first may cut off what is still on its way.
	streamDrain = 10 * time.Second
	// streamPiece is the most bytes in one message.
	streamPiece = 32 << 10
)

// conversation is a call with messages both ways, from its handler's side: the
// apiserver's.
type conversation[In, Out any] = interface {
	Receive() (*In, error)
	SendHeaders() error
	Send(*Out) error
}

// PodStreams is what the streams of pods are made of: PodService in process. It asks
// nobody whether the caller may.
type PodStreams interface {
	Exec(context.Context, conversation[holdfastv1.ExecRequest, holdfastv1.ExecResponse]) error
	Attach(context.Context, conversation[holdfastv1.AttachRequest, holdfastv1.AttachResponse]) error
	PortForward(context.Context, conversation[holdfastv1.PortForwardRequest, holdfastv1.PortForwardResponse]) error
}

// streams serves exec, attach and portforward of pods: to websockets, which kubectl
// uses since 1.30 (1.31 for portforward), and to SPDY/3.1, which it used before. What
// fails before anything was started is answered as any other request is.
type streams struct {
	pods PodStreams
	fail func(http.ResponseWriter, *http.Request, error)
}

// StreamHandlers returns the handlers of pods' subresources that are streams, by
// name, for callers that may use them. fail answers a request that failed.
func StreamHandlers(pods PodStreams, fail func(http.ResponseWriter, *http.Request, error)) map[string]func(w http.ResponseWriter, r *http.Request, namespace, pod string) {
	s := &streams{pods: pods, fail: fail}
	return map[string]func(http.ResponseWriter, *http.Request, string, string){
		"exec": s.exec, "attach": s.attach, "portforward": s.portForward,
	}
}

// streamOptions says which streams of a container a client wants.
type streamOptions struct {
	container                  string
	stdin, stdout, stderr, tty bool
}

func parseStreamOptions(r *http.Request) (streamOptions, error) {
	values := r.URL.Query()
	var faults []error
	flag := func(name string) bool {
		text := values.Get(name)
		if text == "" {
			return false
		}
		on, err := strconv.ParseBool(text)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s is %q: want true or false", name, text))
		}
		return on
	}
	o := streamOptions{
		container: values.Get("container"),
		stdin:     flag("stdin"), stdout: flag("stdout"), stderr: flag("stderr"), tty: flag("tty"),
	}
	if o.tty {
		o.stderr = false // a terminal has one stream
	}
	if !o.stdin && !o.stdout && !o.stderr {
		faults = append(faults, errors.New("at least one of stdin, stdout and stderr must be asked for"))
	}
	if err := errors.Join(faults...); err != nil {
		return o, apierrors.NewBadRequest(err.Error())
	}
	return o, nil
}

func (s *streams) exec(w http.ResponseWriter, r *http.Request, namespace, pod string) {
	o, err := parseStreamOptions(r)
	command := r.URL.Query()["command"]
	if err == nil && len(command) == 0 {
		err = apierrors.NewBadRequest("command is empty: say what to run")
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.interact(w, r, o, &holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Start{Start: &holdfastv1.ExecStart{
		Namespace: namespace, Pod: pod, Container: o.container, Command: command, Tty: o.tty, Stdin: o.stdin,
	}}}, s.pods.Exec)
}

func (s *streams) attach(w http.ResponseWriter, r *http.Request, namespace, pod string) {
	o, err := parseStreamOptions(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	start := &holdfastv1.AttachStart{Namespace: namespace, Pod: pod, Container: o.container, Stdin: o.stdin}
	s.interact(w, r, o, nil, func(ctx context.Context, with conversation[holdfastv1.ExecRequest, holdfastv1.ExecResponse]) error {
		return s.pods.Attach(ctx, &attachTalk{with: with, start: start})
	})
}

// attachTalk is an attach carried by what speaks as an exec does.
type attachTalk struct {
	with  conversation[holdfastv1.ExecRequest, holdfastv1.ExecResponse]
	start *holdfastv1.AttachStart // nil: received
}

func (t *attachTalk) SendHeaders() error { return t.with.SendHeaders() }

func (t *attachTalk) Receive() (*holdfastv1.AttachRequest, error) {
	if start := t.start; start != nil {
		t.start = nil
		return &holdfastv1.AttachRequest{Message: &holdfastv1.AttachRequest_Start{Start: start}}, nil
	}
	in, err := t.with.Receive()
	if err != nil {
		return nil, err
	}
	out := &holdfastv1.AttachRequest{}
	switch m := in.GetMessage().(type) {
	case *holdfastv1.ExecRequest_Stdin:
		out.Message = &holdfastv1.AttachRequest_Stdin{Stdin: m.Stdin}
	case *holdfastv1.ExecRequest_Resize:
		out.Message = &holdfastv1.AttachRequest_Resize{Resize: m.Resize}
	case *holdfastv1.ExecRequest_CloseStdin:
		out.Message = &holdfastv1.AttachRequest_CloseStdin{CloseStdin: m.CloseStdin}
	}
	return out, nil
}

func (t *attachTalk) Send(in *holdfastv1.AttachResponse) error {
	out := &holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_Started{Started: true}}
	switch m := in.GetMessage().(type) {
	case *holdfastv1.AttachResponse_Stdout:
		out.Message = &holdfastv1.ExecResponse_Stdout{Stdout: m.Stdout}
	case *holdfastv1.AttachResponse_Stderr:
		out.Message = &holdfastv1.ExecResponse_Stderr{Stderr: m.Stderr}
	case *holdfastv1.AttachResponse_ExitCode:
		out.Message = &holdfastv1.ExecResponse_ExitCode{ExitCode: m.ExitCode}
	}
	return t.with.Send(out)
}

// terminal is a client's end of a session, once the connection is upgraded.
type terminal interface {
	// input calls take with each message of the client, one at a time, until it has
	// hung up, and returns then.
	input(take func(*holdfastv1.ExecRequest))
	// output writes a piece of stdout or stderr.
	output(stderr bool, data []byte) error
	// end writes the result, waits until the client has hung up, but not for long,
	// and closes the connection.
	end(status metav1.Status)
}

// interact carries an exec or attach. It is begun before the connection is upgraded:
// what fails until then is an ordinary answer. A nil start is sent by others.
func (s *streams) interact(w http.ResponseWriter, r *http.Request, o streamOptions, start *holdfastv1.ExecRequest, call func(context.Context, conversation[holdfastv1.ExecRequest, holdfastv1.ExecResponse]) error) {
	open, err := chooseTerminal(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	t := &talk{ctx: ctx, first: start, in: make(chan *holdfastv1.ExecRequest), ready: make(chan struct{}), upgraded: make(chan struct{})}
	ended := make(chan error, 1)
	go func() { ended <- call(ctx, t) }()
	select {
	case <-t.ready:
	case err := <-ended:
		if err == nil {
			err = errors.New("the session ended before it began")
		}
		s.fail(w, r, err)
		return
	}
	client := open(hijackable{w}, r, o)
	if client == nil {
		cancel()
		<-ended
		return // the client was told why, or has gone
	}
	// It outlives this call by no more than the connection does, which end closes.
	go func() {
		defer cancel()
		client.input(t.take)
	}()
	t.client = client
	close(t.upgraded)
	err = <-ended
	cancel() // what the client still says is read and dropped
	client.end(streamStatus(err, t.code))
}

// streamStatus is how a session's end is told.
func streamStatus(err error, code int32) metav1.Status {
	if err != nil {
		message := err.Error()
		if rpcErr, ok := errors.AsType[*connect.Error](err); ok {
			message = rpcErr.Message()
		}
		return metav1.Status{Status: metav1.StatusFailure, Message: message, Reason: metav1.StatusReasonInternalError, Code: http.StatusInternalServerError}
	}
	if code == 0 {
		return metav1.Status{Status: metav1.StatusSuccess}
	}
	return metav1.Status{
		Status: metav1.StatusFailure, Reason: "NonZeroExitCode",
		Message: fmt.Sprintf("command terminated with non-zero exit code: exit status %d", code),
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "ExitCode", Message: strconv.Itoa(int(code))}}},
	}
}

// talk is an exec in process whose other end is a terminal, as soon as there is one.
type talk struct {
	ctx   context.Context // of the call: talk is a session
	first *holdfastv1.ExecRequest
	in    chan *holdfastv1.ExecRequest
	once  sync.Once
	ready chan struct{} // closed when the container takes part
	// upgraded is closed once client is set.
	upgraded chan struct{}
	client   terminal
	code     int32 // read after the call
}

func (t *talk) SendHeaders() error { return nil }

func (t *talk) Receive() (*holdfastv1.ExecRequest, error) {
	if first := t.first; first != nil {
		t.first = nil
		return first, nil
	}
	select {
	case m := <-t.in:
		return m, nil
	case <-t.ctx.Done():
		return nil, context.Cause(t.ctx)
	}
}

// take hands on what the client says. It waits until that is wanted.
func (t *talk) take(m *holdfastv1.ExecRequest) {
	select {
	case t.in <- m:
	case <-t.ctx.Done():
	}
}

func (t *talk) Send(m *holdfastv1.ExecResponse) error {
	t.once.Do(func() { close(t.ready) })
	select {
	case <-t.upgraded:
	case <-t.ctx.Done():
		return context.Cause(t.ctx)
	}
	switch m := m.GetMessage().(type) {
	case *holdfastv1.ExecResponse_Stdout:
		return t.client.output(false, m.Stdout)
	case *holdfastv1.ExecResponse_Stderr:
		return t.client.output(true, m.Stderr)
	case *holdfastv1.ExecResponse_ExitCode:
		t.code = m.ExitCode
	}
	return nil
}

// openTerminal upgrades a connection. It returns nil when it could not, after it has
// told the client.
type openTerminal func(w http.ResponseWriter, r *http.Request, o streamOptions) terminal

func chooseTerminal(r *http.Request) (openTerminal, error) {
	switch {
	case isWebsocket(r):
		return openWebsocket, nil
	case isSPDY(r):
		return openSPDY, nil
	}
	return nil, errUpgrade
}

var errUpgrade = apierrors.NewBadRequest("this is a stream: the request must ask for an upgrade to websocket or SPDY/3.1, over HTTP/1.1")

// parseSize reads a message about the terminal's size.
func parseSize(data []byte) *holdfastv1.ExecRequest {
	var size struct{ Width, Height uint16 }
	if json.Unmarshal(data, &size) != nil {
		return nil
	}
	return &holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Resize{
		Resize: &holdfastv1.TerminalSize{Width: uint32(size.Width), Height: uint32(size.Height)},
	}}
}

func stdinMessage(data []byte) *holdfastv1.ExecRequest {
	return &holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Stdin{Stdin: data}}
}

func closeStdinMessage() *holdfastv1.ExecRequest {
	return &holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_CloseStdin{CloseStdin: true}}
}

// hijackable lets through to a connection below other layers.
type hijackable struct{ http.ResponseWriter }

// Hijack takes the connection over.
func (h hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(h.ResponseWriter).Hijack()
}

// pieces calls take with copies of what r gives, until it ends.
func pieces(r io.Reader, take func([]byte) bool) error {
	buf := make([]byte, streamPiece)
	for {
		n, err := r.Read(buf)
		if n > 0 && !take(append([]byte(nil), buf[:n]...)) {
			return io.ErrClosedPipe
		}
		if err != nil {
			return err
		}
	}
}
