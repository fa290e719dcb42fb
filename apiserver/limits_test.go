package apiserver

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// TestFairQueue: calls of one caller in their order, callers in turn, nobody with
// more than his share while others wait.
func TestFairQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFairQueue(lane{running: 3, each: 2, waiting: 4})
		var mu sync.Mutex
		var order []string
		enter := func(who, name string) {
			go func() {
				if err := q.enter(t.Context(), who); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				mu.Lock()
				order = append(order, name)
				mu.Unlock()
			}()
			synctest.Wait()
		}
		want := func(text string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if got := strings.Join(order, " "); got != text {
				t.Errorf("began: %q, want %q", got, text)
			}
			order = nil
		}
		for i := range 6 {
			enter("alice", fmt.Sprint("a", i))
		}
		want("a0 a1") // her share, though there is room for a third
		err := q.enter(t.Context(), "alice")
		wantCode(t, err, connect.CodeResourceExhausted, "alice has 4 calls waiting")
		if info := infoOf(err); info.GetReason() != "TooManyRequests" || info.GetRetryAfter().AsDuration() <= 0 {
			t.Errorf("the refusal says %v", info)
		}
		enter("bob", "b0")
		want("b0")
		enter("bob", "b1")
		enter("carol", "c0")
		enter("bob", "b2")
		want("")
		// In turn: alice waits longest, then bob, then carol, then bob again.
		q.leave("alice")
		want("a2")
		q.leave("alice")
		want("b1")
		q.leave("alice")
		want("c0")
		q.leave("bob")
		want("a3")
		q.leave("bob")
		want("b2")
		q.leave("bob")
		want("a4")
		q.leave("alice")
		q.leave("alice")
		q.leave("carol")
		want("a5")
		q.leave("alice")
		if len(q.callers) != 0 || len(q.turns) != 0 || q.running != 0 {
			t.Errorf("left behind: %v, %v, %d running", q.callers, q.turns, q.running)
		}
	})
}

// TestQueueGivesUp: who does not wait any longer leaves no trace, whether he has
// lost patience or the queue has.
func TestQueueGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFairQueue(lane{running: 1, each: 1, waiting: 4})
		if err := q.enter(t.Context(), "alice"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := q.enter(ctx, "bob"); err != context.DeadlineExceeded {
			t.Errorf("got %v", err)
		}
		start := time.Now()
		wantCode(t, q.enter(t.Context(), "bob"), connect.CodeResourceExhausted, "bob waited 10s for its turn")
		if took := time.Since(start); took != queueTimeout {
			t.Errorf("it took %s", took)
		}
		q.leave("alice")
		if len(q.callers) != 0 || len(q.turns) != 0 || q.running != 0 {
			t.Errorf("left behind: %v, %v, %d running", q.callers, q.turns, q.running)
		}
	})
}

// TestUsersCannotStarveAgents: with all of the users' places taken, agents and peers
// are served.
func TestUsersCannotStarveAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		s := c.servers["peer-1"]
		s.users = newFairQueue(lane{running: 1, each: 1, waiting: 1})
		for _, who := range []string{"admin/alice", "admin/bob"} {
			go func() {
				if err := s.users.enter(t.Context(), who); err == nil {
					<-t.Context().Done()
				}
			}()
			synctest.Wait()
		}
		_, err := c.objects("peer-1").Get(t.Context(), &holdfastv1.GetRequest{Kind: podKind, Name: "a"})
		wantCode(t, err, connect.CodeResourceExhausted, "waited 10s")
		if _, err := c.agent("peer-1", "n1").Heartbeat(t.Context(), nil); err != nil {
			t.Errorf("heartbeat: %v", err)
		}
		peer := holdfastv1connect.NewClusterServiceClient(c.client("peer-1", pki.Identity{Cluster: testCluster, Role: pki.RolePeer, Name: "p2"}))
		if _, err := peer.Status(t.Context(), &holdfastv1.StatusRequest{}); err != nil {
			t.Errorf("a peer's call: %v", err)
		}
	})
}

// TestStreamLimit: nobody can open streams without end.
func TestStreamLimit(t *testing.T) {
	var count streamCount
	var releases []func()
	for range maxStreams {
		release, err := count.admit("admin/alice")
		if err != nil {
			t.Fatal(err)
		}
		releases = append(releases, release)
	}
	_, err := count.admit("admin/alice")
	wantCode(t, err, connect.CodeResourceExhausted, "admin/alice has 10000")
	if _, err := count.admit("admin/bob"); err != nil {
		t.Errorf("bob: %v", err)
	}
	releases[0]()
	if _, err := count.admit("admin/alice"); err != nil {
		t.Errorf("after one is closed: %v", err)
	}
}
