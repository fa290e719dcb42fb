package faults

import (
	"net"
	"time"
)

// PacketConn returns conn under the plane's faults. Its other ends go by their
// addresses.
func (p *Plane) PacketConn(conn net.PacketConn) net.PacketConn {
	if p == nil {
		return conn
	}
	return &packetConn{conn, p}
}

type packetConn struct {
	net.PacketConn
	plane *Plane
}

// WriteTo implements net.PacketConn. A packet that is late overtakes none, but can be
// overtaken.
func (c *packetConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	lost, late := c.plane.Packet(Out, namesOf("", addr)...)
	switch {
	case lost:
		return len(b), nil
	case late > 0:
		data := append([]byte(nil), b...)
		time.AfterFunc(late, func() { _, _ = c.PacketConn.WriteTo(data, addr) }) // as the network: no errors
		return len(b), nil
	}
	return c.PacketConn.WriteTo(b, addr)
}

// ReadFrom implements net.PacketConn. A late packet delays those behind it, which is
// what a queue before this machine would do.
func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, addr, err := c.PacketConn.ReadFrom(b)
		if err != nil {
			return n, addr, err
		}
		lost, late := c.plane.Packet(In, namesOf("", addr)...)
		if !lost {
			time.Sleep(late)
			return n, addr, nil
		}
	}
}
