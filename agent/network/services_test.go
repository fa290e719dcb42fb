package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/agent"
	"github.com/holdfast-io/holdfast/agent/netstate"
	"github.com/holdfast-io/holdfast/internal/golden"
)

// parseState reads a line for each object.
//
//	service web ip=10.96.0.9 ports=http:80,dns:53/UDP node-ports=30080 external=Local internal=Local affinity=60
//	endpoint web 10.8.1.2 http:8080 node=n1 zone=a not-ready serving terminating for-zone=a
func parseState(t testing.TB, node, zone, text string) *netstate.State {
	t.Helper()
	s := netstate.Empty(node)
	s.Zone = zone
	s.Config = netstate.Config{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}}
	var changes []netstate.Change
	number := func(text string) int32 {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("%q is no number", text)
		}
		return int32(n)
	}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		values, flags := map[string]string{}, map[string]bool{}
		var rest []string
		for _, w := range words[2:] {
			if k, v, ok := strings.Cut(w, "="); ok {
				values[k] = v
			} else if strings.ContainsAny(w, ".:") {
				rest = append(rest, w)
			} else {
				flags[w] = true
			}
		}
		meta := metav1.ObjectMeta{Namespace: "default", Name: words[1]}
		switch words[0] {
		case "service":
			svc := &corev1.Service{ObjectMeta: meta}
			svc.Spec.ClusterIP = values["ip"]
			for i, port := range strings.Split(values["ports"], ",") {
				name, numbers, _ := strings.Cut(port, ":")
				n, protocol, _ := strings.Cut(numbers, "/")
				p := corev1.ServicePort{Name: name, Port: number(n), Protocol: corev1.Protocol(protocol)}
				if nodePorts := values["node-ports"]; nodePorts != "" {
					p.NodePort = number(strings.Split(nodePorts, ",")[i])
				}
				svc.Spec.Ports = append(svc.Spec.Ports, p)
			}
			svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicy(values["external"])
			svc.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicy(values["internal"]))
			if seconds := values["affinity"]; seconds != "" {
				svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
				svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(number(seconds))}}
			}
			if flags["external-name"] {
				svc.Spec.Type = corev1.ServiceTypeExternalName
			}
			changes = append(changes, netstate.Change{Object: svc})
		case "endpoint":
			slice := &discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4}
			slice.Labels = map[string]string{discoveryv1.LabelServiceName: words[1]}
			slice.Name += "-" + rest[0]
			e := discoveryv1.Endpoint{Addresses: rest[:1]}
			e.Conditions = discoveryv1.EndpointConditions{Ready: new(!flags["not-ready"]), Serving: new(!flags["not-ready"] || flags["serving"]), Terminating: new(flags["terminating"])}
			if n := values["node"]; n != "" {
				e.NodeName = &n
			}
			if z := values["for-zone"]; z != "" {
				e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: z}}}
			}
			for _, port := range rest[1:] {
				name, numbers, _ := strings.Cut(port, ":")
				n, protocol, _ := strings.Cut(numbers, "/")
				p := discoveryv1.EndpointPort{Name: &name, Port: new(number(n))}
				if protocol != "" {
					p.Protocol = new(corev1.Protocol(protocol))
				}
				slice.Ports = append(slice.Ports, p)
			}
			slice.Endpoints = []discoveryv1.Endpoint{e}
			changes = append(changes, netstate.Change{Object: slice})
		default:
			t.Fatalf("unknown object %q", words[0])
		}
	}
	return s.With(1, changes...)
}

// TestServiceElements runs testdata/services/*.txtar: what there is, and what the
// tables of node n1, in zone a, hold of it.
func TestServiceElements(t *testing.T) {
	golden.Run(t, "testdata/services/*.txtar", func(t *testing.T, in golden.Input) string {
		s := parseState(t, "n1", "a", string(in.File("state")))
		var lines []string
		for name := range s.Services {
			for at, value := range serviceElements(s, name) {
				lines = append(lines, at.text(value)+"\n")
			}
		}
		slices.Sort(lines)
		if len(lines) == 0 {
			return "nothing\n"
		}
		return strings.Join(lines, "")
	})
}

// answer answers each connection to port in namespace ns with name and the client's
// address.
func answer(t *testing.T, ns *os.File, port int, name string) {
	t.Helper()
	var l net.Listener
	var u net.PacketConn
	in(t, ns, func() (err error) {
		address := fmt.Sprintf("0.0.0.0:%d", port)
		if l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp4", address); err != nil {
			return err
		}
		u, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp4", address)
		return err
	})
	t.Cleanup(func() { l.Close(); u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprintf(c, "%s %s", name, host)
			c.Close()
		}
	}()
	go func() {
		buf := make([]byte, 10)
		for {
			_, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(from.String())
			_, _ = u.WriteTo(fmt.Appendf(nil, "%s %s", name, host), from)
		}
	}()
}

// call connects from ns and returns who answered and the address that it saw.
func call(t *testing.T, ns *os.File, network, to string) (who, saw string, err error) {
	t.Helper()
	in(t, ns, func() error {
		var c net.Conn
		if c, err = (&net.Dialer{Timeout: time.Second, FallbackDelay: -1}).Dial(network, to); err != nil {
			return nil
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if network == "udp4" {
			if _, err = c.Write([]byte("?")); err != nil {
				return nil
			}
		}
		buf := make([]byte, 100)
		var n int
		if n, err = c.Read(buf); err == nil {
			who, saw, _ = strings.Cut(string(buf[:n]), " ")
		}
		return nil
	})
	return who, saw, err
}

func (h *host) program(s *netstate.State) {
	h.t.Helper()
	h.in(func() error { return h.net.Program(context.Background(), s) })
}

// TestServices sends connections to services over every kind of path: two nodes, a
// pod on each, and a machine that is no node.
func TestServices(t *testing.T) {
	hosts := newHosts(t, 3, 1500)
	a, b, outside := hosts[0], hosts[1], hosts[2]
	outside.in(func() error { return outside.net.Remove(context.Background()) })
	for i, h := range hosts[:2] {
		other := hosts[1-i]
		h.in(func() error {
			return h.net.Configure(context.Background(), []netip.Prefix{h.cidr}, []agent.Route{{Node: "other", Via: other.ip, PodCIDRs: []netip.Prefix{other.cidr}}})
		})
	}
	atA, atB := a.attach("a"), b.attach("b")
	podA, podB := openPod(t, atA), openPod(t, atB)
	answer(t, podA, 8080, "A")
	answer(t, podB, 8080, "B")
	ipA, ipB := atA.IPs[0].String(), atB.IPs[0].String()
	endpoint := func(name string, ip, node string) string {
		return fmt.Sprintf("endpoint %s %s :8080 :8080/UDP node=%s\n", name, ip, node)
	}
	text := "service both ip=10.96.0.1 ports=:80,:80/UDP node-ports=30001,30002\n" + endpoint("both", ipA, "a") + endpoint("both", ipB, "b") +
		"service none ip=10.96.0.2 ports=:80,:80/UDP\n" +
		"service only-b ip=10.96.0.3 ports=:80 node-ports=30003\n" + endpoint("only-b", ipB, "b") +
		"service local-b ip=10.96.0.4 ports=:80 node-ports=30004 external=Local internal=Local\n" + endpoint("local-b", ipB, "b") +
		"service same ip=10.96.0.5 ports=:80 node-ports=30005 affinity=100\n" + endpoint("same", ipA, "a") + endpoint("same", ipB, "b")
	states := map[*host]*netstate.State{a: parseState(t, "a", "", text), b: parseState(t, "b", "", text)}
	for h, s := range states {
		h.program(s)
	}
	check := func(name string, from *os.File, network, to, wantWho, wantSaw string) {
		t.Run(name, func(t *testing.T) {
			who, saw, err := call(t, from, network, to)
			if err != nil || who != wantWho || saw != wantSaw {
				t.Errorf("%s answered and saw %s, error %v; want %s and %s", who, saw, err, wantWho, wantSaw)
			}
		})
	}
	check("a pod reaches a service on another node", podA, "tcp4", "10.96.0.3:80", "B", ipA)
	check("a node reaches a service on another node", a.ns, "tcp4", "10.96.0.3:80", "B", a.ip.String())
	check("a pod reaches itself through a service", podB, "tcp4", "10.96.0.3:80", "B", b.ip.String())
	check("from outside by a node's port, elsewhere", outside.ns, "tcp4", a.ip.String()+":30003", "B", a.ip.String())
	check("from outside by a node's port, there", outside.ns, "tcp4", b.ip.String()+":30003", "B", outside.ip.String())
	check("from a node by another's port, back to itself", b.ns, "tcp4", a.ip.String()+":30003", "B", a.ip.String())
	check("from a pod by its node's port", podA, "tcp4", a.ip.String()+":30003", "B", a.ip.String())
	check("policy Local, there", outside.ns, "tcp4", b.ip.String()+":30004", "B", outside.ip.String())
	check("policy Local, in the cluster", podB, "tcp4", "10.96.0.4:80", "B", b.ip.String())

	t.Run("connections are spread", func(t *testing.T) {
		for _, c := range []struct {
			network, to string
			from        *os.File
		}{{"tcp4", "10.96.0.1:80", podA}, {"udp4", "10.96.0.1:80", podA}, {"tcp4", a.ip.String() + ":30001", outside.ns}, {"udp4", a.ip.String() + ":30002", outside.ns}} {
			count := map[string]int{}
			for range 60 {
				who, _, err := call(t, c.from, c.network, c.to)
				if err != nil {
					t.Fatalf("%s %s: %v", c.network, c.to, err)
				}
				count[who]++
			}
			if count["A"] < 10 || count["B"] < 10 {
				t.Errorf("%s %s: of 60, %v", c.network, c.to, count)
			}
		}
	})
	t.Run("affinity keeps a client at its endpoint", func(t *testing.T) {
		for _, to := range []string{"10.96.0.5:80", a.ip.String() + ":30005"} {
			first, _, err := call(t, podA, "tcp4", to)
			if err != nil {
				t.Fatalf("%s: %v", to, err)
			}
			for range 20 {
				if who, _, err := call(t, podA, "tcp4", to); err != nil || who != first {
					t.Fatalf("%s: %s answered after %s, error %v", to, who, first, err)
				}
			}
		}
	})
	for name, from := range map[string]*os.File{"pod": podA, "node": a.ns} {
		for _, network := range []string{"tcp4", "udp4"} {
			t.Run("no endpoint is a refusal at once, to a "+name+" by "+network, func(t *testing.T) {
				began := time.Now()
				// A program of the node's own that sends by UDP hears it from its own send.
				if who, _, err := call(t, from, network, "10.96.0.2:80"); !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EPERM) {
					t.Errorf("%s answered, error %v; want that it is refused", who, err)
				}
				if d := time.Since(began); d > 500*time.Millisecond {
					t.Errorf("it took %s", d)
				}
			})
		}
	}
	t.Run("policy Local without one here is silence", func(t *testing.T) {
		for _, to := range []string{a.ip.String() + ":30004"} {
			if who, _, err := call(t, outside.ns, "tcp4", to); err == nil || !os.IsTimeout(err) {
				t.Errorf("%s: %s answered, error %v; want a timeout", to, who, err)
			}
		}
	})
	t.Run("an agent that starts anew changes nothing", func(t *testing.T) {
		before := dump(t, a)
		a.net = a.newNetwork()
		a.program(states[a].With(2))
		if after := dump(t, a); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
	t.Run("what somebody else changed is repaired", func(t *testing.T) {
		before := dump(t, a)
		a.in(func() error {
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			for _, set := range theSets() {
				if set.Name == endpointsMap || set.Name == nodePortsMap {
					conn.FlushSet(set)
				}
			}
			return conn.Flush()
		})
		if dump(t, a) == before {
			t.Fatal("nothing was changed")
		}
		s := states[a].With(2)
		a.program(s)
		a.program(s) // the same again: it looks
		if after := dump(t, a); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
	t.Run("endpoints come and go", func(t *testing.T) {
		to := "10.96.0.1:80"
		// A socket of UDP goes on to where it went first, as long as that is there.
		var c net.Conn
		in(t, podA, func() (err error) {
			c, err = (&net.Dialer{FallbackDelay: -1}).Dial("udp4", to)
			return err
		})
		defer c.Close()
		ask := func() string {
			buf := make([]byte, 100)
			_ = c.SetDeadline(time.Now().Add(time.Second))
			if _, err := c.Write([]byte("?")); err != nil {
				return err.Error()
			}
			n, err := c.Read(buf)
			if err != nil {
				return err.Error()
			}
			who, _, _ := strings.Cut(string(buf[:n]), " ")
			return who
		}
		first := ask()
		other := map[string]string{"A": "B", "B": "A"}[first]
		var text string
		if other == "B" {
			text = "service both ip=10.96.0.1 ports=:80,:80/UDP node-ports=30001,30002\n" + endpoint("both", ipB, "b")
		} else {
			text = "service both ip=10.96.0.1 ports=:80,:80/UDP node-ports=30001,30002\n" + endpoint("both", ipA, "a")
		}
		a.program(parseState(t, "a", "", text))
		if now := ask(); now != other {
			t.Errorf("a UDP client of %s is answered by %q after that is gone, want %s", first, now, other)
		}
		for range 20 {
			if who, _, err := call(t, podA, "tcp4", to); err != nil || who != other {
				t.Fatalf("%s answered, error %v; want %s", who, err, other)
			}
		}
		if _, _, err := call(t, podA, "tcp4", "10.96.0.3:80"); err == nil {
			t.Error("a service that is gone answers")
		}
	})
	t.Run("remove takes all away", func(t *testing.T) {
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
	})
}

// dump returns what the kernel has in the maps of services.
func dump(t *testing.T, h *host) string {
	t.Helper()
	p := plane{log: h.net.log}
	h.in(p.read)
	var lines []string
	for at, have := range p.have {
		lines = append(lines, at.text(have.value)+"\n")
	}
	slices.Sort(lines)
	return fmt.Sprintf("%s%d chains, hash %016x\n", strings.Join(lines, ""), len(p.chains), p.hash)
}
