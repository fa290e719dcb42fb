package gossip

import (
	"context"
	"net"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/holdfast-io/holdfast/internal/faults"
)

// faultyTransport is memberlist's own transport under a fault plane.
type faultyTransport struct {
	*memberlist.NetTransport
	plane   *faults.Plane
	packets chan *memberlist.Packet
	streams chan net.Conn
	stopped chan struct{}
}

// underFaults listens as memberlist would for conf, and sets the transport and the
// port that it got.
func underFaults(conf *memberlist.Config, plane *faults.Plane) error {
	inner, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{conf.BindAddr}, BindPort: conf.BindPort, Logger: conf.Logger,
	})
	if err != nil {
		return err
	}
	if conf.BindPort == 0 {
		conf.BindPort = inner.GetAutoBindPort()
		conf.AdvertisePort = conf.BindPort
	}
	t := &faultyTransport{
		NetTransport: inner, plane: plane,
		packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), stopped: make(chan struct{}),
	}
	go t.receive()
	conf.Transport = t
	return nil
}

func (t *faultyTransport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *faultyTransport) StreamCh() <-chan net.Conn           { return t.streams }

// receive passes on what comes in, until Shutdown.
func (t *faultyTransport) receive() {
	deliver := func(p *memberlist.Packet) {
		select {
		case t.packets <- p:
		case <-t.stopped:
		}
	}
	for {
		select {
		case p := <-t.NetTransport.PacketCh():
			switch lost, late := t.plane.Packet(faults.In, names(memberlist.Address{Addr: p.From.String()})...); {
			case lost:
			case late > 0:
				time.AfterFunc(late, func() { deliver(p) })
			default:
				deliver(p)
			}
		case conn := <-t.NetTransport.StreamCh():
			select {
			case t.streams <- t.plane.Conn(conn, ""):
			case <-t.stopped:
				conn.Close()
			}
		case <-t.stopped:
			return
		}
	}
}

// names are all that a member goes by.
func names(a memberlist.Address) []string {
	list := []string{a.Addr}
	if a.Name != "" {
		list = append(list, a.Name)
	}
	if host, _, err := net.SplitHostPort(a.Addr); err == nil {
		list = append(list, host)
	}
	return list
}

func (t *faultyTransport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (t *faultyTransport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	switch lost, late := t.plane.Packet(faults.Out, names(a)...); {
	case lost:
		return time.Now(), nil
	case late > 0:
		data := append([]byte(nil), b...)
		time.AfterFunc(late, func() { _, _ = t.NetTransport.WriteToAddress(data, a) }) // as the network: no errors
		return time.Now(), nil
	}
	return t.NetTransport.WriteToAddress(b, a)
}

func (t *faultyTransport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *faultyTransport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	peer := a.Name
	if peer == "" {
		peer = a.Addr
	}
	return t.plane.Dial(ctx, peer, func(context.Context) (net.Conn, error) {
		return t.NetTransport.DialAddressTimeout(a, timeout)
	})
}

func (t *faultyTransport) Shutdown() error {
	close(t.stopped)
	return t.NetTransport.Shutdown()
}
