package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	peer1 = Identity{Cluster: "c-1", Role: RolePeer, Name: "p1"}
	node1 = Identity{Cluster: "c-1", Role: RoleNode, Name: "n1"}
)

func newTestCA(t testing.TB, cluster string) *CA {
	t.Helper()
	ca, err := NewCA(cluster)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func mustIssue(t testing.TB, ca *CA, id Identity, addrs ...string) *Credentials {
	t.Helper()
	c, err := ca.Issue(id, addrs...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wantError(t *testing.T, err, is error, parts ...string) {
	t.Helper()
	if err == nil || (is != nil && !errors.Is(err, is)) {
		t.Fatalf("error %v, want %v", err, is)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q lacks %q", err, part)
		}
	}
}

func TestCertificate(t *testing.T) {
	ca := newTestCA(t, "c-1")
	before := time.Now()
	c := mustIssue(t, ca, peer1, "10.0.0.1:7443", "peer1.example", "[fd00::1]:7443", "bad host!")
	leaf := c.current.Load().leaf
	if got := leaf.URIs[0].String(); got != "spiffe://c-1/peer/p1" {
		t.Errorf("URI %q", got)
	}
	if got := leaf.Subject.String(); got != "CN=p1,OU=peer,O=c-1" {
		t.Errorf("subject %q", got)
	}
	if got, err := IdentityOf(leaf); err != nil || got != peer1 {
		t.Errorf("IdentityOf = %v, %v; want %v", got, err, peer1)
	}
	if got := leaf.DNSNames; !slices.Equal(got, []string{"peer1.example"}) {
		t.Errorf("DNS names %v", got)
	}
	if len(leaf.IPAddresses) != 2 || !leaf.IPAddresses[0].Equal(net.IPv4(10, 0, 0, 1)) {
		t.Errorf("addresses %v", leaf.IPAddresses)
	}
	notBefore, notAfter := c.Validity()
	if d := before.Sub(notBefore); d < 59*time.Minute || d > 61*time.Minute {
		t.Errorf("backdated by %v, want 1h", d)
	}
	if d := notAfter.Sub(before); d < 7*24*time.Hour-time.Minute || d > 7*24*time.Hour+time.Minute {
		t.Errorf("valid for %v, want 7 days", d)
	}
	if _, end := mustIssue(t, ca, node1).Validity(); end.Sub(before) < 30*24*time.Hour-time.Minute || end.Sub(before) > 30*24*time.Hour+time.Minute {
		t.Errorf("a node's is valid for %v, want 30 days", end.Sub(before))
	}
	if len(c.current.Load().chain) != 2 {
		t.Error("the chain lacks the CA, and machines that join need it")
	}
	if usages := mustIssue(t, ca, node1).current.Load().leaf.ExtKeyUsage; !slices.Equal(usages, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		t.Errorf("a node's certificate is good for %v, want for clients alone", usages)
	}
}

// TestCertificateEndsWithCA: what outlives its CA breaks when nobody expects it.
func TestCertificateEndsWithCA(t *testing.T) {
	ca, err := newCA("c-1", time.Now().Add(-caLife+24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if _, notAfter := mustIssue(t, ca, peer1).Validity(); notAfter.After(ca.cert.NotAfter) {
		t.Errorf("certificate until %v, CA until %v", notAfter, ca.cert.NotAfter)
	}
}

func TestSignRefuses(t *testing.T) {
	ca := newTestCA(t, "c-1")
	_, good, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	forged := slices.Clone(good)
	forged[len(forged)-5] ^= 1 // in the signature
	request := func(key any) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		csr  []byte
		id   Identity
		is   error
		want string
	}{
		{"other cluster", good, Identity{Cluster: "c-2", Role: RolePeer, Name: "p1"}, ErrWrongCluster, "c-2"},
		{"unknown role", good, Identity{Cluster: "c-1", Role: "root", Name: "p1"}, nil, `role "root"`},
		{"no name", good, Identity{Cluster: "c-1", Role: RolePeer, Name: ""}, nil, "name is empty"},
		{"name with a slash", good, Identity{Cluster: "c-1", Role: RolePeer, Name: "p1/../p2"}, nil, "not allowed"},
		{"not a request", []byte("x"), peer1, nil, "parse the request"},
		{"forged", forged, peer1, nil, "its own key"},
		{"RSA", request(rsaKey), peer1, nil, "ECDSA P-256"},
		{"P-384", request(p384), peer1, nil, "ECDSA P-256"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ca.Sign(tt.csr, tt.id, nil)
			wantError(t, err, tt.is, tt.want)
		})
	}
}

// TestSignIgnoresRequest: a request that asks for more gets what the signer says.
func TestSignIgnoresRequest(t *testing.T) {
	ca := newTestCA(t, "c-1")
	key, _, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: subject(Identity{Cluster: "c-1", Role: RoleAdmin, Name: "root"}), URIs: []*url.URL{{Scheme: "spiffe", Host: "c-1", Path: "/admin/root"}}, DNSNames: []string{"api"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.Sign(csr, node1, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCredentials(key, chain, ca.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	if c.Identity() != node1 || len(c.current.Load().leaf.DNSNames) != 0 {
		t.Errorf("got %v with names %v, want %v alone", c.Identity(), c.current.Load().leaf.DNSNames, node1)
	}
}

func TestIdentityOf(t *testing.T) {
	uri := func(s string) []*url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	good := subject(peer1)
	tests := []struct {
		name    string
		subject pkix.Name
		uris    []*url.URL
		ok      bool
	}{
		{"good", good, uri("spiffe://c-1/peer/p1"), true},
		{"no URI", good, nil, false},
		{"two URIs", good, append(uri("spiffe://c-1/peer/p1"), uri("spiffe://c-1/admin/p1")...), false},
		{"another scheme", good, uri("https://c-1/peer/p1"), false},
		{"a query", good, uri("spiffe://c-1/peer/p1?x=y"), false},
		{"a port", good, uri("spiffe://c-1:80/peer/p1"), false},
		{"a longer path", good, uri("spiffe://c-1/peer/p1/x"), false},
		{"no name", good, uri("spiffe://c-1/peer"), false},
		{"an unknown role", good, uri("spiffe://c-1/king/p1"), false},
		{"a subject of another role", subject(Identity{Cluster: "c-1", Role: RoleAdmin, Name: "p1"}), uri("spiffe://c-1/peer/p1"), false},
		{"a subject of another name", subject(Identity{Cluster: "c-1", Role: RolePeer, Name: "p2"}), uri("spiffe://c-1/peer/p1"), false},
		{"a subject of another cluster", subject(Identity{Cluster: "c-2", Role: RolePeer, Name: "p1"}), uri("spiffe://c-1/peer/p1"), false},
		{"an escaped slash", good, uri("spiffe://c-1/peer%2Fp1"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := IdentityOf(&x509.Certificate{Subject: tt.subject, URIs: tt.uris})
			if tt.ok {
				if err != nil || got != peer1 {
					t.Errorf("%v, %v; want %v", got, err, peer1)
				}
				return
			}
			wantError(t, err, ErrNoIdentity)
		})
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"a", "node-1.example.com", "A_b", strings.Repeat("a", 253)} {
		if err := CheckName(name); err != nil {
			t.Errorf("CheckName(%q): %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", "a b", "a/b", "ä", "a\n", "a:b", strings.Repeat("a", 254)} {
		if err := CheckName(name); err == nil {
			t.Errorf("CheckName(%q): no error", name)
		}
	}
	wantError(t, CheckCluster("C-1"), nil, "lower case")
}

func TestCAOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if _, err := LoadCADir(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("no CA: %v, want ErrNotExist", err)
	}
	ca := newTestCA(t, "c-1")
	for range 2 { // the second time it is there already
		if err := ca.Save(dir); err != nil {
			t.Fatal(err)
		}
	}
	got, err := LoadCADir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.Pin() != ca.Pin() || got.Cluster() != "c-1" {
		t.Errorf("loaded the CA of %s with pin %s", got.Cluster(), got.Pin())
	}
	mustIssue(t, got, peer1)
	wantError(t, newTestCA(t, "c-2").Save(dir), ErrWrongCluster, "c-1", "another directory")
	if err := os.Chmod(filepath.Join(dir, CAKeyFile), 0o640); err != nil {
		t.Fatal(err)
	}
	_, err = LoadCADir(dir)
	wantError(t, err, ErrReadable, "chmod 600", CAKeyFile, "0640")
	_, err = LoadCA(ca.CertPEM(), newTestCA(t, "c-1").KeyPEM())
	wantError(t, err, nil, "belongs to none")
	// One of several certificates is the key's.
	both := append(newTestCA(t, "c-1").CertPEM(), ca.CertPEM()...)
	if got, err := LoadCA(both, ca.KeyPEM()); err != nil || got.Pin() != ca.Pin() {
		t.Errorf("LoadCA of two certificates: %v", err)
	}
	for name, data := range map[string]string{"nothing": "", "no PEM": "hello", "key": string(ca.KeyPEM()), "tail": string(ca.CertPEM()) + "tail"} {
		if _, err := LoadCA([]byte(data), ca.KeyPEM()); err == nil {
			t.Errorf("LoadCA of %s: no error", name)
		}
	}
}

func TestCredentialsOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	_, err := LoadCredentials(dir)
	wantError(t, err, fs.ErrNotExist)
	ca := newTestCA(t, "c-1")
	c := mustIssue(t, ca, node1)
	if err := c.Save(dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v; want 0600", e.Name(), info.Mode(), err)
		}
	}
	if len(entries) != 3 {
		t.Errorf("files %v, want three", entries)
	}
	got, err := LoadCredentials(dir)
	if err != nil || got.Identity() != node1 || !got.Trusts(ca.Pin()) || got.Trusts(newTestCA(t, "c-1").Pin()) {
		t.Fatalf("loaded %v, %v", got, err)
	}
	if err := os.Chmod(filepath.Join(dir, KeyFile), 0o604); err != nil {
		t.Fatal(err)
	}
	_, err = LoadCredentials(dir)
	wantError(t, err, ErrReadable, "chmod 600")
}

// TestSaveInterrupted stops a save after each of its steps: what is loaded then
// is all old or all new.
func TestSaveInterrupted(t *testing.T) {
	ca := newTestCA(t, "c-1")
	before, after := mustIssue(t, ca, node1), mustIssue(t, ca, node1)
	serial := func(c *Credentials) string { return c.current.Load().leaf.SerialNumber.String() }
	certPEM, keyPEM, caPEM, err := after.PEM()
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) func(dir string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name)+pendingSuffix, data, 0o600) }
	}
	rename := func(name string) func(dir string) error {
		return func(dir string) error {
			return os.Rename(filepath.Join(dir, name)+pendingSuffix, filepath.Join(dir, name))
		}
	}
	// Save's own steps, in its order.
	steps := []func(string) error{
		write(CertFile, certPEM), write(KeyFile, keyPEM), write(CAFile, caPEM),
		rename(CertFile), rename(KeyFile), rename(CAFile),
	}
	const commit = 4 // the renaming of the certificate
	for done := range len(steps) + 1 {
		dir := t.TempDir()
		if err := before.Save(dir); err != nil {
			t.Fatal(err)
		}
		for _, step := range steps[:done] {
			if err := step(dir); err != nil {
				t.Fatal(err)
			}
		}
		want := before
		if done >= commit {
			want = after
		}
		for again := range 2 { // loading mends, and must not break anything
			got, err := LoadCredentials(dir)
			if err != nil {
				t.Fatalf("after %d steps, load %d: %v", done, again, err)
			}
			if serial(got) != serial(want) {
				t.Errorf("after %d steps, load %d: the wrong credentials", done, again)
			}
		}
		next := mustIssue(t, ca, node1)
		if err := next.Save(dir); err != nil {
			t.Fatal(err)
		}
		if got, err := LoadCredentials(dir); err != nil || serial(got) != serial(next) {
			t.Errorf("after %d steps, a new save does not hold: %v", done, err)
		}
	}
}

func TestNewCredentialsRefuses(t *testing.T) {
	ca, twin, other := newTestCA(t, "c-1"), newTestCA(t, "c-1"), newTestCA(t, "c-2")
	key, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.Sign(csr, node1, nil)
	if err != nil {
		t.Fatal(err)
	}
	otherKey, _, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	_, err = NewCredentials(otherKey, chain, ca.CertPEM())
	wantError(t, err, nil, "does not belong to the certificate")
	_, err = NewCredentials(key, chain, twin.CertPEM())
	wantError(t, err, ErrUntrusted)
	_, err = NewCredentials(key, chain, other.CertPEM())
	wantError(t, err, ErrWrongCluster, "c-1", "c-2")
	_, err = NewCredentials(key, chain, append(ca.CertPEM(), other.CertPEM()...))
	wantError(t, err, ErrWrongCluster)
	_, err = NewCredentials(key, [][]byte{ca.cert.Raw}, ca.CertPEM())
	wantError(t, err, ErrNoIdentity)
	_, err = NewCredentials(nil, chain, ca.CertPEM())
	wantError(t, err, nil, "missing")
	c, err := NewCredentials(key, chain, ca.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	strangerKey, strangerCSR, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := ca.Sign(strangerCSR, Identity{Cluster: "c-1", Role: RoleNode, Name: "n2"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, c.Set(strangerKey, stranger, ca.CertPEM()), ErrWrongRole, "n1", "n2")
}

func TestExpiry(t *testing.T) {
	ca, err := newCA("c-1", time.Now().Add(-365*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	save := func(id Identity, signed time.Time) *Credentials {
		c, err := ca.issue(id, []string{"10.0.0.1"}, signed)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Save(dir); err != nil {
			t.Fatal(err)
		}
		return c
	}
	old := save(node1, time.Now().Add(-91*24*time.Hour))
	_, end := old.Validity()
	_, err = LoadCredentials(dir)
	wantError(t, err, ErrExpired, "spiffe://c-1/node/n1", end.UTC().Format(time.RFC3339), "join the node again", dir)

	save(node1, time.Now().Add(2*time.Hour))
	_, err = LoadCredentials(dir)
	wantError(t, err, ErrNotYetValid, "set the clock")

	// A peer helps itself.
	old = save(peer1, time.Now().Add(-91*24*time.Hour))
	renewed, err := LoadOrRenew(dir, ca)
	if err != nil {
		t.Fatal(err)
	}
	if renewed.Identity() != peer1 || renewed.RenewAfter().Before(time.Now()) {
		t.Errorf("renewed %v, due again at %v", renewed.Identity(), renewed.RenewAfter())
	}
	if ips := renewed.current.Load().leaf.IPAddresses; len(ips) != 1 || !ips[0].Equal(net.IPv4(10, 0, 0, 1)) {
		t.Errorf("addresses %v are lost", ips)
	}
	saved, err := LoadCredentials(dir)
	if err != nil || saved.current.Load().leaf.SerialNumber.Cmp(old.current.Load().leaf.SerialNumber) == 0 {
		t.Errorf("the renewal was not saved: %v", err)
	}
	again, err := LoadOrRenew(dir, ca)
	if err != nil || again.current.Load().leaf.SerialNumber.Cmp(saved.current.Load().leaf.SerialNumber) != 0 {
		t.Errorf("renewed before it was due: %v", err)
	}
	wantError(t, saved.Renew(newTestCA(t, "c-2")), ErrWrongCluster)
}

func TestRenewAfter(t *testing.T) {
	ca := newTestCA(t, "c-1")
	seen := make(map[time.Duration]bool)
	for range 20 {
		c := mustIssue(t, ca, node1)
		from, to := c.Validity()
		at := c.RenewAfter().Sub(from)
		if life := to.Sub(from); at < life/2 || at > life*8/10 {
			t.Fatalf("renew after %v of %v, want 50 to 80 %%", at, life)
		}
		first := c.RenewAfter()
		if !c.RenewAfter().Equal(first) {
			t.Fatal("the moment is not fixed")
		}
		seen[at] = true
	}
	if len(seen) < 10 {
		t.Errorf("%d different moments for 20 certificates: they would renew together", len(seen))
	}
	c := mustIssue(t, ca, node1)
	leaf := *c.current.Load().leaf
	for serial, want := range map[int64]float64{0x100: 0.5, 0x1ff: 0.8} {
		leaf.SerialNumber = big.NewInt(serial)
		c.current.Store(&credentials{leaf: &leaf})
		life := leaf.NotAfter.Sub(leaf.NotBefore)
		if got := float64(c.RenewAfter().Sub(leaf.NotBefore)) / float64(life); got < want-0.01 || got > want+0.01 {
			t.Errorf("serial %x: renewed at %.2f of its life, want %.2f", serial, got, want)
		}
	}
}

// handshake connects a client and a server and passes a byte each way, since in
// TLS 1.3 a server's refusal reaches the client after its handshake.
func handshake(t *testing.T, server, client *tls.Config) (serverState tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			serverErr = err
			return
		}
		conn := tls.Server(raw, server)
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if serverErr = conn.Handshake(); serverErr != nil {
			return
		}
		serverState = conn.ConnectionState()
		_, serverErr = conn.Write([]byte("x"))
	}()
	clientErr = func() error {
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", l.Addr().String(), client)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		var b [1]byte
		_, err = conn.Read(b[:])
		return err
	}()
	<-done
	return serverState, serverErr, clientErr
}

func TestTLS(t *testing.T) {
	ca, err := newCA("c-1", time.Now().Add(-365*24*time.Hour)) // old enough for old certificates
	if err != nil {
		t.Fatal(err)
	}
	other := newTestCA(t, "c-2")
	server, node := mustIssue(t, ca, peer1), mustIssue(t, ca, node1)
	state, serverErr, clientErr := handshake(t, server.ServerTLS("h2", "raft"), node.ClientTLS(RolePeer, "raft"))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("server: %v, client: %v", serverErr, clientErr)
	}
	if id, err := IdentityOf(state.PeerCertificates[0]); err != nil || id != node1 {
		t.Errorf("the server sees %v, %v; want %v", id, err, node1)
	}
	if state.Version != tls.VersionTLS13 || state.NegotiatedProtocol != "raft" || len(state.VerifiedChains) == 0 {
		t.Errorf("version %x, protocol %q, %d verified chains", state.Version, state.NegotiatedProtocol, len(state.VerifiedChains))
	}

	t.Run("no client certificate", func(t *testing.T) {
		cfg := node.ClientTLS(RolePeer)
		cfg.GetClientCertificate = nil
		state, serverErr, clientErr := handshake(t, server.ServerTLS(), cfg)
		if serverErr != nil || clientErr != nil || len(state.PeerCertificates) != 0 {
			t.Errorf("server: %v, client: %v; want both content", serverErr, clientErr)
		}
	})
	t.Run("TLS 1.2 client", func(t *testing.T) {
		_, serverErr, _ := handshake(t, server.ServerTLS(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
		wantError(t, serverErr, nil, "version")
	})
	t.Run("server of another cluster", func(t *testing.T) {
		_, _, err := handshake(t, mustIssue(t, other, Identity{Cluster: "c-2", Role: RolePeer, Name: "p1"}).ServerTLS(), node.ClientTLS(RolePeer))
		wantError(t, err, ErrUntrusted, "spiffe://c-2/peer/p1")
	})
	t.Run("client of another cluster", func(t *testing.T) {
		stranger := mustIssue(t, other, Identity{Cluster: "c-2", Role: RoleAdmin, Name: "root"}).ClientTLS(RolePeer)
		stranger.VerifyConnection = nil // it does not mind
		_, serverErr, clientErr := handshake(t, server.ServerTLS(), stranger)
		wantError(t, serverErr, nil, "unknown authority")
		wantError(t, clientErr, nil, "remote error: tls")
	})
	t.Run("a node for a server", func(t *testing.T) {
		_, _, err := handshake(t, node.ServerTLS(), node.ClientTLS(RoleNode))
		wantError(t, err, ErrUntrusted, "key usage")
	})
	t.Run("wrong role", func(t *testing.T) {
		_, _, err := handshake(t, server.ServerTLS(), node.ClientTLS(RoleAdmin))
		wantError(t, err, ErrWrongRole, "spiffe://c-1/peer/p1")
	})
	t.Run("named", func(t *testing.T) {
		if _, _, err := handshake(t, server.ServerTLS(), node.ClientTLSNamed(RolePeer, "p1")); err != nil {
			t.Errorf("the right peer: %v", err)
		}
		_, _, err := handshake(t, server.ServerTLS(), node.ClientTLSNamed(RolePeer, "p2"))
		wantError(t, err, ErrWrongRole, "want peer p2")
	})
	t.Run("cluster's CA, identity of another cluster", func(t *testing.T) {
		// Such a certificate cannot be had from Sign; a stolen CA key makes it.
		rogue := *ca
		rogue.cluster = "c-2"
		chain, key := rogueChain(t, &rogue, Identity{Cluster: "c-2", Role: RolePeer, Name: "p1"})
		cfg := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: key}}}
		_, _, err := handshake(t, cfg, node.ClientTLS(RolePeer))
		wantError(t, err, ErrWrongCluster)
		cfg.InsecureSkipVerify = true
		_, serverErr, _ := handshake(t, server.ServerTLS(), cfg)
		wantError(t, serverErr, ErrWrongCluster)
	})
	t.Run("expired server", func(t *testing.T) {
		old, err := ca.issue(peer1, nil, time.Now().Add(-91*24*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = handshake(t, old.ServerTLS(), node.ClientTLS(RolePeer))
		wantError(t, err, ErrExpired, "ended at")
	})
	t.Run("server of the future", func(t *testing.T) {
		early, err := ca.issue(peer1, nil, time.Now().Add(3*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = handshake(t, early.ServerTLS(), node.ClientTLS(RolePeer))
		wantError(t, err, ErrNotYetValid, "set the clock")
		_, _, err = handshake(t, early.ServerTLS(), PinnedTLS(ca.Pin()))
		wantError(t, err, ErrNotYetValid, "set the clock")
	})
	t.Run("expired client", func(t *testing.T) {
		old, err := ca.issue(node1, nil, time.Now().Add(-91*24*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = handshake(t, server.ServerTLS(), old.ClientTLS(RolePeer))
		wantError(t, err, ErrExpired, "spiffe://c-1/node/n1", "join the node again")
	})
}

func rogueChain(t *testing.T, ca *CA, id Identity) ([][]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.Sign(csr, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	return chain, key.(*ecdsa.PrivateKey)
}

// TestReload: configurations made before a renewal use what came after it.
func TestReload(t *testing.T) {
	ca := newTestCA(t, "c-1")
	server, node := mustIssue(t, ca, peer1), mustIssue(t, ca, node1)
	serverTLS, clientTLS := server.ServerTLS(), node.ClientTLS(RolePeer)
	if err := server.Renew(ca); err != nil {
		t.Fatal(err)
	}
	if err := node.Renew(ca); err != nil {
		t.Fatal(err)
	}
	var shown *x509.Certificate
	verify := clientTLS.VerifyConnection
	clientTLS.VerifyConnection = func(cs tls.ConnectionState) error {
		shown = cs.PeerCertificates[0]
		return verify(cs)
	}
	state, serverErr, clientErr := handshake(t, serverTLS, clientTLS)
	if serverErr != nil || clientErr != nil {
		t.Fatalf("server: %v, client: %v", serverErr, clientErr)
	}
	if !shown.Equal(server.current.Load().leaf) {
		t.Error("the server showed its old certificate")
	}
	if !state.PeerCertificates[0].Equal(node.current.Load().leaf) {
		t.Error("the client showed its old certificate")
	}
}

// TestNoResumption: a second connection proves itself anew.
func TestNoResumption(t *testing.T) {
	ca := newTestCA(t, "c-1")
	serverTLS, clientTLS := mustIssue(t, ca, peer1).ServerTLS(), mustIssue(t, ca, node1).ClientTLS(RolePeer)
	clientTLS.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	clientTLS.SessionTicketsDisabled = false
	for range 2 {
		state, serverErr, clientErr := handshake(t, serverTLS, clientTLS)
		if serverErr != nil || clientErr != nil || state.DidResume {
			t.Fatalf("server: %v, client: %v, resumed: %v", serverErr, clientErr, state.DidResume)
		}
	}
}

func TestPinnedTLS(t *testing.T) {
	ca, twin := newTestCA(t, "c-1"), newTestCA(t, "c-1")
	server := mustIssue(t, ca, peer1)
	if _, serverErr, clientErr := handshake(t, server.ServerTLS("h2"), PinnedTLS(ca.Pin(), "h2")); serverErr != nil || clientErr != nil {
		t.Fatalf("server: %v, client: %v", serverErr, clientErr)
	}
	_, _, err := handshake(t, server.ServerTLS(), PinnedTLS(twin.Pin()))
	wantError(t, err, ErrPin, ca.Pin(), twin.Pin())

	certificate := func(chain [][]byte, key any) *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: key}}}
	}
	// Somebody in between shows the right CA beside a certificate of his own.
	chain, key := rogueChain(t, twin, peer1)
	_, _, err = handshake(t, certificate([][]byte{chain[0], ca.cert.Raw}, key), PinnedTLS(ca.Pin()))
	wantError(t, err, ErrUntrusted)
	// A node of the cluster plays peer.
	chain, key = rogueChain(t, ca, node1)
	_, _, err = handshake(t, certificate(chain, key), PinnedTLS(ca.Pin()))
	wantError(t, err, ErrUntrusted, "key usage")
	// No CA at all.
	chain, key = rogueChain(t, ca, peer1)
	_, _, err = handshake(t, certificate(chain[:1], key), PinnedTLS(ca.Pin()))
	wantError(t, err, ErrPin, "no certificate authority")
	// The certificate itself is what the pin says: it is no CA.
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = handshake(t, certificate([][]byte{chain[0], chain[0]}, key), PinnedTLS(pinOf(leaf)))
	wantError(t, err, ErrPin, "not a Holdfast CA")
}
