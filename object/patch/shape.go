package patch

import (
	"hash/maphash"
	"sync"
)

// shape stands for the fields of an object and the types of their values, and for those
// values that are in lists, where they may say which item is meant: all that the set of
// its fields follows from. Two objects of different shapes have the same one by an
// accident of 128 bits that nobody outside can bring about.
type shape [2]uint64

var shapeSeeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

func shapeOf(fields map[string]any) shape {
	return shape{shapeHash(shapeSeeds[0], fields, inMap), shapeHash(shapeSeeds[1], fields, inMap)}
}

// What a value begins with in its hash.
const (
	shapeNull = iota + 1
	shapeMap
	shapeList
	shapeString
	shapeInt
	shapeFloat
	shapeBool
)

// place is where a value stands.
type place int8

const (
	inMap  place = iota
	inItem       // in a map that is in a list: it may be a key of that
	inList
)

// shapeHash is that of a value. In lists and items the value itself counts.
func shapeHash(seed maphash.Seed, v any, at place) uint64 {
	switch v := v.(type) {
	case nil:
		return mix(seed, shapeNull, 0)
	case map[string]any:
		var sum uint64 // the order of a map is none
		field := inMap
		if at == inList {
			field = inItem
		}
		for name, value := range v {
			sum += mix(seed, maphash.String(seed, name), shapeHash(seed, value, field))
		}
		return mix(seed, shapeMap, sum)
	case []any:
		hash := uint64(len(v))
		for _, item := range v {
			hash = mix(seed, hash, shapeHash(seed, item, inList))
		}
		return mix(seed, shapeList, hash)
	case string:
		return mix(seed, shapeString, value(seed, v, at))
	case int64:
		return mix(seed, shapeInt, value(seed, v, at))
	case float64:
		return mix(seed, shapeFloat, value(seed, v, at))
	case bool:
		return mix(seed, shapeBool, value(seed, v, at))
	default: // JSON makes no others
		return mix(seed, ^uint64(0), maphash.Comparable(seed, v))
	}
}

func value[T comparable](seed maphash.Seed, v T, at place) uint64 {
	if at == inMap {
		return 0
	}
	return maphash.Comparable(seed, v)
}

func mix(seed maphash.Seed, a, b uint64) uint64 { return maphash.Comparable(seed, [2]uint64{a, b}) }

// maxShapes bounds the shapes of a kind that are remembered, maxShapeBytes the text of
// one.
const (
	maxShapes     = 256
	maxShapeBytes = 16 << 10
)

// shapes remembers the fields of objects by their shape. Safe for concurrent use.
type shapes struct {
	mu    sync.Mutex
	known map[shape]string
}

func (s *shapes) get(of shape) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, ok := s.known[of]
	return text, ok
}

func (s *shapes) put(of shape, text string) {
	if len(text) > maxShapeBytes {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = make(map[shape]string)
	}
	if len(s.known) >= maxShapes {
		clear(s.known)
	}
	s.known[of] = text
}
