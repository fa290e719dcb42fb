package apiserver

import (
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// changeCache has the newest events of objects, so that those who watch the same
// ones decode and encode each once for all. A slot holds the last event that fell
// on it.
type changeCache struct {
	seed  maphash.Seed
	slots [eventSlots]atomic.Pointer[sharedChange]
}

func newChangeCache() *changeCache { return &changeCache{seed: maphash.MakeSeed()} }

// sharedChange is an event and what is made of it, each when it is first needed.
// It is safe for concurrent use.
type sharedChange struct {
	key         string
	revision    int64
	now, before side
}

// side is an object as it was before or after an event; its messages have the
// revision of the event.
type side struct {
	key      string
	value    []byte
	revision int64

	mu      sync.Mutex
	obj     object.Object // once decoded; never changed
	changes []*sideChange
}

// sideChange is a change as those who watch one version of a kind in one encoding get
// it. It is never changed.
type sideChange struct {
	version  string // of the kind
	encoding holdfastv1.Encoding
	message  *holdfastv1.Change
	wire     []byte // message, as a part of an encoded WatchResponse
}

func (c *changeCache) of(e raftstore.Event) *sharedChange {
	slot := &c.slots[(maphash.String(c.seed, e.Key)+uint64(e.Revision))%eventSlots]
	if hit := slot.Load(); hit != nil && hit.revision == e.Revision && hit.key == e.Key {
		return hit
	}
	made := &sharedChange{key: e.Key, revision: e.Revision}
	made.now.key, made.now.value, made.now.revision = e.Key, e.KV.Value, e.Revision
	made.before.key, made.before.revision = e.Key, e.Revision
	size := len(e.KV.Value)
	if e.Prev != nil {
		made.before.value = e.Prev.Value
		size += len(e.Prev.Value)
	}
	if size <= changeShareBytes {
		slot.Store(made)
	}
	return made
}

// changeShareBytes: larger events would hold much memory in the cache.
const changeShareBytes = 256 << 10

// decoded returns the object. s.mu is held.
func (s *side) decoded(kinds catalog) (object.Object, error) {
	if s.obj == nil {
		obj, err := kinds.Decode(s.value, s.revision)
		if err != nil {
			return nil, fmt.Errorf("stored object %s: %w", s.key, err)
		}
		s.obj = obj
	}
	return s.obj, nil
}

func (s *side) matches(kinds catalog, match matcher) (bool, error) {
	if match.all() {
		return true, nil
	}
	s.mu.Lock()
	obj, err := s.decoded(kinds)
	s.mu.Unlock()
	if err != nil {
		return false, err
	}
	return match.matches(obj), nil
}

// change returns the change of that type as enc makes it, shared with others.
func (s *side) change(enc *encoder, kind holdfastv1.ChangeType) (*sideChange, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.changes {
		if c.message.GetType() == kind && c.version == enc.resource.Version && c.encoding == enc.encoding {
			return c, nil
		}
	}
	out, err := enc.encode(s.key, s.value, s.revision, func() (object.Object, error) { return s.decoded(enc.kinds) })
	if err != nil {
		return nil, err
	}
	c := &sideChange{version: enc.resource.Version, encoding: enc.encoding, message: &holdfastv1.Change{Type: kind, Object: out}}
	if c.wire, err = proto.Marshal(&holdfastv1.WatchResponse{Changes: []*holdfastv1.Change{c.message}}); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(s.key, secretPrefix) { // what has been opened is not kept
		s.changes = append(s.changes, c)
	}
	return c, nil
}
