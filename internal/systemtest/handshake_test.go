package systemtest

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

var handshakeRate = flag.Int("systemtest.rate", 500, "requests a second in TestHandshake")

// TestHandshake: clients of a Service, over new connections and over kept ones, notice
// nothing of a rollout, of a scale-down and of a drain: a pod is told to end once every
// node has taken it out. The same without that handshake shows failed requests: the load
// would notice.
func TestHandshake(t *testing.T) {
	load := filepath.Join(t.TempDir(), "load")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", load, "./load")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Run("with", func(t *testing.T) {
		requests, failed, out := underLoad(t, newMachine(t), load, func(m *machine) {
			m.must("rollout", "restart", "deployment/web", "--timeout", patience.String())
			m.must("scale", "deployment", "web", "--replicas", "1", "--timeout", patience.String())
			m.must("scale", "deployment", "web", "--replicas", "3", "--timeout", patience.String())
			m.must("drain", "n2", "--timeout", patience.String())
		})
		t.Logf("%d requests, %d failed", requests, failed)
		if failed > 0 || requests < 1000 {
			t.Errorf("%d of %d requests failed:\n%s", failed, requests, out)
		}
	})
	t.Run("without", func(t *testing.T) {
		m := newMachine(t)
		m.rebuild("agent/worker.go", "if w.drained || w.p.drain == nil ", "if true || w.drained || w.p.drain == nil ")
		requests, failed, _ := underLoad(t, m, load, func(m *machine) {
			for range 3 {
				m.must("rollout", "restart", "deployment/web", "--timeout", patience.String())
			}
		})
		t.Logf("%d requests, %d failed", requests, failed)
		if failed == 0 {
			t.Errorf("none of %d requests failed without the handshake: the load proves nothing", requests)
		}
	})
}

// rebuild builds the binary anew with a text of the source replaced.
func (m *machine) rebuild(file, from, to string) {
	m.t.Helper()
	path, err := filepath.Abs("../../" + file)
	if err != nil {
		m.t.Fatal(err)
	}
	source, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	if strings.Count(string(source), from) != 1 {
		m.t.Fatalf("%s does not have %q once", file, from)
	}
	dir := m.t.TempDir()
	other, overlay := filepath.Join(dir, "other.go"), filepath.Join(dir, "overlay.json")
	table, err := json.Marshal(map[string]any{"Replace": map[string]string{path: other}})
	if err != nil {
		m.t.Fatal(err)
	}
	for name, data := range map[string][]byte{other: []byte(strings.Replace(string(source), from, to, 1)), overlay: table} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
	build := exec.CommandContext(m.t.Context(), "go", "build", "-overlay", overlay, "-o", m.binary, "../../cmd/holdfast")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		m.t.Fatalf("%v\n%s", err, out)
	}
}

// underLoad plays change on a cluster of two nodes while a client in the first asks the
// service on both, and returns how many requests there were and how many failed.
func underLoad(t *testing.T, m *machine, load string, change func(*machine)) (requests, failed int, out string) {
	t.Helper()
	c := m.up("--peers", "1", "--nodes", "2")
	m.must("apply", "-f", "testdata/handshake.yaml", "--timeout", patience.String())
	address := strings.TrimSpace(m.must("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))

	var printed bytes.Buffer
	client := exec.CommandContext(context.WithoutCancel(t.Context()), m.binary, "dev", "exec", "--data-dir", m.data, "n1", "--",
		load, "-url", "http://"+address+"/", "-rate", strconv.Itoa(*handshakeRate))
	client.Env, client.Stdout, client.Stderr = m.env, &printed, &printed
	client.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-client.Process.Pid, syscall.SIGKILL) })
	change(m)
	if err := syscall.Kill(-client.Process.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := client.Wait(); err != nil {
		t.Fatalf("the load: %v\n%s", err, &printed)
	}
	m.must("delete", "-f", "testdata/handshake.yaml")
	c.stop()
	if left := m.leavings(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
	count := func(name string) int {
		found := regexp.MustCompile(`(?m)^` + name + ` (\d+)$`).FindSubmatch(printed.Bytes())
		if found == nil {
			t.Fatalf("the load said\n%s", &printed)
		}
		n, _ := strconv.Atoi(string(found[1]))
		return n
	}
	return count("requests"), count("failed"), printed.String()
}
