package fake

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// Dial connects to a pod that has a container which runs until stopped, as a
// server would: port 7 sends back what comes, ports 80 and 8080 answer each HTTP
// request with the image and the pod. Nothing listens elsewhere.
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
	here, there := newPipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer there.Close()
		if port == 7 {
			_, _ = io.Copy(there, there)
			return
		}
		answer(there, fmt.Sprintf("%s in pod %s/%s: ", server.spec.Image, p.spec.Namespace, p.spec.Name))
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

// answer is a small HTTP server for one connection.
func answer(conn net.Conn, text string) {
	in := bufio.NewReader(conn)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		body := text + req.Method + " " + req.URL.Path + "\n"
		if _, err := fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil || req.Close {
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
