package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

const (
	// How long certificates are valid after they were signed. A peer has the CA's key and
	// makes its own, also when it starts after a long rest: a week costs nothing. A node
	// asks a peer at about two thirds of its month, so that it may be switched off for
	// six days at the least, and for three weeks at best, and come back by itself. What
	// is lost or stolen is revoked, which counts at once; these lives bound what nobody
	// has noticed. Those of administrators are renewed when they are used.
	peerLife  = 7 * 24 * time.Hour
	nodeLife  = 30 * 24 * time.Hour
	adminLife = 90 * 24 * time.Hour
	// MaxLife is that of the longest: what is older has ended.
	MaxLife = 90 * 24 * time.Hour
	// backdate is how far a certificate reaches into the past: how much the
	// clocks of two machines may differ (SwarmKit's ca package does the same).
	backdate = time.Hour
	// caLife is how long a CA is valid.
	caLife = 10 * 365 * 24 * time.Hour
)

// Files of a CA in a peer's directory. CertFile is in credentials.go.
const (
	// CAFile holds the certificates of the cluster's CA, PEM.
	CAFile = "ca.pem"
	// CAKeyFile holds the CA's private key, PEM. On peers only, mode 0600.
	CAKeyFile = "ca-key.pem"
)

// CA is a cluster's certificate authority. It is immutable and safe for
// concurrent use.
type CA struct {
	cert    *x509.Certificate
	key     crypto.Signer
	keyPEM  []byte
	cluster string
}

// NewCA makes the CA of a new cluster: ECDSA P-256, self-signed, 10 years. It
// fails if cluster cannot be a cluster's id.
func NewCA(cluster string) (*CA, error) {
	return newCA(cluster, time.Now())
}

func newCA(cluster string, now time.Time) (*CA, error) {
	if err := CheckCluster(cluster); err != nil {
		return nil, fmt.Errorf("make the CA: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the CA's key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{Organization: []string{cluster}, CommonName: caCommonName},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true, // it signs machines, never another CA
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the CA's certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make the CA's certificate: %w", err)
	}
	encoded, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return &CA{cert: cert, key: key, keyPEM: encoded, cluster: cluster}, nil
}

const caCommonName = "Holdfast CA"

// LoadCA builds a CA from PEM. certPEM may hold several certificates: the one
// that belongs to the key is taken.
func LoadCA(certPEM, keyPEM []byte) (*CA, error) {
	certs, err := parseCerts(certPEM)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	for _, cert := range certs {
		if !samePublicKey(cert.PublicKey, key.Public()) {
			continue
		}
		cluster, err := clusterOfCA(cert)
		if err != nil {
			return nil, err
		}
		encoded, err := encodeKey(key)
		if err != nil {
			return nil, err
		}
		return &CA{cert: cert, key: key, keyPEM: encoded, cluster: cluster}, nil
	}
	return nil, errors.New("the CA's key belongs to none of the CA's certificates; restore both from the same backup or peer")
}

// LoadCADir reads a CA that [CA.Save] wrote. The error wraps [fs.ErrNotExist]
// when there is none, and is [ErrReadable] when others can read its key.
func LoadCADir(dir string) (*CA, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, fmt.Errorf("read the CA's certificate: %w", err)
	}
	keyPEM, err := readPrivate(filepath.Join(dir, CAKeyFile))
	if err != nil {
		return nil, fmt.Errorf("read the CA's key: %w", err)
	}
	ca, err := LoadCA(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("CA in %s: %w", dir, err)
	}
	return ca, nil
}

// Save writes the CA to dir as [CAFile] and [CAKeyFile], mode 0600, each file
// whole or not at all. dir is made, mode 0700, if it is missing. It refuses to
// replace the key of another CA: that would end a cluster.
func (ca *CA) Save(dir string) error {
	old, err := LoadCADir(dir)
	switch {
	case err == nil && old.Pin() != ca.Pin():
		return fmt.Errorf("%w: %s already holds the CA of cluster %s; use another directory", ErrWrongCluster, dir, old.Cluster())
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := makePrivateDir(dir); err != nil {
		return err
	}
	if err := writePrivate(filepath.Join(dir, CAKeyFile), ca.keyPEM); err != nil {
		return err
	}
	return writePrivate(filepath.Join(dir, CAFile), ca.CertPEM())
}

// Expires returns when the CA's certificate ends, and with it all that it has signed.
func (ca *CA) Expires() time.Time { return ca.cert.NotAfter }

// CertPEM returns the CA's certificate.
func (ca *CA) CertPEM() []byte { return certsPEM(ca.cert.Raw) }

// KeyPEM returns the CA's private key, PKCS #8. It is a secret of the peers.
func (ca *CA) KeyPEM() []byte { return bytes.Clone(ca.keyPEM) }

// Pin returns what tokens say about the CA: the SHA-256 of its certificate (DER)
// in hexadecimal, 64 characters.
func (ca *CA) Pin() string { return pinOf(ca.cert) }

// Cluster returns the id of the CA's cluster.
func (ca *CA) Cluster() string { return ca.cluster }

// Life returns how long a certificate of a role is valid after it was signed; of users
// it is the longest.
func Life(role Role) time.Duration {
	switch role {
	case RolePeer:
		return peerLife
	case RoleNode:
		return nodeLife
	default:
		return adminLife
	}
}

// IssuedAt returns when a certificate of ours was signed.
func IssuedAt(cert *x509.Certificate) time.Time { return cert.NotBefore.Add(backdate) }

// Sign answers a certificate request: a certificate for id, good as long as [Life] says
// and backdated by one hour, followed by the CA's own, DER. From the request it
// takes the public key alone; whoever calls must have made sure that the
// requester is id. addrs, host or host:port, become subject alternative names
// for tools that look at these; Holdfast itself does not.
//
// It refuses requests whose signature does not prove the key, keys that are
// neither ECDSA P-256 nor Ed25519, and identities of other clusters.
func (ca *CA) Sign(csrDER []byte, id Identity, addrs []string) ([][]byte, error) {
	return ca.sign(csrDER, id, addrs, time.Now())
}

// SignAfter is Sign for an identity all of whose certificates up to a moment have been
// revoked: this one is issued later, whatever the clock says. life is at most [Life]'s.
func (ca *CA) SignAfter(csrDER []byte, id Identity, addrs []string, life time.Duration, revoked time.Time) ([][]byte, error) {
	now := time.Now()
	if least := revoked.Add(time.Second); now.Before(least) { // certificates have whole seconds
		now = least
	}
	return ca.signFor(csrDER, id, addrs, now, life)
}

// SignUser is Sign for a user, whose certificate is good for life, 90 days at most.
func (ca *CA) SignUser(csrDER []byte, user Identity, life time.Duration) ([][]byte, error) {
	if user.Role != RoleUser {
		return nil, fmt.Errorf("sign a certificate for %s: not a user", user)
	}
	return ca.signFor(csrDER, user, nil, time.Now(), life)
}

func (ca *CA) sign(csrDER []byte, id Identity, addrs []string, now time.Time) ([][]byte, error) {
	return ca.signFor(csrDER, id, addrs, now, Life(id.Role))
}

func (ca *CA) signFor(csrDER []byte, id Identity, addrs []string, now time.Time, life time.Duration) ([][]byte, error) {
	if err := id.Check(); err != nil {
		return nil, fmt.Errorf("sign a certificate: %w", err)
	}
	if id.Cluster != ca.cluster {
		return nil, fmt.Errorf("sign a certificate for %s: %w: this is the CA of cluster %s", id, ErrWrongCluster, ca.cluster)
	}
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: parse the request: %w", id, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: the request is not signed with its own key: %w", id, err)
	}
	if err := checkPublicKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: %w", id, err)
	}
	template := ca.template(id, addrs, now)
	if end := now.Add(life); end.Before(template.NotAfter) {
		template.NotAfter = end
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, csr.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: %w", id, err)
	}
	return [][]byte{der, ca.cert.Raw}, nil
}

// template is the certificate for id, but for its key. It outlives neither its role's
// life nor the CA.
func (ca *CA) template(id Identity, addrs []string, now time.Time) *x509.Certificate {
	end := now.Add(Life(id.Role))
	if end.After(ca.cert.NotAfter) {
		end = ca.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               subject(id),
		NotBefore:             now.Add(-backdate),
		NotAfter:              end,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if id.Role == RolePeer {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	template.URIs = append(template.URIs, id.URI())
	for _, addr := range addrs {
		host := addr
		if h, _, err := net.SplitHostPort(addr); err == nil {
			host = h
		}
		if ip, err := netip.ParseAddr(host); err == nil {
			template.IPAddresses = append(template.IPAddresses, ip.WithZone("").AsSlice())
		} else if host != "" && CheckName(host) == nil {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	return template
}

// Issue makes a key and a certificate for id in one step, for whoever holds the
// CA's key: the first peer of a cluster, the first administrator, tests.
func (ca *CA) Issue(id Identity, addrs ...string) (*Credentials, error) {
	return ca.issue(id, addrs, time.Now())
}

func (ca *CA) issue(id Identity, addrs []string, now time.Time) (*Credentials, error) {
	key, csr, err := NewRequest()
	if err != nil {
		return nil, err
	}
	chain, err := ca.sign(csr, id, addrs, now)
	if err != nil {
		return nil, err
	}
	return NewCredentials(key, chain, ca.CertPEM())
}

// NewRequest makes an ECDSA P-256 key and a certificate request for it, PKCS #10
// in DER. The request names nobody: who may be whom is for the signer to say.
func NewRequest() (key crypto.Signer, csrDER []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	csrDER, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return k, csrDER, nil
}

// clusterOfCA checks that cert is a Holdfast CA and returns its cluster's id.
func clusterOfCA(cert *x509.Certificate) (string, error) {
	if !cert.IsCA || cert.Subject.CommonName != caCommonName || len(cert.Subject.Organization) != 1 {
		return "", fmt.Errorf("certificate %q is not a Holdfast CA's", cert.Subject)
	}
	cluster := cert.Subject.Organization[0]
	if err := CheckCluster(cluster); err != nil {
		return "", fmt.Errorf("certificate %q is not a Holdfast CA's: %w", cert.Subject, err)
	}
	return cluster, nil
}

func checkPublicKey(key any) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return nil
		}
	case ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("key of type %T: want ECDSA P-256 or Ed25519", key)
}

func pinOf(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// newSerial returns 127 random bits: unique without a counter to keep.
func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// parseCerts reads all certificates in PEM. There must be at least one, and
// nothing else.
func parseCerts(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := data; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			if len(bytes.TrimSpace(rest)) > 0 && len(certs) > 0 {
				return nil, errors.New("there is something after the last PEM block")
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %q, want CERTIFICATE", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no PEM certificate found")
	}
	return certs, nil
}

// parseKey reads a PKCS #8 private key in PEM. Its errors quote nothing of it.
func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no PEM block PRIVATE KEY found")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("not a PKCS #8 private key")
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key of type %T cannot sign", parsed)
	}
	if err := checkPublicKey(key.Public()); err != nil {
		return nil, err
	}
	return key, nil
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func certsPEM(ders ...[]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}
