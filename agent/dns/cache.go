package dns

import (
	"container/list"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Bounds of how long answers of other resolvers are kept, whatever they say.
const (
	maxTTL        = time.Hour
	maxNegative   = time.Minute
	failureTTL    = time.Second // of SERVFAIL and the like; RFC 9520 wants at least this
	entryOverhead = 256         // bytes, about what an entry costs beside its message
)

// question is what answers are kept by. The bits are those that change an answer.
type question struct {
	name             string // lower case
	qtype            uint16
	dnssec, checking bool // DO; CD: checking is disabled
}

// cache holds answers of other resolvers, bounded in entries and bytes; the one used
// longest ago goes first. Safe for concurrent use.
type cache struct {
	maxEntries int
	maxBytes   int

	mu      sync.Mutex
	entries map[question]*list.Element
	order   list.List // of *entry, the one used last in front
	bytes   int
}

type entry struct {
	key     question
	msg     *dns.Msg // not changed after it is stored
	stored  time.Time
	expires time.Time
	bytes   int
}

func newCache(maxEntries, maxBytes int) *cache {
	return &cache{maxEntries: maxEntries, maxBytes: maxBytes, entries: map[question]*list.Element{}}
}

// get returns a copy of the answer to key, with the time to live that is left.
func (c *cache) get(key question, now time.Time) (*dns.Msg, bool) {
	c.mu.Lock()
	at, ok := c.entries[key]
	if !ok {
		c.mu.Unlock()
		return nil, false
	}
	e := at.Value.(*entry)
	if !now.Before(e.expires) {
		c.remove(at)
		c.mu.Unlock()
		return nil, false
	}
	c.order.MoveToFront(at)
	c.mu.Unlock()
	msg := e.msg.Copy()
	age := uint32(now.Sub(e.stored) / time.Second)
	left := uint32(e.expires.Sub(now) / time.Second)
	for _, section := range [][]dns.RR{msg.Answer, msg.Ns, msg.Extra} {
		for _, rr := range section {
			h := rr.Header()
			h.Ttl = min(h.Ttl-min(age, h.Ttl), left)
		}
	}
	return msg, true
}

// put keeps a copy of the answer for as long as it may be kept.
func (c *cache) put(key question, msg *dns.Msg, now time.Time) {
	ttl := lifetime(msg)
	if ttl <= 0 {
		return
	}
	e := &entry{key: key, msg: msg.Copy(), stored: now, expires: now.Add(ttl), bytes: msg.Len() + entryOverhead}
	if e.bytes > c.maxBytes {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.entries[key]; ok {
		c.remove(old)
	}
	c.entries[key] = c.order.PushFront(e)
	c.bytes += e.bytes
	for len(c.entries) > c.maxEntries || c.bytes > c.maxBytes {
		c.remove(c.order.Back())
	}
}

// remove takes an entry out. The caller holds the mutex.
func (c *cache) remove(at *list.Element) {
	e := c.order.Remove(at).(*entry)
	delete(c.entries, e.key)
	c.bytes -= e.bytes
}

// size returns how much the cache holds.
func (c *cache) size() (entries, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries), c.bytes
}

// clear forgets all answers.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
	c.order.Init()
	c.bytes = 0
}

// lifetime is how long an answer may be kept: as long as the record that lives
// shortest; a negative one as RFC 2308 says, and not at all without an SOA record.
func lifetime(msg *dns.Msg) time.Duration {
	switch {
	case msg.Truncated:
		return 0
	case msg.Rcode != dns.RcodeSuccess && msg.Rcode != dns.RcodeNameError:
		return failureTTL
	}
	least, found := maxTTL, false
	for _, section := range [][]dns.RR{msg.Answer, msg.Ns, msg.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != dns.TypeOPT {
				least, found = min(least, time.Duration(rr.Header().Ttl)*time.Second), true
			}
		}
	}
	if negative(msg) {
		for _, rr := range msg.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				return min(least, time.Duration(soa.Minttl)*time.Second, maxNegative)
			}
		}
		return 0
	}
	if !found {
		return 0
	}
	return least
}

// negative says that an answer ends without a record of the type that was asked for:
// there is no such name, or no such record of it, perhaps at the end of aliases.
func negative(msg *dns.Msg) bool {
	if msg.Rcode == dns.RcodeNameError || len(msg.Answer) == 0 {
		return true
	}
	last := msg.Answer[len(msg.Answer)-1].Header().Rrtype
	return last == dns.TypeCNAME && len(msg.Question) == 1 && msg.Question[0].Qtype != dns.TypeCNAME && msg.Question[0].Qtype != dns.TypeANY
}
