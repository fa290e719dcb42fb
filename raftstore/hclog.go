package raftstore

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// raftLogger gives raft's library our logger. What it calls Info is our Debug, and
// so on one step down: it narrates, and what it calls an error it handles itself.
// What it says again and again (a peer that cannot be reached, ten times a second)
// is said once per repeatPeriod, and else at Debug.
type raftLogger struct {
	log     *slog.Logger
	args    []any
	name    string
	repeats *repeats
}

// repeatPeriod is how long the same message about the same peer counts as repeated.
const repeatPeriod = 30 * time.Second

// repeats remembers when each message was last let through.
type repeats struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// again reports whether the message was said within the last period.
func (r *repeats) again(key string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if last, ok := r.last[key]; ok && now.Sub(last) < repeatPeriod {
		return true
	}
	if len(r.last) > 1000 { // messages are few, peers are; but ids come from outside
		clear(r.last)
	}
	r.last[key] = now
	return false
}

func newRaftLogger(l *slog.Logger) hclog.Logger {
	return &raftLogger{log: l.With("part", "raft"), repeats: &repeats{last: make(map[string]time.Time)}}
}

func slogLevel(level hclog.Level) slog.Level {
	switch level {
	case hclog.Error:
		return slog.LevelWarn
	case hclog.Warn:
		return slog.LevelInfo
	case hclog.Info:
		return slog.LevelDebug
	default:
		return slog.LevelDebug - 4
	}
}

func (l *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	at := slogLevel(level)
	if !l.log.Enabled(context.Background(), at) {
		return
	}
	all := slices.Concat(l.args, args)
	for i, arg := range all {
		if f, ok := arg.(hclog.Format); ok && len(f) > 0 {
			all[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	if at > slog.LevelDebug {
		key := msg
		for i := 0; i+1 < len(all); i += 2 {
			if name, _ := all[i].(string); name == "peer" || name == "server-id" || name == "target" {
				key += fmt.Sprint(" ", all[i+1])
			}
		}
		if l.repeats.again(key, time.Now()) {
			at = slog.LevelDebug
		}
	}
	l.log.Log(context.Background(), at, msg, all...)
}

func (l *raftLogger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *raftLogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *raftLogger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *raftLogger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *raftLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *raftLogger) enabled(level hclog.Level) bool {
	return l.log.Enabled(context.Background(), slogLevel(level))
}

func (l *raftLogger) IsTrace() bool { return l.enabled(hclog.Trace) }
func (l *raftLogger) IsDebug() bool { return l.enabled(hclog.Debug) }
func (l *raftLogger) IsInfo() bool  { return l.enabled(hclog.Info) }
func (l *raftLogger) IsWarn() bool  { return l.enabled(hclog.Warn) }
func (l *raftLogger) IsError() bool { return l.enabled(hclog.Error) }

func (l *raftLogger) ImpliedArgs() []any { return l.args }
func (l *raftLogger) Name() string       { return l.name }

func (l *raftLogger) With(args ...any) hclog.Logger {
	return &raftLogger{log: l.log, name: l.name, args: slices.Concat(l.args, args), repeats: l.repeats}
}

func (l *raftLogger) Named(name string) hclog.Logger {
	return &raftLogger{log: l.log, name: name, args: l.args, repeats: l.repeats}
}

func (l *raftLogger) ResetNamed(name string) hclog.Logger { return l.Named(name) }

// SetLevel does nothing: the handler behind decides.
func (l *raftLogger) SetLevel(hclog.Level) {}

func (l *raftLogger) GetLevel() hclog.Level {
	for level := hclog.Trace; level < hclog.Error; level++ {
		if l.enabled(level) {
			return level
		}
	}
	return hclog.Error
}

func (l *raftLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(nil), "", 0)
}

func (l *raftLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return raftLogWriter{l}
}

// raftLogWriter takes lines from code that knows only the standard logger.
type raftLogWriter struct{ log *raftLogger }

func (w raftLogWriter) Write(line []byte) (int, error) {
	w.log.Info(string(line))
	return len(line), nil
}
