package systemtest

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"

	"github.com/holdfast-io/holdfast/internal/devcluster"
)

var fencingHistories = flag.Int("systemtest.fencing", 0, "histories of fencing with real containers to play; 0: one, and a short one")

// beat is one run of a container, by its own account: the machine's clock, once each
// 10 ms, while it ran.
type beat struct {
	file        string
	first, last time.Duration
}

// beats reads what the copies of a pod have written.
func beats(t *testing.T, dir, pod string) (all []beat) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pod+".*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(string(data))
		if len(lines) == 0 {
			continue
		}
		at := func(line string) time.Duration {
			n, _ := strconv.ParseInt(line, 10, 64)
			return time.Duration(n)
		}
		all = append(all, beat{filepath.Base(file), at(lines[0]), at(lines[len(lines)-1])})
	}
	slices.SortFunc(all, func(a, b beat) int { return int(a.first - b.first) })
	return all
}

// setCut cuts a machine of the cluster off from all others, or undoes that.
func (m *machine) setCut(name string, cut bool) {
	m.t.Helper()
	ns, err := netns.GetFromPath(filepath.Join("/run/holdfast-dev", devcluster.ID(m.data), "netns", name))
	if err != nil {
		m.t.Fatal(err)
	}
	defer ns.Close()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		m.t.Fatal(err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "cut"}
	conn.AddTable(table) // so that it can be deleted
	conn.DelTable(table)
	if cut {
		conn.AddTable(table)
		for hook, key := range map[*nftables.ChainHook]expr.MetaKey{nftables.ChainHookInput: expr.MetaKeyIIFNAME, nftables.ChainHookOutput: expr.MetaKeyOIFNAME} {
			chain := conn.AddChain(&nftables.Chain{Name: fmt.Sprint("hook", *hook), Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Meta{Key: key, Register: 1},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte("lo\x00")},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
	}
	if err := conn.Flush(); err != nil {
		m.t.Fatalf("cut %s: %v", name, err)
	}
}

// agent returns the process of a node's agent.
func (m *machine) agent(node string) int {
	m.t.Helper()
	for _, pid := range m.processes("containerd") {
		line, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		args := strings.Split(string(line), "\x00")
		if len(args) > 1 && args[1] == "agent" && slices.ContainsFunc(args, func(a string) bool {
			return strings.HasSuffix(a, "/"+node) || a == node || strings.HasSuffix(a, "="+node)
		}) {
			return pid
		}
	}
	m.t.Fatalf("no agent of %s runs", node)
	return 0
}

// TestFencing: a pod of a StatefulSet whose node is cut off while its agent stands still
// is replaced on another node, and by the containers' own account never runs twice.
func TestFencing(t *testing.T) {
	m := newMachine(t)
	c := m.up("--peers", "1", "--nodes", "2")
	dir := filepath.Join(t.TempDir(), "beats")
	if err := errors.Join(os.Mkdir(dir, 0o777), os.Chmod(dir, 0o777)); err != nil { // the image's user is nobody
		t.Fatal(err)
	}
	manifest := filepath.Join(t.TempDir(), "db.yaml")
	if err := os.WriteFile(manifest, fmt.Appendf(nil, `apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      containers:
      - name: db
        image: holdfast.dev/web:1
        args: [beat, /beats]
        volumeMounts: [{name: beats, mountPath: /beats}]
      volumes: [{name: beats, hostPath: {path: %s}}]
`, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	m.must("apply", "-f", manifest)
	m.waitReady(1)
	rounds := max(*fencingHistories, 1)
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	kinds := map[string]int{}
	var longest time.Duration
	for round := range rounds {
		node := strings.TrimSpace(m.must("get", "pod", "db-0", "-o", "jsonpath={.spec.nodeName}"))
		before := beats(t, dir, "db-0")
		kind := "freeze"
		if rounds > 1 {
			kind = []string{"freeze", "kill", "cut", "restart", "freeze-late"}[random.IntN(5)]
		}
		kinds[kind]++
		agent := m.agent(node)
		send := func(sig syscall.Signal) {
			if err := syscall.Kill(agent, sig); err != nil {
				t.Fatal(err)
			}
		}
		switch kind {
		case "freeze", "freeze-late":
			send(syscall.SIGSTOP)
			if kind == "freeze-late" { // by chance it is about to do something
				time.Sleep(time.Duration(random.IntN(1000)) * time.Millisecond)
			}
		case "kill":
			m.must("dev", "kill", "--data-dir", m.data, node)
		case "restart":
			send(syscall.SIGTERM)
		}
		if kind != "kill" {
			m.setCut(node, true)
		}
		start := time.Now()
		for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
			now := beats(t, dir, "db-0")
			moved, code := m.holdfast("get", "pod", "db-0", "-o", "jsonpath={.spec.nodeName}") // not while there is none
			if moved = strings.TrimSpace(moved); code == 0 && len(now) > len(before) && moved != node && moved != "" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("round %d, %s of %s: not replaced after %v\n%s", round, kind, node, patience, m.must("describe", "pod", "db-0"))
			}
		}
		longest = max(longest, time.Since(start))
		t.Logf("round %d: %s of %s, replaced after %v", round, kind, node, time.Since(start).Round(time.Millisecond))
		if kind == "kill" || kind == "restart" {
			m.must("dev", "start", "--data-dir", m.data, node)
		}
		if kind != "kill" {
			m.setCut(node, false)
		}
		if strings.HasPrefix(kind, "freeze") {
			send(syscall.SIGCONT)
		}
		for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
			if out := m.must("get", "nodes"); !strings.Contains(out, "NotReady") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("round %d: %s does not come back\n%s", round, node, m.must("get", "nodes"))
			}
		}
	}
	time.Sleep(2 * time.Second) // whatever an agent that came back would do
	runs := beats(t, dir, "db-0")
	if len(runs) < rounds+1 {
		t.Errorf("%d runs in %d rounds: nothing was proved", len(runs), rounds)
	}
	for i := 1; i < len(runs); i++ {
		if runs[i].first <= runs[i-1].last {
			t.Errorf("%s began %v before %s ended", runs[i].file, runs[i-1].last-runs[i].first, runs[i-1].file)
		}
	}
	t.Logf("%d rounds (%v), %d runs of the pod, replaced within %v", rounds, kinds, len(runs), longest)
	m.must("delete", "-f", manifest)
	c.stop()
	if left := m.leavings(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}
