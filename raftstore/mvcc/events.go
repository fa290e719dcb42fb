package mvcc

import "sort"

// segmentSize is the number of events after which a new segment begins. Whole
// segments are freed as the horizon passes them.
const segmentSize = 1024

// segment holds events in order. The writer fills slots beyond the length that
// any root has seen, so that readers need no lock.
type segment struct {
	events [segmentSize]*record
}

// eventLog is the history since the horizon: for each change the version that it
// made, in revision order. Its copy is a snapshot: roots hold one each.
type eventLog struct {
	segments []*segment
	start    int // events of the first segment that are dropped
	end      int // events in all segments, start included
}

func (l *eventLog) len() int { return l.end - l.start }

// at returns event i, 0 being the oldest kept.
func (l *eventLog) at(i int) *record {
	i += l.start
	return l.segments[i/segmentSize].events[i%segmentSize]
}

func (l *eventLog) append(r *record) {
	if l.end == len(l.segments)*segmentSize {
		l.segments = append(l.segments, new(segment))
	}
	l.segments[l.end/segmentSize].events[l.end%segmentSize] = r
	l.end++
}

// after returns the number of the first event with a revision above rev.
func (l *eventLog) after(rev int64) int {
	return sort.Search(l.len(), func(i int) bool { return l.at(i).mod > rev })
}

// drop forgets the first n events.
func (l *eventLog) drop(n int) {
	l.start += n
	if whole := l.start / segmentSize; whole > 0 {
		// A copy, or the slice's array would keep the dropped segments alive.
		l.segments = append([]*segment(nil), l.segments[whole:]...)
		l.start -= whole * segmentSize
		l.end -= whole * segmentSize
	}
}
