package faults

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func set(t *testing.T, p *Plane, name, text string) {
	t.Helper()
	f, err := Parse(text)
	if err == nil {
		err = p.Set(name, f)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestParse(t *testing.T) {
	for _, text := range []string{
		"cut", "cut peer=p2 direction=out", "delay delay=50ms jitter=1s bandwidth=125000", "drop peer=10.0.0.1:7 rate=0.5",
		"flap period=2s", "disk-slow delay=1s part=log", "disk-fail part=votes times=1", "disk-hang", "disk-full part=snapshots",
		"pause", "clock offset=-1h0m0s drift=0.1",
	} {
		f, err := Parse(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if again, err := Parse(f.String()); err != nil || again != f {
			t.Errorf("%s: written as %q, which is %+v, %v", text, f, again, err)
		}
	}
	for text, want := range map[string]string{
		"": "begin with one of", "cat": "no fault is called", "cut delay=1s": "cut has no delay", "cut peer": "field=value",
		"flap": "needs period", "drop rate=2": "between 0 and 1", "delay delay=-1s": "negative", "cut direction=up": "none of both",
		"disk-hang part=door": "none of log", "delay delay=1": "missing unit", "cut color=red": "no such field",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", text, err, want)
		}
	}
}

// wire returns both ends of a connection: a's under the plane, b's bare. What b gets
// is on the channel.
func wire(t *testing.T, p *Plane) (a, b net.Conn, got chan string) {
	under, b := net.Pipe()
	a = p.Conn(under, "b")
	got = make(chan string, 100)
	go func() {
		defer close(got)
		buf := make([]byte, 100)
		for {
			n, err := b.Read(buf)
			if err != nil {
				return
			}
			got <- string(buf[:n])
		}
	}()
	t.Cleanup(func() {
		a.Close()
		b.Close()
		time.Sleep(2 * lingerTime) // all goroutines have ended
	})
	return a, b, got
}

func write(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// after reports what got holds d from now.
func after(d time.Duration, got chan string) string {
	time.Sleep(d)
	synctest.Wait()
	var all string
	for {
		select {
		case s := <-got:
			all += s
			if s == "" {
				return all
			}
		default:
			return all
		}
	}
}

// TestConn covers faults on a connection that is open when they begin: bytes stall,
// in one direction or both, arrive later in order, and nothing is closed.
func TestConn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(1)
		a, b, got := wire(t, p)
		expect := func(what, have, want string) {
			t.Helper()
			if have != want {
				t.Errorf("%s: b has %q, want %q", what, have, want)
			}
		}
		write(t, a, "0")
		expect("no fault", after(0, got), "0")

		set(t, p, "x", "cut peer=b direction=out")
		write(t, a, "1")
		write(t, a, "2")
		expect("cut out", after(time.Hour, got), "")
		go io.WriteString(b, "back") // the other way is open
		buf := make([]byte, 10)
		if n, err := a.Read(buf); err != nil || string(buf[:n]) != "back" {
			t.Errorf("the other way gave %q, %v", buf[:n], err)
		}
		p.Clear("x")
		expect("healed", after(0, got), "12")

		set(t, p, "x", "cut peer=other")
		write(t, a, "3")
		expect("a cut from somebody else", after(0, got), "3")

		set(t, p, "x", "cut direction=in")
		go io.WriteString(b, "late")
		if err := a.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read through a cut: %v, want the deadline", err)
		}
		p.Clear()
		if err := a.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if n, err := a.Read(buf); err != nil || string(buf[:n]) != "late" {
			t.Errorf("read after the cut: %q, %v", buf[:n], err)
		}

		set(t, p, "x", "delay delay=100ms jitter=200ms")
		for _, s := range []string{"a", "b", "c", "d", "e"} {
			write(t, a, s) // in order in spite of the jitter, and not one after the other
		}
		expect("delay, early", after(99*time.Millisecond, got), "")
		expect("delay", after(201*time.Millisecond, got), "abcde")

		set(t, p, "x", "delay bandwidth=1000")
		write(t, a, strings.Repeat("x", 50))
		write(t, a, strings.Repeat("y", 50))
		expect("bandwidth, first", after(60*time.Millisecond, got), strings.Repeat("x", 50))
		expect("bandwidth, second", after(50*time.Millisecond, got), strings.Repeat("y", 50))

		set(t, p, "x", "flap period=2s")
		write(t, a, "f")
		expect("flap, cut", after(900*time.Millisecond, got), "")
		expect("flap, open", after(200*time.Millisecond, got), "f")

		set(t, p, "x", "cut")
		big := bytes.Repeat([]byte{'x'}, 2*bufferBytes)
		if err := a.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := a.Write(big); !errors.Is(err, os.ErrDeadlineExceeded) || n < bufferBytes || n > bufferBytes+64<<10 {
			t.Errorf("a write into a cut took %d bytes, %v; want about a buffer's, and the deadline", n, err)
		}
		fired := p.Fired()
		if fired[Cut] == 0 || fired[Delay] == 0 || fired[Flap] == 0 {
			t.Errorf("fired %v", fired)
		}
	})
}

// TestCloseDelivers covers a close right after a write: nothing is lost, even where
// the last bytes are under way for a while; and in a cut it ends in time.
func TestCloseDelivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(1)
		a, _, got := wire(t, p)
		set(t, p, "x", "delay delay=1s")
		write(t, a, "bye")
		a.Close()
		if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
		if all := after(time.Second, got); all != "bye" {
			t.Errorf("b has %q, want bye", all)
		}
		if _, open := <-got; open {
			t.Error("the connection is not closed")
		}

		c, _, got := wire(t, p)
		set(t, p, "x", "cut")
		write(t, c, "never")
		c.Close()
		if _, open := <-got; open {
			t.Error("bytes went through a cut")
		}
	})
}

// TestDial covers the making of connections, and ends that are told later.
func TestDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(1)
		dials := 0
		dial := func(context.Context) (net.Conn, error) { dials++; return nil, io.EOF }
		set(t, p, "x", "cut peer=b direction=in") // no answer comes back
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Dial(ctx, "b", dial); !errors.Is(err, context.DeadlineExceeded) || dials != 0 {
			t.Errorf("dial through a cut: %v, %d dials", err, dials)
		}
		if _, err := p.Dial(t.Context(), "c", dial); !errors.Is(err, io.EOF) {
			t.Errorf("dial of another: %v", err)
		}
		var none *Plane
		if _, err := none.Dial(t.Context(), "b", dial); !errors.Is(err, io.EOF) {
			t.Errorf("dial without a plane: %v", err)
		}

		under, far := net.Pipe()
		conn := p.Conn(under, "")
		Identify(struct{ net.Conn }{conn}, "b") // no way to see through this one
		Identify(wrapper{conn}, "b")
		if names := conn.(*faultyConn).ends(); len(names) != 2 || names[1] != "b" {
			t.Errorf("the other end goes by %v", names)
		}
		conn.Close()
		far.Close()
		time.Sleep(2 * lingerTime)
	})
}

type wrapper struct{ net.Conn }

func (w wrapper) NetConn() net.Conn { return w.Conn }

func TestPacket(t *testing.T) {
	p := New(1)
	set(t, p, "x", "drop peer=a rate=0.5")
	lost := 0
	for range 1000 {
		if l, late := p.Packet(Out, "a"); l {
			lost++
		} else if late != 0 {
			t.Fatal("late")
		}
		if l, _ := p.Packet(Out, "b"); l {
			t.Fatal("a packet to another was lost")
		}
	}
	if lost < 400 || lost > 600 {
		t.Errorf("%d of 1000 lost, want half", lost)
	}
	set(t, p, "x", "cut direction=in")
	if l, _ := p.Packet(In, "a"); !l {
		t.Error("a packet passed a cut")
	}
	if l, _ := p.Packet(Out, "a"); l {
		t.Error("a packet was lost on the way that is open")
	}
}

// TestWrite covers the disk: each fault alone, its part, its count, and what the
// write below saw of it.
func TestWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(1)
		writes := 0
		do := func(part Part) (time.Duration, error) {
			begin := time.Now()
			err := p.Write(part, func() error { writes++; return nil })
			return time.Since(begin), err
		}
		set(t, p, "x", "disk-fail part=log times=2")
		landed := 0
		for i := range 4 {
			writes = 0
			_, err := do(Log)
			if errors.Is(err, syscall.EIO) != (i < 2) {
				t.Errorf("write %d: %v", i, err)
			}
			if i < 2 {
				landed += writes
			} else if writes != 1 {
				t.Errorf("write %d was done %d times", i, writes)
			}
		}
		if _, err := do(Votes); err != nil {
			t.Errorf("write of another part: %v", err)
		}
		set(t, p, "x", "disk-full")
		if _, err := do(Snapshots); !errors.Is(err, syscall.ENOSPC) || p.FreeSpace(100) != 0 {
			t.Errorf("full disk: %v, %d free", err, p.FreeSpace(100))
		}
		set(t, p, "x", "disk-slow delay=1s jitter=1s")
		if took, err := do(Log); err != nil || took < time.Second || took > 2*time.Second {
			t.Errorf("slow disk: %v after %v", err, took)
		}
		for _, text := range []string{"disk-hang", "pause"} {
			set(t, p, "x", text)
			if p.Paused() != (text == "pause") {
				t.Errorf("%s: paused is %v", text, p.Paused())
			}
			time.AfterFunc(time.Hour, func() { p.Clear() })
			if took, err := do(Log); err != nil || took != time.Hour {
				t.Errorf("%s: %v after %v, want an hour", text, err, took)
			}
		}
		if p.FreeSpace(100) != 100 || len(p.List()) != 0 {
			t.Errorf("after all: %v", p.List())
		}
	})
}

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(1)
		set(t, p, "x", "clock offset=-1h drift=0.5")
		time.Sleep(10 * time.Second)
		if got := time.Until(p.Now()); got != -time.Hour+5*time.Second {
			t.Errorf("the clock is off by %v", got)
		}
		var none *Plane
		if !none.Now().Equal(time.Now()) {
			t.Error("a clock without a plane is off")
		}
	})
}

// TestDeterminism: the same seed strikes the same messages.
func TestDeterminism(t *testing.T) {
	trace := func(seed uint64) (s string) {
		p := New(seed)
		set(t, p, "x", "drop rate=0.3")
		for range 64 {
			if lost, _ := p.Packet(Out, "a"); lost {
				s += "x"
			} else {
				s += "."
			}
		}
		return s
	}
	if first := trace(1); first != trace(1) || first == trace(2) {
		t.Error("chance does not follow the seed")
	}
}

func TestControl(t *testing.T) {
	p := New(1)
	path := filepath.Join(t.TempDir(), "faults.sock")
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- p.Serve(ctx, path) }()
	for { // until it listens
		if _, err := Control(t.Context(), path, "list"); err == nil {
			break
		}
		select {
		case err := <-served:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; only its owner may use it", info.Mode(), err)
	}
	do := func(line, want string) {
		t.Helper()
		got, err := Control(t.Context(), path, line)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	do("set west cut peer=p2 direction=in", "")
	do("set east disk-fail times=1", "")
	_ = p.Write(Log, func() error { return nil })
	do("list", "east 1 disk-fail times=1\nwest 0 cut peer=p2 direction=in\n")
	do("fired", "disk-fail 1")
	do("clear east", "")
	do("list", "west 0")
	do("clear", "")
	do("list", "")
	do("set", "begin with one of")
	do("set x cut pear=1", "no such field")
	do("boom", "no command")
	do("flip k", "no store")
	do("diverge", "no store")
	p.Attach(memory{"k": {0}})
	do("flip other", "no such key")
	do("flip k", "")
	do("diverge", "")
	do("fired", "disk-fail 1\nmemory-diverge 1\nmemory-flip 1\n")
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// memory is a store's, with one more key when it has diverged.
type memory map[string][]byte

func (m memory) Flip(key string) error {
	if len(m[key]) == 0 {
		return errors.New("no such key")
	}
	m[key][0] ^= 1
	return nil
}

func (m memory) Diverge() error {
	m["ghost"] = nil
	return nil
}
