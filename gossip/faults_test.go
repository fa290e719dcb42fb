package gossip

import (
	"io"
	"log"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/holdfast-io/holdfast/internal/faults"
)

// TestFaultyTransport covers memberlist's own sockets under a plane: packets and
// streams pass, and do not when they are cut.
func TestFaultyTransport(t *testing.T) {
	open := func(plane *faults.Plane) (*faultyTransport, string) {
		conf := memberlist.DefaultLANConfig()
		conf.BindAddr, conf.BindPort, conf.Logger = "127.0.0.1", 0, log.New(io.Discard, "", 0)
		if err := underFaults(conf, plane); err != nil {
			t.Fatal(err)
		}
		tr := conf.Transport.(*faultyTransport)
		t.Cleanup(func() { _ = tr.Shutdown() })
		ip, port, err := tr.FinalAdvertiseAddr("", conf.AdvertisePort)
		if err != nil {
			t.Fatal(err)
		}
		return tr, net.JoinHostPort(ip.String(), strconv.Itoa(port))
	}
	plane := faults.New(1)
	a, _ := open(plane)
	b, addr := open(faults.New(2))
	send := func(text string) {
		if _, err := a.WriteTo([]byte(text), addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := plane.Set("x", faults.Fault{Kind: faults.Cut, Peer: addr}); err != nil {
		t.Fatal(err)
	}
	send("lost")
	if _, err := a.DialTimeout(addr, 10*time.Millisecond); err == nil {
		t.Error("a stream was opened through a cut")
	}
	plane.Clear()
	send("hello")
	if p := <-b.PacketCh(); string(p.Buf) != "hello" {
		t.Errorf("got %q, want what was sent after the cut", p.Buf)
	}
	conn, err := a.DialTimeout(addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "stream"); err != nil {
		t.Fatal(err)
	}
	there := <-b.StreamCh()
	defer there.Close()
	buf := make([]byte, 6)
	if _, err := io.ReadFull(there, buf); err != nil || string(buf) != "stream" {
		t.Errorf("stream: %q, %v", buf, err)
	}
	if plane.Fired()[faults.Cut] != 2 {
		t.Errorf("fired %v", plane.Fired())
	}
}
