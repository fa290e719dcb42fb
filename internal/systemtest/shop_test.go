package systemtest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// certificate makes a self-signed certificate for host in dir, as "openssl req -x509"
// does.
func certificate(t *testing.T, dir, host string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// buying is a client that orders from the shop until it is told to end.
type buying struct {
	t   *testing.T
	cmd *exec.Cmd
	out *bytes.Buffer
}

// ends tells the client to finish and returns what it counted. It fails by itself when an
// acknowledged order is lost, or kept twice.
func (b *buying) ends() map[string]int {
	b.t.Helper()
	// What runs is a child of "dev exec", and in its process group.
	if err := syscall.Kill(-b.cmd.Process.Pid, syscall.SIGTERM); err != nil {
		b.t.Fatal(err)
	}
	if err := b.cmd.Wait(); err != nil {
		b.t.Errorf("the buyers: %v\n%s", err, b.out)
	}
	counts := map[string]int{}
	for _, found := range regexp.MustCompile(`(?m)^(\w+) (\d+)`).FindAllStringSubmatch(b.out.String(), -1) {
		counts[found[1]], _ = strconv.Atoi(found[2])
	}
	return counts
}

// TestShop is the example of docs/shop.md: three tiers from plain manifests on two nodes,
// with policies, TLS and a claim, under buyers over new and over kept connections. The
// node without the database dies, and comes back; then the one with it does. Every order
// that was acknowledged is kept, once.
func TestShop(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	shop := filepath.Join(dir, "shop")
	for _, build := range [][]string{
		{"go", "build", "-o", shop, "../../examples/shop"},
		{"go", "run", "../../examples/image", "-binary", shop, "-ref", "holdfast.dev/shop:1", "-o", filepath.Join(m.images, "shop.tar")},
	} {
		cmd := exec.CommandContext(t.Context(), build[0], build[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(build, " "), err, out)
		}
	}
	c := m.up("--peers", "3", "--nodes", "2")
	cert, key := certificate(t, dir, "shop.example")
	m.must("label", "nodes", "--all", "holdfast.dev/ingress=true")
	m.must("create", "namespace", "shop")
	m.must("create", "secret", "tls", "shop-tls", "-n", "shop", "--cert", cert, "--key", key)
	m.must("apply", "-f", "../../examples/shop.yaml", "--timeout", patience.String())

	address := func(node string) string {
		return strings.TrimSpace(m.must("get", "node", node, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`))
	}
	buy := func() *buying {
		b := &buying{t: t, out: new(bytes.Buffer)}
		b.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), m.binary, "dev", "exec", "--data-dir", m.data, "p1", "--",
			shop, "buy", "--ca", cert, "--at", address("n1")+","+address("n2"), "--least", "300", "--settle", patience.String())
		b.cmd.Env = m.env
		b.cmd.Stdout, b.cmd.Stderr = b.out, b.out
		b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := b.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL) })
		return b
	}
	until := func(what string, right func() bool) {
		t.Helper()
		for deadline := time.Now().Add(patience); !right(); time.Sleep(200 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not after %v: %s\n%s", patience, what, m.must("get", "pods", "-n", "shop", "-o", "wide"))
			}
		}
	}
	ready := func(want string) func() bool { // replicas of front and api, and of db
		return func() bool {
			return strings.TrimSpace(m.must("get", "deployments,statefulsets", "-n", "shop", "-o", "jsonpath={.items[*].status.readyReplicas}")) == want
		}
	}
	until("all of the shop is ready", ready("2 2 1"))
	home := strings.TrimSpace(m.must("get", "pod", "db-0", "-n", "shop", "-o", "jsonpath={.spec.nodeName}"))
	other := map[string]string{"n1": "n2", "n2": "n1"}[home]

	// The node without the database dies. Nothing of it is needed for long.
	b := buy()
	m.must("dev", "kill", "--data-dir", m.data, other)
	until("the pods of "+other+" run elsewhere", func() bool {
		on := m.must("get", "pods", "-n", "shop", "-o", `jsonpath={range .items[?(@.status.phase=="Running")]}{.spec.nodeName}{"\n"}{end}`)
		return strings.Count(on, home) == 5 && ready("2 2 1")()
	})
	m.must("dev", "start", "--data-dir", m.data, other)
	until(other+" is back", func() bool { return !strings.Contains(m.must("get", "nodes"), "NotReady") })
	counts := b.ends()
	t.Logf("%s died: %v\n%s", other, counts, b.out)
	if counts["orders"] < 300 || counts["tries_that_failed"] == 0 {
		t.Errorf("%d orders and %d failed tries: nothing was proved", counts["orders"], counts["tries_that_failed"])
	}

	// The node with the database dies: its volume is nowhere else, so orders wait.
	b = buy()
	m.must("dev", "kill", "--data-dir", m.data, home)
	until("the database is missed", func() bool { return !ready("2 2 1")() })
	m.must("dev", "start", "--data-dir", m.data, home)
	until("all of the shop is ready", ready("2 2 1"))
	counts = b.ends()
	t.Logf("%s died: %v\n%s", home, counts, b.out)
	if counts["orders"] < 300 || counts["tries_that_failed"] == 0 {
		t.Errorf("%d orders and %d failed tries: nothing was proved", counts["orders"], counts["tries_that_failed"])
	}

	m.must("delete", "-f", "../../examples/shop.yaml")
	c.stop()
	if left := m.leavings(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}
