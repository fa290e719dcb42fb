// Package keyring seals the values of Secrets, and holds the keys they are sealed with.
//
// # Sealed Secrets
//
// A sealed Secret is an ordinary Secret whose data has one entry, under a name that no
// person's entry can have: what is secret of the object, sealed. Its metadata, but for the
// copy of a manifest that kubectl keeps in an annotation, and its type stay readable, so
// that whoever needs no values (selectors, collectors, the scheduler) needs no keys; and
// who writes the object again without having opened it changes nothing of what is sealed.
// A value is bound to the object's key and uid: put into another Secret it does not open.
//
// # Keys
//
// A [Ring] has keys by number; the newest seals, all of them open. Its record, which is
// an ordinary value of the store, has each key wrapped by a key that only peers have. A
// ring is immutable: a change makes another one.
//
// Nothing here reads a clock or knows the store. Sealing draws a random nonce, so it
// belongs where a change is proposed, never where it is applied.
package keyring

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore/seal"
)

const (
	// SealedEntry is the name under which a sealed Secret's data has what is sealed.
	// Names that people give have no slash.
	SealedEntry = "holdfast.dev/sealed"

	// lastApplied is the annotation in which kubectl keeps a whole manifest.
	lastApplied = corev1.LastAppliedConfigAnnotation

	// MaxAge is how long a key seals. With random nonces of 96 bits a key may seal 2^32
	// times (NIST SP 800-38D, 8.3): more than a thousand a second for so long.
	MaxAge = 30 * 24 * time.Hour

	keySize       = 32
	nonceSize     = 12
	sealedVersion = 1
	sealedHeader  = 1 + 4 + nonceSize
	recordVersion = 1
)

// ErrNoKey is returned, wrapped, for what was sealed with a key that the ring does not
// have.
var ErrNoKey = errors.New("sealed with a key that the cluster no longer has")

// ErrDamaged is returned, wrapped, for what was not sealed as it is now: damaged, or put
// where it does not belong.
var ErrDamaged = errors.New("damaged, or another object's")

// Key says of a key what is not secret.
type Key struct {
	ID   uint32
	Made time.Time
	// Unused is the revision from which on nothing current is sealed with the key; 0:
	// something may be. What was before can still be read until history ends above it.
	Unused int64
}

// Ring is the keys of a cluster's Secrets. It is immutable and safe for concurrent use.
type Ring struct {
	cluster string
	keys    map[uint32]*key
	last    uint32 // the newest key, which seals
	wrapper string // the fingerprint of what wrapped it when it was read
}

type key struct {
	Key
	secret []byte
	aead   cipher.AEAD
}

// record is a ring in the store.
type record struct {
	Version int           `json:"version"`
	Wrapper string        `json:"wrapper"`
	Keys    []recordedKey `json:"keys"`
}

type recordedKey struct {
	ID     uint32    `json:"id"`
	Made   time.Time `json:"made"`
	Unused int64     `json:"unused,omitempty"`
	Key    []byte    `json:"key"` // wrapped
}

// Wrapper wraps keys. Fingerprint tells it from others, and is public.
type Wrapper struct {
	Fingerprint string
	Keys        seal.Keys
}

// New makes a ring with one key.
func New(cluster string, now time.Time) (*Ring, error) {
	return (&Ring{cluster: cluster}).Rotate(now)
}

// Read reads a ring from its record, by that of the wrappers which it was wrapped with.
func Read(data []byte, cluster string, wrappers []Wrapper) (*Ring, error) {
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil {
		return nil, fmt.Errorf("the key ring of secrets: %w: %w", ErrDamaged, err)
	}
	if rec.Version != recordVersion {
		return nil, fmt.Errorf("the key ring of secrets has version %d, this peer knows version %d", rec.Version, recordVersion)
	}
	i := slices.IndexFunc(wrappers, func(w Wrapper) bool { return w.Fingerprint == rec.Wrapper })
	if i < 0 {
		return nil, fmt.Errorf("the key ring of secrets is wrapped with key %s, which this peer does not have", rec.Wrapper)
	}
	r := &Ring{cluster: cluster, keys: make(map[uint32]*key), wrapper: rec.Wrapper}
	for _, k := range rec.Keys {
		secret, err := wrappers[i].Keys.Unwrap(k.Key, wrapContext(cluster, k.ID))
		if err != nil {
			return nil, fmt.Errorf("key %d of the key ring of secrets: %w", k.ID, err)
		}
		if r.keys[k.ID], err = newKey(Key{k.ID, k.Made, k.Unused}, secret); err != nil {
			return nil, fmt.Errorf("key %d of the key ring of secrets: %w", k.ID, err)
		}
		r.last = max(r.last, k.ID)
	}
	if len(r.keys) == 0 {
		return nil, fmt.Errorf("the key ring of secrets: %w: it has no key", ErrDamaged)
	}
	return r, nil
}

// Record returns the ring's record, wrapped by w.
func (r *Ring) Record(w Wrapper) ([]byte, error) {
	rec := record{Version: recordVersion, Wrapper: w.Fingerprint}
	for _, id := range slices.Sorted(maps.Keys(r.keys)) {
		k := r.keys[id]
		wrapped, err := w.Keys.Wrap(k.secret, wrapContext(r.cluster, id))
		if err != nil {
			return nil, fmt.Errorf("wrap key %d of secrets: %w", id, err)
		}
		rec.Keys = append(rec.Keys, recordedKey{k.ID, k.Made, k.Unused, wrapped})
	}
	return json.Marshal(rec)
}

func newKey(about Key, secret []byte) (*key, error) {
	if len(secret) != keySize {
		return nil, fmt.Errorf("%w: %d bytes long", ErrDamaged, len(secret))
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	return &key{about, secret, aead}, err
}

func wrapContext(cluster string, id uint32) []byte {
	b := append([]byte("holdfast secrets key\x00"), cluster...)
	return binary.BigEndian.AppendUint32(append(b, 0), id)
}

// Wrapper returns the fingerprint of what wrapped the ring when it was read.
func (r *Ring) Wrapper() string { return r.wrapper }

// Current returns the key that seals.
func (r *Ring) Current() Key { return r.keys[r.last].Key }

// Keys returns all keys, by number.
func (r *Ring) Keys() []Key {
	var keys []Key
	for _, id := range slices.Sorted(maps.Keys(r.keys)) {
		keys = append(keys, r.keys[id].Key)
	}
	return keys
}

// Rotate returns the ring with another key, which seals from then on.
func (r *Ring) Rotate(now time.Time) (*Ring, error) {
	secret := make([]byte, keySize)
	if _, err := rand.Read(secret); err != nil {
		return nil, err
	}
	return r.with(now, secret)
}

func (r *Ring) with(now time.Time, secret []byte) (*Ring, error) {
	k, err := newKey(Key{ID: r.last + 1, Made: now.UTC().Truncate(time.Second)}, secret)
	if err != nil {
		return nil, err
	}
	next := r.clone()
	next.keys[k.ID], next.last = k, k.ID
	return next, nil
}

func (r *Ring) clone() *Ring {
	next := *r
	next.keys = maps.Clone(r.keys)
	if next.keys == nil {
		next.keys = make(map[uint32]*key)
	}
	return &next
}

// Plan returns the ring as it should be, r itself if it is. used are the keys that
// something current is sealed with, at revision; history is read from horizon on: a key
// goes when nothing that can still be read needs it.
func (r *Ring) Plan(used map[uint32]bool, revision, horizon int64) *Ring {
	next := r.clone()
	changed := false
	for id, k := range r.keys {
		switch {
		case id == r.last:
		case used[id] && k.Unused != 0: // an object was written back: by whom, it cannot say
			about := k.Key
			about.Unused = 0
			next.keys[id], changed = &key{about, k.secret, k.aead}, true
		case !used[id] && k.Unused == 0:
			about := k.Key
			about.Unused = revision
			next.keys[id], changed = &key{about, k.secret, k.aead}, true
		case !used[id] && k.Unused < horizon:
			delete(next.keys, id)
			changed = true
		}
	}
	if !changed {
		return r
	}
	return next
}

// Seal returns s sealed with the current key; s itself is not changed. It must have its
// name, namespace and uid. One that is sealed is returned as it is.
func (r *Ring) Seal(s *corev1.Secret) (*corev1.Secret, error) {
	if _, sealed := SealedWith(s); sealed {
		return s, nil
	}
	private := corev1.Secret{Data: s.Data, StringData: s.StringData}
	out := *s
	if manifest, ok := s.Annotations[lastApplied]; ok {
		private.Annotations = map[string]string{lastApplied: manifest}
		out.Annotations = maps.Clone(s.Annotations)
		delete(out.Annotations, lastApplied)
	}
	plain, err := private.Marshal()
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", object.Title(s), err)
	}
	k := r.keys[r.last]
	value := make([]byte, sealedHeader, sealedHeader+len(plain)+k.aead.Overhead())
	value[0] = sealedVersion
	binary.BigEndian.PutUint32(value[1:], k.ID)
	nonce := value[5:sealedHeader]
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	value = k.aead.Seal(value, nonce, plain, boundTo(s))
	out.Data, out.StringData = map[string][]byte{SealedEntry: value}, nil
	return &out, nil
}

// Open returns s, which may be sealed, as it was before; s is not changed.
func (r *Ring) Open(s *corev1.Secret) (*corev1.Secret, error) {
	id, sealed := SealedWith(s)
	if !sealed {
		return s, nil
	}
	value := s.Data[SealedEntry]
	if len(value) < sealedHeader || value[0] != sealedVersion || len(s.Data) != 1 {
		return nil, fmt.Errorf("%s: %w", object.Title(s), ErrDamaged)
	}
	var k *key
	if r != nil {
		k = r.keys[id]
	}
	if k == nil {
		return nil, fmt.Errorf("%s: %w: key %d", object.Title(s), ErrNoKey, id)
	}
	plain, err := k.aead.Open(nil, value[5:sealedHeader], value[sealedHeader:], boundTo(s))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", object.Title(s), ErrDamaged)
	}
	var private corev1.Secret
	if err := private.Unmarshal(plain); err != nil {
		return nil, fmt.Errorf("%s: %w", object.Title(s), ErrDamaged)
	}
	out := *s
	out.Data, out.StringData = private.Data, private.StringData
	if manifest, ok := private.Annotations[lastApplied]; ok {
		out.Annotations = maps.Clone(s.Annotations)
		if out.Annotations == nil {
			out.Annotations = make(map[string]string)
		}
		out.Annotations[lastApplied] = manifest
	}
	return &out, nil
}

// SealedWith returns the number of the key that a Secret is sealed with, false if it is
// not sealed.
func SealedWith(s *corev1.Secret) (id uint32, sealed bool) {
	value, ok := s.Data[SealedEntry]
	if !ok {
		return 0, false
	}
	if len(value) >= sealedHeader {
		id = binary.BigEndian.Uint32(value[1:])
	}
	return id, true
}

// boundTo is what a sealed value belongs to.
func boundTo(s *corev1.Secret) []byte {
	b := []byte("holdfast secret 1\x00")
	for _, part := range []string{s.Namespace, s.Name, string(s.UID)} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return b
}

// Export returns the keys themselves, to be carried to another cluster: in a backup that
// is sealed as a whole, nowhere else.
func (r *Ring) Export() ([]byte, error) {
	rec := record{Version: recordVersion}
	for _, id := range slices.Sorted(maps.Keys(r.keys)) {
		k := r.keys[id]
		rec.Keys = append(rec.Keys, recordedKey{k.ID, k.Made, k.Unused, k.secret})
	}
	return json.Marshal(rec)
}

// Import returns the ring that Export wrote, as cluster's.
func Import(data []byte, cluster string) (*Ring, error) {
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil || rec.Version != recordVersion || len(rec.Keys) == 0 {
		return nil, fmt.Errorf("keys of secrets: %w", ErrDamaged)
	}
	r := &Ring{cluster: cluster, keys: make(map[uint32]*key)}
	for _, k := range rec.Keys {
		var err error
		if r.keys[k.ID], err = newKey(Key{k.ID, k.Made, k.Unused}, k.Key); err != nil {
			return nil, err
		}
		r.last = max(r.last, k.ID)
	}
	return r, nil
}
