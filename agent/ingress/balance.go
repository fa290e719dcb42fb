package ingress

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"
)

// shunned is for how long an endpoint that refused a connection is passed over. It may
// be gone before this node has been told.
const shunned = 2 * time.Second

// endpoint is what is known of one address, for as long as tables name it.
type endpoint struct {
	address string
	pending atomic.Int64 // requests under way
	until   atomic.Int64 // when it is tried again, in Unix nanoseconds
}

func (e *endpoint) shun(now time.Time)         { e.until.Store(now.Add(shunned).UnixNano()) }
func (e *endpoint) shunned(now time.Time) bool { return now.UnixNano() < e.until.Load() }

// pick chooses one of all that was not tried: of two by chance, the one with fewer
// requests under way. One that is shunned only when there is no other. Nil: all were
// tried.
func pick(all, tried []*endpoint, now time.Time) *endpoint {
	usable := all
	if len(tried) > 0 || slices.ContainsFunc(all, func(e *endpoint) bool { return e.shunned(now) }) {
		usable = nil
		var last []*endpoint
		for _, e := range all {
			switch {
			case slices.Contains(tried, e):
			case e.shunned(now):
				last = append(last, e)
			default:
				usable = append(usable, e)
			}
		}
		if len(usable) == 0 {
			usable = last
		}
	}
	switch len(usable) {
	case 0:
		return nil
	case 1:
		return usable[0]
	}
	i := rand.IntN(len(usable))
	j := rand.IntN(len(usable) - 1)
	if j >= i {
		j++
	}
	if usable[j].pending.Load() < usable[i].pending.Load() {
		return usable[j]
	}
	return usable[i]
}
