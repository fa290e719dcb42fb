package kube

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// The headers by which a SPDY stream says what it is for.
const (
	headerStreamType = "streamType"
	headerPort       = "port"
	headerRequestID  = "requestID"
)

func isSPDY(r *http.Request) bool {
	return httpstream.IsUpgradeRequest(r) && strings.EqualFold(r.Header.Get(httpstream.HeaderUpgrade), spdy.HeaderSpdy31)
}

// upgradeSPDY upgrades a connection. Its streams come by the channel, which has room
// for most; nil when the client was told what is wrong.
func upgradeSPDY(w http.ResponseWriter, r *http.Request, protocol string, most int) (httpstream.Connection, <-chan httpstream.Stream) {
	if _, err := httpstream.Handshake(r, w, []string{protocol}); err != nil {
		return nil, nil
	}
	came := make(chan httpstream.Stream, most)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, accept(came))
	if conn != nil {
		conn.SetIdleTimeout(streamIdle)
	}
	return conn, came
}

// accept hands over streams once the client knows that they are accepted.
func accept(came chan<- httpstream.Stream) httpstream.NewStreamHandler {
	return func(stream httpstream.Stream, replied <-chan struct{}) error {
		go func() {
			<-replied
			select {
			case came <- stream:
			default:
				_ = stream.Reset() // more than anybody needs
			}
		}()
		return nil
	}
}

// spdyTerminal is a client of exec or attach by SPDY.
type spdyTerminal struct {
	conn    httpstream.Connection
	streams map[string]httpstream.Stream // by type
}

func openSPDY(w http.ResponseWriter, r *http.Request, o streamOptions) terminal {
	want := []string{"error"}
	for name, wanted := range map[string]bool{"stdin": o.stdin, "stdout": o.stdout, "stderr": o.stderr, "resize": o.tty} {
		if wanted {
			want = append(want, name)
		}
	}
	conn, came := upgradeSPDY(w, r, protocolV4, 2*len(want))
	if conn == nil {
		return nil
	}
	t := &spdyTerminal{conn: conn, streams: map[string]httpstream.Stream{}}
	late := time.After(streamOpening)
	for missing := len(want); missing > 0; {
		select {
		case stream := <-came:
			name := stream.Headers().Get(headerStreamType)
			if t.streams[name] == nil && slices.Contains(want, name) {
				t.streams[name] = stream
				missing--
			}
		case <-late:
			conn.Close()
			return nil
		case <-conn.CloseChan():
			return nil
		}
	}
	return t
}

func (t *spdyTerminal) input(take func(*holdfastv1.ExecRequest)) {
	var mu sync.Mutex
	one := func(m *holdfastv1.ExecRequest) {
		mu.Lock()
		defer mu.Unlock()
		take(m)
	}
	if stdin := t.streams["stdin"]; stdin != nil {
		go func() {
			err := pieces(stdin, func(data []byte) bool {
				one(stdinMessage(data))
				return true
			})
			if errors.Is(err, io.EOF) {
				one(closeStdinMessage())
			}
		}()
	}
	if sizes := t.streams["resize"]; sizes != nil {
		go func() {
			for decoder := json.NewDecoder(sizes); ; {
				var raw json.RawMessage
				if decoder.Decode(&raw) != nil {
					return
				}
				if size := parseSize(raw); size != nil {
					one(size)
				}
			}
		}()
	}
	<-t.conn.CloseChan()
}

func (t *spdyTerminal) output(stderr bool, data []byte) error {
	stream := t.streams["stdout"]
	if stderr {
		stream = t.streams["stderr"]
	}
	if stream == nil {
		return nil
	}
	_, err := stream.Write(data)
	return err
}

// end closes the streams one by one: closing the connection would reset them, and
// with them what the client has not read yet.
func (t *spdyTerminal) end(status metav1.Status) {
	defer t.conn.Close()
	data, err := json.Marshal(status)
	if err != nil {
		return
	}
	for _, name := range []string{"stdout", "stderr"} {
		if stream := t.streams[name]; stream != nil {
			_ = stream.Close()
		}
	}
	if _, err := t.streams["error"].Write(data); err != nil {
		return
	}
	_ = t.streams["error"].Close()
	select {
	case <-t.conn.CloseChan():
	case <-time.After(streamDrain):
	}
}
