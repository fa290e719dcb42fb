package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
)

var testKey = bytes.Repeat([]byte{7}, 32)

// cluster runs members on a network in memory, under virtual time.
type cluster struct {
	t       *testing.T
	net     *network
	join    []string // all addresses ever used
	members map[string]*testMember
}

type testMember struct {
	*Gossip
	host *host
	stop func()
}

func newCluster(t *testing.T) *cluster {
	return &cluster{t: t, net: newNetwork(), members: make(map[string]*testMember)}
}

// Start adds a member, with changes to its Config.
func (c *cluster) Start(name string, change ...func(*Config)) *testMember {
	c.t.Helper()
	h := c.net.Host()
	c.join = append(c.join, h.Address())
	join := append([]string(nil), c.join...)
	cfg := Config{
		Name: name, Role: RolePeer, ClusterID: "c-1", Key: testKey, API: name + ":7443",
		Transport: h, Join: func() []string { return join },
	}
	for _, f := range change {
		f(&cfg)
	}
	g, err := New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	m := &testMember{Gossip: g, host: h}
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("%s: Run: %v", name, err)
		}
	})
	c.members[name] = m
	<-g.Ready()
	return m
}

// Kill ends a member without a word, as kill -9 does.
func (c *cluster) Kill(name string) {
	m := c.members[name]
	delete(c.members, name)
	c.net.mu.Lock()
	delete(c.net.hosts, m.host.Address())
	c.net.mu.Unlock()
	m.stop()
}

// StopAll ends all members. memberlist's Shutdown does not wait for a probe or
// a dial that is under way, so this does: the bubble may not end before them.
func (c *cluster) StopAll() {
	for _, m := range c.members {
		m.stop()
	}
	time.Sleep(10 * time.Second) // virtual; more than any timeout of memberlist
}

// Await returns how long it took until every member sees name as state.
func (c *cluster) Await(name string, state State, limit time.Duration) time.Duration {
	c.t.Helper()
	start := time.Now()
	for observer, m := range c.members {
		if observer == name {
			continue
		}
		m.await(c.t, name, state, limit-time.Since(start))
	}
	return time.Since(start)
}

// await blocks until g sees name as state. It wakes by Changed alone, and so
// tests that as well.
func (g *Gossip) await(t *testing.T, name string, state State, limit time.Duration) {
	t.Helper()
	timeout := time.After(limit)
	for {
		changed := g.Changed()
		m, ok := g.Member(name)
		if ok && m.State == state {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("%s sees %q as %q (known: %v) after %v, want %q; all: %+v", g.cfg.Name, name, m.State, ok, limit, state, g.Members())
		}
	}
}

func fiveMembers(t *testing.T, change ...func(*Config)) *cluster {
	t.Helper()
	c := newCluster(t)
	for i := range 5 {
		c.Start(fmt.Sprintf("m%d", i+1), change...)
	}
	for i := range 5 {
		c.Await(fmt.Sprintf("m%d", i+1), StateAlive, 10*time.Second)
	}
	return c
}

func TestMembersKnowEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fiveMembers(t, func(cfg *Config) {
			if cfg.Name == "m5" {
				cfg.Role, cfg.API = RoleNode, ""
			}
		})
		defer c.StopAll()
		for observer, m := range c.members {
			got := m.Members()
			if len(got) != 5 {
				t.Fatalf("%s sees %d members, want 5: %+v", observer, len(got), got)
			}
			for i, member := range got {
				name := fmt.Sprintf("m%d", i+1)
				want := Member{Name: name, Role: RolePeer, Address: c.members[name].host.Address(), API: name + ":7443", State: StateAlive, Since: member.Since}
				if name == "m5" {
					want.Role, want.API = RoleNode, ""
				}
				if member != want {
					t.Errorf("%s sees %+v, want %+v", observer, member, want)
				}
			}
		}
	})
}

// TestSuspectThenDead demands the time that DESIGN.md promises for five members:
// a killed one is dead for all others within 5 s, and suspect before.
func TestSuspectThenDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fiveMembers(t)
		defer c.StopAll()
		start := time.Now()
		c.Kill("m3")
		suspect := c.Await("m3", StateSuspect, 3*time.Second)
		c.Await("m3", StateDead, 5*time.Second-time.Since(start))
		t.Logf("suspect for all after %v, dead for all after %v", suspect, time.Since(start))
		if suspect < 200*time.Millisecond {
			t.Errorf("suspect after %v: no probe can have failed by then", suspect)
		}
		if m, _ := c.members["m1"].Member("m4"); m.State != StateAlive {
			t.Errorf("m4 is %q, want alive: only m3 was killed", m.State)
		}
	})
}

// TestSuspectRefutes: one that was silent for a moment is alive again, without
// having been dead.
func TestSuspectRefutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fiveMembers(t)
		defer c.StopAll()
		m1 := c.members["m1"]
		lost := c.members["m3"].host.Address()
		c.net.Cut(func(from, to string) bool { return from == lost || to == lost })
		m1.await(t, "m3", StateSuspect, 3*time.Second)
		c.net.Cut(nil)
		for {
			changed := m1.Changed()
			m, _ := m1.Member("m3")
			if m.State == StateDead {
				t.Fatal("m3 is dead, want alive again: it was back within its time")
			}
			if m.State == StateAlive {
				return
			}
			select {
			case <-changed:
			case <-time.After(5 * time.Second):
				t.Fatalf("m3 is still %q 5 s after the network healed", m.State)
			}
		}
	})
}

func TestReturnsUnderNewAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fiveMembers(t)
		defer c.StopAll()
		old := c.members["m3"].host.Address()
		c.Kill("m3")
		c.Await("m3", StateDead, 10*time.Second)
		back := c.Start("m3")
		if back.Address() == old {
			t.Fatal("the test gave m3 its old address")
		}
		took := c.Await("m3", StateAlive, 15*time.Second)
		t.Logf("alive for all after %v", took)
		for observer, m := range c.members {
			if got, _ := m.Member("m3"); got.Address != back.Address() {
				t.Errorf("%s has m3 at %s, want %s", observer, got.Address, back.Address())
			}
		}
	})
}

// TestReturnsBeforeDead: a machine that reboots quickly under a new address is
// taken for an impostor until its old address is dead, and then let in.
func TestReturnsBeforeDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fiveMembers(t)
		defer c.StopAll()
		c.Kill("m3")
		back := c.Start("m3")
		start := time.Now()
		for observer, m := range c.members {
			for {
				changed := m.Changed()
				if got, _ := m.Member("m3"); got.State == StateAlive && got.Address == back.Address() {
					break
				}
				select {
				case <-changed:
				case <-time.After(20 * time.Second):
					got, _ := m.Member("m3")
					t.Fatalf("%s has m3 %s at %s, want alive at %s", observer, got.State, got.Address, back.Address())
				}
			}
		}
		t.Logf("alive at the new address for all after %v", time.Since(start))
	})
}

func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fiveMembers(t, func(cfg *Config) { cfg.LeaveOnStop = true })
		defer c.StopAll()
		m := c.members["m2"]
		delete(c.members, "m2")
		m.stop()
		if took := c.Await("m2", StateLeft, 2*time.Second); took > time.Second {
			t.Errorf("left for all after %v, want less than the time to death: it said goodbye", took)
		}
	})
}

// TestHealedPartition: the two sides have forgotten each other in memberlist and
// still find each other again.
func TestHealedPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Each starts with the addresses of those before it, so m1 knows none: what
		// it finds again, it finds by remembering the dead.
		c := fiveMembers(t)
		defer c.StopAll()
		left := map[string]bool{c.members["m1"].Address(): true, c.members["m2"].Address(): true}
		c.net.Cut(func(from, to string) bool { return left[from] != left[to] })
		m1, m5 := c.members["m1"], c.members["m5"]
		m1.await(t, "m5", StateDead, 20*time.Second)
		m5.await(t, "m1", StateDead, 20*time.Second)
		time.Sleep(5 * time.Minute) // virtual: memberlist forgets the dead after 30 s
		c.net.Cut(nil)
		for i := range 5 {
			c.Await(fmt.Sprintf("m%d", i+1), StateAlive, 30*time.Second)
		}
	})
}

func TestWrongKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fiveMembers(t)
		defer c.StopAll()
		stranger := c.Start("stranger", func(cfg *Config) { cfg.Key = bytes.Repeat([]byte{8}, 32) })
		time.Sleep(30 * time.Second) // virtual: dozens of attempts
		assertApart(t, c, stranger)
	})
}

func TestOtherClustersLabel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fiveMembers(t)
		defer c.StopAll()
		stranger := c.Start("stranger", func(cfg *Config) { cfg.ClusterID = "c-2" })
		time.Sleep(30 * time.Second) // virtual
		assertApart(t, c, stranger)
	})
}

// TestForeignMeta: whoever has key and label but is no Holdfast member.
func TestForeignMeta(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fiveMembers(t)
		defer c.StopAll()
		conf := memberlist.DefaultLANConfig()
		conf.Name, conf.Label, conf.SecretKey = "stranger", "c-1", testKey
		conf.Transport = c.net.Host()
		conf.LogOutput = io.Discard
		list, err := memberlist.Create(conf)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			_, _ = list.Join(c.join)    // it learns about them; what counts is what they learn
			time.Sleep(3 * time.Second) // virtual
		}
		if err := list.Shutdown(); err != nil {
			t.Fatal(err)
		}
		for observer, m := range c.members {
			if got, ok := m.Member("stranger"); ok {
				t.Errorf("%s took in %+v", observer, got)
			}
		}
	})
}

func assertApart(t *testing.T, c *cluster, stranger *testMember) {
	t.Helper()
	if got := stranger.Members(); len(got) != 1 {
		t.Errorf("the stranger sees %+v, want itself alone", got)
	}
	for observer, m := range c.members {
		if m == stranger {
			continue
		}
		if got, ok := m.Member("stranger"); ok {
			t.Errorf("%s took in %+v", observer, got)
		}
	}
}

func TestMeta(t *testing.T) {
	for _, m := range []meta{{Role: RolePeer, API: "10.0.0.1:7443"}, {Role: RolePeer, API: "10.0.0.1:7443", Etcd: "10.0.0.1:2379"}, {Role: RoleNode}} {
		got, err := decodeMeta(m.encode())
		if err != nil || got != m {
			t.Errorf("decodeMeta(encode(%+v)) = %+v, %v", m, got, err)
		}
		later := append(m.encode(), "what a later version adds"...)
		later[0] = 9
		if got, err := decodeMeta(later); err != nil || got != m {
			t.Errorf("a later version's meta data: %+v, %v, want %+v", got, err, m)
		}
	}
	earlier := []byte{1, 'p', 3, 'a', ':', '1'}
	if got, err := decodeMeta(earlier); err != nil || got != (meta{Role: RolePeer, API: "a:1"}) {
		t.Errorf("meta data from before etcd's API: %+v, %v", got, err)
	}
	bad := map[string][]byte{
		"empty":        nil,
		"cut off etcd": {1, 'p', 1, 'a', 5, 'b'},
		"version 0":    {0, 'p', 0},
		"no role":      {1},
		"unknown role": {1, 'x', 0},
		"cut off":      {1, 'p', 5, 'a'},
		"no length":    {1, 'p'},
		"huge length":  {1, 'p', 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},
	}
	for name, data := range bad {
		if m, err := decodeMeta(data); err == nil {
			t.Errorf("%s: decoded as %+v", name, m)
		}
	}
}

func FuzzDecodeMeta(f *testing.F) {
	f.Add(meta{Role: RolePeer, API: "10.0.0.1:7443"}.encode())
	f.Add([]byte{1, 'p', 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decodeMeta(data)
		if err != nil {
			return
		}
		if again, err := decodeMeta(m.encode()); err != nil || again != m {
			t.Errorf("%+v encodes to what decodes as %+v, %v", m, again, err)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	good := Config{Name: "m1", Role: RolePeer, Listen: "127.0.0.1:0", ClusterID: "c-1", Key: testKey}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no name", func(c *Config) { c.Name = "" }, "name"},
		{"unknown role", func(c *Config) { c.Role = "admin" }, "role"},
		{"no cluster", func(c *Config) { c.ClusterID = "" }, "cluster id"},
		{"short key", func(c *Config) { c.Key = c.Key[:16] }, "key of 16 bytes"},
		{"no port", func(c *Config) { c.Listen = "127.0.0.1" }, "host:port"},
		{"port too large", func(c *Config) { c.Listen = "127.0.0.1:70000" }, "port"},
		{"api too long", func(c *Config) { c.API = strings.Repeat("a", 600) }, "too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good
			tt.change(&cfg)
			if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// TestLoopback covers what the network in memory cannot: sockets. Two members
// meet over UDP and TCP, one dies.
func TestLoopback(t *testing.T) {
	var logs lockedBuffer
	first := startLoopback(t, "m1", nil, slog.New(slog.NewTextHandler(&logs, nil)))
	join := func() []string { return []string{first.Address()} }
	names := []string{"m1"}
	all := []*Gossip{first.Gossip}
	var last *testMember
	for i := 2; i <= 5; i++ {
		name := fmt.Sprintf("m%d", i)
		last = startLoopback(t, name, join, nil)
		names, all = append(names, name), append(all, last.Gossip)
	}
	for _, g := range all {
		for _, name := range names {
			g.await(t, name, StateAlive, 10*time.Second)
		}
	}
	start := time.Now()
	last.stop()
	first.await(t, "m5", StateDead, 10*time.Second)
	t.Logf("dead after %v", time.Since(start))
	if !strings.Contains(logs.String(), `msg="member dead" member=m5`) {
		t.Errorf("no log line about m5's death in:\n%s", logs.String())
	}
	if n := strings.Count(logs.String(), "\n"); n > 12 {
		t.Errorf("%d log lines, want about one for each change of state:\n%s", n, logs.String())
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g, err := New(Config{Name: "m1", Role: RoleNode, Listen: l.Addr().String(), ClusterID: "c-1", Key: testKey})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = g.Run(ctx)
	if err == nil || !strings.Contains(err.Error(), "another process uses the port") || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("Run: %v, want the address and what to do", err)
	}
}

func startLoopback(t *testing.T, name string, join func() []string, log *slog.Logger) *testMember {
	t.Helper()
	g, err := New(Config{
		Name: name, Role: RoleNode, Listen: "127.0.0.1:0", ClusterID: "c-1", Key: testKey,
		Join: join, ProbeInterval: 100 * time.Millisecond, Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	m := &testMember{Gossip: g, stop: sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: Run: %v", name, err)
		}
	})}
	t.Cleanup(m.stop)
	select {
	case <-g.Ready():
	case err := <-done:
		t.Fatalf("%s: Run: %v", name, err)
	}
	return m
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
