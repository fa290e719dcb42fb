package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/gorilla/websocket"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

const (
	protocolPortForward = "portforward.k8s.io"
	// protocolTunnel carries the frames of SPDY in the messages of a websocket.
	protocolTunnel = "SPDY/3.1+portforward.k8s.io"
	// maxForwarded is how many streams of one client may wait to be served.
	maxForwarded = 1000
)

// portForward carries connections to ports of a pod: each is a pair of SPDY streams,
// of data and of errors.
func (s *streams) portForward(w http.ResponseWriter, r *http.Request, namespace, pod string) {
	var (
		conn httpstream.Connection
		came <-chan httpstream.Stream
	)
	switch {
	case isWebsocket(r):
		conn, came = upgradeTunnel(hijackable{w}, r)
	case isSPDY(r):
		conn, came = upgradeSPDY(hijackable{w}, r, protocolPortForward, maxForwarded)
	default:
		s.fail(w, r, errUpgrade)
		return
	}
	if conn == nil {
		return
	}
	defer conn.Close()
	// A hijacked connection's context does not end with it.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	halves := map[string]map[string]httpstream.Stream{} // by request, then by type
	for {
		select {
		case <-conn.CloseChan():
			return
		case stream := <-came:
			kind, id := stream.Headers().Get(headerStreamType), stream.Headers().Get(headerRequestID)
			if kind != "data" && kind != "error" {
				_ = stream.Reset()
				continue
			}
			if halves[id] == nil {
				halves[id] = map[string]httpstream.Stream{}
			}
			halves[id][kind] = stream
			if len(halves[id]) < 2 {
				continue
			}
			data, failure := halves[id]["data"], halves[id]["error"]
			delete(halves, id)
			group.Go(func() {
				s.forward(ctx, namespace, pod, data, failure)
				conn.RemoveStreams(data, failure)
			})
		}
	}
}

// forward carries one connection. Its error goes to the client's stream of errors.
func (s *streams) forward(ctx context.Context, namespace, pod string, data, failure httpstream.Stream) {
	defer failure.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = data.Reset() })()
	port, err := strconv.ParseUint(data.Headers().Get(headerPort), 10, 16)
	if err == nil {
		err = s.pods.PortForward(ctx, &forwardTalk{
			data: data, cancel: cancel,
			start: &holdfastv1.PortForwardStart{Namespace: namespace, Pod: pod, Port: uint32(port)},
		})
	}
	if err == nil || ctx.Err() != nil {
		return
	}
	message := err.Error()
	if rpcErr, ok := errors.AsType[*connect.Error](err); ok {
		message = rpcErr.Message()
	}
	_, _ = fmt.Fprintf(failure, "error forwarding port %s to pod %s: %s", data.Headers().Get(headerPort), pod, message)
}

// forwardTalk is a connection in process whose other end is a stream.
type forwardTalk struct {
	data   httpstream.Stream
	cancel func()
	start  *holdfastv1.PortForwardStart // nil: received
	buf    [streamPiece]byte
}

func (t *forwardTalk) SendHeaders() error { return nil }

func (t *forwardTalk) Receive() (*holdfastv1.PortForwardRequest, error) {
	if start := t.start; start != nil {
		t.start = nil
		return &holdfastv1.PortForwardRequest{Message: &holdfastv1.PortForwardRequest_Start{Start: start}}, nil
	}
	n, err := t.data.Read(t.buf[:])
	if n > 0 {
		return &holdfastv1.PortForwardRequest{Message: &holdfastv1.PortForwardRequest_Data{Data: append([]byte(nil), t.buf[:n]...)}}, nil
	}
	if err != nil && !errors.Is(err, io.EOF) {
		t.cancel() // the client has reset the stream
	}
	return nil, err
}

func (t *forwardTalk) Send(m *holdfastv1.PortForwardResponse) error {
	if len(m.GetData()) > 0 {
		if _, err := t.data.Write(m.GetData()); err != nil {
			return err
		}
	}
	if m.GetCloseWrite() {
		return t.data.Close()
	}
	return nil
}

// upgradeTunnel upgrades to SPDY within a websocket.
func upgradeTunnel(w http.ResponseWriter, r *http.Request) (httpstream.Connection, <-chan httpstream.Stream) {
	if !slices.Contains(websocket.Subprotocols(r), protocolTunnel) {
		http.Error(w, "the websocket's subprotocol is not served: want "+protocolTunnel, http.StatusForbidden)
		return nil, nil
	}
	upgrader := websocket.Upgrader{Subprotocols: []string{protocolTunnel}}
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return nil, nil // Upgrade has told the client
	}
	came := make(chan httpstream.Stream, maxForwarded)
	conn, err := spdy.NewServerConnection(&tunnel{Conn: ws}, accept(came))
	if err != nil {
		return nil, nil
	}
	conn.SetIdleTimeout(streamIdle)
	return conn, came
}

// tunnel is a net.Conn whose bytes are the binary messages of a websocket.
type tunnel struct {
	*websocket.Conn
	reading io.Reader // the message under way; nil: none
	writing sync.Mutex
}

func (t *tunnel) Read(p []byte) (int, error) {
	for {
		if t.reading == nil {
			kind, r, err := t.NextReader()
			if websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway) {
				return 0, io.EOF
			}
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errors.New("a message of the tunnel is not binary")
			}
			t.reading = r
		}
		n, err := t.reading.Read(p)
		if errors.Is(err, io.EOF) {
			t.reading, err = nil, nil
			if n == 0 {
				continue
			}
		}
		return n, err
	}
}

func (t *tunnel) Write(p []byte) (int, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	if err := t.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close says goodbye first.
func (t *tunnel) Close() error {
	_ = t.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
	return t.Conn.Close()
}

func (t *tunnel) SetDeadline(at time.Time) error {
	return errors.Join(t.SetReadDeadline(at), t.SetWriteDeadline(at))
}

var _ net.Conn = (*tunnel)(nil)
