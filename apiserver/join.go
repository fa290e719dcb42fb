package apiserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// liveLease is the age up to which a heartbeat proves that its node lives.
const liveLease = 6 * time.Second

// joinService implements holdfastv1connect.JoinServiceHandler.
type joinService struct{ *Server }

// machineRecord is what the store keeps of a machine that joined, so that its
// name stays its own. RemovePeer takes a peer's away, and with it the right to
// become part of raft.
type machineRecord struct {
	Key     []byte    `json:"key"` // SHA-256 of the public key, PKIX form
	Address string    `json:"address"`
	Joined  time.Time `json:"joined"`
	Token   string    `json:"token,omitempty"` // the id of the one that it joined with
}

// machineKey is the store's key of a machine's record.
func machineKey(role pki.Role, name string) string {
	return "holdfast/machines/" + string(role) + "/" + name
}

// errToken is the one answer to every token whose secret is wrong: a stranger must not
// learn whether there is one with that id, and how it stands.
func errToken() error {
	return connect.NewError(connect.CodeUnauthenticated,
		"the token is not valid: wrong, expired, or for another role; make a new one with `holdfast token create --role <peer|node>`")
}

// Join trades a token for a certificate. The token can be used until it expires, is
// revoked, or as many machines have joined as it is for; the use is counted in the
// transaction that records the machine, so that two who come at once are not both the
// last. A machine that repeats its call counts once.
// A name that belongs to a live machine, or to a voter, goes only to the holder
// of the same key, so that a join whose answer was lost can be repeated.
func (s joinService) Join(ctx context.Context, req *holdfastv1.JoinRequest) (*holdfastv1.JoinResponse, error) {
	if s.cfg.CA == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, "this peer has no key of the cluster's CA: join through another one")
	}
	role, err := machineRole(req.GetRole())
	if err != nil {
		return nil, err
	}
	view, err := s.sync(ctx)
	if err != nil {
		return nil, err
	}
	tokenID, token, _, err := tokenIn(view, req.GetToken())
	if err == nil {
		if err = token.refusal(role, s.cfg.Now()); err != nil && s.repeats(view, tokenID, req, role) {
			err = nil
		}
	}
	if err != nil {
		s.log.Warn("join refused: bad token", "name", req.GetName(), "role", role, "remote", remoteAddress(ctx), "err", err)
		return nil, err
	}
	// From here on the caller holds a token of this cluster and may be told more.
	if faults := checkMachineName(role, req.GetName()); len(faults) > 0 {
		return nil, badRequest("name", "%q: %s", req.GetName(), strings.Join(faults, "; "))
	}
	fingerprint, err := requestKey(req.GetCsr())
	if err != nil {
		return nil, badRequest("csr", "%v", err)
	}
	id := pki.Identity{Cluster: s.cfg.ClusterID, Role: role, Name: req.GetName()}
	revoked, was := revocationAt(view, revokedKeyOf(role, req.GetName()))
	if was && revoked.Kind == kindQuarantined {
		return nil, Refusal(view, id, nil)
	}
	// What was revoked stays so; who joins anew has something younger.
	chain, err := s.cfg.CA.SignAfter(req.GetCsr(), id, joinAddresses(req.GetAddress()), pki.Life(role), revoked.At)
	if err != nil {
		return nil, badRequest("csr", "%v", err)
	}
	key := machineKey(role, req.GetName())
	if role == pki.RolePeer && raftstore.Removed(view, req.GetName()) {
		return nil, errRemovedName(connect.CodeAlreadyExists, req.GetName())
	}
	_, err = s.transact(ctx, "join "+string(role)+" "+req.GetName(), "join with token "+tokenID, false, func(view raftstore.View) (change, error) {
		var c change
		kv, known := view.Get(key)
		var before machineRecord
		if known {
			if err := json.Unmarshal(kv.Value, &before); err != nil {
				return change{}, err
			}
		}
		if !known || !bytes.Equal(before.Key, fingerprint) {
			if err := s.nameFree(role, req.GetName()); err != nil {
				return change{}, err
			}
		} else if before.Address == req.GetAddress() {
			return change{}, nil // a repeated call
		}
		data, err := json.Marshal(machineRecord{Key: fingerprint, Address: req.GetAddress(), Joined: s.cfg.Now(), Token: tokenID})
		if err != nil {
			return change{}, err
		}
		c.unchanged(key, kv.Mod)
		c.ops = append(c.ops, raftstore.Put(key, data))
		if known && bytes.Equal(before.Key, fingerprint) && before.Token == tokenID {
			return c, nil // it has moved, and counts already
		}
		_, token, mod, err := tokenIn(view, req.GetToken())
		if err != nil {
			return change{}, err
		}
		if err := token.refusal(role, s.cfg.Now()); err != nil {
			return change{}, err // another machine was the last
		}
		token.Used++
		if data, err = json.Marshal(token); err != nil {
			return change{}, err
		}
		c.putRaw(tokenPrefix+tokenID, data, mod)
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	resp := &holdfastv1.JoinResponse{
		ClusterId: s.cfg.ClusterID, Certificates: chain, Ca: s.cfg.CA.CertPEM(),
		GossipKey: s.cfg.GossipKey, Peers: s.peerAddresses(), Gossip: s.gossipAddresses(),
	}
	if role == pki.RolePeer {
		resp.CaKey, resp.Incarnation = s.cfg.CA.KeyPEM(), s.store.Incarnation()
		if len(s.cfg.PodCIDRs) > 0 {
			resp.PodCidr = s.cfg.PodCIDRs[0].String()
		}
		resp.ServiceCidr = s.cfg.ServiceCIDRs[0].String()
	}
	s.log.Info("machine joined", "name", req.GetName(), "role", role, "token", tokenID, "address", req.GetAddress())
	return resp, nil
}

// RecordLeader writes down that this peer leads, which has to be before anything is done
// in the leader's name: see leaderKey. And it writes the record of this peer, if it has none: the first
// peer of a cluster has joined by no token, and must be known as the others are when it
// comes back with nothing but its certificate.
func (s *Server) RecordLeader(ctx context.Context, leader *raftstore.Leader, cert *x509.Certificate, address string) error {
	if err := s.beginReign(ctx, leader); err != nil {
		return err
	}
	key := machineKey(pki.RolePeer, s.cfg.PeerID)
	if _, known := leader.View().Get(key); known {
		return nil
	}
	fingerprint, err := keyOf(cert.PublicKey)
	if err != nil {
		return err
	}
	data, err := json.Marshal(machineRecord{Key: fingerprint, Address: address, Joined: s.cfg.Now()})
	if err != nil {
		return err
	}
	_, err = leader.Txn(ctx, raftstore.Txn{
		If:     []raftstore.Compare{raftstore.Absent(key)},
		Then:   []raftstore.Op{raftstore.Put(key, data)},
		Actor:  "peer",
		Reason: "the peer that began the cluster",
	})
	if errors.Is(err, raftstore.ErrConflict) {
		return nil
	}
	return err
}

// repeats reports whether the call is one that was answered before: the same machine, by
// its key, with the same token.
func (s joinService) repeats(view raftstore.View, tokenID string, req *holdfastv1.JoinRequest, role pki.Role) bool {
	kv, ok := view.Get(machineKey(role, req.GetName()))
	var before machineRecord
	if !ok || json.Unmarshal(kv.Value, &before) != nil || before.Token != tokenID {
		return false
	}
	fingerprint, err := requestKey(req.GetCsr())
	return err == nil && bytes.Equal(before.Key, fingerprint)
}

// nameFree returns AlreadyExists when the name is in use by a machine that lives,
// or that votes.
func (s joinService) nameFree(role pki.Role, name string) error {
	if role == pki.RolePeer {
		for _, p := range s.store.Status().Peers {
			if p.ID == name {
				return connect.Errorf(connect.CodeAlreadyExists,
					"peer %s is part of the cluster: choose another name. If it lost its disk, remove it with `holdfast peer remove %s`; its name does not become free", name, name)
			}
		}
	} else if age, ok := s.heartbeats.Heartbeat(name); ok && age < liveLease {
		return connect.Errorf(connect.CodeAlreadyExists,
			"node %s is alive (last heard of %s ago): choose another name, or stop the machine that has it", name, age.Round(100*time.Millisecond))
	}
	if alive, _ := s.alive(name, role); alive {
		return connect.Errorf(connect.CodeAlreadyExists,
			"%s %s is alive, as gossip sees it: choose another name, or stop the machine that has it and wait some seconds", role, name)
	}
	return nil
}

// checkMachineName returns what is wrong with a name.
func checkMachineName(role pki.Role, name string) []string {
	if role == pki.RoleNode {
		return validation.IsDNS1123Subdomain(name) // it names a Node
	}
	return validation.IsDNS1123Label(name)
}

// requestKey returns the fingerprint of a certificate request's public key.
func requestKey(csr []byte) ([]byte, error) {
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, err
	}
	if err := request.CheckSignature(); err != nil {
		return nil, err
	}
	return keyOf(request.PublicKey)
}

// keyOf returns the fingerprint of a public key.
func keyOf(public any) ([]byte, error) {
	key, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(key)
	return sum[:], nil
}

// joinAddresses returns the host of a machine's address for its certificate:
// for people and other programs, since ours check identities.
func joinAddresses(address string) []string {
	host, _, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return nil
	}
	return slices.Compact([]string{host})
}

func remoteAddress(ctx context.Context) string {
	if info, ok := connect.CallInfoForServerContext(ctx); ok {
		return info.PeerAddr
	}
	return ""
}
