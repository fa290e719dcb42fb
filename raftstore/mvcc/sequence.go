package mvcc

import "iter"

// segmentSize is the number of elements after which a new segment begins. Whole
// segments are freed as the front passes them.
const segmentSize = 1024

// sequence is a list that grows at its end and forgets from its front. Its copy is
// a snapshot: roots hold one each. The writer fills slots beyond the length that
// any copy has seen, so that readers need no lock.
type sequence[T any] struct {
	segments []*[segmentSize]T
	start    int // elements of the first segment that are dropped
	end      int // elements in all segments, start included
}

func (q *sequence[T]) len() int { return q.end - q.start }

// at returns element i, 0 being the oldest kept.
func (q *sequence[T]) at(i int) T {
	i += q.start
	return q.segments[i/segmentSize][i%segmentSize]
}

// last returns the newest element, or none.
func (q *sequence[T]) last() (last T, ok bool) {
	if q.len() == 0 {
		return last, false
	}
	return q.at(q.len() - 1), true
}

func (q *sequence[T]) append(v T) {
	if q.end == len(q.segments)*segmentSize {
		q.segments = append(q.segments, new([segmentSize]T))
	}
	q.segments[q.end/segmentSize][q.end%segmentSize] = v
	q.end++
}

// drop forgets the first n elements.
func (q *sequence[T]) drop(n int) {
	q.start += n
	if whole := q.start / segmentSize; whole > 0 {
		// A copy, or the slice's array would keep the dropped segments alive.
		q.segments = append([]*[segmentSize]T(nil), q.segments[whole:]...)
		q.start -= whole * segmentSize
		q.end -= whole * segmentSize
	}
}

// all yields the elements, the oldest first.
func (q *sequence[T]) all() iter.Seq[T] {
	return func(yield func(T) bool) {
		for i := range q.len() {
			if !yield(q.at(i)) {
				return
			}
		}
	}
}
