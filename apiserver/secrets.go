package apiserver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/apiserver/keyring"
	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/seal"
)

// Values of Secrets are sealed where a change is proposed (plan.put), and opened where an
// object leaves the store for somebody who may read it. In between, in the log, in the
// history, in snapshots, backups and the tree, they are sealed. keyring's package comment
// says how, DESIGN.md why.

// secretsPrefix is where the store has what is about the keys of Secrets, secretsRing the
// key ring's record.
const (
	secretsPrefix = "holdfast/secrets/"
	secretsRing   = secretsPrefix + "keys"
)

const (
	// A transaction of the background seals so many Secrets anew, of at most so many
	// bytes, and the next one waits a moment: it is in no hurry, others are.
	resealBatch = 32
	resealBytes = 256 << 10
	resealPause = 50 * time.Millisecond
	// secretsCheck is how often the ring's age and unused keys are looked at, and
	// secretsRetry how long the leader waits before it asks older peers again.
	secretsCheck = 10 * time.Minute
	secretsRetry = 2 * time.Second
)

// secretKeys is this peer's way to the cluster's key ring. It is safe for concurrent use.
type secretKeys struct {
	store    *raftstore.Store
	cluster  string
	wrappers []keyring.Wrapper // the first one wraps
	imported []byte            // Config.ImportedSecrets
	known    atomic.Pointer[knownRing]
}

// knownRing is the ring as it was written at mod; ring is nil when err is not.
type knownRing struct {
	mod  int64
	ring *keyring.Ring
	err  error
	// imported says that it is not what was written, but what came with the backup.
	imported bool
}

// newSecretKeys returns the way to the ring by a CA; without one nothing is sealed, and
// nothing sealed is opened.
func newSecretKeys(store *raftstore.Store, cluster string, cas ...*pki.CA) (*secretKeys, error) {
	s := &secretKeys{store: store, cluster: cluster}
	for _, ca := range cas {
		if ca == nil {
			continue
		}
		key, err := ca.SecretsKey()
		if err != nil {
			return nil, err
		}
		keys, err := seal.NewKeys(key)
		if err != nil {
			return nil, err
		}
		s.wrappers = append(s.wrappers, keyring.Wrapper{Fingerprint: fingerprintOf(key), Keys: keys})
	}
	return s, nil
}

// fingerprintOf names a key without giving it away.
func fingerprintOf(key []byte) string {
	sum := sha256.Sum256(append([]byte("holdfast secrets wrapper\x00"), key...))
	return hex.EncodeToString(sum[:8])
}

// of returns the ring of a view and the revision of its record; without a ring, nil
// and 0.
func (s *secretKeys) of(view raftstore.View) (*keyring.Ring, int64, error) {
	kv, ok := view.Get(secretsRing)
	if !ok {
		return nil, 0, nil
	}
	if known := s.known.Load(); known != nil && known.mod == kv.Mod {
		return known.ring, kv.Mod, known.err
	}
	known := &knownRing{mod: kv.Mod}
	known.ring, known.err = keyring.Read(kv.Value, s.cluster, s.wrappers)
	if known.err != nil && len(s.imported) > 0 {
		if ring, err := keyring.Read(s.imported, s.cluster, s.wrappers); err == nil {
			known.ring, known.err, known.imported = ring, nil, true
		}
	}
	s.known.Store(known)
	return known.ring, kv.Mod, known.err
}

// open returns obj, which may be a sealed Secret, as whoever may read it gets it. The
// newest ring has the keys of all that can be read, at older revisions too.
func (s *secretKeys) open(obj object.Object) (object.Object, error) {
	secret, ok := obj.(*corev1.Secret)
	if !ok {
		return obj, nil
	}
	if _, sealed := keyring.SealedWith(secret); !sealed {
		return obj, nil
	}
	ring, _, err := s.of(s.store.View())
	if err != nil {
		return nil, unreadableSecret(secret, err)
	}
	opened, err := ring.Open(secret)
	if err != nil {
		return nil, unreadableSecret(secret, err)
	}
	return opened, nil
}

func unreadableSecret(secret *corev1.Secret, err error) error {
	return connect.Errorf(connect.CodeDataLoss, "%s cannot be opened, but deleted: %v; see `holdfast secrets status`", object.Title(secret), err)
}

// unreadableAnnotation says, in lists, why a Secret has no values there.
const unreadableAnnotation = "holdfast.dev/unreadable"

// withoutSecrets returns a Secret that cannot be opened as lists show it.
func withoutSecrets(obj object.Object, why error) object.Object {
	secret := obj.DeepCopyObject().(*corev1.Secret)
	secret.Data = nil
	if secret.Annotations == nil {
		secret.Annotations = make(map[string]string)
	}
	secret.Annotations[unreadableAnnotation] = why.Error()
	return secret
}

// openValue is open for a stored Secret's bytes.
func (s *secretKeys) openValue(key string, value []byte) ([]byte, error) {
	obj, err := object.Decode(value, 0)
	if err != nil {
		return nil, fmt.Errorf("stored object %s: %w", key, err)
	}
	opened, err := s.open(obj)
	if err != nil || opened == obj {
		return value, err
	}
	return object.Encode(opened)
}

// openInputs opens the Secrets of a message to an agent. One that does not open is left
// out, as if it were not there: the node's other pods have no part in it.
func (s *Server) openInputs(inputs []*agentv1.Input) []*agentv1.Input {
	return slices.DeleteFunc(inputs, func(in *agentv1.Input) bool {
		if !strings.HasPrefix(in.GetKey(), secretPrefix) {
			return false
		}
		var err error
		if in.Object, err = s.secrets.openValue(in.GetKey(), in.GetObject()); err != nil {
			s.log.Error("a secret that a node's pods need cannot be opened", "key", in.GetKey(), "err", err)
		}
		return err != nil
	})
}

// put writes obj under its key, as a change of what stands there at revision, 0 if
// nothing may, and returns it as it is stored; a Secret sealed, and then nothing. A plan
// that writes a sealed Secret is conditional on the ring: a key that goes meanwhile must
// not come back.
func (p *plan) put(obj object.Object, revision int64) ([]byte, error) {
	secret, ok := obj.(*corev1.Secret)
	if !ok {
		return p.change.put(obj, revision)
	}
	ring, mod, err := p.secrets.of(p.view)
	if err != nil {
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "%s cannot be written: %v; see `holdfast secrets status`", object.Title(secret), err)
	}
	if ring == nil { // a peer of an older version is left: see ensureRing
		_, err := p.change.put(obj, revision)
		return nil, err
	}
	sealed, err := ring.Seal(secret)
	if err != nil {
		return nil, err
	}
	if !p.ranges[secretsRing] {
		if p.ranges == nil {
			p.ranges = make(map[string]bool)
		}
		p.ranges[secretsRing] = true
		p.unchanged(secretsRing, mod)
	}
	_, err = p.change.put(sealed, revision)
	return nil, err
}

// KeepSecrets is the leader's part: it makes the key ring once every peer can open what
// is sealed with it, seals with the newest key what is not, in the background, makes
// another key when the newest is old, and forgets those that nothing needs. What it has
// to do it finds in the objects themselves, so a later leader goes on where this one
// ended. It returns when ctx ends.
func (s *Server) KeepSecrets(ctx context.Context, leader *raftstore.Leader) error {
	if len(s.secrets.wrappers) == 0 {
		<-ctx.Done()
		return nil
	}
	for said := ""; ctx.Err() == nil; {
		view := leader.View()
		cursor := leader.Watch(secretsPrefix, view.Revision())
		pause := secretsCheck
		if err := s.tendSecrets(ctx, leader); errors.Is(err, errRingChanged) {
			continue
		} else if err != nil {
			if text := err.Error(); text != said && ctx.Err() == nil { // once, not every two seconds
				s.log.Warn("secrets", "err", err)
				said = text
			}
			pause = secretsRetry
		}
		wait, cancel := context.WithTimeout(ctx, pause)
		if _, _, err := cursor.Next(wait); err != nil && wait.Err() == nil && !errors.Is(err, raftstore.ErrCompacted) {
			cancel()
			return fmt.Errorf("watch the keys of secrets: %w", err)
		}
		cancel()
	}
	return nil
}

// errRingChanged is why a pass over the Secrets was ended: it begins anew.
var errRingChanged = errors.New("another key ring was written")

// tendSecrets does once all that there is to do.
func (s *Server) tendSecrets(ctx context.Context, leader *raftstore.Leader) error {
	ring, mod, err := s.secrets.of(leader.View())
	if err != nil {
		return err
	}
	if known := s.secrets.known.Load(); ring != nil && known.mod == mod && known.imported {
		return s.writeRing(ctx, leader, ring, mod, "the keys of secrets came with a backup")
	}
	if ring == nil {
		return s.ensureRing(ctx, leader)
	}
	now := s.cfg.Now()
	if now.Sub(ring.Current().Made) > keyring.MaxAge {
		next, err := ring.Rotate(now)
		if err != nil {
			return err
		}
		return s.writeRing(ctx, leader, next, mod, fmt.Sprintf("secrets are sealed with key %d", next.Current().ID))
	}
	if ring.Wrapper() != s.secrets.wrappers[0].Fingerprint {
		return s.writeRing(ctx, leader, ring, mod, "the keys of secrets are wrapped anew")
	}
	used, revision, err := s.resealAll(ctx, leader, ring, mod)
	if err != nil {
		return err
	}
	if next := ring.Plan(used, revision, leader.View().Stats().Horizon); next != ring {
		return s.writeRing(ctx, leader, next, mod, "keys of secrets are no longer used")
	}
	return nil
}

// ensureRing makes the ring, once all peers say that they can open it: an older one
// would give out what is sealed as if it were the value.
func (s *Server) ensureRing(ctx context.Context, leader *raftstore.Leader) error {
	for id := range s.cfg.Peers() {
		if id == s.cfg.PeerID {
			continue
		}
		if err := s.checkSecretsPeer(ctx, id); err != nil {
			return fmt.Errorf("values are not sealed until peer %s can open them: %w", id, err)
		}
	}
	ring, err := keyring.New(s.cfg.ClusterID, s.cfg.Now())
	if err != nil {
		return err
	}
	return s.writeRing(ctx, leader, ring, 0, "values of secrets are sealed from now on")
}

func (s *Server) checkSecretsPeer(ctx context.Context, id string) error {
	client, err := s.cfg.Dial(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	resp, err := peerv1connect.NewSecretsServiceClient(client).Check(ctx, &peerv1.SecretsServiceCheckRequest{})
	if err != nil {
		return err
	}
	if !slices.Contains(resp.GetWrappers(), s.secrets.wrappers[0].Fingerprint) {
		return errors.New("it does not have the key that wraps those of secrets")
	}
	return nil
}

// writeRing writes the ring in the place of the one of revision mod; 0: there is none.
func (s *Server) writeRing(ctx context.Context, leader *raftstore.Leader, ring *keyring.Ring, mod int64, reason string) error {
	data, err := ring.Record(s.secrets.wrappers[0])
	if err != nil {
		return err
	}
	var c change
	c.putRaw(secretsRing, data, mod)
	_, err = leader.Txn(ctx, raftstore.Txn{If: c.conditions, Then: c.ops, Actor: "secrets", Reason: reason})
	if errors.Is(err, raftstore.ErrConflict) {
		return nil // another one wrote it, which is news for the loop
	}
	if err == nil {
		s.log.Info("key ring of secrets written", "reason", reason, "key", ring.Current().ID)
	}
	return err
}

// resealAll seals with the ring's newest key what is not, and returns the keys that what
// there is at revision is sealed with then. What changes beside it has been sealed by its
// writer, with that ring or a later one.
func (s *Server) resealAll(ctx context.Context, leader *raftstore.Leader, ring *keyring.Ring, mod int64) (used map[uint32]bool, revision int64, err error) {
	current := ring.Current().ID
	for {
		used = make(map[uint32]bool)
		view := leader.View()
		c, size, count := change{}, 0, 0
		c.unchanged(secretsRing, mod)
		for kv := range view.Prefix(secretPrefix) {
			obj, err := object.Decode(kv.Value, 0)
			if err != nil {
				return nil, 0, fmt.Errorf("stored object %s: %w", kv.Key, err)
			}
			secret := obj.(*corev1.Secret)
			id, sealed := keyring.SealedWith(secret)
			if sealed && id == current {
				used[id] = true
				continue
			}
			opened, err := ring.Open(secret)
			if err != nil { // it stays what it is, for whoever finds the key
				s.log.Error("a secret cannot be sealed anew", "err", err)
				used[id] = true
				continue
			}
			if count == resealBatch || size > resealBytes {
				break
			}
			next, err := ring.Seal(opened)
			if err != nil {
				return nil, 0, err
			}
			if _, err := c.put(next, kv.Mod); err != nil {
				return nil, 0, err
			}
			count++
			size += len(kv.Value)
		}
		if count == 0 {
			return used, view.Revision(), nil
		}
		_, err := leader.Txn(ctx, raftstore.Txn{If: c.conditions, Then: c.ops, Actor: "secrets", Reason: fmt.Sprintf("sealed with key %d", current)})
		if err != nil && !errors.Is(err, raftstore.ErrConflict) {
			return nil, 0, err
		}
		if _, now, err := s.secrets.of(leader.View()); err != nil || now != mod {
			return nil, 0, errRingChanged // for the loop
		}
		select {
		case <-time.After(resealPause):
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		}
	}
}

// RewrapSecrets returns a key ring that came with a backup, wrapped for the cluster of ca.
func RewrapSecrets(exported []byte, ca *pki.CA) ([]byte, error) {
	ring, err := keyring.Import(exported, ca.Cluster())
	if err != nil {
		return nil, err
	}
	keys, err := newSecretKeys(nil, ca.Cluster(), ca)
	if err != nil {
		return nil, err
	}
	return ring.Record(keys.wrappers[0])
}

// export returns the keys of a view's Secrets, for a backup that is sealed as a whole.
func (s *secretKeys) export(view raftstore.View) ([]byte, error) {
	ring, _, err := s.of(view)
	if err != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, err.Error())
	}
	if ring == nil {
		return nil, nil
	}
	return ring.Export()
}

// peerSecrets implements peerv1connect.SecretsServiceHandler.
type peerSecrets struct{ *Server }

// Check tells whether this peer can open what is sealed.
func (s peerSecrets) Check(context.Context, *peerv1.SecretsServiceCheckRequest) (*peerv1.SecretsServiceCheckResponse, error) {
	resp := &peerv1.SecretsServiceCheckResponse{}
	for _, w := range s.secrets.wrappers {
		resp.Wrappers = append(resp.Wrappers, w.Fingerprint)
	}
	return resp, nil
}

// secretsService implements holdfastv1connect.SecretsServiceHandler.
type secretsService struct{ *Server }

// Status counts the Secrets by their keys.
func (s secretsService) Status(ctx context.Context, _ *holdfastv1.SecretsServiceStatusRequest) (*holdfastv1.SecretsServiceStatusResponse, error) {
	view, err := s.sync(ctx)
	if err != nil {
		return nil, err
	}
	resp := &holdfastv1.SecretsServiceStatusResponse{Revision: view.Revision()}
	count := make(map[uint32]int64)
	for kv := range view.Prefix(secretPrefix) {
		obj, err := object.Decode(kv.Value, 0)
		if err != nil {
			return nil, fmt.Errorf("stored object %s: %w", kv.Key, err)
		}
		if id, sealed := keyring.SealedWith(obj.(*corev1.Secret)); sealed {
			count[id]++
		} else {
			resp.Readable++
		}
	}
	ring, _, err := s.secrets.of(view)
	switch {
	case err != nil:
		resp.Obstacle = err.Error()
		return resp, nil
	case ring == nil:
		resp.Obstacle = "there is no key ring yet: the leader makes it once every peer can open what is sealed"
		return resp, nil
	}
	for _, k := range ring.Keys() {
		resp.Keys = append(resp.Keys, &holdfastv1.SecretsKey{Id: k.ID, Made: timestamppb.New(k.Made), Secrets: count[k.ID], Unused: k.Unused})
		delete(count, k.ID)
	}
	if len(count) > 0 {
		resp.Obstacle = fmt.Sprintf("there are Secrets that are sealed with keys which the cluster does not have: %v", count)
	}
	return resp, nil
}

// RotateKey writes the ring with another key. The leader's loop does the rest.
func (s secretsService) RotateKey(ctx context.Context, _ *holdfastv1.SecretsServiceRotateKeyRequest) (*holdfastv1.SecretsServiceRotateKeyResponse, error) {
	var id uint32
	revision, err := s.transact(ctx, "rotate the key of secrets", "another key for secrets", true, func(view raftstore.View) (change, error) {
		ring, mod, err := s.secrets.of(view)
		if err == nil && ring == nil {
			err = errors.New("there is no key ring yet: the leader makes it once every peer can open what is sealed")
		}
		if err != nil {
			return change{}, connect.NewError(connect.CodeFailedPrecondition, err.Error())
		}
		next, err := ring.Rotate(s.cfg.Now())
		if err != nil {
			return change{}, err
		}
		data, err := next.Record(s.secrets.wrappers[0])
		if err != nil {
			return change{}, err
		}
		id = next.Current().ID
		var c change
		c.putRaw(secretsRing, data, mod)
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	return &holdfastv1.SecretsServiceRotateKeyResponse{Id: id, Revision: revision}, nil
}
