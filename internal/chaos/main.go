//go:build linux

package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ok, err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
	}
	if err != nil || !ok {
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (ok bool, err error) {
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	var (
		opts    = options{log: stderr}
		which   = flags.String("rows", "", "numbers of the rows to play, with blanks between; none: all")
		repeat  = flags.Int("repeat", 1, "how often each")
		seconds = flags.Int("seconds", 60, "of faults in each play")
	)
	flags.StringVar(&opts.binary, "binary", "bin/holdfast", "what to break")
	flags.StringVar(&opts.old, "old", "", "an older version of it, for row 19 (default: one built from this tree's history)")
	flags.StringVar(&opts.dir, "dir", "/tmp/holdfast-chaos", "where the peers are; it is removed")
	flags.StringVar(&opts.keep, "keep", "/tmp/holdfast-chaos-failed", "where failures leave histories and logs")
	flags.IntVar(&opts.rate, "rate", 300, "operations a second")
	flags.Uint64Var(&opts.seed, "seed", 1, "of load and faults, as far as they follow one")
	if err := flags.Parse(args); err != nil {
		return false, err
	}
	opts.seconds = time.Duration(*seconds) * time.Second
	for _, binary := range []*string{&opts.binary, &opts.old} {
		if *binary == "" {
			continue
		}
		if *binary, err = filepath.Abs(*binary); err != nil {
			return false, err
		}
		if _, err := os.Stat(*binary); err != nil {
			return false, fmt.Errorf("%w: build it with `make build`", err)
		}
	}
	chosen, err := choose(*which)
	if err != nil {
		return false, err
	}
	ok = true
	keep := opts.keep
	for _, r := range chosen {
		if r.old && opts.old == "" {
			dir, err := os.MkdirTemp("", "holdfast-chaos-older")
			if err != nil {
				return false, err
			}
			defer os.RemoveAll(dir)
			var why string
			if opts.old, why, err = buildOlder(ctx, dir); err != nil {
				return false, err
			}
			if why != "" {
				fmt.Fprintf(stdout, "row %2d  %-46s skipped: %s\n", r.number, r.name, why)
				continue
			}
		}
		var results []result
		for n := range *repeat {
			again := opts
			again.seed += uint64(n)
			again.keep = filepath.Join(keep, fmt.Sprintf("row%d-%s-%d", r.number, time.Now().Format("150405"), n))
			res, err := play(ctx, r, again)
			if err != nil {
				return false, fmt.Errorf("row %d: %w", r.number, err)
			}
			results = append(results, res)
		}
		ok = report(stdout, r, results) && ok
	}
	return ok, nil
}

// choose returns the rows with these numbers.
func choose(which string) ([]row, error) {
	if strings.TrimSpace(which) == "" {
		return rows, nil
	}
	var chosen []row
	for _, field := range strings.FieldsFunc(which, func(r rune) bool { return r == ' ' || r == ',' }) {
		n, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("%q is not the number of a row", field)
		}
		i := slices.IndexFunc(rows, func(r row) bool { return r.number == n })
		if i < 0 {
			return nil, fmt.Errorf("there is no row %d", n)
		}
		chosen = append(chosen, rows[i])
	}
	return chosen, nil
}

// report prints one line for the row, and its measurements. It reports whether
// every promise was kept.
func report(w io.Writer, r row, results []result) (ok bool) {
	var ops, changes int64
	var fired, failed, undecided int
	var gap, took time.Duration
	amounts := make(map[string][]float64)
	units := make(map[string]string)
	var names []string
	for _, res := range results {
		ops, fired, changes = ops+res.ops, fired+res.fired, changes+res.leaderChanges
		gap, took = max(gap, res.gap), took+res.took
		undecided += res.stats.Undecided
		if len(res.failed) > 0 {
			failed++
		}
		for _, v := range res.values {
			if amounts[v.name] == nil {
				names = append(names, v.name)
			}
			amounts[v.name], units[v.name] = append(amounts[v.name], v.amount), v.unit
		}
	}
	verdict := "ok"
	if failed > 0 {
		verdict = fmt.Sprintf("FAILED %d of %d", failed, len(results))
	}
	if undecided > 0 {
		verdict += fmt.Sprintf(" (porcupine gave up on %d)", undecided)
	}
	fmt.Fprintf(w, "row %2d  %-46s repeats %d  ops %d  faults %d  leaders %d  gap %v  %v  %s\n",
		r.number, r.name, len(results), ops, fired, changes, gap.Round(time.Millisecond), took.Round(time.Second), verdict)
	for _, name := range names {
		slices.Sort(amounts[name])
		a := amounts[name]
		fmt.Fprintf(w, "chaos_%d_%s_p50 %.0f %s\n", r.number, name, a[(len(a)-1)/2], units[name])
		fmt.Fprintf(w, "chaos_%d_%s_max %.0f %s\n", r.number, name, a[len(a)-1], units[name])
	}
	for i, res := range results {
		for _, why := range res.failed {
			fmt.Fprintf(w, "row %2d  repeat %d: %s\n", r.number, i+1, why)
		}
	}
	return failed == 0
}
