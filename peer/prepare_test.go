package peer_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-io/holdfast/peer"
	"github.com/holdfast-io/holdfast/pki"
)

// TestPrepareRefuses: each way to start a peer wrongly gets its own sentence,
// which says what to do.
func TestPrepareRefuses(t *testing.T) {
	founded := func(t *testing.T) string {
		dir := t.TempDir()
		p, err := peer.Prepare(t.Context(), peer.Config{DataDir: dir, Name: "p1", Listen: "127.0.0.1:0", Init: true})
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
		return dir
	}
	tests := []struct {
		name   string
		config func(t *testing.T) peer.Config
		want   []string // all in the error
	}{
		{"neither init nor join", func(t *testing.T) peer.Config {
			return peer.Config{DataDir: t.TempDir(), Name: "p1"}
		}, []string{"holds no peer yet", "--init", "--join"}},
		{"all faults at once", func(t *testing.T) peer.Config {
			return peer.Config{DataDir: t.TempDir(), Name: "P 1", Listen: "7443", Init: true, Join: []string{"vm1:7443"}}
		}, []string{"say which", "--token", "P 1", "--listen 7443"}},
		{"port in use", func(t *testing.T) peer.Config {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { listener.Close() })
			return peer.Config{DataDir: t.TempDir(), Name: "p1", Listen: listener.Addr().String(), Init: true}
		}, []string{"is in use by another process", "--listen"}},
		{"not an address of this machine", func(t *testing.T) peer.Config {
			return peer.Config{DataDir: t.TempDir(), Name: "p1", Listen: "192.0.2.1:7443", Init: true}
		}, []string{"192.0.2.1:7443 is not an address of this machine", "--listen"}},
		{"directory in use", func(t *testing.T) peer.Config {
			dir := t.TempDir()
			p, err := peer.Prepare(t.Context(), peer.Config{DataDir: dir, Name: "p1", Listen: "127.0.0.1:0", Init: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.Close)
			return peer.Config{DataDir: dir, Name: "p1", Listen: "127.0.0.1:0"}
		}, []string{"in use by another holdfast process"}},
		{"token of another cluster", func(t *testing.T) peer.Config {
			other, err := pki.NewCA("other")
			if err != nil {
				t.Fatal(err)
			}
			return peer.Config{DataDir: founded(t), Name: "p1", Listen: "127.0.0.1:0", Join: []string{"127.0.0.1:1"}, Token: pki.NewToken(other.Pin()).String()}
		}, []string{"belongs to cluster", "the token is for another one", "--data-dir"}},
		{"another name", func(t *testing.T) peer.Config {
			return peer.Config{DataDir: founded(t), Name: "p2", Listen: "127.0.0.1:0"}
		}, []string{"belongs to peer p1, not p2"}},
		{"lost its log", func(t *testing.T) peer.Config {
			dir := founded(t)
			if err := os.RemoveAll(filepath.Join(dir, "raft")); err != nil {
				t.Fatal(err)
			}
			return peer.Config{DataDir: dir, Name: "p1", Listen: "127.0.0.1:0"}
		}, []string{"must not return", "peer remove p1", "join under another name"}},
		{"damaged record", func(t *testing.T) peer.Config {
			dir := founded(t)
			if err := os.WriteFile(filepath.Join(dir, "peer.json"), []byte(`{"version":1,`), 0o600); err != nil {
				t.Fatal(err)
			}
			return peer.Config{DataDir: dir, Name: "p1", Listen: "127.0.0.1:0"}
		}, []string{"peer.json is damaged"}},
		{"newer layout", func(t *testing.T) peer.Config {
			dir := founded(t)
			if err := os.WriteFile(filepath.Join(dir, "peer.json"), []byte(`{"version":9}`), 0o600); err != nil {
				t.Fatal(err)
			}
			return peer.Config{DataDir: dir, Name: "p1", Listen: "127.0.0.1:0"}
		}, []string{"layout version 9", "use the version that wrote it"}},
		{"nobody to join", func(t *testing.T) peer.Config {
			ca, err := pki.NewCA("c")
			if err != nil {
				t.Fatal(err)
			}
			return peer.Config{DataDir: t.TempDir(), Name: "p1", Listen: "127.0.0.1:0", Join: []string{"127.0.0.1:1"}, Token: pki.NewToken(ca.Pin()).String()}
		}, []string{"127.0.0.1:1"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p, err := peer.Prepare(t.Context(), test.config(t))
			if err == nil {
				p.Close()
				t.Fatal("prepared, want a refusal")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

// TestPrepareAfterInterruptedInit: a start that died before the directory was
// anybody's does not stand in the way of the next.
func TestPrepareAfterInterruptedInit(t *testing.T) {
	dir := t.TempDir()
	cfg := peer.Config{DataDir: dir, Name: "p1", Listen: "127.0.0.1:0", Gossip: "127.0.0.1:0", Init: true}
	p, err := peer.Prepare(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	first := p.ClusterID()
	p.Close()
	if err := os.Remove(filepath.Join(dir, "peer.json")); err != nil {
		t.Fatal(err)
	}
	p, err = peer.Prepare(t.Context(), cfg)
	if err != nil {
		t.Fatalf("second start: %v", err)
	}
	defer p.Close()
	if p.ClusterID() == first {
		t.Errorf("cluster id %s came back from a start that never finished", first)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	select {
	case <-p.Ready():
	case err := <-done:
		t.Fatalf("run: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatalf("run: %v", err)
	}
}
