package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

const (
	// maxSessions bounds the sessions at one time. The agent's other calls share the
	// connection with them, on which a peer allows 250.
	maxSessions = 200
	// dialTimeout is how long a connection in a pod may take.
	dialTimeout = 10 * time.Second
	// sessionOpenTimeout is how long a peer may take to accept a session.
	sessionOpenTimeout = 10 * time.Second
	// maxLogLine is where a line of a log is broken up.
	maxLogLine = 256 << 10
	// maxChunk is the most bytes in one message.
	maxChunk = 32 << 10
	// maxInput is how much input is held for who does not read it. Peers send less
	// before they are told that some was taken, in steps of takenStep.
	maxInput  = 8 << 20
	takenStep = 64 << 10
)

// sessions answers the peer's wishes for logs, exec, attach and connections to
// pods: the agent has no port of its own, so it dials out for each of them.
type sessions struct {
	a     *Agent
	log   *slog.Logger
	again chan struct{} // of capacity 1: a session with a peer has begun
	slots chan struct{}
}

func newSessions(a *Agent) *sessions {
	return &sessions{a: a, log: a.log, again: make(chan struct{}, 1), slots: make(chan struct{}, maxSessions)}
}

// renew opens the stream of wishes anew, at the peer in use now.
func (s *sessions) renew() {
	select {
	case s.again <- struct{}{}:
	default:
	}
}

// run listens for wishes until ctx ends, and returns once all sessions ended.
func (s *sessions) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	select {
	case <-ctx.Done():
		return nil
	case <-s.again:
	}
	for {
		lctx, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		began := time.Now()
		go func() { ended <- s.listen(lctx, ctx, &wg) }()
		var err error
		moved := false
		select {
		case err = <-ended:
		case <-s.again:
			moved = true
			cancel()
			<-ended
		}
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if moved {
			continue
		}
		s.log.Info("stream of wishes for sessions ended; opening it again", "error", err)
		pause := time.Second
		if time.Since(began) > sessionStable {
			pause = sessionBackoffFirst
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.again:
		case <-time.After(pause):
		}
	}
}

// listen takes wishes under ctx, and serves them under longer, since an open
// shell should survive that its wish's stream is opened anew.
func (s *sessions) listen(ctx, longer context.Context, wg *sync.WaitGroup) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(firstTimeout, func() { cancel(fmt.Errorf("no answer within %v", firstTimeout)) })
	defer watchdog.Stop()
	agent := s.a.cfg.Client.Agent()
	stream, err := agent.Sessions(ctx, &agentv1.SessionsRequest{})
	if err != nil {
		return err
	}
	defer stream.Close()
	for {
		wish, err := stream.Receive()
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
		watchdog.Stop()
		if wish.GetSessionId() == "" {
			continue
		}
		wg.Go(func() { s.serve(longer, agent, wish) })
	}
}

// serve carries one session.
func (s *sessions) serve(ctx context.Context, agent agentv1connect.AgentServiceClient, wish *agentv1.SessionsResponse) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := agent.Session(ctx)
	if err != nil {
		s.log.Info("session cannot be opened", "session", wish.GetSessionId(), "error", err)
		return
	}
	defer stream.Close()
	out := &sessionStream{stream: stream}
	watchdog := time.AfterFunc(sessionOpenTimeout, cancel)
	err = out.send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_SessionId{SessionId: wish.GetSessionId()}})
	watchdog.Stop()
	if err != nil {
		s.log.Info("session cannot be opened", "session", wish.GetSessionId(), "error", err)
		return
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		s.fail(out, connect.Errorf(connect.CodeResourceExhausted, "node %s has %d sessions open already: logs, exec, attach, connections to pods", s.a.cfg.Node, maxSessions))
		return
	}
	kind := "unknown"
	run := func() error {
		return connect.NewError(connect.CodeUnimplemented, "this node does not know that kind of session; is its version older than the peer's?")
	}
	switch start := wish.GetStart().(type) {
	case *agentv1.SessionsResponse_Logs:
		kind, run = "logs", func() error { return s.logs(ctx, cancel, out, start.Logs) }
	case *agentv1.SessionsResponse_Exec:
		kind, run = "exec", func() error { return s.exec(ctx, cancel, out, start.Exec) }
	case *agentv1.SessionsResponse_Attach:
		kind, run = "attach", func() error { return s.attach(ctx, cancel, out, start.Attach) }
	case *agentv1.SessionsResponse_Inspect:
		kind, run = "inspect", func() error { return s.inspect(ctx, out, start.Inspect) }
	case *agentv1.SessionsResponse_PortForward:
		kind, run = "port-forward", func() error { return s.portForward(ctx, cancel, out, start.PortForward) }
	}
	s.metrics(kind).Inc()
	err = run()
	s.metrics(kind).Dec()
	if ctx.Err() != nil {
		s.log.Debug("session ended by its caller", "session", wish.GetSessionId(), "kind", kind)
		return
	}
	if err != nil {
		s.fail(out, err)
		return
	}
	s.finish(out)
}

func (s *sessions) metrics(kind string) prometheus.Gauge {
	return s.a.metrics.streams.WithLabelValues(kind)
}

// fail sends an error as the last message.
func (s *sessions) fail(out *sessionStream, err error) {
	code, message := connect.CodeInternal, err.Error()
	if e, ok := errors.AsType[*connect.Error](err); ok {
		code, message = e.Code(), e.Message()
	}
	if err := out.send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Error{
		Error: &agentv1.SessionError{Code: code.String(), Message: message},
	}}); err == nil {
		s.finish(out)
	}
}

// finish ends the stream from this side and waits for the other to follow, so
// that nothing sent is cut off.
func (s *sessions) finish(out *sessionStream) {
	if out.stream.CloseSend() != nil {
		return
	}
	timer := time.AfterFunc(sessionOpenTimeout, func() { _ = out.stream.Close() })
	defer timer.Stop()
	out.drained()
}

// sessionStream serializes what is sent, and receives in one place.
type sessionStream struct {
	stream   agentv1connect.AgentServiceSessionClientStream
	mu       sync.Mutex
	received chan struct{} // closed when the receiving goroutine has ended; nil: there is none
}

func (s *sessionStream) send(m *agentv1.SessionRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream.Send(m)
}

// receive hands each message to take, on a goroutine of its own, until the peer
// ends the stream; then it calls ended.
func (s *sessionStream) receive(take func(*agentv1.SessionResponse), ended func()) {
	s.received = make(chan struct{})
	go func() {
		defer close(s.received)
		defer ended()
		for {
			m, err := s.stream.Receive()
			if err != nil {
				return
			}
			take(m)
		}
	}()
}

// taken tells the peer how much input was passed on.
func (s *sessionStream) taken(n int) {
	// A failure shows at the next message.
	_ = s.send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Taken{Taken: int64(n)}})
}

func (s *sessionStream) drained() {
	if s.received != nil {
		<-s.received
		return
	}
	for {
		if _, err := s.stream.Receive(); err != nil {
			return
		}
	}
}

// findContainer resolves what a caller named to a run of a container.
func (s *sessions) findContainer(namespace, name, container string, previous bool) (runtime.ContainerState, error) {
	pod, observed, ok := s.a.pods.find(namespace, name)
	if !ok {
		return runtime.ContainerState{}, connect.Errorf(connect.CodeNotFound, "pod %s/%s is not on node %s", namespace, name, s.a.cfg.Node)
	}
	var names []string
	for i := range pod.Spec.Containers {
		names = append(names, pod.Spec.Containers[i].Name)
	}
	switch {
	case container == "" && len(names) == 1:
		container = names[0]
	case container == "":
		return runtime.ContainerState{}, connect.Errorf(connect.CodeInvalidArgument, "pod %s/%s has several containers, name one of %q", namespace, name, names)
	case containerSpec(pod, container) == nil:
		return runtime.ContainerState{}, connect.Errorf(connect.CodeNotFound, "pod %s/%s has no container %q, it has %q", namespace, name, container, names)
	}
	run, ok := latestRun(observed, container)
	if !ok {
		return runtime.ContainerState{}, connect.Errorf(connect.CodeFailedPrecondition, "container %s of pod %s/%s has not been started: %s", container, namespace, name, s.whyNot(pod, container))
	}
	if previous {
		if run, ok = runBefore(observed, container, run.ID.Attempt); !ok {
			return runtime.ContainerState{}, connect.Errorf(connect.CodeNotFound, "container %s of pod %s/%s has no previous run", container, namespace, name)
		}
	}
	return run, nil
}

// whyNot says what a container waits for.
func (s *sessions) whyNot(pod *corev1.Pod, container string) string {
	status := s.a.reports.status(pod.UID)
	if c := recordedStatus(&status, container); c != nil && c.State.Waiting != nil {
		if c.State.Waiting.Message != "" {
			return c.State.Waiting.Reason + ": " + c.State.Waiting.Message
		}
		return c.State.Waiting.Reason
	}
	return reasonContainerCreating
}

// sessionError gives an error of the runtime the code that a caller acts on.
func sessionError(doing string, err error) error {
	code := connect.CodeInternal
	switch {
	case errors.Is(err, runtime.ErrNotFound):
		code = connect.CodeNotFound
	case errors.Is(err, runtime.ErrNotRunning), errors.Is(err, runtime.ErrNoStdin):
		code = connect.CodeFailedPrecondition
	}
	return connect.Errorf(code, "%s: %v", doing, err).WithCause(err)
}

// findLog resolves what a caller named to the run of a container whose log is there, and what
// the caller is to be told about that.
func (s *sessions) findLog(ctx context.Context, req *holdfastv1.LogsRequest) (id runtime.ContainerID, notice string, err error) {
	pod, observed, ok := s.a.pods.find(req.GetNamespace(), req.GetPod())
	if !ok && req.GetRemoved() {
		return s.a.logs.find(ctx, s.a.cfg.Node, req.GetNamespace(), req.GetPod(), req.GetContainer(), req.GetPrevious())
	}
	name := req.GetContainer()
	if ok && name == "" && len(pod.Spec.Containers) == 1 {
		name = pod.Spec.Containers[0].Name
	}
	if ok && containerSpec(pod, name) != nil && !req.GetPrevious() {
		// The container itself may be gone before its pod is: its log is not.
		if _, listed := latestRun(observed, name); !listed {
			status := s.a.reports.status(pod.UID)
			if c := recordedStatus(&status, name); c != nil && c.ContainerID != "" {
				return runtime.ContainerID{PodUID: string(pod.UID), Name: c.Name, Attempt: int(c.RestartCount)}, "", nil
			}
		}
	}
	run, err := s.findContainer(req.GetNamespace(), req.GetPod(), req.GetContainer(), req.GetPrevious())
	return run.ID, "", err
}

func (s *sessions) logs(ctx context.Context, cancel func(), out *sessionStream, req *holdfastv1.LogsRequest) error {
	out.receive(func(*agentv1.SessionResponse) {}, cancel)
	if req.GetListContainers() && req.GetRemoved() {
		var names []string
		var notice string
		pod, _, here := s.a.pods.find(req.GetNamespace(), req.GetPod())
		if here { // it has not been told yet that the pod is gone
			status := s.a.reports.status(pod.UID)
			for _, p := range parts(pod) {
				if c := recordedStatus(&status, p.spec.Name); c != nil && c.ContainerID != "" {
					names = append(names, p.spec.Name)
				}
			}
		} else {
			var err error
			if names, notice, err = s.a.logs.containers(ctx, s.a.cfg.Node, req.GetNamespace(), req.GetPod()); err != nil {
				return err
			}
		}
		return out.send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Logs{Logs: &holdfastv1.LogsResponse{Notice: notice, Containers: names}}})
	}
	id, notice, err := s.findLog(ctx, req)
	if err != nil {
		return err
	}
	if notice != "" {
		if err := out.send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Logs{Logs: &holdfastv1.LogsResponse{Notice: notice}}}); err != nil {
			return err
		}
	}
	options := runtime.LogOptions{Follow: req.GetFollow(), TailLines: req.GetTailLines(), Timestamps: req.GetTimestamps()}
	if req.GetSince() != nil {
		options.Since = req.GetSince().AsTime()
	}
	send := func(data []byte) error {
		return out.send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Logs{Logs: &holdfastv1.LogsResponse{Data: data}}})
	}
	if limit := req.GetLimitBytes(); limit > 0 {
		send = upTo(limit, send)
	}
	lines := &lineWriter{send: send}
	err = s.a.cfg.Runtime.Logs(ctx, id, options, lines)
	if ferr := lines.flush(); err == nil {
		err = ferr
	}
	if err != nil && !errors.Is(err, errLimit) {
		return sessionError(fmt.Sprintf("log of container %s of pod %s/%s", id.Name, req.GetNamespace(), req.GetPod()), err)
	}
	return nil
}

// errLimit ends a log that was asked for up to a limit.
var errLimit = errors.New("the log's limit is reached")

// upTo passes on the first limit bytes, then returns errLimit.
func upTo(limit int64, send func([]byte) error) func([]byte) error {
	return func(data []byte) error {
		data = data[:min(int64(len(data)), limit)]
		limit -= int64(len(data))
		if err := send(data); err != nil || limit > 0 {
			return err
		}
		return errLimit
	}
}

// lineWriter passes on whole lines, as soon as it has them.
type lineWriter struct {
	send func([]byte) error
	rest []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	end := bytes.LastIndexByte(w.rest, '\n') + 1
	if end == 0 && len(w.rest) < maxLogLine {
		return len(p), nil
	}
	if end == 0 {
		w.rest = append(w.rest, '\n')
		end = len(w.rest)
	}
	if err := w.send(w.rest[:end:end]); err != nil {
		return 0, err
	}
	w.rest = bytes.Clone(w.rest[end:])
	return len(p), nil
}

// flush passes on a last line that had no end.
func (w *lineWriter) flush() error {
	if len(w.rest) == 0 {
		return nil
	}
	data := append(w.rest, '\n')
	w.rest = nil
	return w.send(data)
}

func (s *sessions) exec(ctx context.Context, cancel func(), out *sessionStream, req *holdfastv1.ExecStart) error {
	in := newTyped(req.GetSize(), out.taken)
	defer in.stdin.close(io.ErrClosedPipe)
	out.receive(func(m *agentv1.SessionResponse) { in.take(m.GetExec()) }, func() {
		in.stdin.close(io.EOF)
		cancel()
	})
	if len(req.GetCommand()) == 0 {
		return connect.NewError(connect.CodeInvalidArgument, "no command given")
	}
	run, err := s.findContainer(req.GetNamespace(), req.GetPod(), req.GetContainer(), false)
	if err != nil {
		return err
	}
	where := fmt.Sprintf("exec in container %s of pod %s/%s", run.ID.Name, req.GetNamespace(), req.GetPod())
	if run.State != runtime.StateRunning {
		return connect.Errorf(connect.CodeFailedPrecondition, "%s: it is not running, it is %s", where, run.State)
	}
	reply := func(m *holdfastv1.ExecResponse) error {
		return out.send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Exec{Exec: m}})
	}
	var once sync.Once
	started := func() {
		once.Do(func() {
			// A failure shows at the next message.
			_ = reply(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_Started{Started: true}})
		})
	}
	options := runtime.ExecOptions{
		Command: req.GetCommand(),
		TTY:     req.GetTty(),
		Started: started,
		Stdout: chunkWriter(func(p []byte) error {
			started()
			return reply(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_Stdout{Stdout: p}})
		}),
		Stderr: chunkWriter(func(p []byte) error {
			started()
			return reply(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_Stderr{Stderr: p}})
		}),
	}
	if req.GetStdin() {
		options.Stdin = in.stdin
	}
	if req.GetTty() {
		options.Resize = in.resize
	}
	code, err := s.a.cfg.Runtime.Exec(ctx, run.ID, options)
	if err != nil {
		return sessionError(where, err)
	}
	started()
	if err := reply(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_ExitCode{ExitCode: int32(code)}}); err != nil {
		return sessionError(where, err)
	}
	return nil
}

func (s *sessions) attach(ctx context.Context, cancel func(), out *sessionStream, req *holdfastv1.AttachStart) error {
	in := newTyped(req.GetSize(), out.taken)
	defer in.stdin.close(io.ErrClosedPipe)
	out.receive(func(m *agentv1.SessionResponse) { in.take(m.GetAttach()) }, func() {
		in.stdin.close(io.EOF)
		cancel()
	})
	run, err := s.findContainer(req.GetNamespace(), req.GetPod(), req.GetContainer(), false)
	if err != nil {
		return err
	}
	where := fmt.Sprintf("attach to container %s of pod %s/%s", run.ID.Name, req.GetNamespace(), req.GetPod())
	if run.State != runtime.StateRunning {
		return connect.Errorf(connect.CodeFailedPrecondition, "%s: it is not running, it is %s", where, run.State)
	}
	reply := func(m *holdfastv1.AttachResponse) error {
		return out.send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Attach{Attach: m}})
	}
	options := runtime.AttachOptions{
		Resize: in.resize,
		Started: func(tty bool) {
			// A failure shows at the next message.
			_ = reply(&holdfastv1.AttachResponse{Message: &holdfastv1.AttachResponse_Started{Started: &holdfastv1.AttachStarted{Tty: tty}}})
		},
		Stdout: chunkWriter(func(p []byte) error {
			return reply(&holdfastv1.AttachResponse{Message: &holdfastv1.AttachResponse_Stdout{Stdout: p}})
		}),
		Stderr: chunkWriter(func(p []byte) error {
			return reply(&holdfastv1.AttachResponse{Message: &holdfastv1.AttachResponse_Stderr{Stderr: p}})
		}),
	}
	if req.GetStdin() {
		options.Stdin = in.stdin
	}
	code, err := s.a.cfg.Runtime.Attach(ctx, run.ID, options)
	if errors.Is(err, runtime.ErrNoStdin) {
		return connect.Errorf(connect.CodeFailedPrecondition, "%s: it has no stdin that is open: set stdin: true in its spec, and not stdinOnce if it is for more than one; or attach without stdin", where)
	}
	if err != nil {
		return sessionError(where, err)
	}
	if err := reply(&holdfastv1.AttachResponse{Message: &holdfastv1.AttachResponse_ExitCode{ExitCode: int32(code)}}); err != nil {
		return sessionError(where, err)
	}
	return nil
}

func (s *sessions) portForward(ctx context.Context, cancel func(), out *sessionStream, req *holdfastv1.PortForwardStart) error {
	where := fmt.Sprintf("port %d of pod %s/%s", req.GetPort(), req.GetNamespace(), req.GetPod())
	pod, _, ok := s.a.pods.find(req.GetNamespace(), req.GetPod())
	switch {
	case !ok:
		return connect.Errorf(connect.CodeNotFound, "pod %s/%s is not on node %s", req.GetNamespace(), req.GetPod(), s.a.cfg.Node)
	case req.GetPort() == 0 || req.GetPort() > math.MaxUint16:
		return connect.Errorf(connect.CodeInvalidArgument, "%s: no such port", where)
	}
	dctx, stop := context.WithTimeout(ctx, dialTimeout)
	conn, err := s.a.cfg.Runtime.Dial(dctx, string(pod.UID), uint16(req.GetPort()))
	stop()
	if errors.Is(err, syscall.ECONNREFUSED) {
		return connect.Errorf(connect.CodeFailedPrecondition, "%s: connection refused: nothing listens there", where)
	}
	if err != nil {
		return sessionError(where, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	reply := func(m *holdfastv1.PortForwardResponse) error {
		return out.send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_PortForward{PortForward: m}})
	}
	if err := reply(&holdfastv1.PortForwardResponse{Message: &holdfastv1.PortForwardResponse_Connected{Connected: true}}); err != nil {
		return sessionError(where, err)
	}
	in := newInput(out.taken)
	defer in.close(io.ErrClosedPipe)
	out.receive(func(m *agentv1.SessionResponse) {
		in.write(m.GetPortForward().GetData())
		if m.GetPortForward().GetCloseWrite() {
			in.close(io.EOF)
		}
	}, cancel)
	said := make(chan struct{}) // closed once the caller has said all, or the pod takes no more
	go func() {
		defer close(said)
		_, _ = io.Copy(conn, in)
		in.close(io.ErrClosedPipe) // what comes after an error has nowhere to go
		if c, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = c.CloseWrite()
		}
	}()
	_, err = io.Copy(chunkWriter(func(p []byte) error {
		return reply(&holdfastv1.PortForwardResponse{Message: &holdfastv1.PortForwardResponse_Data{Data: p}})
	}), conn)
	if errors.Is(err, syscall.ECONNRESET) {
		return connect.Errorf(connect.CodeAborted, "%s: the connection was reset by the pod", where)
	}
	if err != nil {
		return sessionError(where, err)
	}
	if err := reply(&holdfastv1.PortForwardResponse{Message: &holdfastv1.PortForwardResponse_CloseWrite{CloseWrite: true}}); err != nil {
		return sessionError(where, err)
	}
	select {
	case <-said:
	case <-ctx.Done():
	}
	return nil
}

// typed is what comes from a caller's keyboard: input, and the terminal's size.
type typed struct {
	stdin  *input
	resize chan [2]uint32 // only the newest matters
}

func newTyped(size *holdfastv1.TerminalSize, taken func(int)) *typed {
	t := &typed{stdin: newInput(taken), resize: make(chan [2]uint32, 1)}
	t.setSize(size)
	return t
}

func (t *typed) setSize(size *holdfastv1.TerminalSize) {
	if size == nil {
		return
	}
	select {
	case <-t.resize:
	default:
	}
	t.resize <- [2]uint32{size.GetWidth(), size.GetHeight()}
}

func (t *typed) take(m interface {
	GetStdin() []byte
	GetCloseStdin() bool
	GetResize() *holdfastv1.TerminalSize
},
) {
	t.setSize(m.GetResize())
	t.stdin.write(m.GetStdin())
	if m.GetCloseStdin() {
		t.stdin.close(io.EOF)
	}
}

// chunkWriter sends what is written in copies of at most maxChunk bytes.
type chunkWriter func([]byte) error

func (w chunkWriter) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		end := min(n+maxChunk, len(p))
		if err := w(bytes.Clone(p[n:end])); err != nil {
			return n, err
		}
		n = end
	}
	return len(p), nil
}

// input is a pipe with a buffer. It has room for all that a peer sends ahead, so that
// who does not read keeps nobody from noticing that the caller has gone.
type input struct {
	taken func(int) // told how much was read, once in a while

	mu   sync.Mutex
	cond *sync.Cond
	data []byte
	read int   // since taken was last told
	err  error // after data; nil while open
}

func newInput(taken func(int)) *input {
	p := &input{taken: taken}
	p.cond = sync.NewCond(&p.mu)
	return p
}

func (p *input) write(data []byte) {
	if len(data) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.err == nil && len(p.data) >= maxInput {
		p.cond.Wait()
	}
	if p.err == nil {
		p.data = append(p.data, data...)
		p.cond.Broadcast()
	}
}

// close ends the pipe: what was written before can still be read, unless err is
// io.ErrClosedPipe.
func (p *input) close(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil || errors.Is(err, io.ErrClosedPipe) {
		p.err = err
	}
	if errors.Is(err, io.ErrClosedPipe) {
		p.data = nil
	}
	p.cond.Broadcast()
}

// Read counts what it has read as taken: the reader has room for it.
func (p *input) Read(buf []byte) (int, error) {
	n, tell, err := p.next(buf)
	if tell > 0 {
		p.taken(tell)
	}
	return n, err
}

func (p *input) next(buf []byte) (n, tell int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.data) == 0 && p.err == nil {
		p.cond.Wait()
	}
	if len(p.data) == 0 {
		return 0, 0, p.err
	}
	n = copy(buf, p.data)
	p.data = p.data[n:]
	if len(p.data) == 0 {
		p.data = nil
	}
	if p.read += n; p.read >= takenStep {
		tell, p.read = p.read, 0
	}
	p.cond.Broadcast()
	return n, tell, nil
}
