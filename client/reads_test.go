package client

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// TestHedgedRead: a peer that has gone silent holds no read up, long before it
// counts as dead, and the client stays with it until it does.
func TestHedgedRead(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 2)
	released := make(chan struct{})
	c := newTestClient(t, ca, addresses(peers), func(cfg *Config) { cfg.ReadHedge = 50 * time.Millisecond })
	first := byName(t, peers, get(t, c))
	first.get = func(ctx context.Context) error {
		defer close(released)
		<-ctx.Done() // the slower attempt is ended
		return ctx.Err()
	}
	if got := get(t, c); got == first.name {
		t.Errorf("served by %s, which does not answer", got)
	}
	<-released
	if c.Peer() != first.addr {
		t.Errorf("the client left %s, which is alive, for %s", first.addr, c.Peer())
	}
}

// TestHedgedVerdict: an error of the state, such as "not found", is an answer; no
// second peer is waited for.
func TestHedgedVerdict(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 2)
	c := newTestClient(t, ca, addresses(peers), func(cfg *Config) { cfg.ReadHedge = time.Hour })
	for _, p := range peers {
		p.get = func(context.Context) error { return connect.NewError(connect.CodeNotFound, "no such thing") }
	}
	_, err := c.Objects().Get(t.Context(), &holdfastv1.GetRequest{Name: "web"})
	wantCode(t, err, connect.CodeNotFound)
	if n := totalCalls(peers); n != 1 {
		t.Errorf("%d calls were made, want 1", n)
	}
}

// TestWritesAreNotHedged: however long a write takes, it is sent once.
func TestWritesAreNotHedged(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 2)
	for _, p := range peers {
		p.create = func(ctx context.Context) error {
			select {
			case <-time.After(200 * time.Millisecond): // many times ReadHedge
			case <-ctx.Done():
			}
			return nil
		}
	}
	c := newTestClient(t, ca, addresses(peers), func(cfg *Config) { cfg.ReadHedge = time.Millisecond })
	if _, err := create(t, c); err != nil {
		t.Fatal(err)
	}
	if n := totalCalls(peers); n != 1 {
		t.Errorf("the write was sent %d times", n)
	}
}

// TestLearnsPeers: a client that knows one peer learns of the others from its
// answers, tells its owner, and goes to one of them when the first dies.
func TestLearnsPeers(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 3)
	all := addresses(peers)
	for _, p := range peers {
		p.peers = strings.Join(all, ",")
	}
	told := make(chan []string, 10)
	c := newTestClient(t, ca, all[:1], func(cfg *Config) { cfg.OnPeers = func(a []string) { told <- a } })
	if got := get(t, c); got != peers[0].name {
		t.Fatalf("served by %s, which the client cannot know", got)
	}
	if got := <-told; !slices.Equal(got, all) {
		t.Errorf("told of %v, want %v", got, all)
	}
	peers[0].Kill()
	if got := get(t, c); got == peers[0].name {
		t.Errorf("served by %s, which is dead", got)
	}
	select {
	case again := <-told:
		t.Errorf("told of %v again, though nothing changed", again)
	default:
	}
}

// TestFixedPeers: who asked for one peer gets that one.
func TestFixedPeers(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 2)
	peers[0].peers = strings.Join(addresses(peers), ",")
	for name, fix := range map[string]func(*Client){
		"by Config":   func(c *Client) { c.cfg.OnlyThese = true },
		"by SetPeers": func(c *Client) { c.SetPeers([]string{peers[0].addr}) },
	} {
		c := newTestClient(t, ca, []string{peers[0].addr})
		fix(c)
		get(t, c)
		if got := c.Peers(); !slices.Equal(got, []string{peers[0].addr}) {
			t.Errorf("%s: peers are %v after an answer", name, got)
		}
	}
}

// TestReadsOwnWrites: a read of consistency session or bounded waits, at whichever
// peer, for the client's last write, and for what it read before.
func TestReadsOwnWrites(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 1)
	asked := make(chan *holdfastv1.ReadOptions, 1)
	peers[0].revision = 41
	peers[0].read = func(r *holdfastv1.ReadOptions) { asked <- r }
	c := newTestClient(t, ca, addresses(peers))
	if _, err := create(t, c); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		read *holdfastv1.ReadOptions
		want int64
	}{
		{nil, 0},
		{&holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LINEARIZABLE}, 0},
		{&holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL}, 0},
		{&holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_SESSION}, 41},
		{&holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_SESSION, MinRevision: 7}, 7},
		{&holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_BOUNDED, MaxAge: durationpb.New(time.Minute)}, 41},
	} {
		before := test.read.GetMinRevision()
		if _, err := c.Objects().Get(t.Context(), &holdfastv1.GetRequest{Name: "web", Read: test.read}); err != nil {
			t.Fatal(err)
		}
		if got := (<-asked).GetMinRevision(); got != test.want {
			t.Errorf("%v: the peer is asked for revision %d, want %d", test.read, got, test.want)
		}
		if test.read.GetMinRevision() != before {
			t.Errorf("%v: the caller's message was changed", test.read)
		}
	}
}

// TestHedgedAttemptsShareNothing: both attempts are answered at the same moment; the
// race detector sees what they share.
func TestHedgedAttemptsShareNothing(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 2)
	c := newTestClient(t, ca, addresses(peers), func(cfg *Config) { cfg.ReadHedge = 5 * time.Millisecond })
	get(t, c)
	both := make(chan struct{}, 1) // holds a token while one attempt waits for the other
	met := make(chan struct{})
	for _, p := range peers {
		p.get = func(ctx context.Context) error {
			select {
			case both <- struct{}{}:
				select {
				case <-met:
				case <-ctx.Done():
				}
			case met <- struct{}{}:
				<-both
			case <-ctx.Done():
			}
			return nil
		}
	}
	for range 20 {
		get(t, c)
	}
}
