package ingress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/netstate"
)

// certificates adds those that an Ingress names.
func (b *tableBuilder) certificates() {
	for _, section := range b.ing.Spec.TLS {
		if section.SecretName == "" {
			continue // some certificate will do
		}
		name := netstate.Name{Namespace: b.ing.Namespace, Name: section.SecretName}
		secret, ok := b.state.Secrets[name]
		if !ok {
			b.fault("there is no Secret %s", name)
			continue
		}
		cert, err := b.certificate(secret)
		if err != nil {
			b.fault("Secret %s: %v", name, err)
			continue
		}
		hosts := section.Hosts
		if len(hosts) == 0 {
			for _, rule := range b.ing.Spec.Rules {
				hosts = append(hosts, rule.Host)
			}
		}
		if len(hosts) == 0 { // only a default backend
			hosts = []string{""}
		}
		for _, host := range hosts {
			b.setCertificate(strings.ToLower(host), cert)
		}
	}
}

// setCertificate gives a host its certificate, if it has none yet.
func (b *tableBuilder) setCertificate(host string, cert *tls.Certificate) {
	in := b.certs
	if wild, ok := strings.CutPrefix(host, "*"); ok {
		in, host = b.wildCerts, wild
	}
	switch {
	case host == "" && b.forAllCert == nil:
		b.forAllCert = cert
	case host != "" && in[host] == nil:
		in[host] = cert
	}
}

// certificate reads a Secret, unless that was done before.
func (b *tableBuilder) certificate(secret *corev1.Secret) (*tls.Certificate, error) {
	if cert, ok := b.secrets[secret]; ok {
		return cert, nil
	}
	cert, ok := b.previous.secrets[secret]
	if !ok {
		for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
			if len(secret.Data[key]) == 0 {
				return nil, fmt.Errorf("it has no %s", key)
			}
		}
		pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
		if err != nil {
			return nil, err
		}
		cert = &pair
	}
	b.secrets[secret] = cert
	return cert, nil
}

// Certificate returns the certificate for a name that a client asks for, or nil. It is
// pure.
func (t *Table) Certificate(name string) *tls.Certificate {
	name = hostName(name)
	if cert := t.certs[name]; cert != nil {
		return cert
	}
	if _, parent, ok := strings.Cut(name, "."); ok {
		if cert := t.wildCerts["."+parent]; cert != nil {
			return cert
		}
	}
	return t.forAllCert
}

// selfSigned makes a certificate that says that there is none.
func selfSigned() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Holdfast ingress: no certificate for this name"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"holdfast-ingress.invalid"},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
