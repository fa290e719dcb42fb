package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent"
	"github.com/holdfast-io/holdfast/agent/netstate"
)

// policyState returns the state of a node whose pods are those of lines, as
// parsePolicies reads them, with its own pods' uids for names; more is services.
func policyState(t *testing.T, node, lines, policies, more string) *netstate.State {
	t.Helper()
	s, _ := parsePolicies(t, []byte("namespace default\n"+lines), []byte(policies))
	base := parseState(t, node, "", more)
	next := *s
	next.Node, next.Config, next.Services, next.Slices = node, base.Config, base.Services, base.Slices
	return &next
}

// TestPolicyTraffic sends packets past policies: between pods of one node and of two,
// through services, from the nodes, and on connections that are there already.
func TestPolicyTraffic(t *testing.T) {
	hosts := newHosts(t, 3, 1500)
	a, b, outside := hosts[0], hosts[1], hosts[2]
	outside.in(func() error { return outside.net.Remove(context.Background()) })
	for i, h := range hosts[:2] {
		other := hosts[1-i]
		h.in(func() error {
			return h.net.Configure(context.Background(), []netip.Prefix{h.cidr}, []agent.Route{{Node: "other", Via: other.ip, PodCIDRs: []netip.Prefix{other.cidr}}})
		})
	}
	atDB, atWeb, atFar := a.attach("db"), a.attach("web"), b.attach("far")
	db, web, far := openPod(t, atDB), openPod(t, atWeb), openPod(t, atFar)
	dbIP, webIP, farIP := atDB.IPs[0].String(), atWeb.IPs[0].String(), atFar.IPs[0].String()
	for name, ns := range map[string]*os.File{"db": db, "web": web, "far": far} {
		answer(t, ns, 8080, name)
	}
	answer(t, a.ns, 9000, "nodeA")
	answer(t, b.ns, 9000, "nodeB")
	lines := fmt.Sprintf("pod default/db n1 %s app=db\npod default/web n1 %s app=web\npod default/far n2 %s app=far\n", dbIP, webIP, farIP)
	services := fmt.Sprintf("service db ip=10.96.0.1 ports=:80 node-ports=30001\nendpoint db %s :8080 node=a\n", dbIP)
	policy := func(ingress string) string {
		return "metadata: {name: db}\nspec:\n  podSelector: {matchLabels: {app: db}}\n  ingress: " + ingress + "\n"
	}
	from := func(app string) string {
		return "{from: [{podSelector: {matchLabels: {app: " + app + "}}}], ports: [{port: 8080}, {port: 8080, protocol: UDP}]}"
	}
	revision := int64(0)
	program := func(policies string) *netstate.State {
		t.Helper()
		revision++
		s := policyState(t, "n1", lines, policies, services)
		s.Revision = revision
		a.program(s)
		return s
	}
	reaches := func(what string, ns *os.File, network, to, want string) {
		t.Helper()
		who, _, err := call(t, ns, network, to)
		switch {
		case want == "" && (err == nil || !os.IsTimeout(err)):
			t.Errorf("%s: %s answered, error %v; want silence", what, who, err)
		case want != "" && (err != nil || who != want):
			t.Errorf("%s: %q answered, error %v; want %s", what, who, err, want)
		}
	}

	program("")
	reaches("without policies", far, "tcp4", dbIP+":8080", "db")

	program(policy("[" + from("web") + "]"))
	for _, network := range []string{"tcp4", "udp4"} {
		reaches("one that is allowed, by "+network, web, network, dbIP+":8080", "db")
		reaches("one that is not, by "+network, far, network, dbIP+":8080", "")
		reaches("its own node, by "+network, a.ns, network, dbIP+":8080", "db")
		reaches("another node, by "+network, b.ns, network, dbIP+":8080", "")
		reaches("what it calls itself, by "+network, db, network, farIP+":8080", "far")
	}
	reaches("one that is allowed, through the service", web, "tcp4", "10.96.0.1:80", "db")
	reaches("one that is not, through the service", far, "tcp4", a.ip.String()+":30001", "")
	reaches("itself", db, "tcp4", dbIP+":8080", "db")
	reaches("itself, through the service", db, "tcp4", "10.96.0.1:80", "db")
	reaches("the machine outside, through a node's port", outside.ns, "tcp4", a.ip.String()+":30001", "")

	t.Run("connections that a new policy forbids end", func(t *testing.T) {
		program(policy("[" + from("far") + "]"))
		client, server := connection(t, far, db, dbIP+":7777", func() { program(policy("[{}]")) })
		exchange := func() error {
			_ = client.SetDeadline(time.Now().Add(3 * time.Second))
			_ = server.SetDeadline(time.Now().Add(3 * time.Second))
			if _, err := client.Write([]byte("?")); err != nil {
				return err
			}
			if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
				return err
			}
			if _, err := server.Write([]byte("!")); err != nil {
				return err
			}
			_, err := io.ReadFull(client, make([]byte, 1))
			return err
		}
		if err := exchange(); err != nil {
			t.Fatal(err)
		}
		program(policy("[{}]") + "---\n" + "metadata: {name: other}\nspec: {podSelector: {matchLabels: {app: nobody}}}\n")
		if err := exchange(); err != nil {
			t.Fatalf("a policy about others: %v", err)
		}
		program(policy("[" + from("web") + "]"))
		if err := exchange(); err == nil {
			t.Fatal("the connection goes on")
		}
		// Both ends hear of it as soon as they send something.
		for name, c := range map[string]net.Conn{"client": client, "server": server} {
			_ = c.SetDeadline(time.Now().Add(3 * time.Second))
			var err error
			for err == nil {
				if _, err = c.Write([]byte("?")); err == nil {
					_, err = c.Read(make([]byte, 1))
				}
			}
			if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
				t.Errorf("the %s's error is %v, want that the connection was reset", name, err)
			}
		}
	})

	t.Run("who was called does not go on either", func(t *testing.T) {
		client, server := connection(t, far, db, dbIP+":7779", func() { program(policy("[{}]")) })
		program(policy("[]"))
		_ = client.SetDeadline(time.Now().Add(time.Second))
		_ = server.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := server.Write([]byte("!")); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Read(make([]byte, 1)); err == nil {
			t.Error("what was called goes on to send")
		}
		if _, err := server.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("its error is %v, want that the connection was reset", err)
		}
	})

	t.Run("each packet of who began is judged", func(t *testing.T) {
		client, server := connection(t, far, db, dbIP+":7778", func() { program(policy("[{}]")) })
		s := policyState(t, "n1", lines, policy("[]"), services)
		a.in(func() error { // without that the kernel forgets the connection
			a.net.policy.mu.Lock()
			defer a.net.policy.mu.Unlock()
			a.net.policy.state = s
			return a.net.policy.write(context.Background())
		})
		_ = client.SetDeadline(time.Now().Add(3 * time.Second))
		_ = server.SetDeadline(time.Now().Add(500 * time.Millisecond))
		if _, err := client.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, make([]byte, 1)); err == nil {
			t.Error("the connection goes on")
		}
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the client's error is %v, want that the connection was reset", err)
		}
	})

	t.Run("what a server sends by UDP ends, too", func(t *testing.T) {
		program(policy("[{}]"))
		var l net.PacketConn
		in(t, db, func() (err error) {
			l, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp4", dbIP+":5555")
			return err
		})
		defer l.Close()
		var c net.Conn
		in(t, far, func() (err error) {
			c, err = (&net.Dialer{FallbackDelay: -1}).Dial("udp4", dbIP+":5555")
			return err
		})
		defer c.Close()
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		_ = l.SetDeadline(time.Now().Add(3 * time.Second))
		_, client, err := l.ReadFrom(make([]byte, 1))
		if err != nil {
			t.Fatal(err)
		}
		push := func() error {
			_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
			if _, err := l.WriteTo([]byte("!"), client); err != nil {
				return err
			}
			_, err := c.Read(make([]byte, 1))
			return err
		}
		if err := push(); err != nil {
			t.Fatal(err)
		}
		egress := "metadata: {name: out}\nspec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Egress]}\n"
		program(policy("[{}]") + "---\n" + egress)
		if err := push(); err != nil {
			t.Fatalf("an answer to what is allowed: %v", err)
		}
		program(policy("[]") + "---\n" + egress)
		if err := push(); err == nil {
			t.Error("the stream goes on")
		}
	})

	t.Run("egress", func(t *testing.T) {
		program("metadata: {name: out}\nspec:\n  podSelector: {matchLabels: {app: web}}\n  policyTypes: [Egress]\n  egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]\n")
		reaches("what is allowed", web, "tcp4", dbIP+":8080", "db")
		reaches("what is allowed, through the service", web, "tcp4", "10.96.0.1:80", "db")
		reaches("what is not", web, "tcp4", farIP+":8080", "")
		reaches("another node", web, "tcp4", b.ip.String()+":9000", "")
		reaches("its own node", web, "tcp4", a.ip.String()+":9000", "nodeA")
		reaches("who calls it", far, "tcp4", webIP+":8080", "web")
	})

	deny := "metadata: {name: deny}\nspec: {podSelector: {}}\n"
	t.Run("a pod is judged from its first packet", func(t *testing.T) {
		s := policyState(t, "n1", lines+"pod default/new n1 app=new\n", deny, services)
		revision++
		s.Revision = revision
		a.program(s)
		at := a.attach("new")
		a.in(func() error {
			k, err := readTable(policyFamilies[0].table)
			if err == nil && k.elements[place{ingressMap, string(at.IPs[0].AsSlice())}] == "" {
				t.Error("a pod that is attached has no rules")
			}
			return err
		})
		pod := openPod(t, at)
		answer(t, pod, 8080, "new")
		reaches("a new pod", far, "tcp4", at.IPs[0].String()+":8080", "")
		a.in(func() error { return a.net.Detach(context.Background(), "new") })
		a.in(func() error {
			k, err := readTable(policyFamilies[0].table)
			if err == nil && k.elements[place{ingressMap, string(at.IPs[0].AsSlice())}] != "" {
				t.Error("a pod that is gone has rules")
			}
			return err
		})
	})

	t.Run("an agent that starts anew changes nothing", func(t *testing.T) {
		s := program(deny)
		var before, after *kernelTable
		a.in(func() (err error) {
			before, err = readTable(policyFamilies[0].table)
			return err
		})
		a.net = a.newNetwork()
		a.program(s)
		a.in(func() (err error) {
			after, err = readTable(policyFamilies[0].table)
			return err
		})
		if diff := tableDiff(after, before); diff != "" {
			t.Error(diff)
		}
		// It does not know the pods yet: what was closed stays so.
		a.net = a.newNetwork()
		a.program(s.WithLocal(nil))
		reaches("a pod that the agent does not know yet", far, "tcp4", dbIP+":8080", "")
		a.program(s)
	})

	t.Run("what somebody else changed is repaired", func(t *testing.T) {
		s := program(policy("[" + from("web") + "]"))
		var before *kernelTable
		a.in(func() (err error) {
			if before, err = readTable(policyFamilies[0].table); err != nil {
				return err
			}
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			for name := range before.chains {
				conn.FlushChain(&nftables.Chain{Table: policyFamilies[0].table, Name: name})
			}
			conn.FlushSet(policyFamilies[0].set(isolatedSet, ""))
			conn.AddRule(&nftables.Rule{Table: policyFamilies[0].table, Chain: &nftables.Chain{Name: refuseChain}, Exprs: policyFamilies[0].compile(policyRule{verdict: "accept"}, false)})
			return conn.Flush()
		})
		reaches("with rules taken away", far, "tcp4", dbIP+":8080", "db")
		a.program(s) // the same again: it looks
		a.in(func() error {
			after, err := readTable(policyFamilies[0].table)
			if diff := tableDiff(after, before); diff != "" {
				t.Error(diff)
			}
			return err
		})
		reaches("repaired", far, "tcp4", dbIP+":8080", "")
	})

	t.Run("a pod cannot pass for another", func(t *testing.T) {
		program(policy("[" + from("far") + "]"))
		var got []string
		var l net.PacketConn
		in(t, db, func() (err error) {
			l, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp4", dbIP+":8081")
			return err
		})
		defer l.Close()
		program(policy("[{from: [{podSelector: {matchLabels: {app: far}}}]}]"))
		in(t, web, func() error { return sendAs(netip.MustParseAddr(farIP), netip.MustParseAddrPort(dbIP+":8081")) })
		in(t, far, func() error { return sendAs(netip.MustParseAddr(farIP), netip.MustParseAddrPort(dbIP+":8081")) })
		_ = l.SetDeadline(time.Now().Add(time.Second))
		buf := make([]byte, 10)
		for {
			n, _, err := l.ReadFrom(buf)
			if err != nil {
				break
			}
			got = append(got, string(buf[:n]))
		}
		if len(got) != 1 {
			t.Errorf("%d packets came, want the true one alone", len(got))
		}
	})

	a.in(func() error { return a.net.Remove(context.Background()) })
	a.in(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := conn.ListTables()
		for _, left := range tables {
			t.Errorf("table %s is left", left.Name)
		}
		return err
	})
}

// connection returns both ends of a TCP connection between two namespaces, made after
// before was called.
func connection(t *testing.T, from, to *os.File, address string, before func()) (client, server net.Conn) {
	t.Helper()
	before()
	var l net.Listener
	in(t, to, func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp4", address)
		return err
	})
	defer l.Close()
	in(t, from, func() (err error) {
		client, err = (&net.Dialer{Timeout: 3 * time.Second, FallbackDelay: -1}).Dial("tcp4", address)
		return err
	})
	t.Cleanup(func() { client.Close() })
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// sendAs sends a UDP packet with a source of the caller's choice.
func sendAs(from netip.Addr, to netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	payload := "x"
	b := make([]byte, 28, 28+len(payload))
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	b[3] = byte(28 + len(payload))
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.Addr().AsSlice())
	b[20], b[21], b[22], b[23] = 0x30, 0x39, byte(to.Port()>>8), byte(to.Port())
	b[25] = byte(8 + len(payload))
	b = append(b, payload...)
	return unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
}
