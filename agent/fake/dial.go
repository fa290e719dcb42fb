package fake

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// Dial connects to a pod that has a container which runs until stopped, as a
// server would: port 7 sends back what comes, ports 80 and 8080 answer each HTTP
// request with the image and the pod, and with the code that the path /status/CODE
// asks for. Nothing listens elsewhere.
func (r *Runtime) Dial(_ context.Context, podUID string, port uint16) (net.Conn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pods[podUID]
	if p == nil {
		return nil, fmt.Errorf("fake: pod %s: %w", podUID, runtime.ErrNotFound)
	}
	var server *container
	for _, c := range p.containers {
		if c.state.State == runtime.StateRunning && c.term == nil {
			server = c
		}
	}
	if server == nil || port != 7 && port != 80 && port != 8080 {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	health := p.health
	here, there := newPipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer there.Close()
		if port == 7 {
			_, _ = io.Copy(there, there)
			return
		}
		answer(there, fmt.Sprintf("%s in pod %s/%s: ", server.spec.Image, p.spec.Namespace, p.spec.Name), health, server.done)
	}()
	go func() {
		select {
		case <-server.done:
			there.Close()
		case <-ended:
		}
	}()
	return here, nil
}

// DialAddress connects to a port of a pod at its address, as the node would.
func (r *Runtime) DialAddress(ctx context.Context, podUID, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	return r.Dial(ctx, podUID, uint16(n))
}

// Answers makes the servers of a pod answer every HTTP request on a new connection
// with the given code, or not at all if that is 0.
func (r *Runtime) Answers(podUID string, code int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.pods[podUID]; p != nil {
		p.health = code
	}
}

// answer is a small HTTP server for one connection. It answers with health, or as
// the path /status/CODE asks; CODE 0: not before done.
func answer(conn net.Conn, text string, health int, done <-chan struct{}) {
	in := bufio.NewReader(conn)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		code := health
		if asked, ok := strings.CutPrefix(req.URL.Path, "/status/"); ok {
			if n, err := strconv.Atoi(asked); err == nil {
				code = n
			}
		}
		if code == 0 {
			<-done
			return
		}
		body := text + req.Method + " " + req.URL.Path + "\n"
		if _, err := fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", code, http.StatusText(code), len(body), body); err != nil || req.Close {
			return
		}
	}
}

// pipe is one end of a connection in memory, of which each direction can be closed.
type pipe struct {
	*io.PipeReader
	*io.PipeWriter
}

func newPipe() (a, b pipe) {
	ar, bw := io.Pipe()
	br, aw := io.Pipe()
	return pipe{ar, aw}, pipe{br, bw}
}

func (p pipe) CloseWrite() error { return p.PipeWriter.Close() }

func (p pipe) Close() error {
	p.PipeReader.Close()
	return p.PipeWriter.Close()
}

func (p pipe) CloseWithError(error) error       { return p.Close() }
func (p pipe) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (p pipe) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (p pipe) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (p pipe) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (p pipe) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
