package kube

import (
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// The channels of the protocols v4.channel.k8s.io and v5.channel.k8s.io: the first
// byte of each message. In v5 the last one closes the channel that its second byte
// names.
const (
	channelStdin  = 0
	channelStdout = 1
	channelStderr = 2
	channelError  = 3
	channelResize = 4
	channelClose  = 255
)

const (
	protocolV5 = "v5.channel.k8s.io"
	protocolV4 = "v4.channel.k8s.io"
)

func isWebsocket(r *http.Request) bool { return websocket.IsWebSocketUpgrade(r) }

// socket is a client of exec or attach by websocket.
type socket struct {
	conn  *websocket.Conn
	v5    bool
	stdin bool
	ended chan struct{} // closed once the client has hung up

	mu sync.Mutex // one writes at a time
}

func openWebsocket(w http.ResponseWriter, r *http.Request, o streamOptions) terminal {
	upgrader := websocket.Upgrader{Subprotocols: []string{protocolV5, protocolV4}}
	if offered := websocket.Subprotocols(r); !slices.ContainsFunc(offered, func(o string) bool { return slices.Contains(upgrader.Subprotocols, o) }) {
		http.Error(w, "none of the websocket's subprotocols is served: want "+protocolV5+" or "+protocolV4, http.StatusForbidden)
		return nil
	}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return nil // Upgrade has told the client
	}
	return &socket{conn: conn, v5: conn.Subprotocol() == protocolV5, stdin: o.stdin, ended: make(chan struct{})}
}

func (s *socket) input(take func(*holdfastv1.ExecRequest)) {
	defer close(s.ended)
	for {
		_, data, err := s.conn.ReadMessage()
		if err != nil {
			return
		}
		if len(data) == 0 {
			continue
		}
		switch channel, data := data[0], data[1:]; {
		case channel == channelStdin && s.stdin && len(data) > 0:
			take(stdinMessage(data))
		case channel == channelResize:
			if size := parseSize(data); size != nil {
				take(size)
			}
		case channel == channelClose && s.v5 && s.stdin && len(data) == 1 && data[0] == channelStdin:
			take(closeStdinMessage())
		}
	}
}

func (s *socket) output(stderr bool, data []byte) error {
	channel := byte(channelStdout)
	if stderr {
		channel = channelStderr
	}
	return s.write(channel, data)
}

func (s *socket) write(channel byte, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.WriteMessage(websocket.BinaryMessage, append([]byte{channel}, data...))
}

func (s *socket) end(status metav1.Status) {
	defer s.conn.Close()
	data, err := json.Marshal(status)
	if err != nil || s.write(channelError, data) != nil {
		return
	}
	hangUp(s.conn, s.ended)
}

// hangUp says goodbye and waits until the client has, too: whoever closes a
// connection on which something comes in loses what is on its way out.
func hangUp(conn *websocket.Conn, ended <-chan struct{}) {
	_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(streamDrain))
	select {
	case <-ended:
	case <-time.After(streamDrain):
	}
}
