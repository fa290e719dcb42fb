package gossip

import (
	"errors"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// network carries memberlist's packets and streams in memory, with faults: it
// works under virtual time, and a cut is silent, as on a real network.
type network struct {
	mu    sync.Mutex
	next  int
	hosts map[string]*host
	cut   func(from, to string) bool // by address; nil: nothing is cut
}

func newNetwork() *network { return &network{hosts: make(map[string]*host)} }

// Cut replaces the rule by which packets are lost and dials time out.
func (n *network) Cut(rule func(from, to string) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = rule
}

// Host adds a machine with an address of its own.
func (n *network) Host() *host {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.next++
	h := &host{
		net:     n,
		ip:      net.IPv4(10, 0, 0, byte(n.next)),
		packets: make(chan *memberlist.Packet, 1024),
		streams: make(chan net.Conn),
		stopped: make(chan struct{}),
	}
	n.hosts[h.Address()] = h
	return h
}

func (n *network) reach(from, to string) (*host, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h, ok := n.hosts[to]
	if !ok || (n.cut != nil && n.cut(from, to)) {
		return nil, false
	}
	return h, true
}

// host is one machine's memberlist.Transport.
type host struct {
	net     *network
	ip      net.IP
	packets chan *memberlist.Packet
	streams chan net.Conn
	stopped chan struct{}
	once    sync.Once
}

const hostPort = 7946

func (h *host) Address() string { return net.JoinHostPort(h.ip.String(), strconv.Itoa(hostPort)) }

func (h *host) FinalAdvertiseAddr(string, int) (net.IP, int, error) { return h.ip, hostPort, nil }

func (h *host) WriteTo(b []byte, addr string) (time.Time, error) {
	now := time.Now()
	to, ok := h.net.reach(h.Address(), addr)
	if !ok {
		return now, nil // lost on the way
	}
	p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: address(h.Address()), Timestamp: now}
	select {
	case to.packets <- p:
	case <-to.stopped:
	default: // its buffer is full
	}
	return now, nil
}

func (h *host) PacketCh() <-chan *memberlist.Packet { return h.packets }

func (h *host) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	to, ok := h.net.reach(h.Address(), addr)
	if !ok {
		time.Sleep(timeout)
		return nil, errors.New("dial " + addr + ": timed out")
	}
	here, there := net.Pipe()
	select {
	case to.streams <- there:
		return here, nil
	case <-to.stopped:
		return nil, errors.New("dial " + addr + ": connection refused")
	case <-time.After(timeout):
		return nil, errors.New("dial " + addr + ": timed out")
	}
}

func (h *host) StreamCh() <-chan net.Conn { return h.streams }

func (h *host) Shutdown() error {
	h.once.Do(func() { close(h.stopped) })
	return nil
}

type address string

func (a address) Network() string { return "mem" }
func (a address) String() string  { return string(a) }
