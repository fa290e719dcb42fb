package peer_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/internal/testcluster"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// closedWithin fails the test unless the other side ends the connection.
func closedWithin(t *testing.T, conn net.Conn, d time.Duration) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		t.Fatal(err)
	}
	_, err := io.Copy(io.Discard, conn)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Errorf("the connection is still open after %v", d)
	}
}

// TestSilentConnections: one address that opens connections and says nothing holds no
// more than its part of the port, and not for long; others come in meanwhile.
func TestSilentConnections(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 1})
	address := c.Peers[0].Address + ":7443"
	hostile := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, 9, 9)}, Timeout: 5 * time.Second}
	var silent []net.Conn
	for range 400 {
		conn, err := hostile.DialContext(t.Context(), "tcp", address)
		if err != nil {
			break // the backlog is full
		}
		defer conn.Close()
		silent = append(silent, conn)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second) // less than a handshake may take
	defer cancel()
	fresh := c.Peers[0].Client()
	defer fresh.Close()
	if _, err := fresh.Cluster().Status(ctx, &holdfastv1.StatusRequest{}); err != nil {
		t.Errorf("beside %d silent connections: %v", len(silent), err)
	}
	closedWithin(t, silent[0], testcluster.Patience/2)
	closedWithin(t, silent[len(silent)-1], testcluster.Patience/2)
}

// TestSlowHeader: who sends a request's header a byte at a time is not waited for.
func TestSlowHeader(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 1})
	creds, err := c.Context().Credentials()
	if err != nil {
		t.Fatal(err)
	}
	dialer := tls.Dialer{Config: creds.ClientTLS(pki.RolePeer, "http/1.1")}
	conn, err := dialer.DialContext(t.Context(), "tcp", c.Peers[0].Address+":7443")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for _, b := range []byte("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: " + string(make([]byte, 1000))) {
			if _, err := conn.Write([]byte{max(b, 'a')}); err != nil {
				return
			}
			time.Sleep(100 * time.Millisecond) // as a slow client does
		}
	}()
	closedWithin(t, conn, testcluster.Patience/2)
	conn.Close()
	<-ended
}
