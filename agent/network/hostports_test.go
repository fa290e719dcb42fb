package network

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent"
)

// said asks an address and port from a namespace and returns the answer.
func said(t *testing.T, ns *os.File, network, at string) string {
	t.Helper()
	var answer string
	in(t, ns, func() error {
		c, err := (&net.Dialer{Timeout: 2 * time.Second, FallbackDelay: -1}).Dial(network, at)
		if err != nil {
			answer = err.Error()
			return nil
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if network == "udp4" {
			_, _ = c.Write([]byte("?"))
		}
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		if err != nil {
			answer = err.Error()
			return nil
		}
		answer = string(buf[:n])
		return nil
	})
	return answer
}

// TestHostPorts: ports of a node lead to a pod from everywhere, until it is gone.
func TestHostPorts(t *testing.T) {
	hosts := newHosts(t, 3, 1500)
	a, b, outside := hosts[0], hosts[1], hosts[2]
	outside.in(func() error { return outside.net.Remove(context.Background()) })
	second := netip.MustParseAddr("10.9.0.101")
	a.in(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(eth0, &netlink.Addr{IPNet: hostNet(second)})
	})
	atWeb, atOther, atFar := a.attach("web"), a.attach("other"), b.attach("far")
	web, other, far := openPod(t, atWeb), openPod(t, atOther), openPod(t, atFar)
	answer(t, web, 8080, "web")
	answer(t, web, 5353, "names")
	answer(t, a.ns, 9090, "the node")
	ctx := context.Background()
	set := func(uid string, ports ...agent.HostPort) {
		t.Helper()
		a.in(func() error { return a.net.SetHostPorts(ctx, uid, ports) })
	}
	set("web",
		agent.HostPort{Protocol: corev1.ProtocolTCP, HostPort: 80, Port: 8080},
		agent.HostPort{Protocol: corev1.ProtocolUDP, HostPort: 53, Port: 5353},
		agent.HostPort{Protocol: corev1.ProtocolTCP, HostIP: second, HostPort: 81, Port: 8080})
	check := func(when string) {
		t.Helper()
		for _, c := range []struct {
			from    string
			ns      *os.File
			network string
			at      string
			want    string
		}{
			{"another machine", outside.ns, "tcp4", a.ip.String() + ":80", "web " + outside.ip.String()},
			{"another machine, to another address", outside.ns, "tcp4", second.String() + ":80", "web " + outside.ip.String()},
			{"another machine, UDP", outside.ns, "udp4", a.ip.String() + ":53", "names " + outside.ip.String()},
			{"the node", a.ns, "tcp4", a.ip.String() + ":80", "web"},
			{"another node", b.ns, "tcp4", a.ip.String() + ":80", "web " + b.ip.String()},
			{"a pod of the node", other, "tcp4", a.ip.String() + ":80", "web " + atOther.IPs[0].String()},
			{"a pod of another node", far, "tcp4", a.ip.String() + ":80", "web " + atFar.IPs[0].String()},
			{"the pod itself", web, "tcp4", a.ip.String() + ":80", "web"},
			{"the address of a hostIP", outside.ns, "tcp4", second.String() + ":81", "web " + outside.ip.String()},
			{"and none but that", outside.ns, "tcp4", a.ip.String() + ":81", "refused"},
			{"the port of TCP by UDP", outside.ns, "udp4", a.ip.String() + ":80", "refused"},
			{"a port that is the node's own", outside.ns, "tcp4", a.ip.String() + ":9090", "the node " + outside.ip.String()},
			{"the port of the pod", outside.ns, "tcp4", a.ip.String() + ":8080", "refused"},
			{"the port on another node", outside.ns, "tcp4", b.ip.String() + ":80", "refused"},
		} {
			if got := said(t, c.ns, c.network, c.at); !strings.Contains(got, c.want) {
				t.Errorf("%s: from %s to %s: %q, want %q", when, c.from, c.at, got, c.want)
			}
		}
	}
	check("at first")

	// An agent that starts anew, and is told the same or nothing.
	a.net = a.newNetwork()
	check("after a restart of the agent")
	a.in(func() error { return a.net.Configure(ctx, []netip.Prefix{a.cidr}, nil) })
	a.in(func() error {
		return a.net.Configure(ctx, []netip.Prefix{a.cidr}, []agent.Route{{Node: "b", Via: b.ip, PodCIDRs: []netip.Prefix{b.cidr}}})
	})
	set("web",
		agent.HostPort{Protocol: corev1.ProtocolTCP, HostPort: 80, Port: 8080},
		agent.HostPort{Protocol: corev1.ProtocolUDP, HostPort: 53, Port: 5353},
		agent.HostPort{Protocol: corev1.ProtocolTCP, HostIP: second, HostPort: 81, Port: 8080})
	check("set again")

	// Another pod takes one over while the first is still there: the first's end does
	// not close it.
	answer(t, other, 8080, "other")
	set("other", agent.HostPort{Protocol: corev1.ProtocolTCP, HostPort: 80, Port: 8080})
	if got := said(t, outside.ns, "tcp4", a.ip.String()+":80"); !strings.HasPrefix(got, "other ") {
		t.Errorf("the port leads to %q after another pod has it", got)
	}
	for range 2 {
		a.in(func() error { return a.net.Detach(ctx, "web") })
	}
	if got := said(t, outside.ns, "tcp4", a.ip.String()+":80"); !strings.HasPrefix(got, "other ") {
		t.Errorf("the port leads to %q after the end of the pod that had it before", got)
	}
	if got := said(t, outside.ns, "tcp4", second.String()+":81"); !strings.Contains(got, "refused") {
		t.Errorf("a port of a pod that is gone answers %q", got)
	}
	a.in(func() error { return a.net.Detach(ctx, "other") })
	if got := said(t, outside.ns, "tcp4", a.ip.String()+":80"); !strings.Contains(got, "refused") {
		t.Errorf("a port of a pod that is gone answers %q", got)
	}
	a.in(func() error { return a.net.Remove(ctx) })
	if left := kernelState(t, a); strings.Contains(left, hostPortsTable) {
		t.Errorf("Remove leaves %s", left)
	}
}

// TestHostPortOfUDPMoves: a client that sends from one port all the time is led to
// the pod that has the port now.
func TestHostPortOfUDPMoves(t *testing.T) {
	hosts := newHosts(t, 2, 1500)
	a, client := hosts[0], hosts[1]
	ctx := context.Background()
	at := map[string]agent.Attachment{}
	for _, name := range []string{"first", "second"} {
		at[name] = a.attach(name)
		answer(t, openPod(t, at[name]), 53, name)
	}
	var c net.Conn
	in(t, client.ns, func() (err error) {
		c, err = (&net.Dialer{}).Dial("udp4", a.ip.String()+":53")
		return err
	})
	defer c.Close()
	hears := func(want string) {
		t.Helper()
		buf := make([]byte, 100)
		for deadline := time.Now().Add(10 * time.Second); ; {
			_, _ = c.Write([]byte("?"))
			_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			n, err := c.Read(buf)
			if err == nil && strings.HasPrefix(string(buf[:n]), want+" ") {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the client hears %q, error %v; want %s", buf[:n], err, want)
			}
		}
	}
	_, _ = c.Write([]byte("?")) // before anybody has the port: it is refused, and remembered
	for _, name := range []string{"first", "second"} {
		a.in(func() error {
			return a.net.SetHostPorts(ctx, name, []agent.HostPort{{Protocol: corev1.ProtocolUDP, HostPort: 53, Port: 53}})
		})
		hears(name)
	}
}
