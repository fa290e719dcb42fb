package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

var discardLog = log.New(io.Discard, "", 0)

func TestSticky(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 3)
	c := newTestClient(t, ca, addresses(peers))
	first := get(t, c)
	for range 20 {
		if got := get(t, c); got != first {
			t.Fatalf("served by %s after %s: want one and the same peer", got, first)
		}
	}
	if want := byName(t, peers, first).addr; c.Peer() != want {
		t.Errorf("Peer() = %q, want %q", c.Peer(), want)
	}
}

func TestKilledBetweenCalls(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 3)
	var logs lockedBuffer
	c := newTestClient(t, ca, addresses(peers), func(cfg *Config) { cfg.Logger = slog.New(slog.NewTextHandler(&logs, nil)) })
	first := get(t, c)
	byName(t, peers, first).Kill()
	// A write, which is not repeated lightly: nothing has been sent, so it is safe.
	second, err := create(t, c)
	if err != nil {
		t.Fatalf("Create after %s was killed: %v", first, err)
	}
	if second == first {
		t.Fatalf("served by %s, which is dead", second)
	}
	get(t, c)
	if n := strings.Count(logs.String(), "connected to another peer"); n != 1 {
		t.Errorf("the move is logged %d times, want once:\n%s", n, logs.String())
	}
}

func TestKilledInStream(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 3)
	c := newTestClient(t, ca, addresses(peers))
	stream, err := c.Objects().Watch(t.Context(), &holdfastv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	first := get(t, c)
	byName(t, peers, first).Kill()
	_, err = stream.Receive()
	wantCode(t, err, connect.CodeUnavailable)
	if !strings.Contains(err.Error(), byName(t, peers, first).addr) {
		t.Errorf("error %q does not name the peer", err)
	}
	again, err := c.Objects().Watch(t.Context(), &holdfastv1.WatchRequest{})
	if err != nil {
		t.Fatalf("Watch after the peer's death: %v", err)
	}
	defer again.Close()
	if _, err := again.Receive(); err != nil {
		t.Fatal(err)
	}
	if second := get(t, c); second == first {
		t.Errorf("served by %s, which is dead", second)
	}
}

// TestUnavailableGoesElsewhere: nothing was proposed, so even a write may be
// repeated.
func TestUnavailableGoesElsewhere(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 3)
	for _, p := range peers[:2] {
		p.create = func(context.Context) error { return connect.NewError(connect.CodeUnavailable, "no leader") }
	}
	c := newTestClient(t, ca, addresses(peers))
	start := time.Now()
	served, err := create(t, c)
	if err != nil {
		t.Fatal(err)
	}
	if served != "p3" {
		t.Errorf("served by %s, want p3, the only one that can", served)
	}
	if n := totalCalls(peers); n > 3 {
		t.Errorf("%d calls arrived, want at most one at each peer", n)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("took %v: there was no reason to wait", d)
	}
}

// TestUnavailableOnlyPeer: with nowhere to go the same peer is asked again,
// with pauses.
func TestUnavailableOnlyPeer(t *testing.T) {
	ca := testCA(t)
	peer := startPeer(t, ca, "p1")
	peer.create = func(context.Context) error {
		if peer.calls.Load() < 4 {
			return connect.NewError(connect.CodeUnavailable, "no leader")
		}
		return nil
	}
	c := newTestClient(t, ca, []string{peer.addr})
	if _, err := create(t, c); err != nil {
		t.Fatal(err)
	}
	if n := peer.calls.Load(); n != 4 {
		t.Errorf("%d calls arrived, want 4", n)
	}
	if n := peer.proxy.accepted.Load(); n != 1 {
		t.Errorf("%d connections, want 1: leaving the only peer is of no use", n)
	}
}

func TestUnavailableForGood(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 2)
	for _, p := range peers {
		p.create = func(context.Context) error { return connect.NewError(connect.CodeUnavailable, "no leader for 10s") }
	}
	c := newTestClient(t, ca, addresses(peers), func(cfg *Config) { cfg.RetryFor = 500 * time.Millisecond })
	start := time.Now()
	_, err := create(t, c)
	elapsed := time.Since(start)
	wantCode(t, err, connect.CodeUnavailable)
	if elapsed < 400*time.Millisecond || elapsed > 3*time.Second {
		t.Errorf("gave up after %v, want about 500ms", elapsed)
	}
	for _, part := range []string{"gave up on Create", "no leader for 10s"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q lacks %q", err, part)
		}
	}
	if n := totalCalls(peers); n < 3 || n > 30 {
		t.Errorf("%d calls arrived, want some, with pauses between them", n)
	}
}

// TestSlowRefusals: peers in a minority take as long as a whole retry time to
// say so, and the others are still asked.
func TestSlowRefusals(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 3)
	for _, p := range peers[:2] {
		p.create = func(context.Context) error {
			time.Sleep(300 * time.Millisecond) // the work of a peer that waits for a leader
			return connect.NewError(connect.CodeUnavailable, "no leader")
		}
	}
	c := newTestClient(t, ca, addresses(peers), func(cfg *Config) { cfg.RetryFor = 250 * time.Millisecond })
	served, err := create(t, c)
	if err != nil || served != "p3" {
		t.Fatalf("served by %q, %v; want p3", served, err)
	}
}

func TestContextEndsRetries(t *testing.T) {
	ca := testCA(t)
	peer := startPeer(t, ca, "p1")
	peer.create = func(context.Context) error { return connect.NewError(connect.CodeUnavailable, "no leader") }
	c := newTestClient(t, ca, []string{peer.addr})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := c.Objects().Create(ctx, &holdfastv1.CreateRequest{})
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("returned after %v, want about 300ms", d)
	}
	wantCode(t, err, connect.CodeUnavailable)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no leader") {
		t.Errorf("error %v, want the deadline and the last refusal in it", err)
	}
}

// TestOthersAreNotRetried: these codes are answers.
func TestOthersAreNotRetried(t *testing.T) {
	ca := testCA(t)
	for _, code := range []connect.Code{connect.CodeUnknown, connect.CodeAborted, connect.CodeNotFound, connect.CodeInternal, connect.CodeDeadlineExceeded} {
		t.Run(code.String(), func(t *testing.T) {
			peers := startPeers(t, ca, 2)
			for _, p := range peers {
				p.create = func(context.Context) error { return connect.NewError(code, "so it is") }
				p.get = p.create
			}
			c := newTestClient(t, ca, addresses(peers))
			_, err := create(t, c)
			wantCode(t, err, code)
			_, err = c.Objects().Get(t.Context(), &holdfastv1.GetRequest{})
			wantCode(t, err, code)
			if n := totalCalls(peers); n != 2 {
				t.Errorf("%d calls arrived, want 2, one each", n)
			}
		})
	}
}

// brokenCalls starts peers of which the first that is called dies with the call
// in its hands.
func brokenCalls(t *testing.T, ca *pki.CA, die func(p *testPeer)) []*testPeer {
	peers := startPeers(t, ca, 3)
	var first sync.Once
	for _, p := range peers {
		p.create = func(ctx context.Context) error {
			dying := false
			first.Do(func() { dying = true })
			if dying {
				die(p)
				select {
				case <-ctx.Done():
				case <-t.Context().Done():
				}
			}
			return nil
		}
		p.get = p.create
	}
	return peers
}

func TestWriteBrokenInFlight(t *testing.T) {
	ca := testCA(t)
	peers := brokenCalls(t, ca, func(p *testPeer) { p.Kill() })
	c := newTestClient(t, ca, addresses(peers))
	_, err := create(t, c)
	wantCode(t, err, connect.CodeUnknown)
	if !strings.Contains(err.Error(), "may have been carried out") {
		t.Errorf("error %q does not say what to make of it", err)
	}
	if n := totalCalls(peers); n != 1 {
		t.Errorf("%d calls arrived, want 1: it may have been carried out", n)
	}
	if _, err := create(t, c); err != nil {
		t.Errorf("the next call: %v, want another peer to answer", err)
	}
}

func TestReadBrokenInFlight(t *testing.T) {
	ca := testCA(t)
	peers := brokenCalls(t, ca, func(p *testPeer) { p.Kill() })
	c := newTestClient(t, ca, addresses(peers))
	get(t, c)
	if n := totalCalls(peers); n != 2 {
		t.Errorf("%d calls arrived, want 2: the one that broke and its repetition", n)
	}
}

// TestFrozenPeer: the connection stays open and nothing comes any more. Only
// pings can tell.
func TestFrozenPeer(t *testing.T) {
	ca := testCA(t)
	t.Run("read", func(t *testing.T) {
		peers := brokenCalls(t, ca, func(p *testPeer) { p.proxy.Freeze() })
		c := newTestClient(t, ca, addresses(peers))
		start := time.Now()
		get(t, c)
		if d := time.Since(start); d < 400*time.Millisecond || d > 4*time.Second {
			t.Errorf("another peer answered after %v, want PingInterval + PingTimeout (600ms) and a bit", d)
		}
	})
	t.Run("write", func(t *testing.T) {
		peers := brokenCalls(t, ca, func(p *testPeer) { p.proxy.Freeze() })
		c := newTestClient(t, ca, addresses(peers))
		_, err := create(t, c)
		wantCode(t, err, connect.CodeUnknown)
		if !strings.Contains(err.Error(), "stopped answering") {
			t.Errorf("error %q does not say what happened", err)
		}
	})
	t.Run("stream", func(t *testing.T) {
		peers := startPeers(t, ca, 2)
		c := newTestClient(t, ca, addresses(peers))
		stream, err := c.Objects().Watch(t.Context(), &holdfastv1.WatchRequest{})
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		if _, err := stream.Receive(); err != nil {
			t.Fatal(err)
		}
		byName(t, peers, get(t, c)).proxy.Freeze()
		_, err = stream.Receive() // bounded by the test's deadline, and by pings
		wantCode(t, err, connect.CodeUnavailable)
	})
}

// TestBlackHole: a peer that accepts connections and never says a word must not
// cost more than the hedge's delay.
func TestBlackHole(t *testing.T) {
	ca := testCA(t)
	hole := startPeer(t, ca, "hole")
	hole.proxy.Freeze()
	good := startPeer(t, ca, "p1")
	for i := range 5 { // the order of first attempts is random
		c := newTestClient(t, ca, []string{hole.addr, good.addr})
		start := time.Now()
		if got := get(t, c); got != "p1" {
			t.Fatalf("served by %q", got)
		}
		if d := time.Since(start); d > 1500*time.Millisecond {
			t.Errorf("attempt %d took %v, want the hedge's 100ms and a bit", i, d)
		}
		c.Close()
	}
}

func TestNobodyThere(t *testing.T) {
	ca := testCA(t)
	a, b := closedPort(t), closedPort(t)
	c := newTestClient(t, ca, []string{a, b}, func(cfg *Config) { cfg.RetryFor = 200 * time.Millisecond })
	_, err := create(t, c)
	wantCode(t, err, connect.CodeUnavailable)
	for _, part := range []string{a, b, "nothing listens there", "gave up on Create"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q lacks %q", err, part)
		}
	}
	stream, err := c.Objects().Watch(t.Context(), &holdfastv1.WatchRequest{})
	if err == nil { // Connect opens streams in the background
		_, err = stream.Receive()
	}
	wantCode(t, err, connect.CodeUnavailable)
}

// TestPeerComesUp: calls made while all peers are down succeed once one is up.
func TestPeerComesUp(t *testing.T) {
	ca := testCA(t)
	peer := startPeer(t, ca, "p1")
	addr := closedPort(t)
	c := newTestClient(t, ca, []string{addr})
	done := make(chan error, 1)
	go func() {
		_, err := c.Objects().Create(t.Context(), &holdfastv1.CreateRequest{})
		done <- err
	}()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("somebody took the port: %v", err)
	}
	forward := &proxy{addr: addr, target: peer.proxy.target, listener: l, conns: make(map[net.Conn]struct{})}
	forward.wg.Go(forward.accept)
	defer forward.Kill()
	if err := <-done; err != nil {
		t.Errorf("Create: %v", err)
	}
}

// TestGracefulShutdown: a peer that goes in good order costs no call, not even a
// write. It holds notProcessed's reading of net/http's errors.
func TestGracefulShutdown(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 2)
	c := newTestClient(t, ca, addresses(peers))
	first := byName(t, peers, get(t, c))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	var done atomic.Int64
	fail := make(chan error, 8)
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := c.Objects().Create(t.Context(), &holdfastv1.CreateRequest{}); err != nil {
					fail <- err
					return
				}
				done.Add(1)
			}
		})
	}
	for done.Load() < 50 {
		if len(fail) > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	stopCtx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	if err := first.server.Shutdown(stopCtx); err != nil {
		t.Fatalf("Shutdown: %v", err)
	}
	at := done.Load()
	for done.Load() < at+50 {
		if len(fail) > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	wg.Wait()
	select {
	case err := <-fail:
		t.Errorf("a write failed in a shutdown in good order: %v", err)
	default:
	}
}

// TestCallsThroughFailures has many callers while peers come and go: run it with
// the race detector. Reads must all succeed.
func TestCallsThroughFailures(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 4)
	c := newTestClient(t, ca, addresses(peers))
	var wg sync.WaitGroup
	var done atomic.Int64
	stop := make(chan struct{})
	for i := range 16 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if i == 0 {
					c.Switch("the test says so")
					c.SetPeers(c.Peers())
					_ = c.Peer()
				}
				if _, err := c.Objects().Get(t.Context(), &holdfastv1.GetRequest{}); err != nil {
					t.Errorf("Get: %v", err)
					return
				}
				done.Add(1)
			}
		})
	}
	for i, p := range peers[:3] {
		waitFor(t, func() bool { return done.Load() > int64(100*(i+1)) || t.Failed() })
		if i == 1 {
			p.proxy.Freeze()
		} else {
			p.Kill()
		}
	}
	at := done.Load()
	waitFor(t, func() bool { return done.Load() > at+100 || t.Failed() })
	close(stop)
	wg.Wait()
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("nothing moved for 30 s")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestSwitch(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 2)
	c := newTestClient(t, ca, addresses(peers))
	stream, err := c.Objects().Watch(t.Context(), &holdfastv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	first := get(t, c)
	c.Switch("the test says so")
	if c.Peer() != "" {
		t.Errorf("Peer() = %q right after Switch, want none", c.Peer())
	}
	if second := get(t, c); second == first {
		t.Fatalf("still served by %s", second)
	}
	c.mu.Lock()
	conns := len(c.conns)
	c.mu.Unlock()
	if conns != 2 {
		t.Errorf("%d connections, want 2: the stream is still open on the old one", conns)
	}
	// The old connection goes with its last stream.
	if err := stream.Close(); err != nil && connect.CodeOf(err) != connect.CodeCanceled {
		t.Fatalf("close the stream: %v", err)
	}
	waitFor(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.conns) == 1
	})
}

func TestSetPeers(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 3)
	c := newTestClient(t, ca, []string{peers[0].addr})
	if got := get(t, c); got != "p1" {
		t.Fatalf("served by %s", got)
	}
	c.SetPeers(nil)
	if got := get(t, c); got != "p1" {
		t.Fatalf("after SetPeers of nobody: served by %s", got)
	}
	c.SetPeers([]string{peers[0].addr, peers[1].addr})
	if got := get(t, c); got != "p1" {
		t.Errorf("served by %s: a longer list is no reason to move", got)
	}
	c.SetPeers([]string{peers[2].addr, peers[2].addr})
	if got := get(t, c); got != "p3" {
		t.Errorf("served by %s, want p3: p1 is no longer of the cluster", got)
	}
	if got := c.Peers(); len(got) != 1 {
		t.Errorf("Peers() = %v, want one", got)
	}
}

func TestClose(t *testing.T) {
	ca := testCA(t)
	peer := startPeer(t, ca, "p1")
	c := newTestClient(t, ca, []string{peer.addr})
	get(t, c)
	stream, err := c.Objects().Watch(t.Context(), &holdfastv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := stream.Receive(); err == nil {
		t.Error("a stream outlived Close")
	}
	start := time.Now()
	_, err = create(t, c)
	if err == nil || !strings.Contains(err.Error(), "client is closed") || time.Since(start) > time.Second {
		t.Errorf("Create after Close: %v after %v, want an error at once", err, time.Since(start))
	}
}

// TestOtherCluster: both sides refuse, at once and with a reason.
func TestOtherCluster(t *testing.T) {
	ours := testCA(t)
	theirs, err := pki.NewCA("c-2")
	if err != nil {
		t.Fatal(err)
	}
	peer := startPeer(t, theirs, "p1")
	c := newTestClient(t, ours, []string{peer.addr})
	start := time.Now()
	_, err = create(t, c)
	wantCode(t, err, connect.CodeUnauthenticated)
	for _, part := range []string{"not a peer of this cluster", "spiffe://c-2/peer/p1"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q lacks %q", err, part)
		}
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("took %v: waiting cannot help", d)
	}
}

// TestForeignCertificate: the peer refuses our certificate. With TLS 1.3 we learn
// of it when the first call fails, which must not count as sent.
func TestForeignCertificate(t *testing.T) {
	old, next := testCA(t), testCA(t) // one cluster, two CAs
	peer := startPeer(t, old, "p1")   // trusts old alone
	key, csr, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := next.Sign(csr, pki.Identity{Cluster: "c-1", Role: pki.RoleAdmin, Name: "admin"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	creds, err := pki.NewCredentials(key, chain, append(old.CertPEM(), next.CertPEM()...))
	if err != nil {
		t.Fatal(err)
	}
	c := newTestClient(t, old, []string{peer.addr}, func(cfg *Config) { cfg.Credentials = creds })
	for range 20 { // the alert and the call must not race each other
		_, err = create(t, c)
		wantCode(t, err, connect.CodeUnauthenticated)
		if !strings.Contains(err.Error(), "refuses our certificate") {
			t.Fatalf("error %q does not say why", err)
		}
	}
}

func TestNotTLS(t *testing.T) {
	ca := testCA(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(conn, "SSH-2.0-OpenSSH_9.7\r\n")
			conn.Close()
		}
	}()
	c := newTestClient(t, ca, []string{l.Addr().String()}, func(cfg *Config) { cfg.RetryFor = 100 * time.Millisecond })
	_, err = create(t, c)
	wantCode(t, err, connect.CodeUnavailable)
	if !strings.Contains(err.Error(), "does not speak TLS") {
		t.Errorf("error %q does not say why", err)
	}
}

func TestDefaults(t *testing.T) {
	ca := testCA(t)
	c := New(Config{Credentials: issue(t, ca, pki.RoleAdmin, "admin")})
	if got := c.cfg.PingInterval + c.cfg.PingTimeout; got >= 2*time.Second {
		t.Errorf("a dead peer is noticed after %v, want less than 2 s", got)
	}
	if h := c.transport.HTTP2; h.SendPingTimeout != c.cfg.PingInterval || h.PingTimeout != c.cfg.PingTimeout {
		t.Errorf("HTTP2 = %+v", h)
	}
	_, err := create(t, c)
	if err == nil || !strings.Contains(err.Error(), "no peer's address is known") {
		t.Errorf("error %v, want what is missing", err)
	}
}

// TestRepeatable holds the table of calls that may be executed twice: a change of
// it has to be made here as well, with a second thought.
func TestRepeatable(t *testing.T) {
	want := map[string]bool{
		"/holdfast.v1.ObjectService/Get": true, "/holdfast.v1.ObjectService/List": true,
		"/holdfast.v1.ObjectService/Kinds": true, "/holdfast.v1.ObjectService/Schema": true,
		"/holdfast.v1.ClusterService/Status": true,
		"/holdfast.v1.AccessService/WhoAmI":  true, "/holdfast.v1.AccessService/CanI": true,
		"/holdfast.v1.AccessService/IssueToken": true, "/holdfast.v1.AccessService/ReviewToken": true,
		"/holdfast.v1.WhyService/Pod": true,
		// What Verify repairs is whole the second time.
		"/holdfast.v1.NetworkService/Verify": true, "/holdfast.v1.NetworkService/Inspect": true, "/holdfast.v1.NetworkService/Trace": true,
		"/holdfast.agent.v1.AgentService/Register":     true,
		"/holdfast.agent.v1.AgentService/Confirm":      true,
		"/holdfast.agent.v1.AgentService/Mirror":       true,
		"/holdfast.agent.v1.AgentService/Heartbeat":    true,
		"/holdfast.agent.v1.AgentService/ReportStatus": true,
		"/holdfast.store.v1.StoreService/Range":        true, "/holdfast.store.v1.StoreService/Status": true,
		"/holdfast.store.v1.StoreService/LeaseKeepAlive":  true,
		"/holdfast.store.v1.StoreService/LeaseTimeToLive": true,
		"/holdfast.store.v1.StoreService/Leases":          true,
	}
	for name := range want {
		if !repeatable[name] {
			t.Errorf("%s is not repeatable", name)
		}
	}
	for name := range hedged {
		if !repeatable[name] {
			t.Errorf("%s is hedged and not repeatable", name)
		}
	}
	for name := range repeatable {
		if !want[name] {
			t.Errorf("%s is repeatable; is that so?", name)
		}
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
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

// TestSuggestedPeersAreTried: a client goes to a peer that only gossip knows when
// those of its list are dead, and a new list forgets no suggestion.
func TestSuggestedPeersAreTried(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 2)
	c := newTestClient(t, ca, addresses(peers[:1]))
	c.Suggest([]string{peers[1].addr, peers[0].addr})
	c.SetPeers([]string{peers[0].addr})
	if got, want := c.Peers(), addresses(peers); !slices.Equal(got, want) {
		t.Fatalf("it tries %v, want %v: the list first, each once", got, want)
	}
	peers[0].Kill()
	res, err := c.Objects().Get(t.Context(), &holdfastv1.GetRequest{})
	if err != nil || res.GetAnswer().GetServedBy() != "p2" {
		t.Errorf("answered by %q, %v; want p2", res.GetAnswer().GetServedBy(), err)
	}
	c.Suggest(nil)
	if got := c.Peers(); !slices.Equal(got, addresses(peers[:1])) {
		t.Errorf("without a suggestion it tries %v", got)
	}
}
