package kubecompat

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds every wait for the cluster. It is no expectation of speed.
const patience = 90 * time.Second

// cluster is three peers and two nodes in one process of `holdfast dev`, with a
// runtime that pretends, and a `holdfast proxy` before them.
type cluster struct {
	dir        string
	dev, proxy *exec.Cmd
	address    string // of the proxy
	output     *tail  // of both
}

// shared is the cluster of all tests: each has a namespace of its own.
var shared *cluster

// kubectls are the programs to test, by version: "1.37".
var kubectls = map[string]string{}

func TestMain(m *testing.M) {
	if os.Getenv("HOLDFAST") == "" {
		fmt.Fprintln(os.Stderr, "HOLDFAST must name the program; run `make test-kube`")
		os.Exit(2)
	}
	for path := range strings.FieldsSeq(os.Getenv("KUBECTLS")) {
		if version, ok := kubectlVersion(path); ok {
			kubectls[version] = path
		}
	}
	os.Exit(run(m))
}

// kubectlVersion asks a program which version it is.
func kubectlVersion(path string) (string, bool) {
	out, err := exec.Command(path, "version", "--client", "-o", "json").Output()
	var answer struct{ ClientVersion struct{ Major, Minor string } }
	if err != nil || json.Unmarshal(out, &answer) != nil {
		fmt.Fprintf(os.Stderr, "%s is no kubectl that runs here: %v\n", path, err)
		return "", false
	}
	return answer.ClientVersion.Major + "." + strings.TrimRight(answer.ClientVersion.Minor, "+"), true
}

// versions returns the versions of kubectl, the newest first.
func versions() []string {
	var out []string
	for version := range kubectls {
		out = append(out, version)
	}
	slices.SortFunc(out, func(a, b string) int { return strings.Compare(fmt.Sprintf("%10s", b), fmt.Sprintf("%10s", a)) })
	return out
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "holdfast-kube-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	defer os.RemoveAll(dir)
	shared = &cluster{dir: dir, output: &tail{}}
	defer shared.stop()
	if err := shared.begin(); err != nil {
		fmt.Fprintf(os.Stderr, "start of the cluster: %v\n%s\n", err, shared.output)
		return 2
	}
	code := m.Run()
	if code != 0 {
		fmt.Fprintf(os.Stderr, "== the cluster\n%s\n", shared.output)
	}
	return code
}

// tail keeps what was written last.
type tail struct {
	mu   sync.Mutex
	data []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p...)
	t.data = t.data[max(0, len(t.data)-16<<10):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.data)
}

var serving = regexp.MustCompile(`Serving cluster \S+ on (\S+)\.`)

func (c *cluster) begin() error {
	c.dev = c.command("dev", "--runtime", "fake", "--peers", "3", "--nodes", "2", "--data-dir", c.data())
	if err := c.start(c.dev); err != nil {
		return err
	}
	if err := c.wait(func() bool { return strings.Contains(c.output.String(), "Cluster up") }); err != nil {
		return err
	}
	c.proxy = c.command("proxy", "--listen", "127.0.0.1:0")
	if err := c.start(c.proxy); err != nil {
		return err
	}
	return c.wait(func() bool {
		found := serving.FindStringSubmatch(c.output.String())
		if found != nil {
			c.address = found[1]
		}
		return found != nil
	})
}

func (c *cluster) wait(met func() bool) error {
	for deadline := time.Now().Add(patience); !met(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v", patience)
		}
	}
	return nil
}

func (c *cluster) data() string { return filepath.Join(c.dir, "data") }

// command is a command line of holdfast.
func (c *cluster) command(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Getenv("HOLDFAST"), args...)
	cmd.Env = append(os.Environ(), "HOLDFAST_CONFIG="+filepath.Join(c.dir, "config.yaml"), "HOME="+c.dir)
	return cmd
}

func (c *cluster) start(cmd *exec.Cmd) error {
	cmd.Stdout, cmd.Stderr = c.output, c.output
	return cmd.Start()
}

func (c *cluster) stop() {
	for _, cmd := range []*exec.Cmd{c.proxy, c.dev} {
		if cmd != nil && cmd.Process != nil {
			cmd.Process.Signal(os.Interrupt)
			cmd.Wait()
		}
	}
}

// holdfast runs a command and returns what it prints.
func (c *cluster) holdfast(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.command(args...).CombinedOutput()
	if err != nil {
		t.Fatalf("holdfast %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// kubeconfig writes a configuration for a namespace: direct to a peer, or through
// the proxy.
func (c *cluster) kubeconfig(t *testing.T, namespace string, proxied bool) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	args := []string{"kubeconfig", "--file", path, "--namespace", namespace}
	if proxied {
		args = append(args, "--proxy", c.address)
	}
	c.holdfast(t, args...)
	return path
}

// program is kubectl or Helm with a configuration.
type program struct {
	path, kubeconfig, dir string
}

// command is its command line; HOME keeps its caches away from other tests'.
func (p program) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.path, args...)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), "KUBECONFIG="+p.kubeconfig, "HOME="+filepath.Join(p.dir, ".home"), "KUBECTL_EXTERNAL_DIFF=diff -u",
		"EDITOR=./editor", "KUBE_EDITOR=./editor")
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run returns what it prints on both streams, and its exit code.
func (p program) run(ctx context.Context, args ...string) (string, int) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var out bytes.Buffer
	cmd := p.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		fmt.Fprintln(&out, err)
		return out.String(), -1
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// kubectl returns a kubectl in a new namespace.
func kubectl(t *testing.T, version, namespace string, proxied bool) program {
	t.Helper()
	p := program{path: kubectls[version], kubeconfig: shared.kubeconfig(t, namespace, proxied), dir: t.TempDir()}
	if out, code := p.run(t.Context(), "create", "namespace", namespace); code != 0 {
		t.Fatalf("kubectl create namespace %s: %s", namespace, out)
	}
	t.Cleanup(func() {
		p.run(context.WithoutCancel(t.Context()), "delete", "namespace", namespace, "--wait=false")
	})
	return p
}

// needKubectl skips a test where there is no kubectl.
func needKubectl(t *testing.T) {
	t.Helper()
	if len(kubectls) == 0 {
		t.Skip("no kubectl: KUBECTLS names none. `make test-kube` builds them where Go modules can be fetched")
	}
}
