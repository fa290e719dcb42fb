package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent/netstate"
)

// Config is what a server needs.
type Config struct {
	// Addresses are where to answer, UDP and TCP. Required. They need not be there
	// yet: binding does not wait for the link that carries them. With port 0 the
	// kernel chooses one.
	Addresses []netip.AddrPort
	// ResolvConf names the resolvers for names outside of the cluster. It is read
	// again when it changes. Optional; /etc/resolv.conf.
	ResolvConf string
	// Resolvers are asked instead of those of ResolvConf. Optional.
	Resolvers []netip.AddrPort

	CacheEntries int // optional; 16384 answers of resolvers
	CacheBytes   int // optional; 8 MiB of them
	MaxLookups   int // optional; 512 questions to resolvers at once
	MaxQueries   int // optional; 8192 questions of clients at once
	MaxConns     int // optional; 512 connections (TCP) to each address

	Logger     *slog.Logger          // optional; discards
	Registerer prometheus.Registerer // optional; not registered
}

const (
	bindPause   = 5 * time.Second
	stopTimeout = 3 * time.Second
	// maxReason bounds the text that says why there is no answer.
	maxReason = 200
)

// Server answers questions. See [New].
type Server struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	forward *forwarder
	zone    atomic.Pointer[Zone]
	busy    atomic.Int64
	ready   chan struct{} // closed once all addresses are bound
	bound   atomic.Pointer[[]netip.AddrPort]
}

// New returns a server that answers nothing until it is run.
func New(cfg Config) (*Server, error) {
	if len(cfg.Addresses) == 0 {
		return nil, errors.New("dns: Config.Addresses is empty")
	}
	if cfg.ResolvConf == "" && len(cfg.Resolvers) == 0 {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	if len(cfg.Resolvers) > 0 {
		cfg.ResolvConf = ""
	}
	for _, limit := range []struct {
		value     *int
		otherwise int
	}{
		{&cfg.CacheEntries, 16384}, {&cfg.CacheBytes, 8 << 20}, {&cfg.MaxLookups, 512}, {&cfg.MaxQueries, 8192}, {&cfg.MaxConns, 512},
	} {
		if *limit.value <= 0 {
			*limit.value = limit.otherwise
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Registerer == nil {
		cfg.Registerer = prometheus.NewRegistry()
	}
	s := &Server{cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Registerer), ready: make(chan struct{})}
	s.forward = newForwarder(cfg, s.Bound, s.metrics)
	s.metrics.watch(cfg.Registerer, s.forward.cache)
	return s, nil
}

// Set makes state what is answered from. It returns at once; queries that began
// before end with what they began with. Safe for concurrent use.
func (s *Server) Set(state *netstate.State) {
	ips := make([]netip.Addr, 0, len(s.cfg.Addresses))
	for _, a := range s.cfg.Addresses {
		ips = append(ips, a.Addr())
	}
	s.zone.Store(NewZone(state, ips))
	s.metrics.revision.Set(float64(state.Revision))
}

// Ready is closed once the server is bound to all of its addresses.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Bound returns the addresses as bound: with the ports that the kernel chose. Before
// Ready, it returns those of the configuration.
func (s *Server) Bound() []netip.AddrPort {
	if bound := s.bound.Load(); bound != nil {
		return *bound
	}
	return s.cfg.Addresses
}

// Run serves until ctx ends. While an address cannot be bound, it says so and tries
// again: pods' names are not worth the pods.
func (s *Server) Run(ctx context.Context) error {
	var sockets []socket
	for complaint := ""; ; {
		var err error
		if sockets, err = s.bind(ctx); err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		if err.Error() != complaint {
			complaint = err.Error()
			s.log.Error("names cannot be served; trying again", "pause", bindPause, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(bindPause):
		}
	}
	bound := make([]netip.AddrPort, len(sockets))
	for i, sock := range sockets {
		bound[i] = sock.udp.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	s.bound.Store(&bound)
	s.forward.reload() // before the first question
	g, ctx := errgroup.WithContext(ctx)
	var started sync.WaitGroup
	for _, sock := range sockets {
		for _, srv := range []*dns.Server{{PacketConn: sock.udp, UDPSize: udpBytes}, {Listener: netutil.LimitListener(sock.tcp, s.cfg.MaxConns)}} {
			srv.Handler = handler{s, srv.PacketConn != nil}
			started.Add(1)
			srv.NotifyStartedFunc = started.Done
			g.Go(srv.ActivateAndServe)
			g.Go(func() error {
				<-ctx.Done()
				started.Wait() // what has not started cannot be stopped
				stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
				defer cancel()
				_ = srv.ShutdownContext(stop)
				return nil
			})
		}
	}
	g.Go(func() error { return s.forward.run(ctx) })
	started.Wait()
	close(s.ready)
	s.log.Info("serving names", "addresses", bound)
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve names: %w", err)
	}
	return nil
}

type socket struct {
	udp net.PacketConn
	tcp net.Listener
}

// bind binds all addresses or none.
func (s *Server) bind(ctx context.Context) (_ []socket, err error) {
	var all []socket
	defer func() {
		if err != nil {
			for _, sock := range all {
				sock.udp.Close()
				sock.tcp.Close()
			}
		}
	}()
	config := net.ListenConfig{Control: freebind}
	for _, address := range s.cfg.Addresses {
		udp, err := config.ListenPacket(ctx, "udp", address.String())
		if err != nil {
			return nil, err
		}
		tcp, err := config.Listen(ctx, "tcp", udp.LocalAddr().String())
		if err != nil {
			udp.Close()
			return nil, err
		}
		all = append(all, socket{udp, tcp})
	}
	return all, nil
}

// freebind lets an address be bound that no link has yet.
func freebind(network, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		if strings.HasSuffix(network, "6") {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		} else {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		}
	})
	return errors.Join(err, failed)
}

// handler is the server as seen from one socket.
type handler struct {
	s   *Server
	udp bool
}

// ServeDNS implements dns.Handler.
func (h handler) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	began := time.Now()
	reply, source := h.s.handle(context.Background(), req, h.udp)
	if err := w.WriteMsg(reply); err != nil {
		h.s.log.Debug("answer not sent", "err", err)
	}
	transport := "tcp"
	if h.udp {
		transport = "udp"
	}
	h.s.metrics.queries.WithLabelValues(source, transport, rcodeName(reply)).Inc()
	h.s.metrics.seconds.WithLabelValues(source).Observe(time.Since(began).Seconds())
}

// rcodeName keeps the number of names small, whatever resolvers answer.
func rcodeName(msg *dns.Msg) string {
	switch msg.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeFormatError, dns.RcodeNotImplemented:
		return dns.RcodeToString[msg.Rcode]
	}
	return "other"
}

// Where an answer came from, for metrics.
const (
	fromCluster = "cluster"
	fromForward = "forward"
	fromNowhere = "none"
)

// handle returns the answer to a message, small enough for the way it came, and where
// it is from. ctx bounds how long the node's resolvers are waited for.
func (s *Server) handle(ctx context.Context, req *dns.Msg, udp bool) (*dns.Msg, string) {
	reply := new(dns.Msg)
	reply.SetReply(req)
	reply.RecursionAvailable = true
	reply.Compress = true
	size := dns.MaxMsgSize
	if udp {
		size = dns.MinMsgSize
	}
	var opt *dns.OPT
	if asked := req.IsEdns0(); asked != nil {
		if udp {
			size = min(max(int(asked.UDPSize()), dns.MinMsgSize), udpBytes)
		}
		opt = &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		opt.SetUDPSize(udpBytes)
		opt.SetDo(asked.Do())
		if asked.Version() != 0 {
			reply.Rcode = dns.RcodeBadVers
			reply.Extra = []dns.RR{opt}
			return reply, fromNowhere
		}
	}
	source := s.answer(ctx, req, reply, opt)
	if opt != nil {
		reply.Extra = append(reply.Extra, opt)
	}
	reply.Truncate(size)
	return reply, source
}

// answer fills in reply. opt is nil if the client speaks no EDNS.
func (s *Server) answer(ctx context.Context, req, reply *dns.Msg, opt *dns.OPT) string {
	fail := func(rcode int, code uint16, why string) {
		reply.Rcode = rcode
		reply.Answer, reply.Ns, reply.Extra = nil, nil, nil
		if opt != nil {
			opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: why[:min(len(why), maxReason)]})
		}
	}
	defer s.busy.Add(-1)
	if s.busy.Add(1) > int64(s.cfg.MaxQueries) {
		s.metrics.refused.Inc()
		fail(dns.RcodeServerFailure, dns.ExtendedErrorCodeOther, "too many questions at once")
		return fromNowhere
	}
	if req.Opcode != dns.OpcodeQuery || len(req.Question) != 1 {
		fail(dns.RcodeNotImplemented, dns.ExtendedErrorCodeNotSupported, "one question at a time, and only questions")
		return fromNowhere
	}
	q := req.Question[0]
	switch {
	case q.Qclass != dns.ClassINET, q.Qtype == dns.TypeAXFR, q.Qtype == dns.TypeIXFR, q.Qtype == dns.TypeOPT, q.Qtype == dns.TypeNone:
		fail(dns.RcodeRefused, dns.ExtendedErrorCodeNotSupported, "only single records of class IN")
		return fromNowhere
	case s.forward.isProbe(q.Name):
		fail(dns.RcodeNameError, dns.ExtendedErrorCodeOther, "a resolver of the node leads back to it")
		return fromNowhere
	}
	zone := s.zone.Load()
	if zone == nil || zone.state.Revision == 0 {
		// An answer now would say that there are no services. Names of others do
		// not have to wait.
		domain := DefaultDomain + "."
		if zone != nil {
			domain = zone.domain
		}
		if dns.IsSubDomain(domain, strings.ToLower(q.Name)) {
			fail(dns.RcodeServerFailure, dns.ExtendedErrorCodeNotReady, "this node has not heard of the cluster's services yet")
			return fromCluster
		}
	} else if got, ours := zone.Answer(q); ours {
		reply.Authoritative = true
		reply.Rcode, reply.Answer, reply.Ns, reply.Extra = got.Rcode, got.Answer, got.Authority, got.Extra
		shuffle(reply.Answer)
		if got.Chase != "" {
			s.chase(ctx, req, reply, got.Chase, fail)
		}
		return fromCluster
	}
	msg, err := s.lookup(ctx, req, q, opt)
	if err != nil {
		fail(dns.RcodeServerFailure, dns.ExtendedErrorCodeNoReachableAuthority, err.Error())
		return fromForward
	}
	reply.Rcode, reply.Answer, reply.Ns, reply.Extra = msg.Rcode, msg.Answer, msg.Ns, msg.Extra
	reply.AuthenticatedData = msg.AuthenticatedData && (opt != nil && opt.Do() || req.AuthenticatedData)
	return fromForward
}

// chase completes an answer that ends at a name outside of the cluster.
func (s *Server) chase(ctx context.Context, req, reply *dns.Msg, name string, fail func(int, uint16, string)) {
	q := dns.Question{Name: name, Qtype: req.Question[0].Qtype, Qclass: dns.ClassINET}
	msg, err := s.lookup(ctx, req, q, nil)
	if err != nil {
		fail(dns.RcodeServerFailure, dns.ExtendedErrorCodeNoReachableAuthority, err.Error())
		return
	}
	reply.Rcode = msg.Rcode
	reply.Answer = append(reply.Answer, msg.Answer...)
	reply.Ns = msg.Ns
}

func (s *Server) lookup(ctx context.Context, req *dns.Msg, q dns.Question, opt *dns.OPT) (*dns.Msg, error) {
	msg, err := s.forward.lookup(ctx, q, opt != nil && opt.Do(), req.CheckingDisabled)
	if errors.Is(err, errBusy) {
		s.metrics.refused.Inc()
	}
	return msg, err
}

// shuffle puts addresses in an order by chance, so that clients that take the first
// spread. Aliases stay in front.
func shuffle(answer []dns.RR) {
	for len(answer) > 0 && answer[0].Header().Rrtype == dns.TypeCNAME {
		answer = answer[1:]
	}
	if len(answer) > 1 {
		rand.Shuffle(len(answer), func(i, j int) { answer[i], answer[j] = answer[j], answer[i] })
	}
}
