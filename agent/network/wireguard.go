package network

import (
	"bufio"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// tunnelKey is a key of WireGuard, private or public. As text it is base64.
type tunnelKey [32]byte

func (k tunnelKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (k tunnelKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (k *tunnelKey) UnmarshalText(text []byte) error {
	data, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil || len(data) != len(k) {
		return fmt.Errorf("%q is no key: want 32 bytes in base64", text)
	}
	copy(k[:], data)
	return nil
}

func newTunnelKey() (k tunnelKey) {
	_, _ = rand.Read(k[:]) // never fails
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

func (k tunnelKey) public() tunnelKey {
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		panic(fmt.Sprintf("network: public key: %v", err)) // only of another length
	}
	return tunnelKey(private.PublicKey().Bytes())
}

// keepAlive is how often a tunnel without traffic says something: so both ends know
// of each tunnel whether it works before they need it.
const keepAlive = 25 * time.Second

// tunnelState is what a WireGuard device has.
type tunnelState struct {
	private tunnelKey
	port    uint16
	peers   map[tunnelKey]tunnelPeerState
}

type tunnelPeerState struct {
	endpoint  netip.AddrPort
	allowed   []netip.Prefix
	handshake time.Time // of the last; zero: none
}

// tunnelChange is what a device is to get. Zero values leave what is there. What is to
// be set comes first: a new key takes over what the old one was for.
type tunnelChange struct {
	private tunnelKey
	port    uint16
	set     []tunnelPeer
	remove  []tunnelKey
}

func (c tunnelChange) empty() bool {
	return c.private == (tunnelKey{}) && c.port == 0 && len(c.set)+len(c.remove) == 0
}

// changeTunnel returns what takes a device from what it has to want. Peers that are
// right are not touched: they carry packets. It is pure.
func changeTunnel(have tunnelState, want []tunnelPeer) (c tunnelChange) {
	wanted := map[tunnelKey]bool{}
	for _, peer := range want {
		wanted[peer.key] = true
		now, ok := have.peers[peer.key]
		if !ok || now.endpoint != peer.endpoint || !samePrefixes(now.allowed, peer.allowed) {
			c.set = append(c.set, peer)
		}
	}
	for key := range have.peers {
		if !wanted[key] {
			c.remove = append(c.remove, key)
		}
	}
	slices.SortFunc(c.remove, func(a, b tunnelKey) int { return strings.Compare(a.String(), b.String()) })
	return c
}

func samePrefixes(a, b []netip.Prefix) bool {
	if len(a) != len(b) {
		return false
	}
	for _, p := range a {
		if !slices.Contains(b, p) {
			return false
		}
	}
	return true
}

// tunnelDevices are WireGuard devices by the name of their link: the kernel's, or
// those of a process of ours where the kernel has none.
type tunnelDevices interface {
	read(link string) (tunnelState, error)
	write(link string, c tunnelChange) error
}

// kernelTunnels are the kernel's, of the calling thread's network namespace.
type kernelTunnels struct{}

func (kernelTunnels) read(link string) (tunnelState, error) {
	c, err := wgctrl.New()
	if err != nil {
		return tunnelState{}, err
	}
	defer c.Close()
	d, err := c.Device(link)
	if err != nil {
		return tunnelState{}, err
	}
	s := tunnelState{private: tunnelKey(d.PrivateKey), port: uint16(d.ListenPort), peers: map[tunnelKey]tunnelPeerState{}}
	for _, peer := range d.Peers {
		p := tunnelPeerState{handshake: peer.LastHandshakeTime}
		if peer.Endpoint != nil {
			at := peer.Endpoint.AddrPort()
			p.endpoint = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
		}
		for _, n := range peer.AllowedIPs {
			ip, _ := netip.AddrFromSlice(n.IP)
			bits, _ := n.Mask.Size()
			p.allowed = append(p.allowed, netip.PrefixFrom(ip.Unmap(), bits))
		}
		s.peers[tunnelKey(peer.PublicKey)] = p
	}
	return s, nil
}

func (kernelTunnels) write(link string, change tunnelChange) error {
	c, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer c.Close()
	var cfg wgtypes.Config
	if change.private != (tunnelKey{}) {
		key := wgtypes.Key(change.private)
		cfg.PrivateKey = &key
	}
	if change.port != 0 {
		port := int(change.port)
		cfg.ListenPort = &port
	}
	every := keepAlive
	for _, peer := range change.set {
		p := wgtypes.PeerConfig{
			PublicKey: wgtypes.Key(peer.key), Endpoint: net.UDPAddrFromAddrPort(peer.endpoint),
			PersistentKeepaliveInterval: &every, ReplaceAllowedIPs: true,
		}
		for _, allowed := range peer.allowed {
			p.AllowedIPs = append(p.AllowedIPs, *ipNet(allowed))
		}
		cfg.Peers = append(cfg.Peers, p)
	}
	for _, key := range change.remove {
		cfg.Peers = append(cfg.Peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), Remove: true})
	}
	return c.ConfigureDevice(link, cfg)
}

// processTunnels are those of a process of ours ([TunnelMain]), which listens on a
// socket for each of them and speaks WireGuard's configuration protocol
// (https://www.wireguard.com/xplatform/).
type processTunnels struct{ dir string }

func (t processTunnels) socket(link string) string { return filepath.Join(t.dir, link+".sock") }

// ask sends one request and returns the answer's lines, without the last, which says
// whether it went well.
func (t processTunnels) ask(link, request string) (lines []string, err error) {
	c, err := net.DialTimeout("unix", t.socket(link), time.Second)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, request+"\n"); err != nil {
		return nil, err
	}
	for in := bufio.NewScanner(c); in.Scan(); {
		key, value, _ := strings.Cut(in.Text(), "=")
		switch {
		case key == "errno" && value == "0":
			return lines, nil
		case key == "errno":
			return nil, fmt.Errorf("the tunnels' process refuses: errno %s", value)
		}
		lines = append(lines, in.Text())
	}
	return nil, errors.New("the tunnels' process gave no answer")
}

func (t processTunnels) read(link string) (tunnelState, error) {
	lines, err := t.ask(link, "get=1\n")
	if err != nil {
		return tunnelState{}, err
	}
	return parseTunnelState(lines)
}

func parseTunnelState(lines []string) (s tunnelState, err error) {
	s.peers = map[tunnelKey]tunnelPeerState{}
	var key tunnelKey
	for _, line := range lines {
		name, value, _ := strings.Cut(line, "=")
		p := s.peers[key]
		switch name {
		case "private_key":
			s.private, err = hexKey(value)
		case "listen_port":
			var port uint64
			port, err = strconv.ParseUint(value, 10, 16)
			s.port = uint16(port)
		case "public_key":
			if key, err = hexKey(value); err == nil {
				s.peers[key] = tunnelPeerState{}
			}
			continue
		case "endpoint":
			p.endpoint, err = netip.ParseAddrPort(value)
			s.peers[key] = p
		case "allowed_ip":
			var allowed netip.Prefix
			if allowed, err = netip.ParsePrefix(value); err == nil {
				p.allowed = append(p.allowed, allowed)
				s.peers[key] = p
			}
		case "last_handshake_time_sec":
			var seconds int64
			if seconds, err = strconv.ParseInt(value, 10, 64); seconds > 0 {
				p.handshake = time.Unix(seconds, 0)
				s.peers[key] = p
			}
		}
		if err != nil {
			return s, fmt.Errorf("the tunnels' process says %q: %w", line, err)
		}
	}
	return s, nil
}

func hexKey(text string) (k tunnelKey, err error) {
	data, err := hex.DecodeString(text)
	if err == nil && len(data) != len(k) {
		err = errors.New("no key")
	}
	if err == nil {
		copy(k[:], data)
	}
	return k, err
}

func (t processTunnels) write(link string, c tunnelChange) error {
	var b strings.Builder
	b.WriteString("set=1\n")
	if c.private != (tunnelKey{}) {
		fmt.Fprintf(&b, "private_key=%x\n", c.private[:])
	}
	if c.port != 0 {
		fmt.Fprintf(&b, "listen_port=%d\n", c.port)
	}
	for _, peer := range c.set {
		fmt.Fprintf(&b, "public_key=%x\nendpoint=%s\npersistent_keepalive_interval=%d\nreplace_allowed_ips=true\n", peer.key[:], peer.endpoint, int(keepAlive.Seconds()))
		for _, allowed := range peer.allowed {
			fmt.Fprintf(&b, "allowed_ip=%s\n", allowed)
		}
	}
	for _, key := range c.remove {
		fmt.Fprintf(&b, "public_key=%x\nremove=true\n", key[:])
	}
	_, err := t.ask(link, b.String())
	return err
}
