package peer

import (
	"crypto/tls"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-io/holdfast/internal/datadir"
	"github.com/holdfast-io/holdfast/pki"
)

// namedCertificateLife is how long a certificate with names is shown: less than a third of
// what it is good for.
const namedCertificateLife = 2 * 24 * time.Hour

// kubernetesNames are names that every peer goes by: clients that know one of
// them need no other for all peers, and programs in pods use the last ones.
var kubernetesNames = []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}

// namedTLS is the configuration of a port for clients that check, as Holdfast's
// own do not, whether a server's certificate is for the name or address that they
// dialed. The peer holds the CA, so it makes that certificate here, and again in
// time. Raft's connections, which peers make to each other, get the peer's own.
func (p *Peer) namedTLS(adjust func(*tls.Config), hosts func() []string, protos ...string) *tls.Config {
	var mu sync.Mutex
	var shown tls.Certificate
	var made time.Time
	certificate := func() (tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if !made.IsZero() && time.Since(made) < namedCertificateLife {
			return shown, nil
		}
		names := slices.Concat(hosts(), []string{"localhost", "127.0.0.1", "::1"}, kubernetesNames)
		if name, err := datadir.HostName(); err == nil {
			names = append(names, name)
		}
		creds, err := p.ca.Issue(pki.Identity{Cluster: p.rec.ClusterID, Role: pki.RolePeer, Name: p.rec.ID}, names...)
		if err != nil {
			return shown, err
		}
		cert, key, _, err := creds.PEM()
		if err != nil {
			return shown, err
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return shown, err
		}
		shown, made = pair, time.Now()
		return shown, nil
	}
	base := p.creds.ServerTLS(protos...)
	config := base.Clone()
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		config, err := base.GetConfigForClient(hello)
		if err != nil || slices.Contains(hello.SupportedProtos, protoRaft) {
			return config, err
		}
		own, err := certificate()
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{own}
		adjust(config)
		return config, nil
	}
	return config
}

// apiHosts are this peer's own names and addresses in certificates of the API's
// port.
func (p *Peer) apiHosts() []string { return []string{hostOf(p.rec.Address)} }
