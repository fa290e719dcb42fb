package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/holdfast-io/holdfast/agent/netstate"
	"github.com/holdfast-io/holdfast/agent/netstate/netstatetest"
)

const testObjects = `
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.43.0.9, ports: [{name: http, port: 80}]}
---
kind: Service
metadata: {name: out}
spec: {type: ExternalName, externalName: a.test}
---
kind: Service
metadata: {name: many}
spec: {clusterIP: None}
---
kind: EndpointSlice
metadata: {name: many-1, labels: {kubernetes.io/service-name: many}}
addressType: IPv4
endpoints:
`

// testState has one service of each sort, and a headless one with n endpoints.
func testState(t testing.TB, n int) *netstate.State {
	text := strings.Builder{}
	text.WriteString(testObjects)
	for i := range n {
		fmt.Fprintf(&text, "- {addresses: [10.42.%d.%d]}\n", i/250, i%250+1)
	}
	return netstatetest.Parse(t, []byte(text.String()))
}

// resolver is one that the node uses: a simulation of a real one, on the loopback.
type resolver struct {
	address netip.AddrPort
	asked   atomic.Int64 // over UDP
	tcp     atomic.Int64
}

// startResolver starts one that gives the answers of a zone file's lines, NXDOMAIN
// for other names below test., and cuts off at UDP's end. before, if not nil, is
// called with each question.
func startResolver(t testing.TB, before func(dns.Question), lines ...string) *resolver {
	t.Helper()
	zone := map[string][]dns.RR{}
	for _, line := range lines {
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		zone[rr.Header().Name] = append(zone[rr.Header().Name], rr)
	}
	r := &resolver{}
	answer := func(w dns.ResponseWriter, req *dns.Msg, udp bool) {
		q := req.Question[0]
		if !dns.IsSubDomain(loopDomain, q.Name) { // every server is asked those at its start
			if before != nil {
				before(q)
			}
			if udp {
				r.asked.Add(1)
			} else {
				r.tcp.Add(1)
			}
		}
		reply := new(dns.Msg)
		reply.SetReply(req)
		for _, rr := range zone[q.Name] {
			if rr.Header().Rrtype == q.Qtype || rr.Header().Rrtype == dns.TypeCNAME {
				reply.Answer = append(reply.Answer, rr)
			}
		}
		if len(reply.Answer) == 0 {
			soa, _ := dns.NewRR("test. 60 IN SOA ns.test. h.test. 1 2 3 4 60")
			reply.Ns = []dns.RR{soa}
			if zone[q.Name] == nil {
				reply.Rcode = dns.RcodeNameError
			}
		}
		if udp {
			reply.Truncate(dns.MinMsgSize)
		}
		_ = w.WriteMsg(reply)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = pc.LocalAddr().(*net.UDPAddr).AddrPort()
	l, err := net.Listen("tcp", r.address.String())
	if err != nil {
		t.Fatal(err)
	}
	serve(t, &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) { answer(w, m, true) })})
	serve(t, &dns.Server{Listener: l, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) { answer(w, m, false) })})
	return r
}

func serve(t testing.TB, srv *dns.Server) {
	started, ended := make(chan struct{}), make(chan struct{})
	srv.NotifyStartedFunc = func() { close(started) }
	go func() {
		defer close(ended)
		if err := srv.ActivateAndServe(); err != nil {
			t.Errorf("resolver: %v", err)
		}
	}()
	<-started
	t.Cleanup(func() {
		_ = srv.Shutdown()
		<-ended
	})
}

// start runs a server on the loopback until the test ends.
func start(t testing.TB, cfg Config) *Server {
	t.Helper()
	if cfg.Addresses == nil {
		cfg.Addresses = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	}
	if cfg.Resolvers == nil && cfg.ResolvConf == "" {
		cfg.Resolvers = []netip.AddrPort{unused(t)}
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	<-s.Ready()
	return s
}

// unused is an address where nobody answers, which the kernel says at once.
func unused(t testing.TB) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

func ask(t testing.TB, s *Server, network, name string, qtype uint16, bytes uint16) *dns.Msg {
	t.Helper()
	req := new(dns.Msg)
	req.SetQuestion(dns.Fqdn(name), qtype)
	if bytes > 0 {
		req.SetEdns0(bytes, false)
	}
	c := dns.Client{Net: network, UDPSize: max(bytes, dns.MinMsgSize), Timeout: 20 * time.Second}
	msg, _, err := c.Exchange(req, s.Bound()[0].String())
	if err != nil {
		t.Fatalf("%s %s over %s: %v", name, dns.TypeToString[qtype], network, err)
	}
	return msg
}

// TestSizes: what does not fit is cut off and says so, and TCP has all of it.
func TestSizes(t *testing.T) {
	s := start(t, Config{})
	s.Set(testState(t, 200))
	const name = "many.default.svc.cluster.local"
	for _, test := range []struct {
		network string
		bytes   uint16 // that the client takes; 0: without EDNS
		most    int
		all     bool
	}{
		{"udp", 0, 512, false}, {"udp", 100, 512, false}, {"udp", 1232, 1232, false}, {"udp", 65000, 1232, false}, {"tcp", 0, 65535, true},
	} {
		msg := ask(t, s, test.network, name, dns.TypeA, test.bytes)
		msg.Compress = true
		if got := msg.Len(); got > test.most || msg.Truncated == test.all || (len(msg.Answer) == 200) != test.all || len(msg.Answer) == 0 {
			t.Errorf("%s, %d: %d bytes, %d answers, truncated %v; want at most %d bytes, all: %v", test.network, test.bytes, got, len(msg.Answer), msg.Truncated, test.most, test.all)
		}
		if (msg.IsEdns0() != nil) != (test.bytes > 0) {
			t.Errorf("%s, %d: EDNS in the answer: %v", test.network, test.bytes, msg.IsEdns0() != nil)
		}
	}
	req := new(dns.Msg)
	req.SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	req.SetEdns0(1232, true)
	req.IsEdns0().SetVersion(1)
	if msg, err := dns.Exchange(req, s.Bound()[0].String()); err != nil || msg.Rcode != dns.RcodeBadVers {
		t.Errorf("EDNS version 1: %v (%v), want BADVERS", msg, err)
	}
}

// TestFollowsState: an answer is the newest state's, and before the first one there
// is none, rather than that there are no services.
func TestFollowsState(t *testing.T) {
	s := start(t, Config{})
	const name = "web.default.svc.cluster.local"
	if msg := ask(t, s, "udp", name, dns.TypeA, 1232); msg.Rcode != dns.RcodeServerFailure || reason(msg) == "" {
		t.Errorf("without a state: %v", msg)
	}
	s.Set(netstate.Empty("n1"))
	if msg := ask(t, s, "udp", name, dns.TypeA, 0); msg.Rcode != dns.RcodeServerFailure {
		t.Errorf("with an empty state: %v", msg)
	}
	state := testState(t, 1)
	s.Set(state)
	if msg := ask(t, s, "udp", name, dns.TypeA, 0); len(msg.Answer) != 1 || !msg.Authoritative || !msg.RecursionAvailable {
		t.Errorf("with a state: %v", msg)
	}
	s.Set(state.With(101, netstate.Change{Object: state.Services[netstate.Name{Namespace: "default", Name: "web"}], Removed: true}))
	if msg := ask(t, s, "udp", name, dns.TypeA, 0); msg.Rcode != dns.RcodeNameError || len(msg.Ns) != 1 {
		t.Errorf("after the service is gone: %v", msg)
	}
}

// reason is what a message says about why there is no answer.
func reason(msg *dns.Msg) string {
	if opt := msg.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok {
				return ede.ExtraText
			}
		}
	}
	return ""
}

// TestForward: names of others come from the node's resolvers, once.
func TestForward(t *testing.T) {
	lines := []string{"a.test. 60 IN A 192.0.2.1", "alias.test. 60 IN CNAME a.test."}
	for i := range 100 {
		lines = append(lines, fmt.Sprintf("big.test. 60 IN TXT %q", strings.Repeat("x", 20)+fmt.Sprint(i)))
	}
	r := startResolver(t, nil, lines...)
	s := start(t, Config{Resolvers: []netip.AddrPort{unused(t), r.address}}) // the first is dead
	s.Set(testState(t, 1))
	for _, name := range []string{"a.test", "A.test"} {
		msg := ask(t, s, "udp", name, dns.TypeA, 0)
		if len(msg.Answer) != 1 || msg.Authoritative || !msg.RecursionAvailable || msg.Question[0].Name != dns.Fqdn(name) {
			t.Errorf("%s: %v", name, msg)
		}
	}
	if got := r.asked.Load(); got != 1 {
		t.Errorf("the resolver was asked %d times for one name, want once", got)
	}
	for range 2 {
		if msg := ask(t, s, "udp", "no.test", dns.TypeA, 0); msg.Rcode != dns.RcodeNameError || len(msg.Ns) != 1 {
			t.Errorf("no.test: %v", msg)
		}
		if msg := ask(t, s, "udp", "a.test", dns.TypeAAAA, 0); msg.Rcode != dns.RcodeSuccess || len(msg.Answer) != 0 || len(msg.Ns) != 1 {
			t.Errorf("a.test AAAA: %v", msg)
		}
	}
	if got := r.asked.Load(); got != 3 {
		t.Errorf("the resolver was asked %d times for three questions", got)
	}
	// What UDP cuts off is asked again over TCP, and cut off here for who wants little.
	if msg := ask(t, s, "tcp", "big.test", dns.TypeTXT, 0); len(msg.Answer) != 100 || r.tcp.Load() != 1 {
		t.Errorf("big.test has %d answers after %d questions over TCP, want 100 after 1", len(msg.Answer), r.tcp.Load())
	}
	if msg := ask(t, s, "udp", "big.test", dns.TypeTXT, 0); !msg.Truncated || r.tcp.Load() != 1 {
		t.Errorf("big.test over UDP: truncated %v after %d questions over TCP", msg.Truncated, r.tcp.Load())
	}
	// An external name ends there.
	msg := ask(t, s, "udp", "out.default.svc.cluster.local", dns.TypeA, 0)
	if len(msg.Answer) != 2 || msg.Answer[0].Header().Rrtype != dns.TypeCNAME || msg.Answer[1].(*dns.A).A.String() != "192.0.2.1" {
		t.Errorf("an external name: %v", msg)
	}
}

// TestForwardFails: without resolvers, names of others fail at once and say why, and
// those of the cluster are served.
func TestForwardFails(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(empty, []byte("search x.test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"none is named", Config{ResolvConf: empty}, "no resolver"},
		{"none answers", Config{}, "refused"},
	} {
		s := start(t, test.cfg)
		s.Set(testState(t, 1))
		msg := ask(t, s, "udp", "a.test", dns.TypeA, 1232)
		if msg.Rcode != dns.RcodeServerFailure || !strings.Contains(reason(msg), test.want) {
			t.Errorf("%s: %s, because %q; want SERVFAIL because of %q", test.name, dns.RcodeToString[msg.Rcode], reason(msg), test.want)
		}
		if msg := ask(t, s, "udp", "web.default.svc.cluster.local", dns.TypeA, 0); len(msg.Answer) != 1 {
			t.Errorf("%s: the cluster's names: %v", test.name, msg)
		}
	}
}

// TestForwardOnce: who asks the same at the same time shares one question.
func TestForwardOnce(t *testing.T) {
	asked, release := make(chan struct{}, 100), make(chan struct{})
	r := startResolver(t, func(dns.Question) { asked <- struct{}{}; <-release }, "a.test. 60 IN A 192.0.2.1", "b.test. 60 IN A 192.0.2.2")
	s := start(t, Config{Resolvers: []netip.AddrPort{r.address}, MaxLookups: 1})
	s.forward.tryTimeout, s.forward.lookupTimeout = time.Minute, time.Minute // however slow the machine is
	const clients = 20
	var got sync.WaitGroup
	for range clients {
		got.Go(func() {
			msg, err := s.forward.lookup(t.Context(), dns.Question{Name: "a.test.", Qtype: dns.TypeA, Qclass: dns.ClassINET}, false, false)
			if err != nil || len(msg.Answer) != 1 {
				t.Errorf("lookup: %v, %v", msg, err)
			}
		})
	}
	<-asked
	// One lookup is all that may be under way: another name is refused, not queued.
	if msg := ask(t, s, "udp", "b.test", dns.TypeA, 1232); msg.Rcode != dns.RcodeServerFailure || !strings.Contains(reason(msg), "too many") {
		t.Errorf("a second name while the one lookup is under way: %v", msg)
	}
	close(release)
	got.Wait()
	if n := r.asked.Load(); n != 1 {
		t.Errorf("%d clients made %d questions, want 1", clients, n)
	}
}

// TestLoop: a resolver that asks us is found out, whoever stands between.
func TestLoop(t *testing.T) {
	var s atomic.Pointer[Server]
	var passed atomic.Int64
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) {
		if req.Question[0].Name == "a.test." {
			passed.Add(1)
		}
		if server := s.Load(); server != nil {
			if reply, err := dns.Exchange(req, server.Bound()[0].String()); err == nil {
				_ = w.WriteMsg(reply)
			}
		}
	})})
	server := start(t, Config{Resolvers: []netip.AddrPort{pc.LocalAddr().(*net.UDPAddr).AddrPort()}})
	s.Store(server)
	server.forward.reload()
	server.forward.findLoops(t.Context())
	if got := testutil.ToFloat64(server.metrics.loops); got != 1 {
		t.Fatalf("%v loops found, want 1", got)
	}
	if msg := ask(t, server, "udp", "a.test", dns.TypeA, 0); msg.Rcode != dns.RcodeServerFailure {
		t.Errorf("a name of others: %v", msg)
	}
	if passed.Load() != 0 {
		t.Error("the resolver that leads back is still asked")
	}
}

// TestOwnAddress: this server's own address in resolv.conf is no resolver.
func TestOwnAddress(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver 169.254.20.10\nnameserver 192.0.2.53\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Addresses: []netip.AddrPort{netip.MustParseAddrPort("169.254.20.10:53")}, ResolvConf: file})
	if err != nil {
		t.Fatal(err)
	}
	if !s.forward.reload() {
		t.Fatal("the file was not read")
	}
	if got := fmt.Sprint(s.forward.resolvers(time.Now())); got != "[192.0.2.53:53]" {
		t.Errorf("resolvers are %s, want the one that is not this server", got)
	}
	if s.forward.reload() {
		t.Error("the same file was taken for another")
	}
}

// FuzzHandle: no packet makes the server fail, or answer with more than asked for.
func FuzzHandle(f *testing.F) {
	s, err := New(Config{Addresses: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}, Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}})
	if err != nil {
		f.Fatal(err)
	}
	s.Set(testState(f, 50))
	for _, name := range []string{"web.default.svc.cluster.local.", "_http._tcp.web.default.svc.cluster.local.", "many.default.svc.cluster.local.", "9.0.43.10.in-addr.arpa.", "a.b.", "."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypePTR, dns.TypeANY} {
			req := new(dns.Msg)
			req.SetQuestion(name, qtype)
			req.SetEdns0(4096, true)
			packet, err := req.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(packet, true)
			f.Add(packet, false)
		}
	}
	done, cancel := context.WithCancel(context.Background())
	cancel() // names of others are not waited for
	f.Fuzz(func(t *testing.T, packet []byte, udp bool) {
		req := new(dns.Msg)
		if req.Unpack(packet) != nil {
			return
		}
		reply, _ := s.handle(done, req, udp)
		out, err := reply.Pack()
		if err != nil {
			t.Fatalf("the answer to %v cannot be sent: %v", req, err)
		}
		if udp && len(out) > udpBytes {
			t.Fatalf("the answer to %v has %d bytes", req, len(out))
		}
		if reply.Id != req.Id || !reply.Response {
			t.Fatalf("%v is no answer to %v", reply, req)
		}
	})
}

// BenchmarkServer measures questions over UDP on the loopback, from 8 clients that
// each wait for their answer.
func BenchmarkServer(b *testing.B) {
	s := start(b, Config{})
	s.Set(testState(b, 3))
	for _, name := range []string{"web.default.svc.cluster.local.", "many.default.svc.cluster.local.", "no.default.svc.cluster.local."} {
		b.Run(strings.SplitN(name, ".", 2)[0], func(b *testing.B) {
			req := new(dns.Msg)
			req.SetQuestion(name, dns.TypeA)
			packet, err := req.Pack()
			if err != nil {
				b.Fatal(err)
			}
			b.SetParallelism(4)
			b.RunParallel(func(pb *testing.PB) {
				conn, err := net.Dial("udp", s.Bound()[0].String())
				if err != nil {
					b.Error(err)
					return
				}
				defer conn.Close()
				buf := make([]byte, 1500)
				for pb.Next() {
					if _, err := conn.Write(packet); err != nil {
						b.Error(err)
						return
					}
					if _, err := conn.Read(buf); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
		})
	}
}
