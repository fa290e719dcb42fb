package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/internal/testcluster"
	"github.com/holdfast-io/holdfast/peer"
)

// canaries are values that must be nowhere, and where one was found.
type canaries struct {
	t     *testing.T
	words map[string]string // what it is -> the value
}

// plant returns a new value.
func (c *canaries) plant(what string) string {
	value := fmt.Sprintf("cnry%08x%s", len(c.words)*0x1f3d5b79+0x5eed, strings.Repeat("q", 9))
	c.words[what] = value
	return value
}

// search fails the test if a value is in data, as it is, in base64 or in hex.
func (c *canaries) search(where string, data []byte) {
	c.t.Helper()
	for what, value := range c.words {
		// Of base64 the part that does not depend on what stands before or behind.
		forms := []string{value, hex.EncodeToString([]byte(value))}
		for shift := range 3 {
			text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + value))
			forms = append(forms, text[4:len(text)-4])
		}
		for _, form := range forms {
			if at := bytes.Index(data, []byte(form)); at >= 0 {
				c.t.Errorf("%s is in %s: %q", what, where, data[max(at-60, 0):min(at+80, len(data))])
			}
		}
	}
}

// searchFiles searches all files under dir, and returns how many there are.
func (c *canaries) searchFiles(dir string) (files int) {
	c.t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		c.search(path, data)
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return files
}

// buffer is a log that several machines write.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.b.Bytes())
}

// TestCanaries plants values into a cluster of three peers and a node, in every way in
// which a secret comes in, uses and misuses them, and then searches everything that the
// cluster has written or said for them: its data, logs at debug level, errors, events,
// audit, metrics, profiles, raw store and backups. One thing that is not secret is
// searched for as well: a search that finds nothing at all would prove nothing.
func TestCanaries(t *testing.T) {
	log := new(buffer)
	c := testcluster.Start(t, testcluster.Config{Peers: 3, Nodes: 1, Log: log})
	s := newSession(t, c)
	hidden := &canaries{t, make(map[string]string)}
	file := func(name, text string) string {
		t.Helper()
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return "DIR/" + name
	}
	said := func(line string, code int) {
		t.Helper()
		hidden.search("what `holdfast "+line+"` says", []byte(s.run(code, line)))
	}
	const visible = "visible7f21c0"

	// What is written.
	db := hidden.plant("a value of a manifest")
	said("apply -f "+file("db.yaml", `apiVersion: v1
kind: Secret
metadata:
  name: db
  annotations: {note: `+visible+`, kubectl.kubernetes.io/last-applied-configuration: '{"stringData":{"password":"`+db+`"}}'}
stringData: {password: `+db+`, user: app}
`), exitOK)
	changed := hidden.plant("a value of a change")
	said("apply -f "+file("db2.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: db, annotations: {note: "+visible+"}}\nstringData: {password: "+changed+", user: app}\n"), exitOK)
	said("create secret generic made --from-literal=token="+hidden.plant("a value on a command line"), exitOK)
	said("patch secret made --type merge -p "+`{"data":{"token":"`+base64.StdEncoding.EncodeToString([]byte(hidden.plant("a value of a patch")))+`"}}`, exitOK)
	// What is wrong with what is written.
	for name, text := range map[string]string{
		"data that is no base64":  "kind: Secret\nmetadata: {name: bad}\ndata: {password: '" + hidden.plant("data that is no base64") + "!'}\n",
		"data that is a list":     "kind: Secret\nmetadata: {name: bad}\nstringData: {password: [" + hidden.plant("data that is a list") + "]}\n",
		"a docker config":         "kind: Secret\nmetadata: {name: bad}\ntype: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: '" + hidden.plant("a docker config that is none") + "'}\n",
		"a value that is no text": "kind: Secret\nmetadata: {name: made}\nimmutable: true\nstringData: {token: " + hidden.plant("a value beside immutable") + "}\n",
	} {
		line := "apply --force-conflicts -f " + file(strings.ReplaceAll(name, " ", "-")+".yaml", "apiVersion: v1\n"+text)
		var out bytes.Buffer
		a := newApp()
		a.stdout, a.stderr, a.stdin = &out, &out, strings.NewReader("")
		a.run(t.Context(), strings.Fields(strings.ReplaceAll(line, "DIR", s.dir)))
		hidden.search("what is said to "+name, out.Bytes())
	}
	said("patch secret db --type json -p "+`[{"op":"test","path":"/data/password","value":"`+hidden.plant("a patch's test")+`"}]`, exitRefused)

	// What is used.
	said("apply -f "+file("web.yaml", `apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: main
    image: web:1
    env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: db, key: password}}}]
`), exitOK)
	said("wait pod/web --for condition=Ready --timeout 60s", exitOK)
	s.run(exitOK, "get secret db -o yaml", base64.StdEncoding.EncodeToString([]byte(changed)))
	s.run(exitOK, "get secrets -o json", base64.StdEncoding.EncodeToString([]byte(changed)))
	said("describe secret db", exitOK)
	said("describe pod web", exitOK)
	said("get secrets", exitOK)

	// Tokens. What stands behind the last point of a token is its secret.
	token := strings.TrimSpace(s.run(exitOK, "token create --role node"))
	hidden.words["a join token"] = token[len(token)-16:]
	said("create serviceaccount robot", exitOK)
	bearer := strings.TrimSpace(s.run(exitOK, "create token robot"))
	hidden.words["a service account's token"] = bearer[len(bearer)-24:]

	// What the cluster tells of itself.
	said("secrets rotate-key", exitOK)
	said("secrets status", exitOK)
	said("events", exitOK)
	said("get events -o json -A", exitOK)
	said("audit -o json", exitOK)
	said("audit verify", exitOK)
	said("status", exitOK)
	said("store get --prefix --all-keys --value-only secrets/", exitOK)
	raw := s.run(exitOK, "store get --prefix --all-keys -o json holdfast/")
	hidden.search("the raw store", []byte(raw))
	for _, p := range c.Peers {
		for _, path := range []string{"/metrics", "/debug/pprof/goroutine?debug=2", "/debug/pprof/heap?debug=1", "/debug/pprof/cmdline", "/readyz"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://cluster"+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := p.Client().HTTP().RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%s: %s, %v", path, resp.Status, err)
			}
			if path != "/debug/pprof/cmdline" { // the test's own
				hidden.search(path, data)
			}
		}
	}

	// Backups, with and without a seal.
	s.run(exitOK, "backup DIR/plain.backup", `checked`)
	s.run(exitOK, "backup --passphrase-file "+file("passphrase", "correct horse\n")+" DIR/sealed.backup", `checked`)
	file("other", "wrong horse\n")
	for _, name := range []string{"plain.backup", "sealed.backup"} {
		data, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		hidden.search(name, data)
	}
	s.run(exitUsage, "restore DIR/sealed.backup --data-dir DIR/r0 --name r0 --new-cluster", `sealed.*--passphrase-file`)
	s.run(exitError, "restore DIR/sealed.backup --passphrase-file DIR/other --data-dir DIR/r0 --name r0 --new-cluster", `not the one that it was sealed with`)
	s.run(exitOK, "restore DIR/sealed.backup --passphrase-file DIR/passphrase --data-dir DIR/r1 --name r1 --new-cluster --advertise 127.0.0.1", `goes on at revision`)
	s.run(exitOK, "restore DIR/plain.backup --data-dir DIR/r2 --name r2 --new-cluster --advertise 127.0.0.1", `goes on at revision`)

	for _, m := range append(c.Peers, c.Nodes...) {
		m.Stop()
	}
	for _, m := range append(c.Peers, c.Nodes...) {
		if n := hidden.searchFiles(m.Dir); n < 3 {
			t.Errorf("%s has %d files: nothing was searched", m.Name, n)
		}
	}
	all := log.bytes()
	hidden.search("the logs", all)
	if !bytes.Contains(all, []byte("procedure=/holdfast.v1.ObjectService/Apply")) || !bytes.Contains(all, []byte("level=DEBUG")) {
		t.Error("the logs do not even say which calls there were")
	}

	// What was sealed comes back with its backup, and without its keys does not.
	inRestored(t, s, "r1", func() {
		s.run(exitOK, "get secret db -o yaml", base64.StdEncoding.EncodeToString([]byte(changed)), visible)
	})
	inRestored(t, s, "r2", func() {
		s.run(exitError, "get secret db -o yaml", `cannot be opened, but deleted`)
		s.run(exitError, "secrets status", `wrapped with key .* which this peer does not have`)
		s.run(exitOK, "delete secret db")
	})
	hidden.searchFiles(filepath.Join(s.dir, "r1"))
	hidden.searchFiles(filepath.Join(s.dir, "r2"))
}

// inRestored runs a restored peer, and do with it.
func inRestored(t *testing.T, s *session, name string, do func()) {
	t.Helper()
	p, err := peer.Prepare(t.Context(), peer.Config{DataDir: filepath.Join(s.dir, name), Name: name, Listen: "127.0.0.1:0", Gossip: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	select {
	case <-p.Ready():
	case err := <-done:
		t.Fatalf("the restored peer: %v", err)
	}
	admin, err := p.AdminContext()
	if err != nil {
		t.Fatal(err)
	}
	config := &client.ConfigFile{Current: admin.Name}
	config.Set(admin)
	path := filepath.Join(s.dir, name+".yaml")
	if err := config.Save(path); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOLDFAST_CONFIG", path)
	do()
}
