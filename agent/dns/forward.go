package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

const (
	// tryTimeout bounds one question to one resolver, and lookupTimeout all of them:
	// less than the 5 s after which the C library asks again.
	tryTimeout    = 1500 * time.Millisecond
	lookupTimeout = 4500 * time.Millisecond
	// restTime is for how long a resolver that did not answer is asked last.
	restTime = 10 * time.Second
	// reloadPeriod is how often the file that names the resolvers is looked at.
	reloadPeriod = 5 * time.Second
	// udpBytes is the largest message to ask for and to send over UDP: it passes
	// every network in one piece.
	udpBytes = 1232
	// loopDomain is below where questions are asked that find loops.
	loopDomain = "loop.holdfast.invalid."
)

var (
	errNoResolvers = errors.New("the node has no resolver for names outside of the cluster")
	errBusy        = errors.New("too many names are being looked up at once")
)

// forwarder asks the node's resolvers. Safe for concurrent use.
type forwarder struct {
	path    string           // of the resolv.conf that names them; "" with fixed ones
	fixed   []netip.AddrPort // instead
	self    func() []netip.AddrPort
	log     *slog.Logger
	metrics *metrics
	cache   *cache
	group   singleflight.Group
	slots   chan struct{} // as many as may be asked at once

	tryTimeout, lookupTimeout time.Duration

	mu       sync.Mutex
	known    []netip.AddrPort // in the order of the file
	resting  map[netip.AddrPort]time.Time
	looping  map[netip.AddrPort]bool
	probes   map[string]netip.AddrPort // questions under way that find loops
	modified time.Time
	complain string // the last that was logged about the file
}

func newForwarder(cfg Config, self func() []netip.AddrPort, m *metrics) *forwarder {
	return &forwarder{
		path: cfg.ResolvConf, fixed: cfg.Resolvers, self: self, log: cfg.Logger, metrics: m,
		cache: newCache(cfg.CacheEntries, cfg.CacheBytes), slots: make(chan struct{}, cfg.MaxLookups),
		tryTimeout: tryTimeout, lookupTimeout: lookupTimeout,
		resting: map[netip.AddrPort]time.Time{}, looping: map[netip.AddrPort]bool{}, probes: map[string]netip.AddrPort{},
	}
}

// run keeps the list of resolvers true until ctx ends. The first was read before.
func (f *forwarder) run(ctx context.Context) error {
	tick := time.NewTicker(reloadPeriod)
	defer tick.Stop()
	for news := true; ; news = f.reload() {
		if news {
			f.findLoops(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// reload reads the list of resolvers if it has changed, and reports whether it has.
func (f *forwarder) reload() bool {
	found := f.fixed
	var modified time.Time
	if f.path != "" {
		info, err := os.Stat(f.path)
		if err == nil {
			modified = info.ModTime()
		}
		f.mu.Lock()
		same := !modified.IsZero() && modified.Equal(f.modified)
		f.mu.Unlock()
		if same {
			return false
		}
		conf, err := NodeResolvConf(f.path)
		if err != nil {
			f.complainOnce(err.Error())
			return false // what was known is better than nothing
		}
		found = nil
		for _, s := range conf.Servers {
			if ip, err := netip.ParseAddr(s); err == nil {
				found = append(found, netip.AddrPortFrom(ip, 53))
			}
		}
	}
	own := f.self()
	usable := slices.DeleteFunc(slices.Clone(found), func(a netip.AddrPort) bool { return slices.Contains(own, a) })
	switch {
	case len(usable) > 0:
		f.complainOnce("")
	case len(found) > 0:
		f.complainOnce("the node's only resolver is this server itself: names outside of the cluster cannot be found")
	default:
		f.complainOnce(errNoResolvers.Error())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.modified = modified
	if slices.Equal(usable, f.known) {
		return false
	}
	f.known = usable
	clear(f.looping)
	maps.DeleteFunc(f.resting, func(a netip.AddrPort, _ time.Time) bool { return !slices.Contains(usable, a) })
	f.cache.clear() // others may know other names
	f.log.Info("names outside of the cluster are asked of", "resolvers", usable)
	return true
}

func (f *forwarder) complainOnce(text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if text != "" && text != f.complain {
		f.log.Warn("resolvers", "problem", text)
	}
	f.complain = text
}

// resolvers are those to ask, the most promising first.
func (f *forwarder) resolvers(now time.Time) []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ready, resting []netip.AddrPort
	for _, a := range f.known {
		switch {
		case f.looping[a]:
		case now.Before(f.resting[a]):
			resting = append(resting, a)
		default:
			ready = append(ready, a)
		}
	}
	return append(ready, resting...)
}

// lookup returns the answer of the node's resolvers to a question. It never returns
// nil without an error.
func (f *forwarder) lookup(ctx context.Context, q dns.Question, dnssec, checking bool) (*dns.Msg, error) {
	key := question{name: strings.ToLower(q.Name), qtype: q.Qtype, dnssec: dnssec, checking: checking}
	if msg, ok := f.cache.get(key, time.Now()); ok {
		f.metrics.cache.WithLabelValues("hit").Inc()
		return msg, nil
	}
	f.metrics.cache.WithLabelValues("miss").Inc()
	// One asks for all who want to know the same. It goes on when its own client has
	// lost patience: others wait for it.
	id := key.name + " " + strconv.Itoa(int(key.qtype)) + " " + strconv.FormatBool(dnssec) + strconv.FormatBool(checking)
	answered := f.group.DoChan(id, func() (any, error) {
		select {
		case f.slots <- struct{}{}:
			defer func() { <-f.slots }()
		default:
			return nil, errBusy
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.lookupTimeout)
		defer cancel()
		msg, err := f.ask(ctx, key)
		if err != nil {
			return nil, err
		}
		f.cache.put(key, msg, time.Now())
		return msg, nil
	})
	select {
	case got := <-answered:
		if got.Err != nil {
			return nil, got.Err
		}
		return got.Val.(*dns.Msg).Copy(), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// ask asks one resolver after the other, and begins again with those that did not
// answer while there is time.
func (f *forwarder) ask(ctx context.Context, key question) (*dns.Msg, error) {
	var faults []error
	rounds := 0
	var failed *dns.Msg // an answer that says that the resolver itself failed
	for ctx.Err() == nil {
		all := f.resolvers(time.Now())
		if len(all) == 0 {
			return nil, errNoResolvers
		}
		for _, server := range all {
			msg, err := f.exchange(ctx, key, server)
			switch {
			case err != nil:
				faults = append(faults, err)
			case msg.Rcode == dns.RcodeServerFailure || msg.Rcode == dns.RcodeRefused || msg.Rcode == dns.RcodeNotImplemented:
				failed = msg // the next one may know better
			default:
				return msg, nil
			}
			if ctx.Err() != nil {
				break
			}
		}
		if failed != nil {
			return failed, nil
		}
		if rounds++; rounds == 2 {
			break
		}
	}
	if len(faults) == 0 {
		return nil, context.Cause(ctx)
	}
	return nil, errors.Join(faults...)
}

// exchange asks one resolver, over TCP if UDP is too small for the answer.
func (f *forwarder) exchange(ctx context.Context, key question, server netip.AddrPort) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, f.tryTimeout)
	defer cancel()
	req := new(dns.Msg)
	req.SetQuestion(key.name, key.qtype) // with an id that cannot be guessed, from a port that cannot
	req.CheckingDisabled = key.checking
	req.SetEdns0(udpBytes, key.dnssec)
	began := time.Now()
	msg, err := exchangeOver(ctx, "udp", req, server)
	if err == nil && msg.Truncated {
		msg, err = exchangeOver(ctx, "tcp", req, server)
	}
	result := "ok"
	f.mu.Lock()
	if err != nil {
		result = "failed"
		f.resting[server] = time.Now().Add(restTime)
	} else {
		delete(f.resting, server)
	}
	f.mu.Unlock()
	f.metrics.upstreamSeconds.WithLabelValues(server.String(), result).Observe(time.Since(began).Seconds())
	if err != nil {
		return nil, fmt.Errorf("resolver %s: %w", server, err)
	}
	// What belongs to this hop stays here.
	msg.Extra = slices.DeleteFunc(msg.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	return msg, nil
}

func exchangeOver(ctx context.Context, network string, req *dns.Msg, server netip.AddrPort) (*dns.Msg, error) {
	dialer := net.Dialer{}
	conn, err := dialer.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	// The lookup ends when ctx does, at the deadline or before.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c := &dns.Conn{Conn: conn, UDPSize: udpBytes}
	if err := c.WriteMsg(req); err != nil {
		return nil, err
	}
	for {
		msg, err := c.ReadMsg()
		switch {
		case err != nil && msg == nil:
			return nil, err
		case msg.Id != req.Id || !msg.Response || !sameQuestion(msg, req):
			if network == "tcp" {
				return nil, errors.New("the answer is to another question")
			}
			continue // somebody guesses, or an answer came late
		case err != nil:
			return nil, err
		}
		return msg, nil
	}
}

func sameQuestion(a, b *dns.Msg) bool {
	return len(a.Question) == 1 && a.Question[0].Qtype == b.Question[0].Qtype && a.Question[0].Qclass == b.Question[0].Qclass &&
		strings.EqualFold(a.Question[0].Name, b.Question[0].Name)
}

// findLoops asks each resolver a question of its own, that nobody else would ask. If
// it comes back here, the resolver is one of those that ask us.
func (f *forwarder) findLoops(ctx context.Context) {
	probes := map[string]netip.AddrPort{}
	f.mu.Lock()
	for _, server := range f.known {
		probes[fmt.Sprintf("%016x.%s", rand.Uint64(), loopDomain)] = server
	}
	maps.Copy(f.probes, probes)
	f.mu.Unlock()
	var asked sync.WaitGroup
	for name, server := range probes {
		asked.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, tryTimeout)
			defer cancel()
			req := new(dns.Msg)
			req.SetQuestion(name, dns.TypeHINFO)
			_, _ = exchangeOver(ctx, "udp", req, server) // the answer does not matter
		})
	}
	asked.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.probes, func(name string, _ netip.AddrPort) bool { _, ours := probes[name]; return ours })
}

// isProbe reports whether a name that was asked here is one of those that find loops,
// and if so stops asking the resolver it was sent to.
func (f *forwarder) isProbe(name string) bool {
	name = strings.ToLower(name)
	if !dns.IsSubDomain(loopDomain, name) {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if server, ok := f.probes[name]; ok && !f.looping[server] {
		f.looping[server] = true
		f.metrics.loops.Inc()
		f.log.Error("a resolver of the node forwards to this server: it is not asked any more", "resolver", server, "file", cmp.Or(f.path, "configuration"))
	}
	return true
}

const systemdResolvConf = "/run/systemd/resolve/resolv.conf"

// NodeResolvConf reads the node's resolv.conf for those who cannot reach the node's
// loopback: where it names only the stub of systemd-resolved, the file with the real
// servers is read instead. A missing file is empty.
func NodeResolvConf(path string) (ResolvConf, error) {
	r, err := ReadResolvConf(path)
	if err == nil && r.LoopbackOnly() {
		if data, err := os.ReadFile(systemdResolvConf); err == nil {
			r = ParseResolvConf(string(data))
		}
	}
	return r, err
}

// ReadResolvConf reads a resolv.conf. A missing file is empty.
func ReadResolvConf(path string) (ResolvConf, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return ResolvConf{}, fmt.Errorf("read the node's name servers: %w", err)
	}
	return ParseResolvConf(string(data)), nil
}
