package peer

import (
	"context"
	"crypto/tls"
	"net"

	"github.com/holdfast-io/holdfast/apiserver/etcd"
	"github.com/holdfast-io/holdfast/gossip"
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
		Refuse:    p.refusal,
		Logger:    p.log.With("part", "etcd"),
	})
	if err != nil {
		return err
	}
	door := newMux(p.faults.Listener(p.etcd), p.etcdTLS(), p.log.With("part", "etcd"))
	door.door.refuse = p.refusal
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

// etcdTLS is the configuration of the peer's port, but that a client must show a
// certificate.
func (p *Peer) etcdTLS() *tls.Config {
	return p.namedTLS(func(config *tls.Config) { config.ClientAuth = tls.RequireAndVerifyClientCert }, func() []string {
		hosts := []string{hostOf(p.etcdAddress())}
		if ip := p.etcd.Addr().(*net.TCPAddr).IP; !ip.IsUnspecified() {
			hosts = append(hosts, ip.String())
		}
		return hosts
	}, protoH2)
}
