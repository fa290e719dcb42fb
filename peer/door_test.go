package peer

import (
	"crypto/x509"
	"errors"
	"maps"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-io/holdfast/pki"
)

// TestDoor: raft's connections of who is refused end at once, others after the time in
// which answers say why; those of the others stay, and nothing is kept of who has gone.
func TestDoor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, err := pki.NewCA("c-1")
		if err != nil {
			t.Fatal(err)
		}
		cert := func(name string) *x509.Certificate {
			creds, err := ca.Issue(pki.Identity{Cluster: "c-1", Role: pki.RolePeer, Name: name})
			if err != nil {
				t.Fatal(err)
			}
			return creds.Certificate()
		}
		good, bad := cert("p1"), cert("p2")
		out := false
		d := &door{refuse: func(c *x509.Certificate) error {
			if out && c == bad {
				return errors.New("removed")
			}
			return nil
		}}
		come := func(c *x509.Certificate, raft bool) (closed func() bool) {
			near, far := net.Pipe()
			g := d.let(near)
			if err := d.know(g, c, "", raft); err != nil {
				t.Fatal(err)
			}
			var gone atomic.Bool
			go func() { _, _ = far.Read(make([]byte, 1)); gone.Store(true) }()
			t.Cleanup(func() { far.Close(); near.Close() })
			return func() bool { synctest.Wait(); return gone.Load() }
		}
		stays, raft, http := come(good, true), come(bad, true), come(bad, false)
		d.look()
		if stays() || raft() || http() {
			t.Fatal("somebody was put out without reason")
		}
		out = true
		d.look()
		time.Sleep(time.Millisecond)
		if stays() || !raft() || http() {
			t.Fatalf("at once: another's closed %t, raft's %t, HTTP's %t", stays(), raft(), http())
		}
		time.Sleep(lastWords)
		if stays() || !http() {
			t.Fatalf("after %v: another's closed %t, HTTP's %t", lastWords, stays(), http())
		}
		if err := d.know(d.let(nil), bad, "", true); err == nil {
			t.Error("it may come back")
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.conns) != 2 { // the one that stays, and the last
			t.Errorf("%d connections are kept in mind", len(d.conns))
		}
	})
}

// TestDoorCloned: a peer is there twice when two of its processes are connected for
// longer than any restart takes.
func TestDoorCloned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, err := pki.NewCA("c-1")
		if err != nil {
			t.Fatal(err)
		}
		creds, err := ca.Issue(pki.Identity{Cluster: "c-1", Role: pki.RolePeer, Name: "p1"})
		if err != nil {
			t.Fatal(err)
		}
		d := &door{}
		come := func(instance string, raft bool) *guest {
			near, far := net.Pipe()
			t.Cleanup(func() { near.Close(); far.Close() })
			g := d.let(near)
			if err := d.know(g, creds.Certificate(), instanceOf(instance+instanceSuffix), raft); err != nil {
				t.Fatal(err)
			}
			return g
		}
		want := func(names ...string) {
			t.Helper()
			if got := d.cloned(time.Now()); !slices.Equal(got, names) {
				t.Errorf("%v are there twice, want %v", got, names)
			}
		}
		first := come("a", false)
		come("a", false)
		come("z", true) // raft's, of a process that died with its machine
		time.Sleep(time.Hour)
		want()
		second := come("b", false) // a restart: the old connections are noticed as dead in time
		time.Sleep(15 * time.Second)
		for g := range maps.Clone(d.conns) {
			if g.instance == "a" {
				g.Close()
			}
		}
		time.Sleep(time.Hour)
		want()
		come("a", false)
		time.Sleep(cloneOverlap - time.Second)
		want()
		time.Sleep(2 * time.Second)
		want("p1")
		second.Close()
		want()
		_ = first
	})
}

// TestCertificateAlarms: weeks of warning for what nobody renews, and none before.
func TestCertificateAlarms(t *testing.T) {
	ca, err := pki.NewCA("c-1")
	if err != nil {
		t.Fatal(err)
	}
	creds, err := ca.Issue(pki.Identity{Cluster: "c-1", Role: pki.RolePeer, Name: "p1"})
	if err != nil {
		t.Fatal(err)
	}
	p := &Peer{ca: ca, creds: creds, rec: record{ID: "p1"}}
	_, end := creds.Validity()
	for _, tt := range []struct {
		at   time.Time
		want int
	}{
		{time.Now(), 0},
		{end.Add(-2 * 24 * time.Hour), 0},
		{end.Add(-12 * time.Hour), 1},
		{ca.Expires().Add(-91 * 24 * time.Hour), 1},
		{ca.Expires().Add(-89 * 24 * time.Hour), 2},
	} {
		if got := p.certificateAlarms(tt.at); len(got) != tt.want {
			t.Errorf("%v: %v, want %d", tt.at, got, tt.want)
		}
	}
}
