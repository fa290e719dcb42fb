package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/internal/testcluster"
	"github.com/holdfast-io/holdfast/peer"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// session runs command lines against a cluster, as a person does.
type session struct {
	t   *testing.T
	dir string
}

func newSession(t *testing.T, c *testcluster.Cluster) *session {
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yaml")
	t.Setenv("HOLDFAST_CONFIG", config)
	t.Setenv("HOLDFAST_CONTEXT", "")
	file := &client.ConfigFile{}
	file.Set(c.Context())
	file.Current = c.Context().Name
	if err := file.Save(config); err != nil {
		t.Fatal(err)
	}
	return &session{t, dir}
}

// run fails the test unless the exit code is code and all of want, regular
// expressions, are in what is printed. DIR stands for the session's directory.
func (s *session) run(code int, line string, want ...string) string {
	s.t.Helper()
	var out strings.Builder
	a := newApp()
	a.stdout, a.stderr, a.stdin = &out, &out, strings.NewReader("")
	if got := a.run(s.t.Context(), strings.Fields(strings.ReplaceAll(line, "DIR", s.dir))); got != code {
		s.t.Fatalf("holdfast %s: exit code %d, want %d\n%s", line, got, code, out.String())
	}
	for _, text := range want {
		if !regexp.MustCompile(text).MatchString(out.String()) {
			s.t.Fatalf("holdfast %s: %q is not in\n%s", line, text, out.String())
		}
	}
	return out.String()
}

// TestOperations is the operator's bad week: a backup, two peers of three lost,
// recovered from, their return, and at last the backup restored. Real peers, files
// and connections.
func TestOperations(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 3})
	s := newSession(t, c)
	web := filepath.Join(s.dir, "web.yaml")
	if err := os.WriteFile(web, []byte(sessionManifest), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(exitOK, "apply --detach -f "+web)

	// A backup, from a peer that is asked by name.
	s.run(exitOK, "backup DIR/one.backup --peer "+c.Peers[2].Address+":7443", `at revision \d+: \d+ keys, .* state hash [0-9a-f]{32}; checked`)
	s.run(exitRefused, "backup DIR/one.backup", `--force`)
	s.run(exitOK, "backup DIR/one.backup --force -o json", `"revision": \d+`)
	s.run(exitOK, "inspect DIR/one.backup", `Backup of   cluster \w+, incarnation 1\n`, `All of it is whole`)
	if info, err := os.Stat(filepath.Join(s.dir, "one.backup")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup: %v, %v; want it for its owner alone", info, err)
	}
	data, err := os.ReadFile(filepath.Join(s.dir, "one.backup"))
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(filepath.Join(s.dir, "bad.backup"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(exitError, "inspect DIR/bad.backup", `bad backup`)
	s.run(exitNotFound, "inspect DIR/no.backup", `does not exist`)

	s.run(exitOK, "verify --duration 500ms", `all 3 peers hold the same`, `\d{2,} reads, writes and swaps by 8 clients through 3 peers in 500ms, 0 without an answer: linearizable`)
	s.run(exitOK, "store get --prefix verify/ --count-only", `^0\n`)
	s.run(exitUsage, "verify --clients 0", `at least 1`)

	// While a majority lives, nobody is given up.
	s.run(exitRefused, "recover --yes", `(?s)PEER .*p1 .*p2 .*p3 `, `refused: p1, p2, p3 can be reached`)
	c.Peers[1].Stop()
	s.run(exitRefused, "recover --yes", `refused: p1, p3 can be reached`, `no answer from`)
	s.run(exitOK, "verify --duration 0", `2 of 3 peers compared`)
	c.Peers[0].Stop() // the one that began the cluster, and joined by no token
	s.run(exitUsage, "recover", `Peer p3 is furthest along`, `p1 and p2`, `Say --yes`)
	s.run(exitOK, "recover --dry-run", `Peer p3 is furthest along`)
	s.run(exitUnavailable, "cluster status", `NO QUORUM`)
	before := c.Peers[2].Client()
	s.run(exitOK, "recover --yes", `peer p3 begins incarnation \d+`, `peer p3 leads`)
	status, err := before.Cluster().Status(t.Context(), &holdfastv1.StatusRequest{})
	if err != nil || len(status.GetPeers()) != 1 || status.GetRevision() < 1_000_000_000 {
		t.Errorf("after the recovery: %v, %v; want one peer, and a revision far above the old one", status, err)
	}
	s.run(exitOK, "get deployments", `web`)

	// The lost return and become part of it by themselves.
	c.Peers[0].Start()
	c.Peers[1].Start()
	for deadline := time.Now().Add(testcluster.Patience); ; time.Sleep(100 * time.Millisecond) {
		status, err := before.Cluster().Status(t.Context(), &holdfastv1.StatusRequest{})
		voters := 0
		for _, p := range status.GetPeers() {
			if p.GetVoter() {
				voters++
			}
		}
		if err == nil && voters == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the lost peers have not rejoined: %v, %v", status, err)
		}
	}

	// Another cluster out of the backup.
	s.run(exitError, "restore DIR/one.backup --data-dir DIR/r1 --name r1", `--pki`)
	s.run(exitError, "restore DIR/bad.backup --data-dir DIR/r1 --name r1 --new-cluster", `bad backup`)
	s.run(exitOK, "restore DIR/one.backup --data-dir DIR/r1 --name r1 --new-cluster --advertise 127.0.0.1", `goes on at revision \d{10,}`, `--init`)
	s.run(exitError, "restore DIR/one.backup --data-dir DIR/r1 --name r1 --new-cluster", `in use already`)
	s.run(exitOK, "inspect DIR/r1", `Store of    peer r1 of cluster \w+, incarnation \d{10}`, `Voters      r1`, `Revision    \d{10}`, `All of it is whole`)
	p, err := peer.Prepare(t.Context(), peer.Config{DataDir: filepath.Join(s.dir, "r1"), Name: "r1", Listen: "127.0.0.1:0", Gossip: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Run(t.Context()) }()
	select {
	case <-p.Ready():
	case err := <-done:
		t.Fatalf("the restored peer: %v", err)
	}
	context, err := p.AdminContext()
	if err != nil {
		t.Fatal(err)
	}
	restored := &client.ConfigFile{Current: context.Name}
	restored.Set(context)
	if err := restored.Save(filepath.Join(s.dir, "restored.yaml")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOLDFAST_CONFIG", filepath.Join(s.dir, "restored.yaml"))
	s.run(exitOK, "get deployments", `web`)
	s.run(exitError, "inspect DIR/r1", `is in use: stop the peer first`)
}
