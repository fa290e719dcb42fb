package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// fakeAgent answers wishes for sessions as handle says, over one peer.
type fakeAgent struct {
	client agentv1connect.AgentServiceClient
	handle func(wish *agentv1.SessionsResponse, stream agentv1connect.AgentServiceSessionClientStream)
	ended  chan error // receives how the stream of wishes ended
	cancel context.CancelFunc
}

// startAgent returns once the agent can be reached. A nil handle never answers.
func startAgent(t testing.TB, client agentv1connect.AgentServiceClient, handle func(wish *agentv1.SessionsResponse, stream agentv1connect.AgentServiceSessionClientStream)) *fakeAgent {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	a := &fakeAgent{client: client, handle: handle, ended: make(chan error, 1), cancel: cancel}
	stream, err := client.Sessions(ctx, &agentv1.SessionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Receive()
	if err != nil || first.GetSessionId() != "" || first.GetStart() != nil {
		t.Fatalf("first message %v, %v: want an empty one, at once", first, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer stream.Close()
		for {
			wish, err := stream.Receive()
			if err != nil {
				a.ended <- err
				return
			}
			if a.handle == nil {
				continue
			}
			session, err := client.Session(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			go func() {
				defer session.Close()
				session.Send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_SessionId{SessionId: wish.GetSessionId()}})
				a.handle(wish, session)
			}()
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return a
}

func (c *cluster) pods(peer string) holdfastv1connect.PodServiceClient {
	return holdfastv1connect.NewPodServiceClient(c.client(peer, alice))
}

// logs collects a container's log.
func logs(ctx context.Context, pods holdfastv1connect.PodServiceClient, req *holdfastv1.LogsRequest) (string, error) {
	stream, err := pods.Logs(ctx, req)
	if err != nil {
		return "", err
	}
	defer stream.Close()
	var out strings.Builder
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return out.String(), nil
		}
		if err != nil {
			return out.String(), err
		}
		out.Write(msg.GetData())
	}
}

func sendLogs(stream agentv1connect.AgentServiceSessionClientStream, text string) error {
	return stream.Send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Logs{Logs: &holdfastv1.LogsResponse{Data: []byte(text)}}})
}

// echo is an agent's end: logs tell what was asked for, exec gives stdin back and
// exits with 7.
func echo(wish *agentv1.SessionsResponse, stream agentv1connect.AgentServiceSessionClientStream) {
	send := func(out *holdfastv1.ExecResponse) {
		stream.Send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Exec{Exec: out}})
	}
	switch {
	case wish.GetLogs() != nil:
		req := wish.GetLogs()
		sendLogs(stream, fmt.Sprintf("%s/%s/%s tail=%d\n", req.GetNamespace(), req.GetPod(), req.GetContainer(), req.GetTailLines()))
		sendLogs(stream, "second\n")
	case wish.GetExec() != nil:
		send(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_Started{Started: true}})
		for {
			msg, err := stream.Receive()
			if err != nil {
				return
			}
			in := msg.GetExec()
			if in.GetCloseStdin() {
				break
			}
			if size := in.GetResize(); size != nil {
				send(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_Stderr{Stderr: fmt.Appendf(nil, "%dx%d", size.GetWidth(), size.GetHeight())}})
				continue
			}
			send(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_Stdout{Stdout: in.GetStdin()}})
		}
		send(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_ExitCode{ExitCode: 7}})
	}
	stream.CloseSend()
	for {
		if _, err := stream.Receive(); err != nil {
			return
		}
	}
}

// TestLogs: from any peer, whichever has the node's agent.
func TestLogs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		two := boundPod("two", "n1")
		two.Spec.Containers = append(two.Spec.Containers, two.Spec.Containers[0])
		two.Spec.Containers[1].Name = "side"
		c.put(boundPod("web", "n1"), boundPod("unbound", ""), two, boundPod("far", "n9"))
		startAgent(t, c.agent("peer-2", "n1"), echo)
		for _, peer := range []string{"peer-1", "peer-2", "peer-3"} {
			got, err := logs(t.Context(), c.pods(peer), &holdfastv1.LogsRequest{Pod: "web", TailLines: 5})
			if err != nil || got != "default/web/main tail=5\nsecond\n" {
				t.Errorf("through %s: %q, %v", peer, got, err)
			}
		}
		for _, tt := range []struct {
			req  *holdfastv1.LogsRequest
			code connect.Code
			text string
		}{
			{&holdfastv1.LogsRequest{Pod: "none"}, connect.CodeNotFound, "Pod default/none not found"},
			{&holdfastv1.LogsRequest{Pod: "unbound"}, connect.CodeFailedPrecondition, "runs on no node yet"},
			{&holdfastv1.LogsRequest{Pod: "two"}, connect.CodeInvalidArgument, "choose main or side"},
			{&holdfastv1.LogsRequest{Pod: "two", Container: "third"}, connect.CodeNotFound, `no container "third"`},
			{&holdfastv1.LogsRequest{Pod: "far"}, connect.CodeUnavailable, "no peer has a connection to node n9"},
			{&holdfastv1.LogsRequest{Pod: "web", Relayed: true}, connect.CodeUnavailable, "not connected to peer peer-1"},
			{&holdfastv1.LogsRequest{}, connect.CodeInvalidArgument, "which pod"},
		} {
			_, err := logs(t.Context(), c.pods("peer-1"), tt.req)
			wantCode(t, err, tt.code, tt.text)
		}
		c.setDown("peer-3", true)
		_, err := logs(t.Context(), c.pods("peer-1"), &holdfastv1.LogsRequest{Pod: "far"})
		wantCode(t, err, connect.CodeUnavailable, "did not answer: peer-3")
	})
}

// TestAgentsError: what the agent says goes to the caller, through another peer
// as well, with its code.
func TestAgentsError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		c.put(boundPod("web", "n1"))
		startAgent(t, c.agent("peer-2", "n1"), func(_ *agentv1.SessionsResponse, stream agentv1connect.AgentServiceSessionClientStream) {
			sendLogs(stream, "some\n")
			stream.Send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Error{Error: &agentv1.SessionError{Code: "failed_precondition", Message: "container main has not started"}}})
			stream.CloseSend()
			stream.Receive()
		})
		for _, peer := range []string{"peer-1", "peer-2"} {
			got, err := logs(t.Context(), c.pods(peer), &holdfastv1.LogsRequest{Pod: "web"})
			wantCode(t, err, connect.CodeFailedPrecondition, "container main has not started")
			if got != "some\n" {
				t.Errorf("through %s: %q came before the error", peer, got)
			}
			if info := infoOf(err); info.GetServedBy() != peer {
				t.Errorf("served by %q, want %s", info.GetServedBy(), peer)
			}
		}
	})
}

// TestExec: stdin, resize, output and exit code, through both peers.
func TestExec(t *testing.T) {
	for _, peer := range []string{"peer-1", "peer-2"} {
		t.Run(peer, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 2)
				c.put(boundPod("web", "n1"))
				startAgent(t, c.agent("peer-2", "n1"), echo)
				stream, err := c.pods(peer).Exec(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer stream.Close()
				stream.Send(&holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Start{Start: &holdfastv1.ExecStart{Pod: "web", Command: []string{"cat"}, Stdin: true}}})
				receive := func() *holdfastv1.ExecResponse {
					t.Helper()
					msg, err := stream.Receive()
					if err != nil {
						t.Fatal(err)
					}
					return msg
				}
				if !receive().GetStarted() {
					t.Error("the first message is not started")
				}
				stream.Send(&holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Resize{Resize: &holdfastv1.TerminalSize{Width: 80, Height: 25}}})
				if got := string(receive().GetStderr()); got != "80x25" {
					t.Errorf("resize came as %q", got)
				}
				for i := range 50 {
					text := fmt.Sprint("line ", i)
					stream.Send(&holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Stdin{Stdin: []byte(text)}})
					if got := string(receive().GetStdout()); got != text {
						t.Fatalf("sent %q, got %q", text, got)
					}
				}
				stream.CloseSend() // means the end of stdin
				if last, ok := receive().GetMessage().(*holdfastv1.ExecResponse_ExitCode); !ok || last.ExitCode != 7 {
					t.Errorf("last message %v, want exit code 7", last)
				}
				if _, err := stream.Receive(); !errors.Is(err, io.EOF) {
					t.Errorf("after the exit code: %v", err)
				}
			})
		})
	}
}

// TestExecBadStart: the first message must say what to run.
func TestExecBadStart(t *testing.T) {
	c := newCluster(t, 1)
	for _, msg := range []*holdfastv1.ExecRequest{
		{Message: &holdfastv1.ExecRequest_Stdin{Stdin: []byte("x")}},
		{Message: &holdfastv1.ExecRequest_Start{Start: &holdfastv1.ExecStart{Pod: "web"}}},
	} {
		stream, err := c.pods("peer-1").Exec(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		stream.Send(msg)
		_, err = stream.Receive()
		wantCode(t, err, connect.CodeInvalidArgument, "start")
		stream.Close()
	}
}

// TestSilentAgent: an agent that does not answer a wish within 10 s costs the
// caller 10 s and a clear word.
func TestSilentAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		c.put(boundPod("web", "n1"))
		startAgent(t, c.agent("peer-1", "n1"), nil)
		start := time.Now()
		_, err := logs(t.Context(), c.pods("peer-1"), &holdfastv1.LogsRequest{Pod: "web"})
		wantCode(t, err, connect.CodeUnavailable, "node n1's agent did not answer within 10s")
		if took := time.Since(start); took != sessionTimeout {
			t.Errorf("it took %s", took)
		}
		if n := len(c.servers["peer-1"].sessions.pending); n != 0 {
			t.Errorf("%d sessions are left over", n)
		}
	})
}

// TestLostAgent: an agent whose connection breaks in the middle is an error to
// its caller, not an end.
func TestLostAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		c.put(boundPod("web", "n1"))
		var agent *fakeAgent
		agent = startAgent(t, c.agent("peer-1", "n1"), func(_ *agentv1.SessionsResponse, stream agentv1connect.AgentServiceSessionClientStream) {
			sendLogs(stream, "some\n")
			synctest.Wait()
			agent.cancel()
		})
		got, err := logs(t.Context(), c.pods("peer-1"), &holdfastv1.LogsRequest{Pod: "web", Follow: true})
		wantCode(t, err, connect.CodeUnavailable, "connection to node n1's agent was lost")
		if got != "some\n" {
			t.Errorf("got %q before", got)
		}
	})
}

// TestCallerGoes: when the caller is done, the agent learns of it.
func TestCallerGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		c.put(boundPod("web", "n1"))
		ended := make(chan error, 1)
		startAgent(t, c.agent("peer-2", "n1"), func(_ *agentv1.SessionsResponse, stream agentv1connect.AgentServiceSessionClientStream) {
			sendLogs(stream, "some\n")
			_, err := stream.Receive()
			ended <- err
		})
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := c.pods("peer-1").Logs(ctx, &holdfastv1.LogsRequest{Pod: "web", Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Receive(); err != nil {
			t.Fatal(err)
		}
		cancel()
		stream.Close()
		if err := <-ended; err == nil {
			t.Error("the agent's session goes on without its caller")
		}
	})
}

// TestFlowControl: a caller that does not read holds the agent back, instead of
// filling the peer's memory.
func TestFlowControl(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		c.put(boundPod("web", "n1"))
		sent := 0
		startAgent(t, c.agent("peer-1", "n1"), func(_ *agentv1.SessionsResponse, stream agentv1connect.AgentServiceSessionClientStream) {
			for sendLogs(stream, "x\n") == nil {
				sent++
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stream, err := c.pods("peer-1").Logs(ctx, &holdfastv1.LogsRequest{Pod: "web", Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		synctest.Wait() // blocked: everybody
		if sent > 10 {
			t.Errorf("the agent has sent %d messages that nobody read", sent)
		}
	})
}

// TestUnreadInput: an agent is sent no more than it can hold of what nobody reads,
// and learns at once when the caller leaves then.
func TestUnreadInput(t *testing.T) {
	for _, peer := range []string{"peer-1", "peer-2"} { // peer-2 has the agent
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 2)
			c.put(boundPod("web", "n1"))
			var received atomic.Int64
			more, gone := make(chan struct{}), make(chan struct{})
			startAgent(t, c.agent("peer-2", "n1"), func(_ *agentv1.SessionsResponse, stream agentv1connect.AgentServiceSessionClientStream) {
				go func() {
					<-more
					stream.Send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Taken{Taken: 512 << 10}})
				}()
				for {
					m, err := stream.Receive()
					if err != nil {
						close(gone)
						return
					}
					received.Add(int64(len(m.GetExec().GetStdin())))
				}
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stream, err := c.pods(peer).Exec(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Close()
			stream.Send(&holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Start{Start: &holdfastv1.ExecStart{Pod: "web", Command: []string{"sleep"}, Stdin: true}}})
			go func() {
				for stream.Send(&holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Stdin{Stdin: make([]byte, 64<<10)}}) == nil {
				}
			}()
			synctest.Wait()
			if got := received.Load(); got != maxAhead {
				t.Errorf("the agent was sent %d bytes, want %d", got, maxAhead)
			}
			close(more)
			synctest.Wait()
			if got := received.Load(); got != maxAhead+512<<10 {
				t.Errorf("after some were taken the agent was sent %d bytes, want %d", got, maxAhead+512<<10)
			}
			cancel()
			<-gone
		})
	}
}

// TestSecondStreamReplaces: an agent that comes anew takes the place of what is
// left of its last connection.
func TestSecondStreamReplaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		c.put(boundPod("web", "n1"))
		old := startAgent(t, c.agent("peer-1", "n1"), nil)
		startAgent(t, c.agent("peer-1", "n1"), echo)
		wantCode(t, <-old.ended, connect.CodeAborted, "another stream")
		if got, err := logs(t.Context(), c.pods("peer-1"), &holdfastv1.LogsRequest{Pod: "web"}); err != nil || !strings.HasPrefix(got, "default/web/main") {
			t.Errorf("%q, %v", got, err)
		}
		if n := c.servers["peer-1"].sessions.connected(); n != 1 {
			t.Errorf("%d agents are connected", n)
		}
	})
}

// TestYoungestConnection: of two peers that believe to have the agent, the one
// with the younger connection is asked.
func TestYoungestConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		c.put(boundPod("web", "n1"))
		startAgent(t, c.agent("peer-2", "n1"), nil) // dead, and not yet known to be
		time.Sleep(time.Second)
		startAgent(t, c.agent("peer-3", "n1"), echo)
		time.Sleep(time.Second)
		if got, err := logs(t.Context(), c.pods("peer-1"), &holdfastv1.LogsRequest{Pod: "web"}); err != nil || got == "" {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// TestForeignSession: a session is for the node it was made for.
func TestForeignSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		c.put(boundPod("web", "n1"))
		refused := make(chan error, 1)
		var id string
		startAgent(t, c.agent("peer-1", "n1"), func(wish *agentv1.SessionsResponse, stream agentv1connect.AgentServiceSessionClientStream) {
			id = wish.GetSessionId()
			thief, err := c.agent("peer-1", "n2").Session(t.Context())
			if err != nil {
				refused <- err
				return
			}
			defer thief.Close()
			thief.Send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_SessionId{SessionId: id}})
			_, err = thief.Receive()
			refused <- err
			echo(wish, stream)
		})
		// The wish is answered by its node first; so look at the table itself, too.
		_, _ = logs(t.Context(), c.pods("peer-1"), &holdfastv1.LogsRequest{Pod: "web"})
		wantCode(t, <-refused, connect.CodeNotFound, "unknown or over")
		s := newSessions()
		s.pending["x"] = &session{id: "x", node: "n1", answered: make(chan struct{})}
		if s.answer("n2", "x") != nil {
			t.Error("n2 took n1's session")
		}
		if s.answer("n1", "x") == nil {
			t.Error("n1 did not get its own")
		}
	})
}

// serveAttach is an agent's end of an attach: it gives stdin back and exits with 7.
func serveAttach(wish *agentv1.SessionsResponse, stream agentv1connect.AgentServiceSessionClientStream) {
	send := func(out *holdfastv1.AttachResponse) {
		stream.Send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Attach{Attach: out}})
	}
	send(&holdfastv1.AttachResponse{Message: &holdfastv1.AttachResponse_Started{Started: &holdfastv1.AttachStarted{Tty: true}}})
	send(&holdfastv1.AttachResponse{Message: &holdfastv1.AttachResponse_Stderr{Stderr: fmt.Appendf(nil, "%s/%s stdin=%t", wish.GetAttach().GetPod(), wish.GetAttach().GetContainer(), wish.GetAttach().GetStdin())}})
	for {
		msg, err := stream.Receive()
		if err != nil || msg.GetAttach().GetCloseStdin() {
			break
		}
		send(&holdfastv1.AttachResponse{Message: &holdfastv1.AttachResponse_Stdout{Stdout: msg.GetAttach().GetStdin()}})
	}
	send(&holdfastv1.AttachResponse{Message: &holdfastv1.AttachResponse_ExitCode{ExitCode: 7}})
	stream.CloseSend()
	for {
		if _, err := stream.Receive(); err != nil {
			return
		}
	}
}

// TestAttach: through the peer that has the agent, another one, and in process.
func TestAttach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		c.put(boundPod("web", "n1"))
		startAgent(t, c.agent("peer-2", "n1"), serveAttach)
		for _, peer := range []string{"peer-1", "peer-2"} {
			stream, err := c.pods(peer).Attach(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			stream.Send(&holdfastv1.AttachRequest{Message: &holdfastv1.AttachRequest_Start{Start: &holdfastv1.AttachStart{Pod: "web", Stdin: true}}})
			stream.Send(&holdfastv1.AttachRequest{Message: &holdfastv1.AttachRequest_Stdin{Stdin: []byte("hello")}})
			stream.CloseSend()
			var got []string
			for {
				m, err := stream.Receive()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatalf("through %s: %v", peer, err)
				}
				got = append(got, fmt.Sprint(m.GetStarted().GetTty(), string(m.GetStdout()), string(m.GetStderr()), m.GetExitCode()))
			}
			if want := "[true0 falseweb/main stdin=true0 falsehello0 false7]"; fmt.Sprint(got) != want {
				t.Errorf("through %s: %q, want %q", peer, got, want)
			}
			stream.Close()
		}
	})
}

// channelTalk is a conversation of a caller in the same process.
type channelTalk[In, Out any] struct {
	in  chan *In
	out chan *Out
	ctx context.Context
}

func (c channelTalk[In, Out]) SendHeaders() error { return nil }

func (c channelTalk[In, Out]) Receive() (*In, error) {
	select {
	case m, ok := <-c.in:
		if !ok {
			return nil, io.EOF
		}
		return m, nil
	case <-c.ctx.Done():
		return nil, c.ctx.Err()
	}
}

func (c channelTalk[In, Out]) Send(m *Out) error {
	select {
	case c.out <- m:
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

// servePort is an agent's end of a connection: it gives back what comes, and closes
// once nothing more does. Port 9 refuses.
func servePort(wish *agentv1.SessionsResponse, stream agentv1connect.AgentServiceSessionClientStream) {
	send := func(out *holdfastv1.PortForwardResponse) {
		stream.Send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_PortForward{PortForward: out}})
	}
	if wish.GetPortForward().GetPort() == 9 {
		stream.Send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Error{Error: &agentv1.SessionError{Code: "failed_precondition", Message: "connection refused"}}})
	} else {
		send(&holdfastv1.PortForwardResponse{Message: &holdfastv1.PortForwardResponse_Connected{Connected: true}})
		for {
			msg, err := stream.Receive()
			if err != nil {
				return
			}
			if msg.GetPortForward().GetCloseWrite() {
				break
			}
			send(&holdfastv1.PortForwardResponse{Message: &holdfastv1.PortForwardResponse_Data{Data: msg.GetPortForward().GetData()}})
		}
		send(&holdfastv1.PortForwardResponse{Message: &holdfastv1.PortForwardResponse_CloseWrite{CloseWrite: true}})
	}
	stream.CloseSend()
	for {
		if _, err := stream.Receive(); err != nil {
			return
		}
	}
}

// TestPortForward: one connection a call, with its own error and end, from Connect
// and in process.
func TestPortForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		c.put(boundPod("web", "n1"), boundPod("unbound", ""))
		startAgent(t, c.agent("peer-2", "n1"), servePort)
		start := func(pod string, port uint32) *holdfastv1.PortForwardRequest {
			return &holdfastv1.PortForwardRequest{Message: &holdfastv1.PortForwardRequest_Start{Start: &holdfastv1.PortForwardStart{Pod: pod, Port: port}}}
		}
		data := func(text string) *holdfastv1.PortForwardRequest {
			return &holdfastv1.PortForwardRequest{Message: &holdfastv1.PortForwardRequest_Data{Data: []byte(text)}}
		}
		for _, peer := range []string{"peer-1", "peer-2"} {
			stream, err := c.pods(peer).PortForward(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			stream.Send(start("web", 80))
			if first, err := stream.Receive(); err != nil || !first.GetConnected() {
				t.Fatalf("through %s: first message %v, %v", peer, first, err)
			}
			for i := range 20 {
				text := fmt.Sprint("piece ", i)
				stream.Send(data(text))
				if m, err := stream.Receive(); err != nil || string(m.GetData()) != text {
					t.Fatalf("through %s: got %v, %v, want %q", peer, m, err, text)
				}
			}
			stream.CloseSend() // means the end of data
			if m, err := stream.Receive(); err != nil || !m.GetCloseWrite() {
				t.Errorf("through %s: got %v, %v, want the end of data", peer, m, err)
			}
			if _, err := stream.Receive(); !errors.Is(err, io.EOF) {
				t.Errorf("through %s: ended with %v", peer, err)
			}
			stream.Close()
			for _, tt := range []struct {
				first *holdfastv1.PortForwardRequest
				code  connect.Code
				text  string
			}{
				{start("web", 9), connect.CodeFailedPrecondition, "connection refused"},
				{start("web", 0), connect.CodeInvalidArgument, "no port"},
				{start("web", 65536), connect.CodeInvalidArgument, "no port"},
				{start("none", 80), connect.CodeNotFound, "default/none not found"},
				{start("unbound", 80), connect.CodeFailedPrecondition, "runs on no node"},
				{data("x"), connect.CodeInvalidArgument, "must hold start"},
			} {
				stream, err := c.pods(peer).PortForward(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				stream.Send(tt.first)
				_, err = stream.Receive()
				wantCode(t, err, tt.code, tt.text)
				stream.Close()
			}
		}

		ctx, cancel := context.WithCancel(t.Context())
		talk := channelTalk[holdfastv1.PortForwardRequest, holdfastv1.PortForwardResponse]{
			in: make(chan *holdfastv1.PortForwardRequest), out: make(chan *holdfastv1.PortForwardResponse), ctx: ctx,
		}
		ended := make(chan error, 1)
		go func() { ended <- c.servers["peer-1"].Pods().PortForward(ctx, talk) }()
		talk.in <- start("web", 80)
		if !(<-talk.out).GetConnected() {
			t.Error("in process: the first message is not connected")
		}
		talk.in <- data("x")
		if got := string((<-talk.out).GetData()); got != "x" {
			t.Errorf("in process: got %q", got)
		}
		cancel()
		if err := <-ended; err == nil {
			t.Error("in process: no error though the caller has gone")
		}
	})
}

// TestPodsEndWithTheServer: calls in process end when the server does.
func TestPodsEndWithTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		c.put(boundPod("web", "n1"))
		startAgent(t, c.agent("peer-1", "n1"), serveAttach)
		talk := channelTalk[holdfastv1.AttachRequest, holdfastv1.AttachResponse]{
			in: make(chan *holdfastv1.AttachRequest, 1), out: make(chan *holdfastv1.AttachResponse), ctx: t.Context(),
		}
		talk.in <- &holdfastv1.AttachRequest{Message: &holdfastv1.AttachRequest_Start{Start: &holdfastv1.AttachStart{Pod: "web"}}}
		ended := make(chan error, 1)
		go func() { ended <- c.servers["peer-1"].Pods().Attach(t.Context(), talk) }()
		<-talk.out
		<-talk.out
		c.stops["peer-1"]()
		wantCode(t, <-ended, connect.CodeUnavailable, "shutting down")
	})
}
