package apiserver

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// revokedPrefix is where the store keeps who is refused: by identity,
// "holdfast/revoked/node/n1", or by a certificate's serial number,
// "holdfast/revoked/serial/5f3a". What stands there counts at each peer as soon as it
// has applied it: for requests, because each is held against it, and for streams and
// connections that are open, because a peer looks at them when something changes there.
const revokedPrefix = "holdfast/revoked/"

// Kinds of revocations.
const (
	kindRevoked     = "revoked"     // certificates issued up to then
	kindRemoved     = "removed"     // likewise, of a machine that was taken out of the cluster
	kindQuarantined = "quarantined" // all certificates, until somebody readmits it
)

// Reasons in the ErrorInfo of a refusal, by which machines know that it is no use to
// try again soon.
const (
	// ReasonRevoked: the certificate counts no more, or not for now.
	ReasonRevoked = "Revoked"
)

// revocationRecord is what is kept of a revocation.
type revocationRecord struct {
	Kind   string    `json:"kind"`
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
}

func revokedKeyOf(role pki.Role, name string) string {
	return revokedPrefix + string(role) + "/" + name
}

func serialKey(serial string) string { return revokedPrefix + "serial/" + serial }

// serialOf returns a certificate's serial number as it is shown and kept.
func serialOf(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

func revocationAt(view raftstore.View, key string) (revocationRecord, bool) {
	kv, ok := view.Get(key)
	if !ok {
		return revocationRecord{}, false
	}
	var rec revocationRecord
	if json.Unmarshal(kv.Value, &rec) != nil {
		// It was meant to keep somebody out.
		rec = revocationRecord{Kind: kindQuarantined, Reason: "its record cannot be read"}
	}
	return rec, true
}

// Refusal returns why who has a certificate of the cluster is refused all the same, by
// what is known in view; nil if he is not. It is Unauthenticated. cert may be nil: all
// of the identity's count then.
func Refusal(view raftstore.View, id pki.Identity, cert *x509.Certificate) error {
	if id.Role == pki.RolePeer && raftstore.Removed(view, id.Name) {
		return refused("peer %s was removed from this cluster, and a peer's name is used once: delete the data directory and join under another name (--name)", id.Name)
	}
	who := string(id.Role) + " " + id.Name
	if rec, ok := revocationAt(view, revokedKeyOf(id.Role, id.Name)); ok {
		switch {
		case rec.Kind == kindQuarantined:
			return refused("%s is in quarantine since %s: %s; when that is settled: holdfast auth readmit %s/%s", who, stamp(rec.At), rec.Reason, id.Role, id.Name)
		case cert != nil && pki.IssuedAt(cert).After(rec.At):
		case rec.Kind == kindRemoved:
			return refused("%s was removed from this cluster by %s at %s%s; to come back the machine joins with a new token and an empty data directory", who, rec.By, stamp(rec.At), because(rec.Reason))
		default:
			return refused("the certificate of %s was revoked by %s at %s%s; ask for another one", who, rec.By, stamp(rec.At), because(rec.Reason))
		}
	}
	if cert != nil {
		if rec, ok := revocationAt(view, serialKey(serialOf(cert))); ok {
			return refused("this certificate of %s (serial %s) was revoked by %s at %s%s; ask for another one", who, serialOf(cert), rec.By, stamp(rec.At), because(rec.Reason))
		}
	}
	return nil
}

func refused(format string, args ...any) error {
	return withInfo(connect.Errorf(connect.CodeUnauthenticated, format, args...), &holdfastv1.ErrorInfo{Reason: ReasonRevoked})
}

func stamp(at time.Time) string { return at.UTC().Format(time.RFC3339) }

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// certKey is for the *x509.Certificate that a call is made with.
type certKey struct{}

func certFrom(ctx context.Context) *x509.Certificate {
	cert, _ := ctx.Value(certKey{}).(*x509.Certificate)
	return cert
}

// withoutRevoked returns ctx as that of a stranger, who is told why, if its certificate
// counts no more. Only a removed peer may ask a peer how the store stands, since that
// tells it what became of it.
func (s *Server) withoutRevoked(ctx context.Context, path string) context.Context {
	cert := certFrom(ctx)
	id, known := identityFrom(ctx)
	if cert == nil || !known || id.Role == pki.RolePeer && strings.HasSuffix(path, describeProcedure) {
		return ctx
	}
	err := Refusal(s.store.View(), id, cert)
	if err == nil {
		return ctx
	}
	return context.WithValue(context.WithValue(ctx, identityKey{}, nil), refusedKey{}, err)
}

const describeProcedure = peerStoreProcedures + "Describe"

// liveCalls are the streams that are open, by whom.
type liveCalls struct {
	mu    sync.Mutex
	calls map[*liveCall]struct{}
}

type liveCall struct {
	id   pki.Identity
	cert *x509.Certificate
	end  context.CancelCauseFunc
}

// whileAdmitted ends a stream, by end, as soon as the certificate of its caller counts
// no more. The function that it returns is called when the stream has ended.
func (s *Server) whileAdmitted(ctx context.Context, end context.CancelCauseFunc) (release func()) {
	id, ok := identityFrom(ctx)
	cert := certFrom(ctx)
	if cert != nil { // who calls may act as somebody else
		if own, err := pki.IdentityOf(cert); err == nil {
			id = own
		}
	}
	if !ok || !id.Role.Valid() { // a token's holder: see whileAllowed
		return func() {}
	}
	call := &liveCall{id: id, cert: cert, end: end}
	s.live.mu.Lock()
	s.live.calls[call] = struct{}{}
	s.live.mu.Unlock()
	if err := Refusal(s.store.View(), id, call.cert); err != nil && call.cert != nil {
		end(err) // since the call was admitted
	}
	return func() {
		s.live.mu.Lock()
		delete(s.live.calls, call)
		s.live.mu.Unlock()
	}
}

// RevocationsChanged calls f after each change of who is refused, with the state, until
// ctx ends; and once at the beginning.
func RevocationsChanged(ctx context.Context, store *raftstore.Store, f func(raftstore.View)) {
	var all sync.WaitGroup
	defer all.Wait()
	for _, prefix := range []string{revokedPrefix, raftstore.RemovedPrefix} {
		all.Go(func() {
			for ctx.Err() == nil {
				w := store.Watch(prefix, store.View().Revision())
				for err := error(nil); err == nil; _, _, err = w.Next(ctx) {
					f(store.View())
				}
				select { // its history was discarded, or the store has ended, and ctx will
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		})
	}
}

// endRevoked ends the streams of those who are refused, as soon as they are.
func (s *Server) endRevoked(ctx context.Context) error {
	RevocationsChanged(ctx, s.store, func(view raftstore.View) {
		s.live.mu.Lock()
		defer s.live.mu.Unlock()
		for call := range s.live.calls {
			if err := Refusal(view, call.id, call.cert); err != nil {
				call.end(err)
			}
		}
	})
	return nil
}

// revocable reads whom a request is about: an identity or a certificate.
func revocable(role, name, serial string) (key, title string, err error) {
	if serial != "" {
		if role != "" || name != "" {
			return "", "", badRequest("serial", "give either a serial number, or a role and a name")
		}
		n, ok := new(big.Int).SetString(strings.ToLower(strings.ReplaceAll(serial, ":", "")), 16)
		if !ok || n.Sign() <= 0 {
			return "", "", badRequest("serial", "%q is not a serial number in hexadecimal", serial)
		}
		return serialKey(n.Text(16)), "certificate " + n.Text(16), nil
	}
	switch pki.Role(role) {
	case pki.RoleNode, pki.RoleUser, pki.RoleAdmin:
	case pki.RolePeer:
		return "", "", badRequest("role", "is peer: a peer is taken out with `holdfast peer remove %s`, which revokes its certificates as well", name)
	default:
		return "", "", badRequest("role", "is %q: use node, user or admin", role)
	}
	if err := pki.CheckName(name); err != nil {
		return "", "", badRequest("name", "%v", err)
	}
	return revokedKeyOf(pki.Role(role), name), role + " " + name, nil
}

// revoke writes that who is under key is refused from now on, together with more. What
// has ended since anyhow is cleared away.
func (s *Server) revoke(ctx context.Context, key, title string, rec revocationRecord, more func(raftstore.View, *change) error) (revision int64, err error) {
	rec.At = s.cfg.Now().UTC()
	data, err := json.Marshal(rec)
	if err != nil {
		return 0, err
	}
	return s.transact(ctx, "revoke "+title, rec.Kind+because(rec.Reason), false, func(view raftstore.View) (change, error) {
		c := change{ops: []raftstore.Op{raftstore.Put(key, data)}}
		for kv := range view.Prefix(revokedPrefix) {
			var old revocationRecord
			if json.Unmarshal(kv.Value, &old) == nil && old.Kind != kindQuarantined && kv.Key != key && rec.At.Sub(old.At) > pki.MaxLife {
				c.ops = append(c.ops, raftstore.Delete(kv.Key))
			}
		}
		if more != nil {
			if err := more(view, &c); err != nil {
				return change{}, err
			}
		}
		return c, nil
	})
}

// Revoke refuses who has a certificate from now on.
func (s accessService) Revoke(ctx context.Context, req *holdfastv1.RevokeRequest) (*holdfastv1.RevokeResponse, error) {
	key, title, err := revocable(req.GetRole(), req.GetName(), req.GetSerial())
	if err != nil {
		return nil, err
	}
	me, _ := identityFrom(ctx)
	if cert := certFrom(ctx); key == revokedKeyOf(me.Role, me.Name) || cert != nil && key == serialKey(serialOf(cert)) {
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "the call is made with that certificate: revoke it with another administrator's, or nobody may be left who can take it back")
	}
	revision, err := s.revoke(ctx, key, title, revocationRecord{Kind: kindRevoked, By: actor(ctx), Reason: req.GetReason()}, nil)
	if err != nil {
		return nil, err
	}
	s.log.Info("revoked", "who", title, "by", actor(ctx), "reason", req.GetReason())
	return &holdfastv1.RevokeResponse{Answer: s.answerAt(revision)}, nil
}

// ListRevocations shows who is refused.
func (s accessService) ListRevocations(ctx context.Context, _ *holdfastv1.ListRevocationsRequest) (*holdfastv1.ListRevocationsResponse, error) {
	view, err := s.sync(ctx)
	if err != nil {
		return nil, err
	}
	resp := &holdfastv1.ListRevocationsResponse{}
	for kv := range view.Prefix(revokedPrefix) {
		rec, _ := revocationAt(view, kv.Key)
		out := &holdfastv1.Revocation{Kind: rec.Kind, At: timestamppb.New(rec.At), By: rec.By, Reason: rec.Reason}
		role, name, _ := strings.Cut(strings.TrimPrefix(kv.Key, revokedPrefix), "/")
		if role == "serial" {
			out.Serial = name
		} else {
			out.Role, out.Name = role, name
		}
		resp.Revocations = append(resp.Revocations, out)
	}
	for kv := range view.Prefix(raftstore.RemovedPrefix) {
		resp.Revocations = append(resp.Revocations, &holdfastv1.Revocation{Role: string(pki.RolePeer), Name: strings.TrimPrefix(kv.Key, raftstore.RemovedPrefix), Kind: kindRemoved})
	}
	slices.SortStableFunc(resp.Revocations, func(a, b *holdfastv1.Revocation) int {
		return cmp.Or(cmp.Compare(a.GetSerial(), b.GetSerial()), cmp.Compare(a.GetRole(), b.GetRole()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return resp, nil
}

// Readmit takes a revocation back.
func (s accessService) Readmit(ctx context.Context, req *holdfastv1.ReadmitRequest) (*holdfastv1.ReadmitResponse, error) {
	key, title, err := revocable(req.GetRole(), req.GetName(), req.GetSerial())
	if req.GetRole() == string(pki.RolePeer) && req.GetSerial() == "" && pki.CheckName(req.GetName()) == nil { // out of quarantine
		key, title, err = revokedKeyOf(pki.RolePeer, req.GetName()), "peer "+req.GetName(), nil
	}
	if err != nil {
		return nil, err
	}
	revision, err := s.transact(ctx, "readmit "+title, "readmit", false, func(view raftstore.View) (change, error) {
		var c change
		kv, ok := view.Get(key)
		if !ok {
			return c, connect.Errorf(connect.CodeNotFound, "%s is not refused: there is nothing to take back", title)
		}
		c.remove(key, kv.Mod)
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	s.clones.forget(req.GetName())
	s.log.Info("readmitted", "who", title, "by", actor(ctx))
	return &holdfastv1.ReadmitResponse{Answer: s.answerAt(revision)}, nil
}

// RenewCertificate signs another certificate of the caller.
func (s accessService) RenewCertificate(ctx context.Context, req *holdfastv1.RenewCertificateRequest) (*holdfastv1.RenewCertificateResponse, error) {
	if err := acts(ctx, "have a certificate renewed"); err != nil {
		return nil, err
	}
	cert := certFrom(ctx)
	id, _ := identityFrom(ctx)
	if cert == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, "only who comes with a certificate can have it renewed")
	}
	if s.cfg.CA == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, "this peer has no key of the cluster's CA, with which certificates are signed: ask another one")
	}
	// What this peer has may be old; what was revoked must not live on in a new one.
	view, err := s.sync(ctx)
	if err != nil {
		return nil, err
	}
	if err := Refusal(view, id, cert); err != nil {
		return nil, err
	}
	var addrs []string
	addrs = append(addrs, cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		addrs = append(addrs, ip.String())
	}
	life := min(cert.NotAfter.Sub(pki.IssuedAt(cert)), pki.Life(id.Role))
	rec, _ := revocationAt(view, revokedKeyOf(id.Role, id.Name))
	chain, err := s.cfg.CA.SignAfter(req.GetRequest(), id, addrs, life, rec.At)
	if err != nil {
		return nil, badRequest("request", "%v", err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	s.log.Info("certificate renewed", "who", actor(ctx), "serial", serialOf(leaf), "expires", leaf.NotAfter)
	return &holdfastv1.RenewCertificateResponse{Chain: chain, Ca: s.cfg.CA.CertPEM(), Expires: timestamppb.New(leaf.NotAfter)}, nil
}

// RemoveNode takes a node out of the cluster: its Node object, the record that its name
// is its own, and its certificates.
func (s clusterService) RemoveNode(ctx context.Context, req *holdfastv1.RemoveNodeRequest) (*holdfastv1.RemoveNodeResponse, error) {
	name := req.GetName()
	key, title, err := revocable(string(pki.RoleNode), name, "")
	if err != nil {
		return nil, err
	}
	rec := revocationRecord{Kind: kindRemoved, By: actor(ctx), Reason: req.GetReason()}
	_, err = s.revoke(ctx, key, title, rec, func(view raftstore.View, c *change) error {
		nodeKey, machine := string(objectKey[*corev1.Node]("", name)), machineKey(pki.RoleNode, name)
		node, there := view.Get(nodeKey)
		record, joined := view.Get(machine)
		if !there && !joined {
			return connect.Errorf(connect.CodeNotFound, "no node is called %s", name)
		}
		if joined {
			c.remove(machine, record.Mod)
		}
		if there {
			obj, err := object.Decode(node.Value, node.Mod)
			if err != nil {
				return err
			}
			next := obj.DeepCopyObject().(object.Object)
			if object.MarkDeleted(next, s.cfg.Now(), nil) {
				c.remove(nodeKey, node.Mod)
			} else if _, err := c.put(next, node.Mod); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.clones.forget(name)
	s.heartbeats.forget(name) // the name is free at once, here
	s.log.Info("node removed", "node", name, "by", actor(ctx), "reason", req.GetReason())
	return &holdfastv1.RemoveNodeResponse{}, nil
}
