package history

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// TestRemote: a history that begins in the middle, told by events, is checked as one
// that a log tells; and each lie is seen.
func TestRemote(t *testing.T) {
	const key, base = "raw/k", 10
	put := func(id string) *raftv1.Txn {
		return &raftv1.Txn{Reason: id, Then: []*raftv1.Op{{Op: &raftv1.Op_Put{Put: &raftv1.Put{Key: key, Value: []byte(id)}}}}}
	}
	kv := func(value string, mod, version int64) raftstore.KeyValue {
		return raftstore.KeyValue{Key: key, Value: []byte(value), Create: 4, Mod: mod, Version: version}
	}
	for _, tt := range []struct {
		name                string
		acked, read, events int64 // revisions that clients were told
		lost                bool  // the write is not in the history
		want                string
	}{
		{"honest", base + 1, base + 2, base + 2, false, ""},
		{"another revision", base + 2, base + 2, base + 2, false, "P1: op-1 was answered with revision 12"},
		{"lost", base + 1, base + 2, base + 2, true, "P2: op-1 was acknowledged"},
		{"a stale read", base + 1, base, base + 2, false, "had returned before a read"},
		{"an event too few", base + 1, base + 2, base + 1, false, "is missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := New()
			r.Base(base, []raftstore.KeyValue{kv("before", base, 3)})
			_ = r.Write("p1", func(string) (raftstore.Result, error) {
				return raftstore.Result{Revision: tt.acked, Succeeded: true, Ops: []*raftv1.OpResult{{}}}, nil
			})
			states := map[int64]raftstore.KeyValue{base: kv("before", base, 3), base + 1: kv("op-1", base+1, 4), base + 2: kv("foreign", base+2, 5)}
			_ = r.ReadKeys("p2", key, func() (int64, []raftstore.KeyValue, error) {
				return tt.read, []raftstore.KeyValue{states[tt.read]}, nil
			})
			var events []raftstore.Event
			for rev := int64(base + 1); rev <= tt.events; rev++ {
				events = append(events, raftstore.Event{Key: key, Type: raftstore.EventPut, Revision: rev, KV: states[rev]})
			}
			r.Watch("").Turn("p3", base, events, base+2, nil)
			first := put("op-1")
			if tt.lost {
				first = put("somebody else's")
			}
			for i, txn := range []*raftv1.Txn{first, put("foreign")} {
				if err := r.Committed(base+1+int64(i), txn); err != nil {
					t.Fatal(err)
				}
			}
			st, broken := r.Check()
			text := fmt.Sprint(broken)
			if tt.want == "" && (len(broken) > 0 || st.Acked != 1 || st.Reads != 1 || st.Events != 2) {
				t.Errorf("%+v, %s: want one write, one read, two events, and nothing broken", st, text)
			}
			if !strings.Contains(text, tt.want) {
				t.Errorf("%s, want %q", text, tt.want)
			}
		})
	}
}

// TestRemoteLeases: where no log tells how long leases lived, their keys do.
func TestRemoteLeases(t *testing.T) {
	const key, ttl = "raw/lease/1", 100 * time.Millisecond
	for _, tt := range []struct {
		name    string
		kept    bool          // by an answered call, right before
		told    bool          // that it is over
		revoked bool          // by its holder
		age     time.Duration // at its end; 0: it lasts
		want    string
	}{
		{"in time", false, true, false, ttl, ""},
		{"early", false, false, false, ttl / 2, "P5: lease 1 of 100ms ended"},
		{"early after a keepalive", true, false, false, ttl + ttl/2, "P5: lease 1 of 100ms ended"},
		{"revoked", true, false, true, ttl / 2, ""},
		{"for ever", false, false, false, 0, "P5: lease 1, which nobody keeps alive, has not ended"},
		{"not over", false, true, false, 0, "P5: lease 1 was said to be over"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := New()
				r.Base(1, []raftstore.KeyValue{{Key: key, Create: 1, Mod: 1, Version: 1}})
				lease := r.LeaseOf(key, 1, ttl, time.Now())
				if tt.kept {
					time.Sleep(ttl)
					_ = lease.KeepAlive(func() error { return nil })
					time.Sleep(tt.age - ttl)
				} else {
					time.Sleep(tt.age)
				}
				if tt.revoked {
					lease.Revoking()
				}
				var events []raftstore.Event
				if tt.age > 0 {
					events = append(events, raftstore.Event{Key: key, Type: raftstore.EventDelete, Revision: 2})
					if err := r.Committed(2, &raftv1.Txn{Reason: "the keeper", Then: []*raftv1.Op{{Op: &raftv1.Op_Delete{Delete: &raftv1.Delete{Key: key}}}}}); err != nil {
						t.Fatal(err)
					}
				}
				for _, peer := range []string{"p1", "p2"} { // the second one is late
					r.Watch("").Turn(peer, 1, events, int64(1+len(events)), nil)
					time.Sleep(time.Second)
				}
				if tt.told {
					_ = lease.KeepAlive(func() error { return raftstore.ErrLeaseNotFound })
				}
				_, broken := r.Check()
				if text := strings.Join(broken, "\n"); tt.want == "" && text != "" || !strings.Contains(text, tt.want) {
					t.Errorf("%q, want %q", text, tt.want)
				}
			})
		})
	}
}
