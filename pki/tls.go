package pki

import (
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// ServerTLS returns the configuration of a server: TLS 1.3, the certificate of
// the moment, and protos for ALPN in order of preference. Clients may come
// without a certificate (to join, or with a token); one that is given must be
// signed by the CA for a client and carry an identity of this cluster, or the
// handshake fails. After it, the leaf in ConnectionState.PeerCertificates is
// verified and [IdentityOf] reads it.
//
// Sessions are never resumed: every connection proves itself anew.
func (c *Credentials) ServerTLS(protos ...string) *tls.Config {
	build := func() *tls.Config {
		state := c.current.Load()
		return &tls.Config{
			MinVersion:             tls.VersionTLS13,
			NextProtos:             protos,
			Certificates:           []tls.Certificate{*state.certificate()},
			ClientAuth:             tls.VerifyClientCertIfGiven,
			ClientCAs:              state.pool,
			SessionTicketsDisabled: true,
			VerifyConnection: func(cs tls.ConnectionState) error {
				if len(cs.PeerCertificates) == 0 {
					return nil
				}
				id, err := IdentityOf(cs.PeerCertificates[0])
				if err != nil {
					return fmt.Errorf("client certificate: %w", err)
				}
				return checkCluster(id, state.id.Cluster)
			},
		}
	}
	cfg := build()
	cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return build(), nil }
	return cfg
}

// ClientTLS returns the configuration of a client: TLS 1.3, the certificate of
// the moment, protos for ALPN. The server must show a certificate under the
// cluster's CA whose identity is of this cluster and of role want (which is
// always [RolePeer]: only peers serve). Host names and addresses are not looked
// at; set any ServerName, or none.
//
// Errors of the handshake are those of this package: [ErrUntrusted],
// [ErrWrongCluster], [ErrWrongRole], [ErrExpired], [ErrNotYetValid].
func (c *Credentials) ClientTLS(want Role, protos ...string) *tls.Config {
	return c.clientTLS(protos, func(id Identity) error {
		if id.Role != want {
			return fmt.Errorf("%w: the other side is %s, want a %s", ErrWrongRole, id, want)
		}
		return nil
	})
}

// ClientTLSNamed is ClientTLS for one certain server: the peer with this id.
func (c *Credentials) ClientTLSNamed(want Role, name string, protos ...string) *tls.Config {
	return c.clientTLS(protos, func(id Identity) error {
		if id.Role != want || id.Name != name {
			return fmt.Errorf("%w: the other side is %s, want %s %s: its address is now somebody else's", ErrWrongRole, id, want, name)
		}
		return nil
	})
}

func (c *Credentials) clientTLS(protos []string, check func(Identity) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             protos,
		SessionTicketsDisabled: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			// A server answers an expired certificate with an alert; here we can
			// still say which one and what to do.
			if err := c.CheckTime(time.Now()); err != nil {
				return nil, err
			}
			return c.current.Load().certificate(), nil
		},
		// Verification by identity in place of host name, all of it, in
		// VerifyConnection.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			state := c.current.Load()
			id, err := verifyServer(cs.PeerCertificates, state.pool)
			if err != nil {
				return err
			}
			if err := checkCluster(id, state.id.Cluster); err != nil {
				return err
			}
			return check(id)
		},
	}
}

// PinnedTLS returns the configuration of a machine that has a token and nothing
// else: TLS 1.3, no certificate of its own, protos for ALPN. The server must
// show a peer's certificate and the CA that signed it, whose hash (see [CA.Pin])
// must be pin. Errors as for ClientTLS, and [ErrPin].
func PinnedTLS(pin string, protos ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             protos,
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // as in clientTLS
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) < 2 {
				return fmt.Errorf("%w: the other side shows no certificate authority; is this a Holdfast peer's API address?", ErrPin)
			}
			ca := cs.PeerCertificates[len(cs.PeerCertificates)-1]
			if subtle.ConstantTimeCompare([]byte(pinOf(ca)), []byte(pin)) != 1 {
				return fmt.Errorf("%w: the other side's CA has the hash %s, the token says %s: it is a peer of another cluster, the token is of another one, or somebody is in between",
					ErrPin, pinOf(ca), pin)
			}
			cluster, err := clusterOfCA(ca)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrPin, err)
			}
			pool := x509.NewCertPool()
			pool.AddCert(ca)
			id, err := verifyServer(cs.PeerCertificates, pool)
			if err != nil {
				return err
			}
			if id.Role != RolePeer {
				return fmt.Errorf("%w: the other side is %s, want a %s", ErrWrongRole, id, RolePeer)
			}
			return checkCluster(id, cluster)
		},
	}
}

// verifyServer checks a server's certificates against the CAs in pool and
// returns who it is.
func verifyServer(certs []*x509.Certificate, pool *x509.CertPool) (Identity, error) {
	if len(certs) == 0 {
		return Identity{}, fmt.Errorf("%w: the other side shows none", ErrUntrusted)
	}
	leaf, now := certs[0], time.Now()
	if err := verifyChain(leaf, pool, x509.ExtKeyUsageServerAuth, now); err != nil {
		if errors.Is(err, ErrUntrusted) {
			// The id is unproven here: good enough to tell people where they are.
			if id, idErr := IdentityOf(leaf); idErr == nil {
				return Identity{}, fmt.Errorf("the other side says it is %s: %w", id, err)
			}
		}
		return Identity{}, fmt.Errorf("the other side's certificate: %w", err)
	}
	return IdentityOf(leaf)
}

// verifyChain checks that leaf was signed by one of the CAs in pool, for usage,
// and that both are valid at now.
func verifyChain(leaf *x509.Certificate, pool *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) error {
	if _, err := leaf.Verify(verifyOptions(pool, usage, now)); err == nil {
		return nil
	}
	// Package x509 reports one of many reasons. Ask again without the clock, to
	// tell a stranger from one of us whose time is up.
	if _, err := leaf.Verify(verifyOptions(pool, usage, leaf.NotAfter)); err != nil {
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	if err := checkTime("it", leaf, now, "the other side must renew it, or a clock is wrong"); err != nil {
		return err
	}
	return fmt.Errorf("%w: the CA's certificate is not valid at %s", ErrExpired, now.UTC().Format(time.RFC3339))
}

func verifyOptions(pool *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) x509.VerifyOptions {
	return x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}
}

// checkTime says whether cert is valid at now and, if not, since or until when.
func checkTime(what string, cert *x509.Certificate, now time.Time, advice string) error {
	clock := now.UTC().Format(time.RFC3339)
	switch {
	case now.After(cert.NotAfter):
		return fmt.Errorf("%w: %s ended at %s and it is %s; %s", ErrExpired, what, cert.NotAfter.UTC().Format(time.RFC3339), clock, advice)
	case now.Before(cert.NotBefore):
		return fmt.Errorf("%w: %s begins at %s and this machine's clock says %s; set the clock of this machine, or of the one that signed it", ErrNotYetValid, what, cert.NotBefore.UTC().Format(time.RFC3339), clock)
	}
	return nil
}

func checkCluster(id Identity, cluster string) error {
	if id.Cluster != cluster {
		return fmt.Errorf("%w: the other side is %s, this is cluster %s", ErrWrongCluster, id, cluster)
	}
	return nil
}
