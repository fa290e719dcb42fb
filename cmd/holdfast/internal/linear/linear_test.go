package linear_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-io/holdfast/cmd/holdfast/internal/linear"
)

// op is an operation from one millisecond to another.
func op(kind linear.Kind, value string, from, to int) linear.Op {
	return linear.Op{Kind: kind, Key: "k", Value: value, Call: time.Duration(from) * time.Millisecond, Return: time.Duration(to) * time.Millisecond}
}

// TestCheck covers what there is an order for, and what not.
func TestCheck(t *testing.T) {
	unknown := func(o linear.Op) linear.Op { o.Unknown = true; return o }
	swap := func(o linear.Op, expect string, done bool) linear.Op { o.Expect, o.Swapped = expect, done; return o }
	for name, tt := range map[string]struct {
		history []linear.Op
		want    linear.Verdict
	}{
		"in turn":                            {[]linear.Op{op("write", "1", 0, 1), op("read", "1", 2, 3)}, linear.Linearizable},
		"a stale read":                       {[]linear.Op{op("write", "1", 0, 1), op("write", "2", 2, 3), op("read", "1", 4, 5)}, linear.NotLinearizable},
		"at the same time":                   {[]linear.Op{op("write", "1", 0, 9), op("read", "", 2, 3), op("read", "1", 4, 5)}, linear.Linearizable},
		"back in time":                       {[]linear.Op{op("write", "1", 0, 9), op("read", "1", 2, 3), op("read", "", 4, 5)}, linear.NotLinearizable},
		"an unknown write that happened":     {[]linear.Op{unknown(op("write", "1", 0, 1)), op("read", "", 2, 3), op("read", "1", 4, 5)}, linear.Linearizable},
		"an unknown write that did not":      {[]linear.Op{unknown(op("write", "1", 0, 1)), op("read", "", 2, 3)}, linear.Linearizable},
		"an unknown write before its call":   {[]linear.Op{op("read", "1", 0, 1), unknown(op("write", "1", 2, 3))}, linear.NotLinearizable},
		"an acknowledged write that is lost": {[]linear.Op{op("write", "1", 0, 1), op("read", "", 2, 3)}, linear.NotLinearizable},
		"two swaps of one value": {[]linear.Op{
			op("write", "1", 0, 1), swap(op("swap", "2", 2, 5), "1", true), swap(op("swap", "3", 2, 5), "1", true),
		}, linear.NotLinearizable},
		"a swap that failed for no reason": {[]linear.Op{op("write", "1", 0, 1), swap(op("swap", "2", 2, 5), "1", false)}, linear.NotLinearizable},
		"a swap that failed":               {[]linear.Op{op("write", "1", 0, 1), swap(op("swap", "2", 2, 5), "0", false), op("read", "1", 6, 7)}, linear.Linearizable},
	} {
		if got, info := linear.Check(tt.history, time.Minute); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		} else if got == linear.NotLinearizable {
			var page, lines strings.Builder
			if err := errors.Join(linear.Picture(&page, info), linear.WriteJSON(&lines, tt.history)); err != nil || page.Len() == 0 || strings.Count(lines.String(), "\n") != len(tt.history) {
				t.Errorf("%s: evidence of %d and %d bytes: %v", name, page.Len(), lines.Len(), err)
			}
		}
	}
}

// registers is a store. With lag its reads are of a moment ago.
type registers struct {
	mu     sync.Mutex
	values map[string]string
	past   map[string]string
	lag    bool
	err    error
}

func (r *registers) Peer() string { return "p" }

func (r *registers) do(fn func()) error {
	time.Sleep(time.Millisecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	fn()
	return nil
}

func (r *registers) Read(_ context.Context, key string) (value string, err error) {
	err = r.do(func() {
		if value = r.values[key]; r.lag {
			value = r.past[key]
		}
	})
	return value, err
}

func (r *registers) Write(_ context.Context, key, value string) error {
	return r.do(func() { r.past[key], r.values[key] = r.values[key], value })
}

func (r *registers) Swap(_ context.Context, key, expect, value string) (done bool, err error) {
	err = r.do(func() {
		if done = r.values[key] == expect; done {
			r.past[key], r.values[key] = expect, value
		}
	})
	return done, err
}

// TestPlay: a store that is right is found right, one that lags is not, and one that
// does not answer is no reason to say anything.
func TestPlay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, want := range map[string]linear.Verdict{"right": linear.Linearizable, "lag": linear.NotLinearizable, "silent": linear.Linearizable} {
			store := &registers{values: map[string]string{}, past: map[string]string{}, lag: name == "lag"}
			if name == "silent" {
				store.err = errors.New("nobody is there")
			}
			history, failed := linear.Play(t.Context(), linear.Config{
				Clients: []linear.Client{store, store, store}, Keys: []string{"a", "b"}, Duration: 300 * time.Millisecond, OpTimeout: time.Second,
			})
			if got, _ := linear.Check(history, time.Minute); got != want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
			if (failed > 0) != (name == "silent") || name != "silent" && len(history) < 100 {
				t.Errorf("%s: %d operations, %d failed", name, len(history), failed)
			}
		}
	})
}
