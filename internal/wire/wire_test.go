package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// recorder is a connection that keeps what is written; a write waits for gate, and for
// the deadline at most.
type recorder struct {
	net.Conn // a nil one: what is not below is not called
	gate     chan struct{}
	closed   chan struct{}

	mu       sync.Mutex
	writes   []string
	deadline time.Time
	reading  time.Time
}

func newRecorder() *recorder {
	return &recorder{gate: make(chan struct{}, 1000), closed: make(chan struct{})}
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	left := time.Until(r.deadline)
	r.mu.Unlock()
	select {
	case <-r.gate:
	case <-r.closed:
		return 0, net.ErrClosed
	case <-time.After(left):
		return 0, os.ErrDeadlineExceeded
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writes = append(r.writes, string(p))
	return len(p), nil
}

func (r *recorder) Close() error {
	select {
	case <-r.closed:
	default:
		close(r.closed)
	}
	return nil
}

func (r *recorder) SetWriteDeadline(t time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deadline = t
	return nil
}

func (r *recorder) SetReadDeadline(t time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reading = t
	return nil
}

func (r *recorder) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

// TestCoalesce: what is written while a write is under way goes out as one, in order.
func TestCoalesce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder()
		c := Coalesce(r, time.Minute)
		c.Start()
		for i := range 100 {
			if n, err := c.Write([]byte{byte('a' + i%26)}); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			if i == 0 {
				synctest.Wait() // the first is on its way
			}
		}
		r.gate <- struct{}{}
		r.gate <- struct{}{}
		synctest.Wait()
		if len(r.writes) != 2 || len(r.writes[0]) != 1 || len(r.writes[1]) != 99 || !strings.HasPrefix(r.writes[1], "bcdef") {
			t.Errorf("written: %q", r.writes)
		}
		if c.pending != nil || c.flushing {
			t.Error("something is kept while nothing is written")
		}
	})
}

// TestCoalesceIsBounded: a receiver that takes nothing stops the writers, and ends the
// connection after the time it is given.
func TestCoalesceIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder()
		c := Coalesce(r, 5*time.Second)
		c.Start()
		begin, written := time.Now(), 0
		var err error
		for err == nil {
			if _, err = c.Write(make([]byte, 1<<10)); err == nil {
				written++
			}
		}
		if took := time.Since(begin); !errors.Is(err, os.ErrDeadlineExceeded) || took != 5*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		if limit := 2 * maxPending >> 10; written > limit {
			t.Errorf("%d KiB were taken, the bound is %d", written, limit)
		}
		<-r.closed // or its reader would learn nothing
	})
}

// TestCoalesceClose: what is written before Close goes out, if anybody takes it.
func TestCoalesceClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, taken := range []bool{true, false} {
			r := newRecorder()
			c := Coalesce(r, time.Minute)
			c.Start()
			if _, err := c.Write([]byte("goodbye")); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if taken {
				r.gate <- struct{}{}
			}
			<-r.closed
			if took := time.Since(begin); taken != (len(r.writes) == 1) || taken == (took >= closePatience) || took > closePatience {
				t.Errorf("taken %t: written %q, closed after %v", taken, r.writes, took)
			}
			if _, err := c.Write(nil); err == nil {
				t.Error("it can be written to after Close")
			}
			if _, err := c.Read(nil); !errors.Is(err, net.ErrClosed) || r.reading.IsZero() {
				t.Errorf("a read after Close: %v", err)
			}
		}
	})
}

// TestAbandon: what has not gone out when the connection is given up never does, and
// that is told.
func TestAbandon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, failed := range []bool{false, true} {
			r := newRecorder()
			c := Coalesce(r, time.Minute)
			c.Start()
			write := func(text string) (before int64) {
				before = c.Queued()
				if _, err := c.Write([]byte(text)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				return before
			}
			first := write("first")
			r.gate <- struct{}{}
			synctest.Wait()
			second := write("second") // is under way
			third := write("third")
			if failed {
				r.Close()
				synctest.Wait()
			}
			if a, b, c := c.Abandon(first), c.Abandon(second), c.Abandon(third); !a || b == failed || c {
				t.Errorf("failed %t: may have gone out: %t, %t, %t", failed, a, b, c)
			}
			r.gate <- struct{}{}
			r.gate <- struct{}{}
			synctest.Wait()
			if want := map[bool]string{false: "first second", true: "first"}[failed]; strings.Join(r.writes, " ") != want {
				t.Errorf("failed %t: %q went out, want %s", failed, r.writes, want)
			}
		}
	})
}

// TestNothingBeforeStart: until then it is the connection it wraps.
func TestNothingBeforeStart(t *testing.T) {
	r := newRecorder()
	c := Coalesce(r, time.Minute)
	if err := c.SetWriteDeadline(time.Now().Add(-1)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a write after its deadline: %v", err)
	}
}

// TestWhole: a message is read with its prefix, whatever the sizes; what is not framed
// so comes as it is.
func TestWhole(t *testing.T) {
	frame := func(n int) (prefix, message []byte) {
		return []byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, bytes.Repeat([]byte{'m'}, n)
	}
	for _, test := range []struct {
		name  string
		sizes []int
		room  int
		reads []int
	}{
		{"small ones", []int{10, 1, 0, 7}, 100, []int{15, 6, 5, 12}},
		{"one that is larger than the room", []int{10, 25, 3}, 20, []int{15, 20, 10, 8}},
		{"room for the prefix alone", []int{3, 2}, 5, []int{5, 3, 5, 2}},
	} {
		read, write := io.Pipe()
		go func() {
			for _, n := range test.sizes {
				prefix, message := frame(n)
				write.Write(prefix)
				if n > 0 {
					write.Write(message)
				}
			}
			write.Close()
		}()
		body := Whole(read)
		var got []int
		for p := make([]byte, test.room); ; {
			n, err := body.Read(p)
			if n > 0 {
				got = append(got, n)
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Errorf("%s: %v", test.name, err)
				}
				break
			}
		}
		if len(got) != len(test.reads) {
			t.Errorf("%s: read %v, want %v", test.name, got, test.reads)
			continue
		}
		for i := range got {
			if got[i] != test.reads[i] {
				t.Errorf("%s: read %v, want %v", test.name, got, test.reads)
				break
			}
		}
	}
	plain := Whole(io.NopCloser(strings.NewReader("no prefix at all")))
	if all, err := io.ReadAll(plain); string(all) != "no prefix at all" || err != nil {
		t.Errorf("a plain body: %q, %v", all, err)
	}
}
