package dns

import (
	"fmt"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func message(t testing.TB, name string, rcode int, answer, authority []string) *dns.Msg {
	t.Helper()
	msg := new(dns.Msg)
	msg.SetQuestion(name, dns.TypeA)
	msg.Response, msg.Rcode = true, rcode
	for _, text := range answer {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		msg.Answer = append(msg.Answer, rr)
	}
	for _, text := range authority {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		msg.Ns = append(msg.Ns, rr)
	}
	return msg
}

func TestLifetime(t *testing.T) {
	soa := "test. 300 IN SOA ns.test. h.test. 1 2 3 4 %d"
	truncated := message(t, "a.test.", dns.RcodeSuccess, []string{"a.test. 60 IN A 192.0.2.1"}, nil)
	truncated.Truncated = true
	for _, test := range []struct {
		name string
		msg  *dns.Msg
		want time.Duration
	}{
		{"the least of all records", message(t, "a.test.", 0, []string{"a.test. 60 IN CNAME b.test.", "b.test. 20 IN A 192.0.2.1"}, nil), 20 * time.Second},
		{"bounded", message(t, "a.test.", 0, []string{"a.test. 864000 IN A 192.0.2.1"}, nil), time.Hour},
		{"not at all", message(t, "a.test.", 0, []string{"a.test. 0 IN A 192.0.2.1"}, nil), 0},
		{"no such name", message(t, "a.test.", dns.RcodeNameError, nil, []string{fmt.Sprintf(soa, 30)}), 30 * time.Second},
		{"no such name, bounded", message(t, "a.test.", dns.RcodeNameError, nil, []string{fmt.Sprintf(soa, 3000)}), time.Minute},
		{"no such name, and nobody says for how long", message(t, "a.test.", dns.RcodeNameError, nil, nil), 0},
		{"no such record", message(t, "a.test.", 0, nil, []string{fmt.Sprintf(soa, 30)}), 30 * time.Second},
		{"an alias of nothing", message(t, "a.test.", 0, []string{"a.test. 600 IN CNAME b.test."}, []string{fmt.Sprintf(soa, 30)}), 30 * time.Second},
		{"failure", message(t, "a.test.", dns.RcodeServerFailure, nil, nil), time.Second},
		{"truncated", truncated, 0},
	} {
		if got := lifetime(test.msg); got != test.want {
			t.Errorf("%s: kept for %v, want %v", test.name, got, test.want)
		}
	}
}

func TestCacheTime(t *testing.T) {
	c := newCache(10, 1<<20)
	begin := time.Unix(1000, 0)
	key := question{name: "a.test.", qtype: dns.TypeA}
	c.put(key, message(t, "a.test.", 0, []string{"a.test. 60 IN CNAME b.test.", "b.test. 20 IN A 192.0.2.1"}, nil), begin)
	msg, ok := c.get(key, begin.Add(5*time.Second))
	if !ok {
		t.Fatal("nothing is kept")
	}
	// None outlives the whole: an alias whose target is gone must be asked for again.
	if a, b := msg.Answer[0].Header().Ttl, msg.Answer[1].Header().Ttl; a != 15 || b != 15 {
		t.Errorf("after 5 s the records live for %d s and %d s, want 15 s both", a, b)
	}
	msg.Answer[0].Header().Name = "changed."
	if again, _ := c.get(key, begin); again.Answer[0].Header().Name != "a.test." {
		t.Error("whoever is given an answer can change the kept one")
	}
	if _, ok := c.get(key, begin.Add(20*time.Second)); ok {
		t.Error("an answer outlives its records")
	}
	if entries, bytes := c.size(); entries != 0 || bytes != 0 {
		t.Errorf("%d entries and %d bytes are left, want none", entries, bytes)
	}
}

func TestCacheBounds(t *testing.T) {
	now := time.Unix(1000, 0)
	put := func(c *cache, i int) question {
		name := fmt.Sprintf("n%03d.test.", i)
		key := question{name: name, qtype: dns.TypeA}
		c.put(key, message(t, name, 0, []string{name + " 60 IN A 192.0.2.1"}, nil), now)
		return key
	}
	c := newCache(3, 1<<20)
	first := put(c, 0)
	second := put(c, 1)
	put(c, 2)
	c.get(first, now)
	put(c, 3)
	if _, ok := c.get(first, now); !ok {
		t.Error("the one used last was dropped")
	}
	if _, ok := c.get(second, now); ok {
		t.Error("the one used longest ago is still there")
	}
	if entries, _ := c.size(); entries != 3 {
		t.Errorf("%d entries, want 3", entries)
	}
	c = newCache(1000, 2000)
	for i := range 100 {
		put(c, i)
	}
	if entries, bytes := c.size(); bytes > 2000 || entries < 3 {
		t.Errorf("%d entries of %d bytes, want some, and no more than 2000 bytes", entries, bytes)
	}
}
