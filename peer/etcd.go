package peer

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"

	"github.com/holdfast-io/holdfast/apiserver/etcd"
	"github.com/holdfast-io/holdfast/gossip"
	"github.com/holdfast-io/holdfast/internal/datadir"
	"github.com/holdfast-io/holdfast/pki"
)

// runEtcd serves etcd's API until ctx ends. It has a listener of its own, since its
// clients check what Holdfast's do not: that a server's certificate is for the
// address they dialed.
func (p *Peer) runEtcd(ctx context.Context) error {
	server, err := etcd.New(etcd.Config{
		Store:     p.store,
		PeerID:    p.rec.ID,
		ClusterID: p.rec.ClusterID,
		Members:   p.etcdMembers,
		Logger:    p.log.With("part", "etcd"),
	})
	if err != nil {
		return err
	}
	door := newMux(p.faults.Listener(p.etcd), p.etcdTLS(), p.log.With("part", "etcd"))
	parts := newParts()
	parts.start("listener", door.run)
	parts.start("http", func(ctx context.Context) error {
		return p.serve(ctx, door.http, server.Handler(), server.ConnContext)
	})
	p.log.Info("serving etcd's API", "address", p.etcdAddress())
	return parts.wait(ctx)
}

// etcdAddress returns host:port at which clients reach etcd's API here, "" if it is
// not served.
func (p *Peer) etcdAddress() string {
	if p.etcd == nil {
		return ""
	}
	return advertised(hostOf(p.rec.Address), p.etcd.Addr())
}

// etcdMembers returns raft's members as etcd's clients see them. Where the others
// serve the API, gossip knows.
func (p *Peer) etcdMembers() []etcd.Member {
	addresses := map[string]string{p.rec.ID: p.etcdAddress()}
	for _, member := range p.gossip.Members() {
		if member.Role == gossip.RolePeer && member.Name != p.rec.ID {
			addresses[member.Name] = member.Etcd
		}
	}
	var out []etcd.Member
	for _, peer := range p.store.Status().Peers {
		member := etcd.Member{ID: peer.ID, Learner: !peer.Voter, PeerURLs: []string{"https://" + peer.Address}}
		if address := addresses[peer.ID]; address != "" {
			member.ClientURLs = []string{"https://" + address}
		}
		out = append(out, member)
	}
	return out
}

// etcdCertificateLife is how long a certificate for the listener of etcd's API is
// shown: a third of what it is good for.
const etcdCertificateLife = 30 * 24 * time.Hour

// etcdTLS is the configuration of the peer's port, but that a client must show a
// certificate, and that the peer's own names its addresses. That is made here, and
// again in time: the peer holds the CA.
func (p *Peer) etcdTLS() *tls.Config {
	var mu sync.Mutex
	var shown tls.Certificate
	var made time.Time
	certificate := func() (tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if !made.IsZero() && time.Since(made) < etcdCertificateLife {
			return shown, nil
		}
		hosts := []string{hostOf(p.etcdAddress()), "localhost", "127.0.0.1", "::1"}
		if ip := p.etcd.Addr().(*net.TCPAddr).IP; !ip.IsUnspecified() {
			hosts = append(hosts, ip.String())
		}
		if name, err := datadir.HostName(); err == nil {
			hosts = append(hosts, name)
		}
		creds, err := p.ca.Issue(pki.Identity{Cluster: p.rec.ClusterID, Role: pki.RolePeer, Name: p.rec.ID}, hosts...)
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
	base := p.creds.ServerTLS(protoH2)
	config := base.Clone()
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		config, err := base.GetConfigForClient(hello)
		if err != nil {
			return nil, err
		}
		own, err := certificate()
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{own}
		config.ClientAuth = tls.RequireAndVerifyClientCert
		return config, nil
	}
	return config
}
