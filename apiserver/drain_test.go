package apiserver

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
)

// TestDrained: the call waits for all nodes that live, whichever peers they are at,
// and for no others; when its time is up it says who is missing.
func TestDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		c.put(newNode("n1", "10.1.0.1"), newNode("n2", "10.1.0.2"), newNode("silent", "10.1.0.3"))
		n1, n2 := c.agent("peer-1", "n1"), c.agent("peer-2", "n2")
		beat := func() {
			for _, agent := range []agentv1connect.AgentServiceClient{n1, n2} {
				_, _ = agent.Heartbeat(t.Context(), &agentv1.HeartbeatRequest{})
			}
		}
		live := make(chan struct{})
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				beat()
				select {
				case <-live:
					return
				case <-time.After(time.Second):
				}
			}
		}()
		defer func() { close(live); <-stopped }()
		time.Sleep(3 * time.Second) // until the leader has heard of them
		acks := func(peer, node string, revision int64) {
			t.Helper()
			if _, err := c.agent(peer, node).AckNetwork(t.Context(), &agentv1.AckNetworkRequest{Revision: revision}); err != nil {
				t.Fatal(err)
			}
		}
		type answer struct {
			missing []string
			after   time.Duration
			err     error
		}
		ask := func(peer string, revision int64, timeout time.Duration) <-chan answer {
			ch := make(chan answer, 1)
			began := time.Now()
			go func() {
				res, err := c.agent(peer, "n1").Drained(t.Context(), &agentv1.DrainedRequest{Revision: revision, Timeout: durationpb.New(timeout)})
				ch <- answer{res.GetMissing(), time.Since(began), err}
			}()
			return ch
		}
		acks("peer-1", "n1", 100)
		acks("peer-2", "n2", 99)
		for _, peer := range []string{"peer-1", "peer-2", "peer-3"} {
			if a := <-ask(peer, 100, 2*time.Second); a.err != nil || !slices.Equal(a.missing, []string{"n2"}) || a.after < 2*time.Second {
				t.Errorf("%s: missing is %v after %v, error %v; want n2 after 2s", peer, a.missing, a.after, a.err)
			}
			if a := <-ask(peer, 99, 2*time.Second); a.err != nil || len(a.missing) > 0 || a.after > 0 {
				t.Errorf("%s: missing is %v after %v, error %v; want nobody at once", peer, a.missing, a.after, a.err)
			}
		}
		waiting := ask("peer-3", 100, 20*time.Second)
		time.Sleep(time.Second)
		acks("peer-2", "n2", 101)
		if a := <-waiting; a.err != nil || len(a.missing) > 0 || a.after > 1200*time.Millisecond {
			t.Errorf("missing is %v after %v, error %v; want nobody soon after n2 has it", a.missing, a.after, a.err)
		}
	})
}
