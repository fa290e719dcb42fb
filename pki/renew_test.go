package pki

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestKeepRenewed: for half a year of virtual time, a machine's certificate is renewed
// before its last third, though a renewal fails now and then, and a connection that
// was made with the first one is still open at the end. synctest's clock begins in 2000.
func TestKeepRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newTestCA(t, "c-1")
		for _, id := range []Identity{peer1, node1} {
			creds := mustIssue(t, ca, id)
			server, client := mustIssue(t, ca, peer1), creds
			near, far := net.Pipe()
			shaken := make(chan *tls.Conn)
			go func() {
				conn := tls.Server(far, server.ServerTLS("h2"))
				if err := conn.Handshake(); err != nil {
					t.Error(err)
				}
				shaken <- conn
			}()
			conn := tls.Client(near, client.ClientTLS(RolePeer, "h2"))
			if err := conn.Handshake(); err != nil {
				t.Fatal(err)
			}
			other := <-shaken

			ctx, cancel := context.WithCancel(t.Context())
			renewals, failures := 0, 0
			done := make(chan struct{})
			go func() {
				defer close(done)
				creds.KeepRenewed(ctx, func(context.Context) error {
					if renewals++; renewals%3 == 0 {
						return errors.New("the peer is not there")
					}
					return creds.Renew(ca)
				}, func(error) { failures++ })
			}()
			for range 180 {
				time.Sleep(24 * time.Hour)
				synctest.Wait()
				from, to := creds.Validity()
				if used := time.Since(from); used > to.Sub(from)*82/100 {
					t.Fatalf("%s: %v of %v are over", id, used, to.Sub(from))
				}
				if time.Now().After(creds.LateAfter()) {
					t.Fatal("alarm without reason")
				}
			}
			cancel()
			<-done
			if least := int(180 * 24 * time.Hour / Life(id.Role)); renewals < least || renewals > 3*least || failures == 0 {
				t.Errorf("%s: %d renewals, %d failed, in 180 days", id, renewals, failures)
			}
			go func() { _, _ = conn.Write([]byte("still here")) }()
			if got := make([]byte, 10); true {
				if _, err := io.ReadFull(other, got); err != nil || string(got) != "still here" {
					t.Errorf("the old connection: %q, %v", got, err)
				}
			}
			near.Close()
			far.Close()
		}
	})
}

// TestSignAfter: who was revoked and is let in again has a certificate that is younger
// than the revocation, to the second, wherever the clock stands.
func TestSignAfter(t *testing.T) {
	ca := newTestCA(t, "c-1")
	for _, ahead := range []time.Duration{-time.Hour, 0, time.Minute} {
		revoked := time.Now().Add(ahead)
		key, csr, err := NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		chain, err := ca.SignAfter(csr, node1, nil, Life(RoleNode), revoked)
		if err != nil {
			t.Fatal(err)
		}
		creds, err := NewCredentials(key, chain, ca.CertPEM())
		if err != nil || !IssuedAt(creds.Certificate()).After(revoked) && ahead >= 0 {
			t.Errorf("%v: issued at %v, revoked at %v, %v", ahead, IssuedAt(creds.Certificate()), revoked, err)
		}
	}
}
