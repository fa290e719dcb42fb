package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/holdfast-io/holdfast/internal/faults"
)

// Roles of members.
const (
	RolePeer = "peer"
	RoleNode = "node"
)

const (
	// maxName bounds a member's name: a DNS name's length, as for nodes.
	maxName = 253
	// forgetAfter is how long a dead member stays in the list, and how long it is
	// looked for (Serf's numbers).
	forgetAfter = 24 * time.Hour
	// leaveTimeout bounds a goodbye.
	leaveTimeout = 2 * time.Second
)

// State is how a member stands.
type State string

const (
	// StateAlive: it answers.
	StateAlive State = "alive"
	// StateSuspect: it did not answer somebody, and has not spoken up yet.
	StateSuspect State = "suspect"
	// StateDead: it did not answer, and did not speak up in time.
	StateDead State = "dead"
	// StateLeft: it said that it goes.
	StateLeft State = "left"
)

// Member is a machine as this one's gossip sees it.
type Member struct {
	Name    string
	Role    string // "peer" or "node"
	Address string // gossip, host:port
	API     string // peers: the API's host:port
	Etcd    string // peers: host:port of etcd's API, if it is served
	State   State
	Since   time.Time // when this machine noticed State
}

// Config says who gossips where. The zero value of an optional field is its
// default.
type Config struct {
	Name      string // required; unique in the cluster
	Role      string // required; "peer" or "node"
	Listen    string // required; host:port for TCP and UDP; port 0 picks one
	Advertise string // optional; host or host:port under which others reach it; that of Listen, or the machine's private address if that is unspecified
	ClusterID string // required
	Key       []byte // required; the cluster's gossip key, 32 bytes

	// Join returns gossip addresses of other members, host:port. Called each time
	// this machine looks for others; its own address may be among them. Optional.
	Join func() []string
	// API is what a peer tells others of its API, host:port, and Etcd of etcd's API,
	// if it serves that. Peers only.
	API, Etcd string
	// LeaveOnStop makes Run say goodbye when it ends, so that others count this
	// member as left at once, not as dead after a while. Without it a restart
	// shorter than the time to death is not noticed.
	LeaveOnStop bool

	ProbeInterval time.Duration // optional; 500 ms: see DESIGN.md for what follows from it
	ReclaimAfter  time.Duration // optional; 1 s: how long a member has to be dead before its name may come from another address
	SeekInterval  time.Duration // optional; 5 s: the longest time between two attempts to find members that are missing

	Faults    *faults.Plane        // optional; what goes wrong on purpose
	Transport memberlist.Transport // optional; tests: instead of Listen and Advertise
	Logger    *slog.Logger         // optional; none
}

// Gossip is this machine's part in the gossip. All methods are safe for
// concurrent use.
type Gossip struct {
	cfg    Config
	log    *slog.Logger
	meta   []byte
	limits limits
	ready  chan struct{}
	wake   chan struct{} // capacity 1: something happened in memberlist

	mu      sync.Mutex
	list    *memberlist.Memberlist // nil before Run
	members map[string]*member
	changed chan struct{} // closed and replaced at each change
}

// member is a Member with what we need to ask memberlist about it.
type member struct {
	Member
	// gone: memberlist has told us of its end and we know which. It must not be
	// asked about any more.
	gone bool
	// events counts what memberlist has told, so that an answer to a question
	// which is older than the last event can be told from a fresh one.
	events int
	// logged is the state that people were last told of.
	logged State
}

// New checks cfg and builds. Nothing listens before Run.
func New(cfg Config) (*Gossip, error) {
	if cfg.Name == "" || len(cfg.Name) > maxName {
		return nil, fmt.Errorf("gossip: name %q: want 1 to %d characters", cfg.Name, maxName)
	}
	if _, ok := roleCodes[cfg.Role]; !ok {
		return nil, fmt.Errorf("gossip: role %q: want %q or %q", cfg.Role, RolePeer, RoleNode)
	}
	if cfg.ClusterID == "" || len(cfg.ClusterID) > memberlist.LabelMaxSize {
		return nil, fmt.Errorf("gossip: cluster id %q: want 1 to %d characters", cfg.ClusterID, memberlist.LabelMaxSize)
	}
	if len(cfg.Key) != 32 {
		return nil, fmt.Errorf("gossip: key of %d bytes: want 32", len(cfg.Key))
	}
	if cfg.Transport == nil {
		if _, _, err := splitHostPort(cfg.Listen); err != nil {
			return nil, fmt.Errorf("gossip: listen address %q: %w", cfg.Listen, err)
		}
	}
	if cfg.ProbeInterval == 0 {
		cfg.ProbeInterval = 500 * time.Millisecond
	}
	if cfg.ReclaimAfter == 0 {
		cfg.ReclaimAfter = time.Second
	}
	if cfg.SeekInterval == 0 {
		cfg.SeekInterval = 5 * time.Second
	}
	if cfg.Join == nil {
		cfg.Join = func() []string { return nil }
	}
	g := &Gossip{
		cfg:     cfg,
		log:     cfg.Logger,
		meta:    meta{Role: cfg.Role, API: cfg.API, Etcd: cfg.Etcd}.encode(),
		ready:   make(chan struct{}),
		wake:    make(chan struct{}, 1),
		members: make(map[string]*member),
		changed: make(chan struct{}),
	}
	if g.log == nil {
		g.log = discard()
	}
	if len(g.meta) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("gossip: API addresses %q and %q are too long", cfg.API, cfg.Etcd)
	}
	return g, nil
}

// Run listens, looks for the other members and gossips until ctx ends; then it
// returns nil. It returns an error if it cannot listen. Others that cannot be
// found are no error: it goes on looking. Call it once.
func (g *Gossip) Run(ctx context.Context) error {
	conf, err := g.memberlistConfig(ctx)
	if err != nil {
		return err
	}
	list, err := memberlist.Create(conf)
	if err != nil {
		return g.listenError(err)
	}
	g.mu.Lock()
	g.list = list
	g.mu.Unlock()
	close(g.ready)
	g.log.Info("gossip started", "member", g.cfg.Name, "address", list.LocalNode().Address())

	var parts sync.WaitGroup
	parts.Go(func() { g.watch(ctx) })
	parts.Go(func() { g.seek(ctx, list) })
	parts.Wait()

	if g.cfg.LeaveOnStop {
		if err := list.Leave(leaveTimeout); err != nil {
			g.log.Debug("gossip: goodbye not heard by anybody", "error", err)
		}
	}
	if err := list.Shutdown(); err != nil {
		return fmt.Errorf("gossip: stop: %w", err)
	}
	return nil
}

// Ready is closed once Run listens. [Gossip.Address] is known from then on.
func (g *Gossip) Ready() <-chan struct{} { return g.ready }

// Address returns the gossip address that this machine advertises, host:port,
// or "" before Ready.
func (g *Gossip) Address() string {
	g.mu.Lock()
	list := g.list
	g.mu.Unlock()
	if list == nil {
		return ""
	}
	return list.LocalNode().Address()
}

// Members returns all members in order of their names: this one, the living,
// and those that were lost or left within a day. Empty before Ready.
func (g *Gossip) Members() []Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]Member, 0, len(g.members))
	for _, m := range g.members {
		out = append(out, m.Member)
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Member returns the member with this name, if there is or lately was one.
func (g *Gossip) Member(name string) (Member, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m, ok := g.members[name]
	if !ok {
		return Member{}, false
	}
	return m.Member, true
}

// Changed returns a channel that is closed at the next change of any member. Get
// it first, then look at the members, then wait.
func (g *Gossip) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

// observe takes a member's coming, change or going from memberlist, which holds
// its lock. How it went is asked later, by refresh.
func (g *Gossip) observe(n *memberlist.Node, going bool) {
	m, err := decodeMeta(n.Meta)
	if err != nil {
		return // admit has refused it already
	}
	g.mu.Lock()
	known, ok := g.members[n.Name]
	if !ok {
		known = &member{}
		g.members[n.Name] = known
	}
	known.gone = false
	known.events++
	next := Member{Name: n.Name, Role: m.Role, Address: n.Address(), API: m.API, Etcd: m.Etcd, State: StateAlive, Since: known.Since}
	if going {
		next.State = known.State // until refresh has asked
	}
	if next.State != known.State {
		next.Since = time.Now()
	}
	changed := next != known.Member
	known.Member = next
	if changed {
		g.broadcast()
	}
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// broadcast tells everybody who waits on Changed. g.mu is held.
func (g *Gossip) broadcast() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// watch keeps the members' states fresh: after each event, and at every probe
// for suspicion, which has no event.
func (g *Gossip) watch(ctx context.Context) {
	tick := time.NewTicker(g.cfg.ProbeInterval)
	defer tick.Stop()
	for {
		g.refresh()
		select {
		case <-ctx.Done():
			return
		case <-g.wake:
		case <-tick.C:
		}
	}
}

// refresh asks memberlist how the members stand that may have changed, and logs
// transitions.
func (g *Gossip) refresh() {
	g.mu.Lock()
	type question struct {
		name   string
		events int
	}
	var ask []question
	for name, m := range g.members {
		switch {
		case !m.gone:
			ask = append(ask, question{name, m.events})
		case time.Since(m.Since) > forgetAfter:
			delete(g.members, name)
		}
	}
	list := g.list
	g.mu.Unlock()

	// Without our lock: callbacks come with memberlist's held and take ours.
	states := make([]State, len(ask))
	for i, q := range ask {
		states[i] = stateOf(nodeState(list, q.name))
	}

	g.mu.Lock()
	defer g.mu.Unlock()
	changed := false
	for i, q := range ask {
		m, name, state := g.members[q.name], q.name, states[i]
		if m.events != q.events {
			continue // and g.wake is set: asked again at once
		}
		if m.State != state {
			m.State, m.Since = state, time.Now()
			changed = true
		}
		m.gone = state == StateDead || state == StateLeft
		if m.logged != state {
			// Suspicion comes and goes; people need its result.
			if state == StateSuspect || (state == StateAlive && m.logged == StateSuspect) {
				g.log.Debug("member "+string(state), "member", name, "role", m.Role, "address", m.Address)
			} else {
				g.log.Info("member "+string(state), "member", name, "role", m.Role, "address", m.Address)
			}
			m.logged = state
		}
	}
	if changed {
		g.broadcast()
	}
}

func stateOf(s memberlist.NodeStateType) State {
	switch s {
	case memberlist.StateAlive:
		return StateAlive
	case memberlist.StateSuspect:
		return StateSuspect
	case memberlist.StateLeft:
		return StateLeft
	default:
		return StateDead
	}
}

// seek looks for members that are missing: with quick first attempts while this
// machine is alone, and later for those that died or are on the list of Join
// without being members. memberlist itself forgets the dead after half a minute,
// and would leave a healed partition in two.
//
// In its first half minute it also exchanges states with somebody every now and
// then: a machine that has come back under a new address is refused until its
// old one is dead, and memberlist would try again only with the next of its rare
// exchanges.
func (g *Gossip) seek(ctx context.Context, list *memberlist.Memberlist) {
	start, wait := time.Now(), firstSeek
	lastError := ""
	for {
		around := g.around()
		targets := around.missing
		if !around.alone {
			lastError = ""
			wait = g.cfg.SeekInterval
			targets = targets[:min(1, len(targets))] // one each time: those who do not answer cost a timeout
			// Larger clusters have more to exchange, and more machines that start.
			settle := settleInterval * time.Duration(1+around.members/64)
			if time.Since(start) < settleTime && settle < wait {
				wait = settle
				targets = append(targets, around.present[0])
			}
		}
		for _, addr := range targets {
			if ctx.Err() != nil {
				return
			}
			_, err := list.Join([]string{addr}) // bounded by TCPTimeout
			if !around.alone {
				continue // the dead may stay dead
			}
			if err == nil {
				g.log.Info("gossip joined", "member", g.cfg.Name, "through", addr)
				break
			}
			if err.Error() != lastError {
				lastError = err.Error()
				g.log.Warn("gossip: cannot join, still trying", "member", g.cfg.Name, "through", addr, "error", oneLine(err))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(jitter(wait)):
		}
		wait = min(wait*2, g.cfg.SeekInterval)
	}
}

const (
	firstSeek      = 200 * time.Millisecond
	settleTime     = 30 * time.Second
	settleInterval = 2 * time.Second
)

// surroundings is what seek needs to know, in random order.
type surroundings struct {
	alone   bool     // no other member is alive
	members int      // known ones, this one included
	present []string // addresses of living members but this one
	missing []string // addresses at which there may be members that are not here
}

func (g *Gossip) around() surroundings {
	join := g.cfg.Join() // not ours: without our lock
	self := g.Address()
	g.mu.Lock()
	defer g.mu.Unlock()
	out := surroundings{members: len(g.members)}
	here := map[string]bool{self: true}
	for _, m := range g.members {
		switch m.State {
		case StateAlive, StateSuspect:
			here[m.Address] = true
			if m.Name != g.cfg.Name {
				out.present = append(out.present, m.Address)
			}
		case StateDead:
			out.missing = append(out.missing, m.Address)
		case StateLeft: // it wanted to go
		}
	}
	out.alone = len(out.present) == 0
	out.missing = append(out.missing, join...)
	slices.Sort(out.missing)
	out.missing = slices.DeleteFunc(slices.Compact(out.missing), func(a string) bool { return here[a] })
	for _, list := range [][]string{out.present, out.missing} {
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	return out
}

// jitter spreads waits over 75 to 125 %, so that machines that started together
// do not knock together.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2+1)
}

// oneLine flattens go-multierror's lists.
func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}

// memberlistConfig holds the timing, with its reasons in DESIGN.md.
func (g *Gossip) memberlistConfig(ctx context.Context) (*memberlist.Config, error) {
	conf := memberlist.DefaultLANConfig()
	conf.Name = g.cfg.Name
	conf.Label = g.cfg.ClusterID
	conf.SecretKey = g.cfg.Key
	conf.ProbeInterval = g.cfg.ProbeInterval
	conf.ProbeTimeout = g.cfg.ProbeInterval / 2
	conf.SuspicionMult = 4
	conf.SuspicionMaxTimeoutMult = 3
	conf.GossipInterval = g.cfg.ProbeInterval / 5
	conf.PushPullInterval = 20 * g.cfg.ProbeInterval
	conf.TCPTimeout = 2 * time.Second
	conf.DeadNodeReclaimTime = g.cfg.ReclaimAfter
	conf.EnableCompression = false // packets are small, and lzw costs more than it saves
	conf.RequireNodeNames = false  // Join knows addresses alone
	conf.Logger = newMemberlistLogger(g)
	d := delegate{g}
	conf.Delegate, conf.Events, conf.Alive, conf.Merge, conf.Conflict = d, d, d, d, d
	if g.cfg.Transport != nil {
		conf.Transport = g.cfg.Transport
		return conf, nil
	}

	host, port, err := splitHostPort(g.cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("gossip: listen address %q: %w", g.cfg.Listen, err)
	}
	conf.BindPort, conf.AdvertisePort = port, port
	if conf.BindAddr, err = resolve(ctx, host, "0.0.0.0"); err != nil {
		return nil, fmt.Errorf("gossip: listen address %q: %w", g.cfg.Listen, err)
	}
	if g.cfg.Advertise != "" {
		host := g.cfg.Advertise
		if h, p, err := splitHostPort(g.cfg.Advertise); err == nil {
			host, conf.AdvertisePort = h, p
		}
		if conf.AdvertiseAddr, err = resolve(ctx, host, ""); err != nil {
			return nil, fmt.Errorf("gossip: advertised address %q: %w", g.cfg.Advertise, err)
		}
	}
	if g.cfg.Faults != nil {
		return conf, underFaults(conf, g.cfg.Faults)
	}
	return conf, nil
}

// listenError says what to do about an error of memberlist.Create.
func (g *Gossip) listenError(err error) error {
	text := oneLine(err)
	switch {
	case strings.Contains(text, syscall.EADDRINUSE.Error()):
		return fmt.Errorf("gossip: cannot listen on %s (TCP and UDP): another process uses the port; stop it (ss -lntup shows it) or choose another port: %w", g.cfg.Listen, err)
	case strings.Contains(text, syscall.EADDRNOTAVAIL.Error()):
		return fmt.Errorf("gossip: cannot listen on %s: this machine does not have that address: %w", g.cfg.Listen, err)
	case strings.Contains(text, "advertise address"):
		return fmt.Errorf("gossip: cannot tell which address others should use; set the advertised address: %w", err)
	}
	return fmt.Errorf("gossip: cannot listen on %s: %w", g.cfg.Listen, err)
}

func splitHostPort(s string) (string, int, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, errors.New("want host:port")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("port %q: want a number from 0 to 65535", port)
	}
	return host, int(n), nil
}

// resolve turns a host into an IP address, which is all that memberlist takes.
func resolve(ctx context.Context, host, empty string) (string, error) {
	if host == "" {
		if empty == "" {
			return "", errors.New("want a host")
		}
		return empty, nil
	}
	if ip := net.ParseIP(host); ip != nil {
		return host, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ips, err := net.DefaultResolver.LookupIP(ctx, "ip", host)
	if err != nil {
		return "", err
	}
	return ips[0].String(), nil
}
