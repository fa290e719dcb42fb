package pki

import (
	"bytes"
	"crypto"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// Files of [Credentials] in a directory, all of mode 0600. The CA's
// certificates are in [CAFile].
const (
	KeyFile  = "key.pem"
	CertFile = "cert.pem"
)

// Credentials are a private key, its certificate chain and the CA they trust:
// what a process needs to be somebody. They can be replaced at any time; all
// methods are safe for concurrent use. The zero value is of no use.
type Credentials struct {
	current atomic.Pointer[credentials]
}

// credentials is one immutable state of Credentials.
type credentials struct {
	id    Identity
	key   crypto.Signer
	chain [][]byte // leaf first, then the CA that signed it
	leaf  *x509.Certificate
	cas   []*x509.Certificate
	pool  *x509.CertPool // cas
}

// NewCredentials puts credentials together. chain is DER, leaf first; caPEM
// holds the CA's certificates. It checks that the key is the leaf's, that the
// chain leads to one of the CAs and that all of it is of one cluster. It does
// not look at the clock: see [Credentials.CheckTime].
func NewCredentials(key crypto.Signer, chain [][]byte, caPEM []byte) (*Credentials, error) {
	state, err := newCredentials(key, chain, caPEM)
	if err != nil {
		return nil, err
	}
	c := new(Credentials)
	c.current.Store(state)
	return c, nil
}

// CredentialsFromPEM is NewCredentials for a chain and a PKCS #8 key in PEM.
func CredentialsFromPEM(certPEM, keyPEM, caPEM []byte) (*Credentials, error) {
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	certs, err := parseCerts(certPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	var chain [][]byte
	for _, cert := range certs {
		chain = append(chain, cert.Raw)
	}
	return NewCredentials(key, chain, caPEM)
}

func newCredentials(key crypto.Signer, chain [][]byte, caPEM []byte) (*credentials, error) {
	if key == nil || len(chain) == 0 {
		return nil, errors.New("credentials: key or certificate missing")
	}
	cas, err := parseCerts(caPEM)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	id, err := IdentityOf(leaf)
	if err != nil {
		return nil, err
	}
	if !samePublicKey(leaf.PublicKey, key.Public()) {
		return nil, fmt.Errorf("the private key does not belong to the certificate of %s", id)
	}
	pool := x509.NewCertPool()
	for _, ca := range cas {
		cluster, err := clusterOfCA(ca)
		if err != nil {
			return nil, err
		}
		if cluster != id.Cluster {
			return nil, fmt.Errorf("%w: the certificate is of cluster %s, the CA of cluster %s", ErrWrongCluster, id.Cluster, cluster)
		}
		pool.AddCert(ca)
	}
	state := &credentials{id: id, key: key, leaf: leaf, cas: cas, pool: pool}
	// Any moment at which the leaf is valid will do: a machine whose clock is off
	// must still be able to load what it has, and say so.
	if err := verifyChain(leaf, pool, x509.ExtKeyUsageClientAuth, leaf.NotAfter); err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", id, err)
	}
	// Others may need the CA in the chain: a joining machine knows its hash alone.
	state.chain = [][]byte{leaf.Raw}
	for _, ca := range cas {
		if leaf.CheckSignatureFrom(ca) == nil {
			state.chain = append(state.chain, ca.Raw)
			break
		}
	}
	return state, nil
}

// LoadCredentials reads what [Credentials.Save] wrote, also if that was
// interrupted. The error wraps [fs.ErrNotExist] when there is nothing, is
// [ErrReadable] when others can read the key, and is [ErrExpired] or
// [ErrNotYetValid] when the certificate cannot be used now; a holder of the CA's
// key calls [LoadOrRenew] instead.
func LoadCredentials(dir string) (*Credentials, error) {
	c, err := loadCredentials(dir)
	if err != nil {
		return nil, err
	}
	if err := c.CheckTime(time.Now()); err != nil {
		return nil, fmt.Errorf("credentials in %s: %w", dir, err)
	}
	return c, nil
}

// LoadOrRenew is LoadCredentials for a holder of the CA's key: certificates that
// are due, or past their end, are renewed and saved.
func LoadOrRenew(dir string, ca *CA) (*Credentials, error) {
	c, err := loadCredentials(dir)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if now.After(c.RenewAfter()) {
		if err := c.Renew(ca); err != nil {
			return nil, fmt.Errorf("renew the credentials in %s: %w", dir, err)
		}
		if err := c.Save(dir); err != nil {
			return nil, err
		}
	}
	if err := c.CheckTime(now); err != nil {
		return nil, fmt.Errorf("credentials in %s: %w", dir, err)
	}
	return c, nil
}

func loadCredentials(dir string) (*Credentials, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, CertFile))
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	// Save renames certificate, key, CA, in this order, and the first of these is
	// the commit. If it was cut short after that, key and CA, or the CA alone,
	// still have their temporary names.
	if !exists(filepath.Join(dir, CertFile) + pendingSuffix) {
		if c, err := loadFrom(dir, certPEM, pendingSuffix, pendingSuffix); err == nil {
			finishSave(dir, KeyFile, CAFile)
			return c, nil
		}
		if c, err := loadFrom(dir, certPEM, "", pendingSuffix); err == nil {
			finishSave(dir, CAFile)
			return c, nil
		}
	}
	c, err := loadFrom(dir, certPEM, "", "")
	if err != nil {
		return nil, fmt.Errorf("credentials in %s: %w", dir, err)
	}
	return c, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func loadFrom(dir string, certPEM []byte, keySuffix, caSuffix string) (*Credentials, error) {
	keyPEM, err := readPrivate(filepath.Join(dir, KeyFile) + keySuffix)
	if err != nil {
		return nil, err
	}
	caPEM, err := os.ReadFile(filepath.Join(dir, CAFile) + caSuffix)
	if err != nil {
		return nil, err
	}
	return CredentialsFromPEM(certPEM, keyPEM, caPEM)
}

// finishSave gives what a save left behind its final names. It does its best:
// what it cannot rename is found under the other name again.
func finishSave(dir string, names ...string) {
	for _, name := range names {
		path := filepath.Join(dir, name)
		_ = os.Rename(path+pendingSuffix, path)
	}
}

// Set replaces the credentials in one step. New handshakes use the new ones;
// existing connections stay. The identity must remain the same. Same checks as
// [NewCredentials].
func (c *Credentials) Set(key crypto.Signer, chain [][]byte, caPEM []byte) error {
	next, err := newCredentials(key, chain, caPEM)
	if err != nil {
		return err
	}
	if old := c.current.Load(); old.id != next.id {
		return fmt.Errorf("replace the credentials of %s: %w: the new ones are of %s", old.id, ErrWrongRole, next.id)
	}
	c.current.Store(next)
	return nil
}

// Save writes the credentials to dir as [KeyFile], [CertFile] and [CAFile], mode
// 0600. A crash at any point leaves either the old ones or the new ones. dir is
// made, mode 0700, if it is missing.
func (c *Credentials) Save(dir string) error {
	certPEM, keyPEM, caPEM, err := c.PEM()
	if err != nil {
		return err
	}
	if err := makePrivateDir(dir); err != nil {
		return err
	}
	files := []struct {
		name string
		data []byte
	}{{CertFile, certPEM}, {KeyFile, keyPEM}, {CAFile, caPEM}}
	for _, f := range files {
		if err := writeSynced(filepath.Join(dir, f.name)+pendingSuffix, f.data); err != nil {
			return err
		}
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	for _, f := range files { // the certificate first: that is the commit
		path := filepath.Join(dir, f.name)
		if err := os.Rename(path+pendingSuffix, path); err != nil {
			return fmt.Errorf("write credentials: %w", err)
		}
	}
	return syncDir(dir)
}

// PEM returns the chain, the private key (PKCS #8) and the CA's certificates.
func (c *Credentials) PEM() (certPEM, key, caPEM []byte, err error) {
	state := c.current.Load()
	key, err = encodeKey(state.key)
	if err != nil {
		return nil, nil, nil, err
	}
	for _, ca := range state.cas {
		caPEM = append(caPEM, certsPEM(ca.Raw)...)
	}
	return certsPEM(state.chain...), key, caPEM, nil
}

// Certificate returns the holder's certificate. It must not be changed.
func (c *Credentials) Certificate() *x509.Certificate { return c.current.Load().leaf }

// Identity returns who the credentials make their holder.
func (c *Credentials) Identity() Identity { return c.current.Load().id }

// Trusts reports whether the CA with this pin (see [CA.Pin]) is among those that
// the credentials trust.
func (c *Credentials) Trusts(pin string) bool {
	trusted := false
	for _, ca := range c.current.Load().cas {
		if subtle.ConstantTimeCompare([]byte(pinOf(ca)), []byte(pin)) == 1 {
			trusted = true
		}
	}
	return trusted
}

// Validity returns the first and the last moment of the certificate.
func (c *Credentials) Validity() (notBefore, notAfter time.Time) {
	leaf := c.current.Load().leaf
	return leaf.NotBefore, leaf.NotAfter
}

// CheckTime returns nil if the certificate is valid at now, else [ErrExpired] or
// [ErrNotYetValid] with when and what to do.
func (c *Credentials) CheckTime(now time.Time) error {
	state := c.current.Load()
	return checkTime("certificate of "+state.id.String(), state.leaf, now, renewAdvice(state.id.Role))
}

// renewAdvice is what a person can do about an expired certificate.
func renewAdvice(role Role) string {
	switch role {
	case RolePeer:
		return "a peer renews its own when it starts: check that " + CAKeyFile + " is beside it"
	case RoleNode:
		return "join the node again with a new token, or set the clock if it is wrong"
	default:
		return "get new credentials from a peer, or set the clock if it is wrong"
	}
}

// RenewAfter returns the moment from which the certificate should be replaced:
// between 50 and 80 % of its life, at a point that its serial number picks, so
// that machines which joined together do not renew together (the range is
// SwarmKit's).
func (c *Credentials) RenewAfter() time.Time {
	leaf := c.current.Load().leaf
	serial := leaf.SerialNumber.Bytes()
	var pick time.Duration // 0 to 255
	if len(serial) > 0 {
		pick = time.Duration(serial[len(serial)-1])
	}
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotBefore.Add(life/2 + life/10*3/255*pick)
}

// Renew replaces key and certificate by new ones of the same identity and
// addresses, signed by ca, which must be of the same cluster. The CAs trusted
// stay, with ca among them. Nothing is written: call Save.
func (c *Credentials) Renew(ca *CA) error {
	state := c.current.Load()
	key, csr, err := NewRequest()
	if err != nil {
		return err
	}
	addrs := append([]string(nil), state.leaf.DNSNames...)
	for _, ip := range state.leaf.IPAddresses {
		addrs = append(addrs, ip.String())
	}
	chain, err := ca.Sign(csr, state.id, addrs)
	if err != nil {
		return err
	}
	caPEM := ca.CertPEM()
	for _, trusted := range state.cas {
		if !bytes.Equal(trusted.Raw, ca.cert.Raw) {
			caPEM = append(caPEM, certsPEM(trusted.Raw)...)
		}
	}
	return c.Set(key, chain, caPEM)
}

// certificate is the state in the form of package tls.
func (s *credentials) certificate() *tls.Certificate {
	return &tls.Certificate{Certificate: s.chain, PrivateKey: s.key, Leaf: s.leaf}
}

// pendingSuffix marks files of a save that has not been finished.
const pendingSuffix = ".new"

// makePrivateDir makes dir for its owner alone. An existing one keeps its mode:
// the files in it are 0600 anyway.
func makePrivateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the directory for keys: %w", err)
	}
	return nil
}

// writePrivate replaces path by data, whole or not at all, mode 0600.
func writePrivate(path string, data []byte) error {
	if err := writeSynced(path+pendingSuffix, data); err != nil {
		return err
	}
	if err := os.Rename(path+pendingSuffix, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

// writeSynced writes a new file of mode 0600 through to the disk.
func writeSynced(path string, data []byte) (err error) {
	// An old one may have another mode or owner.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if closeErr := f.Close(); err == nil && closeErr != nil {
			err = fmt.Errorf("write %s: %w", path, closeErr)
		}
	}()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// readPrivate reads a private key's file and refuses one that others can read.
func readPrivate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o; run: chmod 600 %s (and replace the key if somebody may have read it)", ErrReadable, path, mode, path)
	}
	return os.ReadFile(path)
}
