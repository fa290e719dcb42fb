package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-io/holdfast/bench/rig"
)

func main() {
	if err := mainE(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench-api:", err)
		os.Exit(1)
	}
}

// scale is how much of everything.
type scale struct {
	warmUp, measure time.Duration
	clients         []int
	batch           int // objects of one apply
	list            int // pods
	watchers        int
	writes          int // a second, beside them
	agents          int
	starts          int // of the command line
}

var (
	fullScale  = scale{time.Second, 4 * time.Second, []int{100, 1000}, 200, 100_000, 1000, 1000, 5000, 20}
	quickScale = scale{300 * time.Millisecond, time.Second, []int{100}, 200, 2000, 100, 200, 50, 5}
)

// run is one run of the benchmark.
type run struct {
	scale
	peers   *rig.Peers
	profile string
	pods    int // how many of them have been listed for
	results []result
	serial  int // makes names of a case its own
}

func mainE(args []string) (err error) {
	flags := flag.NewFlagSet("bench-api", flag.ExitOnError)
	pattern := flags.String("run", "", "only cases whose names match this regular expression")
	binary := flags.String("holdfast", "bin/holdfast", "the product")
	out := flags.String("out", "bench/results", "directory for results; empty: none are kept")
	data := flags.String("data", os.TempDir(), "where peers keep their data")
	quick := flags.Bool("quick", os.Getenv("QUICK") != "", "a look at everything in under a minute")
	profile := flags.String("profile", "", "directory for CPU profiles of the peers and the client, for each load")
	measure := flags.Duration("measure", 0, "how long to measure each load (default 4 s)")
	list := flags.Bool("list", false, "list the cases")
	if err := flags.Parse(args); err != nil {
		return err
	}
	re, err := regexp.Compile(*pattern)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	r := &run{scale: fullScale, profile: *profile}
	if *quick {
		r.scale = quickScale
	}
	if *measure > 0 {
		r.measure = *measure
	}
	if *list {
		for _, c := range r.cases() {
			fmt.Println(c.name)
		}
		return nil
	}
	product, err := filepath.Abs(*binary)
	if err != nil {
		return err
	}
	if _, err := os.Stat(product); err != nil {
		return fmt.Errorf("the product is not built (make build): %w", err)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	dir, err := os.MkdirTemp(*data, "bench-api-")
	if err != nil {
		return err
	}
	r.peers = &rig.Peers{Dir: dir, Binary: product, Patience: rig.CallTimeout}
	defer func() {
		r.peers.Stop()
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	if err := r.peers.Start(ctx); err != nil {
		return fmt.Errorf("start the peers: %w", err)
	}
	return r.all(ctx, re, *out)
}

// all runs the cases that match. One that fails is reported, and the others go on.
func (r *run) all(ctx context.Context, match *regexp.Regexp, out string) error {
	begin, failed := time.Now(), 0
	for _, c := range r.cases() {
		if !match.MatchString(c.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%5.0fs  %s\n", time.Since(begin).Seconds(), c.name)
		r.results = append(r.results, result{Case: c.name})
		last := &r.results[len(r.results)-1]
		before := rig.ReadUsage(r.peers.PIDs())
		err := c.run(ctx, r, last)
		last.Foreign = rig.ReadUsage(r.peers.PIDs()).Since(before, r.peers.PIDs(), 0).Foreign
		last.Date = time.Now().UTC().Format(time.DateOnly)
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted in %q: the cases before it are kept", c.name)
		}
		if err != nil {
			last.Error, _, _ = strings.Cut(err.Error(), "\n")
			failed++
			fmt.Fprintf(os.Stderr, "        %s\n", last.Error)
		}
		if err := keep(out, r.results, r.cases()); err != nil { // after each case: an hour's work does not hang on its last minute
			return err
		}
	}
	print(os.Stdout, r.results)
	if failed > 0 {
		return fmt.Errorf("%d cases failed", failed)
	}
	return nil
}
