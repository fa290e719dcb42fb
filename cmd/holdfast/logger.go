package main

import (
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/pflag"
)

// logFlags are the flags of programs that run on and log.
type logFlags struct{ level, format string }

func (f *logFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.level, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&f.format, "log-format", "", "text or json (default: json under systemd, else text)")
}

// logger returns the logger that the flags ask for.
func (f *logFlags) logger(w io.Writer, getenv func(string) string) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil || strings.ContainsAny(f.level, "+-") {
		return nil, failf(exitUsage, "--log-level %s: want debug, info, warn or error", f.level)
	}
	options := &slog.HandlerOptions{Level: level}
	format := f.format
	if format == "" && getenv("JOURNAL_STREAM") != "" {
		format = "json"
	}
	switch format {
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	case "", "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	}
	return nil, failf(exitUsage, "--log-format %s: want text or json", f.format)
}
