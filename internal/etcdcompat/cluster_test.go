package etcdcompat

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// patience bounds every wait for the cluster. It is no expectation of speed.
const patience = 60 * time.Second

// cluster is three peers, each a process with an address of its own on loopback.
type cluster struct {
	dir, network, token string
	processes           map[string]*exec.Cmd // that run, by name
}

// shared is the cluster of all tests: each has keys of its own.
var shared *cluster

func TestMain(m *testing.M) {
	for _, name := range []string{"HOLDFAST", "ETCDCTL"} {
		if os.Getenv(name) == "" {
			fmt.Fprintf(os.Stderr, "%s must name a program; run `make test-etcd`\n", name)
			os.Exit(2)
		}
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "holdfast-etcd-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	defer os.RemoveAll(dir)
	shared = &cluster{
		dir: dir, network: fmt.Sprintf("127.%d.%d", 64+rand.IntN(128), rand.IntN(256)), processes: make(map[string]*exec.Cmd),
	}
	defer shared.stop()
	if err := shared.begin(); err != nil {
		fmt.Fprintln(os.Stderr, "start of the cluster:", err)
		shared.printLogs()
		return 2
	}
	code := m.Run()
	if code != 0 {
		shared.printLogs()
	}
	return code
}

var tokenFlag = regexp.MustCompile(`--token (\S+)`)

func (c *cluster) begin() error {
	if err := c.start("p1"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := wait(ctx, func() error {
		out, err := os.ReadFile(filepath.Join(c.dir, "p1.log"))
		if err != nil {
			return err
		}
		found := tokenFlag.FindSubmatch(out)
		if found == nil {
			return fmt.Errorf("p1 has printed no token yet")
		}
		c.token = string(found[1])
		return nil
	}); err != nil {
		return err
	}
	for _, name := range []string{"p2", "p3"} {
		if err := c.start(name); err != nil {
			return err
		}
	}
	if out, err := c.holdfast("context", "export", "--dir", filepath.Join(c.dir, "pem")); err != nil {
		return fmt.Errorf("context export: %w: %s", err, out)
	}
	return wait(ctx, c.healthy)
}

// wait tries until met returns nil.
func wait(ctx context.Context, met func() error) error {
	for {
		err := met()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// healthy returns nil once all three are voters and say that all is well.
func (c *cluster) healthy() error {
	out, err := c.etcdctl(context.Background(), "", "member", "list")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if strings.Count(out, ":2379, false") != 3 {
		return fmt.Errorf("not three voters that serve: %s", out)
	}
	if out, err := c.etcdctl(context.Background(), "", "endpoint", "health"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func (c *cluster) address(name string) string { return c.network + "." + strings.TrimPrefix(name, "p") }

func (c *cluster) endpoints() (all []string) {
	for _, name := range []string{"p1", "p2", "p3"} {
		all = append(all, "https://"+c.address(name)+":2379")
	}
	return all
}

// start starts a peer, or starts it again.
func (c *cluster) start(name string) error {
	args := []string{
		"server", "--name", name, "--data-dir", filepath.Join(c.dir, name),
		"--listen", c.address(name) + ":7443", "--gossip", c.address(name) + ":7946", "--etcd-api", c.address(name) + ":2379",
	}
	if name == "p1" {
		args = append(args, "--init")
	} else {
		args = append(args, "--join", c.address("p1")+":7443", "--token", c.token)
	}
	log, err := os.OpenFile(filepath.Join(c.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(os.Getenv("HOLDFAST"), args...)
	cmd.Env = append(os.Environ(), "HOLDFAST_CONFIG="+filepath.Join(c.dir, "config.yaml"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	c.processes[name] = cmd
	return nil
}

// kill ends a peer as a power cut would.
func (c *cluster) kill(name string) {
	if cmd := c.processes[name]; cmd != nil {
		cmd.Process.Kill()
		cmd.Wait()
		delete(c.processes, name)
	}
}

func (c *cluster) stop() {
	for name := range c.processes {
		c.kill(name)
	}
}

func (c *cluster) printLogs() {
	for _, name := range []string{"p1", "p2", "p3"} {
		log, _ := os.ReadFile(filepath.Join(c.dir, name+".log"))
		fmt.Fprintf(os.Stderr, "== %s\n%s\n", name, tokenFlag.ReplaceAll(log[max(0, len(log)-4000):], []byte("--token ...")))
	}
}

func (c *cluster) holdfast(args ...string) (string, error) {
	cmd := exec.Command(os.Getenv("HOLDFAST"), args...)
	cmd.Env = append(os.Environ(), "HOLDFAST_CONFIG="+filepath.Join(c.dir, "config.yaml"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *cluster) pem(name string) string { return filepath.Join(c.dir, "pem", name) }

// etcdctlCommand is etcdctl with all endpoints, if no others are named.
func (c *cluster) etcdctlCommand(ctx context.Context, args ...string) *exec.Cmd {
	if !strings.Contains(strings.Join(args, " "), "--endpoints=") {
		args = append(args, "--endpoints="+strings.Join(c.endpoints(), ","))
	}
	cmd := exec.CommandContext(ctx, os.Getenv("ETCDCTL"), args...)
	cmd.Env = append(os.Environ(), "ETCDCTL_CACERT="+c.pem("ca.pem"), "ETCDCTL_CERT="+c.pem("cert.pem"), "ETCDCTL_KEY="+c.pem("key.pem"))
	return cmd
}

// etcdctl returns what it prints, and in an error what it complains about.
func (c *cluster) etcdctl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := c.etcdctlCommand(ctx, args...)
	var out, complaint bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &complaint
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("etcdctl %s: %w: %s", strings.Join(args, " "), err, complaint.String())
	}
	return out.String(), err
}

// connect returns etcd's client of the cluster, or of the given endpoints.
func connect(t *testing.T, endpoints ...string) *clientv3.Client {
	t.Helper()
	if len(endpoints) == 0 {
		endpoints = shared.endpoints()
	}
	pair, err := tls.LoadX509KeyPair(shared.pem("cert.pem"), shared.pem("key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(shared.pem("ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	client, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: patience, Logger: zap.NewNop(),
		DialKeepAliveTime: 2 * time.Second, DialKeepAliveTimeout: 2 * time.Second,
		TLS: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	t.Cleanup(cancel)
	return ctx
}
