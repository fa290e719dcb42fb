package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/gorilla/websocket"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// streamWait bounds every wait.
const streamWait = 20 * time.Second

// echoPods is PodService with one container, which gives back what comes, tells its
// terminal's size, writes as much as its command says, and exits with 7.
type echoPods struct {
	begun, open atomic.Int64 // sessions
}

func (p *echoPods) begin() (end func()) {
	p.begun.Add(1)
	p.open.Add(1)
	return func() { p.open.Add(-1) }
}

// wantOver waits until all sessions have ended.
func (p *echoPods) wantOver(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(streamWait); p.open.Load() > 0 || p.begun.Load() == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d sessions go on without their client", p.open.Load(), p.begun.Load())
		}
	}
}

func (p *echoPods) Exec(ctx context.Context, with conversation[holdfastv1.ExecRequest, holdfastv1.ExecResponse]) error {
	defer p.begin()()
	first, err := with.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	switch start.GetCommand()[0] {
	case "missing":
		return connect.NewError(connect.CodeNotFound, "no such program")
	case "lots":
		if err := p.say(with, ""); err != nil {
			return err
		}
		for range 1000 {
			if err := p.say(with, strings.Repeat("x", 1023)+"\n"); err != nil {
				return err
			}
		}
		return with.Send(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_ExitCode{}})
	case "breaks":
		_ = p.say(with, "some")
		return connect.NewError(connect.CodeUnavailable, "the node is gone")
	}
	return p.echo(with, fmt.Sprintf("%s/%s/%s %q", start.GetNamespace(), start.GetPod(), start.GetContainer(), start.GetCommand()))
}

func (p *echoPods) Attach(ctx context.Context, with conversation[holdfastv1.AttachRequest, holdfastv1.AttachResponse]) error {
	defer p.begin()()
	first, err := with.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if err := with.Send(&holdfastv1.AttachResponse{Message: &holdfastv1.AttachResponse_Started{Started: &holdfastv1.AttachStarted{}}}); err != nil {
		return err
	}
	_ = with.Send(&holdfastv1.AttachResponse{Message: &holdfastv1.AttachResponse_Stdout{Stdout: fmt.Appendf(nil, "attached to %s, stdin %t\n", start.GetPod(), start.GetStdin())}})
	for {
		in, err := with.Receive()
		if err != nil {
			return err
		}
		if in.GetCloseStdin() {
			return with.Send(&holdfastv1.AttachResponse{Message: &holdfastv1.AttachResponse_ExitCode{ExitCode: 3}})
		}
		_ = with.Send(&holdfastv1.AttachResponse{Message: &holdfastv1.AttachResponse_Stderr{Stderr: in.GetStdin()}})
	}
}

func (p *echoPods) say(with conversation[holdfastv1.ExecRequest, holdfastv1.ExecResponse], text string) error {
	m := &holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_Stdout{Stdout: []byte(text)}}
	if text == "" {
		m.Message = &holdfastv1.ExecResponse_Started{Started: true}
	}
	return with.Send(m)
}

func (p *echoPods) echo(with conversation[holdfastv1.ExecRequest, holdfastv1.ExecResponse], hello string) error {
	if err := errors.Join(p.say(with, ""), p.say(with, hello+"\n")); err != nil {
		return err
	}
	for {
		in, err := with.Receive()
		if err != nil {
			return err
		}
		switch m := in.GetMessage().(type) {
		case *holdfastv1.ExecRequest_Stdin:
			err = p.say(with, string(m.Stdin))
		case *holdfastv1.ExecRequest_Resize:
			err = p.say(with, fmt.Sprintf("%dx%d\n", m.Resize.GetWidth(), m.Resize.GetHeight()))
		case *holdfastv1.ExecRequest_CloseStdin:
			_ = with.Send(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_Stderr{Stderr: []byte("bye")}})
			return with.Send(&holdfastv1.ExecResponse{Message: &holdfastv1.ExecResponse_ExitCode{ExitCode: 7}})
		}
		if err != nil {
			return err
		}
	}
}

func (p *echoPods) PortForward(ctx context.Context, with conversation[holdfastv1.PortForwardRequest, holdfastv1.PortForwardResponse]) error {
	defer p.begin()()
	first, err := with.Receive()
	if err != nil {
		return err
	}
	if port := first.GetStart().GetPort(); port != 7 {
		return connect.Errorf(connect.CodeFailedPrecondition, "port %d: connection refused", port)
	}
	if err := with.Send(&holdfastv1.PortForwardResponse{Message: &holdfastv1.PortForwardResponse_Connected{Connected: true}}); err != nil {
		return err
	}
	for {
		in, err := with.Receive()
		if errors.Is(err, io.EOF) {
			return with.Send(&holdfastv1.PortForwardResponse{Message: &holdfastv1.PortForwardResponse_CloseWrite{CloseWrite: true}})
		}
		if err != nil {
			return err
		}
		if err := with.Send(&holdfastv1.PortForwardResponse{Message: &holdfastv1.PortForwardResponse_Data{Data: in.GetData()}}); err != nil {
			return err
		}
	}
}

// serveStreams serves pod web of namespace default.
func serveStreams(t *testing.T) (*echoPods, string) {
	t.Helper()
	pods := &echoPods{}
	mux := http.NewServeMux()
	for name, handle := range StreamHandlers(pods, func(w http.ResponseWriter, _ *http.Request, err error) {
		code := http.StatusInternalServerError
		if connect.CodeOf(err) == connect.CodeNotFound {
			code = http.StatusNotFound
		}
		http.Error(w, err.Error(), code)
	}) {
		mux.HandleFunc("/"+name, func(w http.ResponseWriter, r *http.Request) {
			// As behind other layers, which do not show that the connection can be had.
			handle(struct{ unwrapper }{unwrapper{w}}, r, "default", "web")
		})
	}
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return pods, server.URL
}

type unwrapper struct{ http.ResponseWriter }

func (u unwrapper) Unwrap() http.ResponseWriter { return u.ResponseWriter }

// streamClient is one end of an exec or attach.
type streamClient interface {
	send(t *testing.T, stdin string)
	resize(t *testing.T, text string)
	closeStdin(t *testing.T)
	// result reads everything until the server has said all.
	result(t *testing.T) (stdout, stderr string, status metav1.Status)
	close()
}

type wsClient struct {
	conn *websocket.Conn
	v5   bool
}

func dialWS(address, protocol string) (*wsClient, *http.Response, error) {
	dialer := websocket.Dialer{Subprotocols: []string{protocol}}
	conn, resp, err := dialer.Dial("ws"+strings.TrimPrefix(address, "http"), nil)
	return &wsClient{conn, protocol == protocolV5}, resp, err
}

func (c *wsClient) write(t *testing.T, data []byte) {
	t.Helper()
	if err := c.conn.WriteMessage(websocket.BinaryMessage, data); err != nil {
		t.Fatal(err)
	}
}

func (c *wsClient) send(t *testing.T, stdin string)  { c.write(t, append([]byte{0}, stdin...)) }
func (c *wsClient) resize(t *testing.T, text string) { c.write(t, append([]byte{4}, text...)) }
func (c *wsClient) closeStdin(t *testing.T)          { c.write(t, []byte{255, 0}) }
func (c *wsClient) close()                           { c.conn.Close() }

func (c *wsClient) result(t *testing.T) (stdout, stderr string, status metav1.Status) {
	t.Helper()
	var out, errs strings.Builder
	for {
		_, data, err := c.conn.ReadMessage()
		if websocket.IsCloseError(err, websocket.CloseNormalClosure) {
			return out.String(), errs.String(), status
		}
		if err != nil {
			t.Fatalf("after %d bytes: %v", out.Len(), err)
		}
		switch data[0] {
		case 1:
			out.Write(data[1:])
		case 2:
			errs.Write(data[1:])
		case 3:
			if err := json.Unmarshal(data[1:], &status); err != nil {
				t.Fatal(err)
			}
		default:
			t.Errorf("a message on channel %d", data[0])
		}
	}
}

type spdyClient struct {
	conn    httpstream.Connection
	streams map[string]httpstream.Stream
}

func dialSPDY(address, protocol string) (httpstream.Connection, *http.Response, error) {
	rt, err := spdy.NewRoundTripper(nil)
	if err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequest(http.MethodPost, address, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	resp, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		return nil, nil, err
	}
	conn, err := rt.NewConnection(resp)
	return conn, resp, err
}

func newSPDYClient(t *testing.T, address string, types ...string) *spdyClient {
	t.Helper()
	conn, _, err := dialSPDY(address, protocolV4)
	if err != nil {
		t.Fatal(err)
	}
	c := &spdyClient{conn, map[string]httpstream.Stream{}}
	for _, typ := range append([]string{"error"}, types...) {
		stream, err := conn.CreateStream(http.Header{headerStreamType: {typ}})
		if err != nil {
			t.Fatal(err)
		}
		c.streams[typ] = stream
	}
	return c
}

func (c *spdyClient) write(t *testing.T, stream, text string) {
	t.Helper()
	if _, err := io.WriteString(c.streams[stream], text); err != nil {
		t.Fatal(err)
	}
}

func (c *spdyClient) send(t *testing.T, stdin string)  { c.write(t, "stdin", stdin) }
func (c *spdyClient) resize(t *testing.T, text string) { c.write(t, "resize", text) }
func (c *spdyClient) closeStdin(*testing.T)            { c.streams["stdin"].Close() }
func (c *spdyClient) close()                           { c.conn.Close() }

func (c *spdyClient) result(t *testing.T) (stdout, stderr string, status metav1.Status) {
	t.Helper()
	text := map[string]string{}
	var mu sync.Mutex
	var group sync.WaitGroup
	for _, name := range []string{"error", "stdout", "stderr"} {
		if stream := c.streams[name]; stream != nil {
			group.Go(func() {
				data, err := io.ReadAll(stream)
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				mu.Lock()
				defer mu.Unlock()
				text[name] = string(data)
			})
		}
	}
	group.Wait()
	if err := json.Unmarshal([]byte(text["error"]), &status); err != nil {
		t.Fatalf("%q: %v", text["error"], err)
	}
	c.conn.Close()
	return text["stdout"], text["stderr"], status
}

// each runs a test over all protocols.
func each(t *testing.T, path string, test func(t *testing.T, pods *echoPods, dial func(query string, streams ...string) streamClient)) {
	for _, protocol := range []string{protocolV5, protocolV4, "SPDY"} {
		t.Run(protocol, func(t *testing.T) {
			pods, address := serveStreams(t)
			test(t, pods, func(query string, streams ...string) streamClient {
				if protocol == "SPDY" {
					return newSPDYClient(t, address+path+"?"+query, streams...)
				}
				c, _, err := dialWS(address+path+"?"+query, protocol)
				if err != nil {
					t.Fatal(err)
				}
				return c
			})
		})
	}
}

func TestStreamExec(t *testing.T) {
	each(t, "/exec", func(t *testing.T, pods *echoPods, dial func(string, ...string) streamClient) {
		c := dial("command=cat&command=-u&stdin=true&stdout=1&stderr=true&container=main", "stdin", "stdout", "stderr")
		if ws, ok := c.(*wsClient); ok && !ws.v5 {
			c.close() // v4 cannot say that stdin has ended
			pods.wantOver(t)
			return
		}
		c.send(t, "one ")
		c.send(t, "two")
		c.closeStdin(t)
		stdout, stderr, status := c.result(t)
		if want := "default/web/main [\"cat\" \"-u\"]\none two"; stdout != want || stderr != "bye" {
			t.Errorf("got %q, %q, want %q, %q", stdout, stderr, want, "bye")
		}
		if status.Status != "Failure" || status.Reason != "NonZeroExitCode" || status.Details.Causes[0].Type != "ExitCode" || status.Details.Causes[0].Message != "7" {
			t.Errorf("status is %+v", status)
		}
	})
}

// TestStreamExecDrains: all output comes before the end.
func TestStreamExecDrains(t *testing.T) {
	each(t, "/exec", func(t *testing.T, _ *echoPods, dial func(string, ...string) streamClient) {
		for range 5 {
			c := dial("command=lots&stdout=true", "stdout")
			stdout, _, status := c.result(t)
			if len(stdout) != 1000<<10 || status.Status != "Success" {
				t.Errorf("%d bytes of %d, status %+v", len(stdout), 1000<<10, status)
			}
			c.close()
		}
	})
}

func TestStreamTerminal(t *testing.T) {
	each(t, "/exec", func(t *testing.T, pods *echoPods, dial func(string, ...string) streamClient) {
		c := dial("command=sh&stdin=true&stdout=true&stderr=true&tty=true", "stdin", "stdout", "resize")
		c.resize(t, `{"Width":132,"Height":43}`)
		c.resize(t, `nonsense`)
		if ws, ok := c.(*wsClient); ok {
			for _, want := range []string{"default/web/ [\"sh\"]\n", "132x43\n"} {
				if _, data, err := ws.conn.ReadMessage(); err != nil || string(data[1:]) != want {
					t.Errorf("got %q, %v, want %q", data, err, want)
				}
			}
		} else {
			buf := make([]byte, 100)
			var got []byte
			for !bytes.Contains(got, []byte("132x43\n")) {
				n, err := c.(*spdyClient).streams["stdout"].Read(buf)
				if err != nil {
					t.Fatalf("after %q: %v", got, err)
				}
				got = append(got, buf[:n]...)
			}
		}
		c.close() // without a word: the session ends
		pods.wantOver(t)
	})
}

func TestStreamBreaks(t *testing.T) {
	each(t, "/exec", func(t *testing.T, _ *echoPods, dial func(string, ...string) streamClient) {
		stdout, _, status := dial("command=breaks&stdout=true", "stdout").result(t)
		if stdout != "some" || status.Status != "Failure" || status.Message != "the node is gone" {
			t.Errorf("got %q, status %+v", stdout, status)
		}
	})
}

func TestStreamAttach(t *testing.T) {
	each(t, "/attach", func(t *testing.T, pods *echoPods, dial func(string, ...string) streamClient) {
		c := dial("stdin=true&stdout=true&stderr=true", "stdin", "stdout", "stderr")
		c.send(t, "in")
		if ws, ok := c.(*wsClient); ok && !ws.v5 {
			c.close()
			pods.wantOver(t)
			return
		}
		c.closeStdin(t)
		stdout, stderr, status := c.result(t)
		if stdout != "attached to web, stdin true\n" || stderr != "in" || status.Details.Causes[0].Message != "3" {
			t.Errorf("got %q, %q, status %+v", stdout, stderr, status)
		}
	})
}

// TestStreamRefused: what fails before anything has begun is an ordinary answer.
func TestStreamRefused(t *testing.T) {
	_, address := serveStreams(t)
	for _, test := range []struct {
		path, text string
		code       int
	}{
		{"/exec?command=missing&stdout=true", "no such program", http.StatusNotFound},
		{"/exec?stdout=true", "command is empty", http.StatusInternalServerError},
		{"/exec?command=x", "at least one of stdin, stdout and stderr", http.StatusInternalServerError},
		{"/exec?command=x&stdout=maybe", `stdout is "maybe"`, http.StatusInternalServerError},
	} {
		_, resp, err := dialWS(address+test.path, protocolV5)
		if err == nil {
			t.Fatalf("%s was upgraded", test.path)
		}
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != test.code || !strings.Contains(string(body), test.text) {
			t.Errorf("%s by websocket: %d %s, want %d with %q", test.path, resp.StatusCode, body, test.code, test.text)
		}
		if _, _, err := dialSPDY(address+test.path, protocolV4); err == nil || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s by SPDY: %v, want %q", test.path, err, test.text)
		}
	}
	if _, resp, err := dialWS(address+"/exec?command=x&stdout=true", "v9.channel.k8s.io"); err == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("another subprotocol: %v", err)
	}
	if _, _, err := dialSPDY(address+"/exec?command=x&stdout=true", "v1.channel.k8s.io"); err == nil {
		t.Error("another version of SPDY's streams was served")
	}
	resp, err := http.Post(address+"/exec?command=x&stdout=true", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); !strings.Contains(string(body), "upgrade") {
		t.Errorf("without an upgrade: %d %s", resp.StatusCode, body)
	}
}

// wsConn makes a websocket a connection, as kubectl does.
func dialTunnel(t *testing.T, address string) httpstream.Connection {
	t.Helper()
	dialer := websocket.Dialer{Subprotocols: []string{protocolTunnel}}
	ws, _, err := dialer.Dial("ws"+strings.TrimPrefix(address, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := spdy.NewClientConnection(&tunnel{Conn: ws})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestStreamPortForward(t *testing.T) {
	for _, protocol := range []string{"websocket", "SPDY"} {
		t.Run(protocol, func(t *testing.T) {
			pods, address := serveStreams(t)
			var conn httpstream.Connection
			if protocol == "SPDY" {
				var err error
				if conn, _, err = dialSPDY(address+"/portforward", protocolPortForward); err != nil {
					t.Fatal(err)
				}
			} else {
				conn = dialTunnel(t, address+"/portforward")
			}
			open := func(id, port string) (data, failure httpstream.Stream) {
				t.Helper()
				header := http.Header{headerPort: {port}, headerRequestID: {id}}
				header.Set(headerStreamType, "error")
				failure, err := conn.CreateStream(header)
				if err != nil {
					t.Fatal(err)
				}
				failure.Close()
				header.Set(headerStreamType, "data")
				if data, err = conn.CreateStream(header); err != nil {
					t.Fatal(err)
				}
				return data, failure
			}
			big := bytes.Repeat([]byte("0123456789abcdef"), 50000)
			var group sync.WaitGroup
			for i := range 4 { // at the same time
				data, failure := open(fmt.Sprint(i), "7")
				group.Go(func() {
					go func() {
						_, _ = data.Write(big)
						data.Close()
					}()
					got, err := io.ReadAll(data)
					if err != nil || !bytes.Equal(got, big) {
						t.Errorf("%d bytes of %d came back, %v", len(got), len(big), err)
					}
					if text, err := io.ReadAll(failure); len(text) > 0 || err != nil {
						t.Errorf("error stream says %q, %v", text, err)
					}
				})
			}
			group.Wait()
			_, failure := open("refused", "9")
			if text, _ := io.ReadAll(failure); string(text) != "error forwarding port 9 to pod web: port 9: connection refused" {
				t.Errorf("error stream says %q", text)
			}
			_, failure = open("wrong", "http")
			if text, _ := io.ReadAll(failure); !strings.Contains(string(text), `"http"`) {
				t.Errorf("error stream says %q", text)
			}
			data, _ := open("left", "7")
			if _, err := io.WriteString(data, "x"); err != nil {
				t.Fatal(err)
			}
			conn.Close() // without a word: the connection in the pod ends
			pods.wantOver(t)
		})
	}
}

func TestStreamURLs(t *testing.T) {
	for _, test := range []struct {
		query string
		want  streamOptions
	}{
		{"stdout=1&tty=true&stderr=1&stdin=t", streamOptions{stdin: true, stdout: true, tty: true}},
		{"stderr=true&container=c", streamOptions{stderr: true, container: "c"}},
	} {
		got, err := parseStreamOptions(&http.Request{URL: &url.URL{RawQuery: test.query}})
		if err != nil || got != test.want {
			t.Errorf("%s: %+v, %v, want %+v", test.query, got, err, test.want)
		}
	}
}
