package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	keySize   = 32 // AES-256
	nonceSize = 12
	tagSize   = 16

	// MaxRecords is how many records a key seals. With random nonces NIST allows
	// 2^32 (SP 800-38D, 8.3).
	MaxRecords = 1 << 28
	// MaxBytes is how many bytes of records a key seals: 2^34 of AES's blocks leave
	// a forger a chance below 2^-60.
	MaxBytes = 1 << 38
	// MaxAge is how long a key seals.
	MaxAge = 30 * 24 * time.Hour
)

// ErrDamaged is returned, wrapped with the particulars, for what was not sealed as
// it is now: damaged, cut short, or put where it does not belong.
var ErrDamaged = errors.New("damaged, or not what belongs there")

// ErrNoKey is returned, wrapped, for what was sealed with a key that the ring does
// not have.
var ErrNoKey = errors.New("sealed with a key that is not in the key ring")

// Owner is whose data it is. What is sealed for one owner does not open for another.
type Owner struct{ Cluster, Peer string }

// binding is the part of an owner in what is authenticated.
func (o Owner) binding() [sha256.Size]byte {
	b := []byte("holdfast seal 1\x00")
	for _, s := range []string{o.Cluster, o.Peer} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return sha256.Sum256(b)
}

// Keys wraps data keys. context is what a wrapped key is for; it must be the same
// when unwrapping. Calls may block, as on a KMS, and must be safe for concurrent use.
// An implementation that changes its own key must go on to unwrap what it wrapped
// before; each new data key is an occasion at which all are wrapped again.
type Keys interface {
	Wrap(key, context []byte) (wrapped []byte, err error)
	Unwrap(wrapped, context []byte) (key []byte, err error)
}

// Ring is the data keys of one owner, by number. It is safe for concurrent use.
type Ring struct {
	path    string
	owner   Owner
	bound   [sha256.Size]byte
	wrapper Keys
	random  io.Reader

	mu      sync.RWMutex
	keys    map[uint32]*dataKey
	current *dataKey
	last    uint32 // the highest number ever given
}

type dataKey struct {
	id             uint32
	made           time.Time
	secret         []byte
	aead           cipher.AEAD
	records, bytes atomic.Int64 // sealed by this process
}

// ringFile is a ring on disk.
type ringFile struct {
	Version int         `json:"version"`
	Last    uint32      `json:"last"`
	Keys    []ringEntry `json:"keys"`
}

type ringEntry struct {
	ID   uint32    `json:"id"`
	Made time.Time `json:"made"`
	Key  []byte    `json:"key"` // wrapped
}

const ringVersion = 1

// MakeRing makes a ring with one key, and its file, which must not exist.
func MakeRing(path string, owner Owner, keys Keys) (*Ring, error) {
	if _, err := os.Stat(path); err == nil {
		return nil, fmt.Errorf("key ring %s exists", path)
	}
	r := newRing(path, owner, keys)
	return r, r.Rotate()
}

func newRing(path string, owner Owner, keys Keys) *Ring {
	return &Ring{
		path: path, owner: owner, bound: owner.binding(), wrapper: keys,
		random: rand.Reader, keys: make(map[uint32]*dataKey),
	}
}

// OpenRing reads a ring from its file. Call Rotate before sealing with it: how much
// was sealed with a key is only known to the process that made it.
func OpenRing(path string, owner Owner, keys Keys) (*Ring, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file ringFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("key ring %s: %w: %w", path, ErrDamaged, err)
	}
	if file.Version != ringVersion {
		return nil, fmt.Errorf("key ring %s has version %d; this program knows version %d", path, file.Version, ringVersion)
	}
	r := newRing(path, owner, keys)
	for _, e := range file.Keys {
		secret, err := keys.Unwrap(e.Key, r.context(e.ID))
		if err != nil {
			return nil, fmt.Errorf("key %d of key ring %s: %w", e.ID, path, err)
		}
		k, err := newDataKey(e.ID, e.Made, secret)
		if err != nil {
			return nil, fmt.Errorf("key %d of key ring %s: %w", e.ID, path, err)
		}
		r.keys[e.ID] = k
		if r.current == nil || e.ID > r.current.id {
			r.current = k
		}
	}
	if r.current == nil || file.Last < r.current.id {
		return nil, fmt.Errorf("key ring %s: %w: it has %d keys, the last being %d", path, ErrDamaged, len(file.Keys), file.Last)
	}
	r.last = file.Last
	return r, nil
}

func newDataKey(id uint32, made time.Time, secret []byte) (*dataKey, error) {
	if len(secret) != keySize {
		return nil, fmt.Errorf("%w: %d bytes long", ErrDamaged, len(secret))
	}
	aead, err := newAEAD(secret)
	return &dataKey{id: id, made: made, secret: secret, aead: aead}, err
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// context is what a data key is wrapped for.
func (r *Ring) context(id uint32) []byte {
	return binary.BigEndian.AppendUint32(append([]byte("data key\x00"), r.bound[:]...), id)
}

// Owner returns whose ring it is.
func (r *Ring) Owner() Owner { return r.owner }

// Current returns the number of the key that seals.
func (r *Ring) Current() uint32 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.current.id
}

// Rotate makes a new key, which seals once it is on disk. All keys are wrapped anew.
// On an error the ring is as before.
func (r *Ring) Rotate() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == 1<<32-1 {
		return fmt.Errorf("key ring %s has no number left for another key", r.path)
	}
	secret := make([]byte, keySize)
	if _, err := io.ReadFull(r.random, secret); err != nil {
		return err
	}
	k, err := newDataKey(r.last+1, time.Now().UTC().Truncate(time.Second), secret)
	if err != nil {
		return err
	}
	keys := maps.Clone(r.keys)
	keys[k.id] = k
	if err := r.write(keys, k.id); err != nil {
		return err
	}
	r.keys, r.current, r.last = keys, k, k.id
	return nil
}

// Keep forgets all keys but those that needed holds, and the current one. What was
// sealed with them can never be opened again.
func (r *Ring) Keep(needed map[uint32]bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	keys := maps.Clone(r.keys)
	maps.DeleteFunc(keys, func(id uint32, _ *dataKey) bool { return !needed[id] && id != r.current.id })
	if len(keys) == len(r.keys) {
		return nil
	}
	if err := r.write(keys, r.last); err != nil {
		return err
	}
	r.keys = keys
	return nil
}

// Numbers returns the numbers of all keys, in order.
func (r *Ring) Numbers() []uint32 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Sorted(maps.Keys(r.keys))
}

// Due reports whether the current key has sealed for long enough, or enough.
func (r *Ring) Due(now time.Time) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	k := r.current
	// Half of what is allowed, since a rotation may fail for a while.
	return k.records.Load() > MaxRecords/2 || k.bytes.Load() > MaxBytes/2 || now.Sub(k.made) > MaxAge
}

func (r *Ring) write(keys map[uint32]*dataKey, last uint32) error {
	file := ringFile{Version: ringVersion, Last: last}
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		wrapped, err := r.wrapper.Wrap(keys[id].secret, r.context(id))
		if err != nil {
			return fmt.Errorf("wrap data key %d: %w", id, err)
		}
		file.Keys = append(file.Keys, ringEntry{ID: id, Made: keys[id].made, Key: wrapped})
	}
	data, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(r.path, append(data, '\n'))
}

// sealer returns the current key, counting what it is about to seal.
func (r *Ring) sealer(bytes int) (*dataKey, error) {
	r.mu.RLock()
	k := r.current
	r.mu.RUnlock()
	if k.records.Add(1) > MaxRecords || k.bytes.Add(int64(bytes)) > MaxBytes {
		return nil, fmt.Errorf("key %d of key ring %s has sealed as much as it may, and no other could be made", k.id, r.path)
	}
	return k, nil
}

// opener returns a key by its number.
func (r *Ring) opener(id uint32) (*dataKey, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if k := r.keys[id]; k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("%w: key %d", ErrNoKey, id)
}
