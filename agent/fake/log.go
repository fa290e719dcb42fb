package fake

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// maxLines is how many lines of a log are kept, beside those of ticks.
const maxLines = 10000

// log is what a container has written. The lines that a container which runs
// until stopped writes again and again are not stored but computed, so that a
// thousand of them cost nothing.
type log struct {
	mu      sync.Mutex
	head    []line // before the ticks
	dropped int    // lines of head that were forgotten
	tail    []line // after them
	ticks   ticker
	closed  bool
	closing time.Time
	changed chan struct{}
}

type line struct {
	at   time.Time
	text []byte // without line feed
}

// ticker describes lines at since+every, since+2·every, …; every is 0 for none.
type ticker struct {
	since time.Time
	every time.Duration
}

func newLog() *log { return &log{changed: make(chan struct{})} }

func (l *log) touch() {
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *log) add(format string, args ...any) { l.append(fmt.Appendf(nil, format, args...)) }

func (l *log) append(text []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.head = append(l.head, line{time.Now(), text})
	if n := len(l.head) - maxLines; n > 0 {
		l.head = slices.Delete(l.head, 0, n)
		l.dropped += n
	}
	l.touch()
}

// tick makes the log grow by itself.
func (l *log) tick(since time.Time, every time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ticks = ticker{since, every}
	l.touch()
}

// addTail adds a line after the ticks, which end.
func (l *log) addTail(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing.IsZero() {
		l.closing = time.Now()
	}
	l.tail = append(l.tail, line{time.Now(), fmt.Appendf(nil, format, args...)})
	l.touch()
}

func (l *log) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	if l.closing.IsZero() {
		l.closing = time.Now()
	}
	l.touch()
}

// writer returns a writer of lines to the log.
func (l *log) writer() io.Writer { return &logWriter{l: l} }

type logWriter struct {
	l    *log
	mu   sync.Mutex
	rest []byte
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		text, rest, ok := bytes.Cut(w.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		w.l.append(bytes.Clone(text))
		w.rest = rest
	}
}

// count returns how many lines there are, counting forgotten ones.
func (l *log) count(now time.Time) int {
	return l.dropped + len(l.head) + l.tickCount(now) + len(l.tail)
}

func (l *log) tickCount(now time.Time) int {
	if l.ticks.every == 0 {
		return 0
	}
	if !l.closing.IsZero() && now.After(l.closing) {
		now = l.closing
	}
	return max(0, int(now.Sub(l.ticks.since)/l.ticks.every))
}

// at returns line i, or false if it is forgotten.
func (l *log) at(i int, now time.Time) (line, bool) {
	if i < l.dropped {
		return line{}, false
	}
	i -= l.dropped
	if i < len(l.head) {
		return l.head[i], true
	}
	i -= len(l.head)
	if n := l.tickCount(now); i >= n {
		return l.tail[i-n], true
	}
	k := time.Duration(i + 1)
	return line{l.ticks.since.Add(k * l.ticks.every), fmt.Appendf(nil, "alive for %v", k*l.ticks.every)}, true
}

// copy writes the log to w as options say.
func (l *log) copy(ctx context.Context, options runtime.LogOptions, w io.Writer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	next := 0
	if n := l.count(now); options.TailLines >= 0 && int64(n) > options.TailLines {
		next = n - int(options.TailLines)
	}
	for {
		now = time.Now()
		for n := l.count(now); next < n; next++ {
			entry, ok := l.at(next, now)
			if !ok || entry.at.Before(options.Since) {
				continue
			}
			var out []byte
			if options.Timestamps {
				out = entry.at.UTC().AppendFormat(out, time.RFC3339Nano)
				out = append(out, ' ')
			}
			out = append(append(out, entry.text...), '\n')
			l.mu.Unlock()
			_, err := w.Write(out)
			l.mu.Lock()
			if err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			// Others may have come meanwhile; the next round takes them.
		}
		if next < l.count(now) {
			continue
		}
		if !options.Follow || l.closed {
			return nil
		}
		wait := time.Hour // unless it ticks, a change comes first
		if l.ticks.every > 0 && l.closing.IsZero() {
			wait = l.ticks.since.Add(time.Duration(l.tickCount(now)+1) * l.ticks.every).Sub(now)
		}
		timer := time.NewTimer(wait)
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
		l.mu.Lock()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
