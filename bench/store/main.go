package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-io/holdfast/bench/rig"
)

func main() {
	if err := mainE(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench-store:", err)
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	run      *regexp.Regexp
	binary   string
	out      string
	data     string
	reps     int
	scale    scale
	quick    bool
	onlySide string
	profile  string
}

func mainE(args []string) error {
	if len(args) > 1 {
		// This binary again, as a member.
		switch args[0] {
		case "etcd-member":
			return runEtcdMember(args[1])
		case "slow-disk":
			return runSlowDisk(args[1:])
		}
	}
	flags := flag.NewFlagSet("bench-store", flag.ExitOnError)
	pattern := flags.String("run", "", "only cases whose names match this regular expression")
	binary := flags.String("holdfast", "bin/holdfast", "the product")
	out := flags.String("out", "bench/results", "directory for results; empty: none are kept")
	data := flags.String("data", os.TempDir(), "where members keep their data")
	reps := flags.Int("reps", 5, "repetitions of each case")
	quick := flags.Bool("quick", os.Getenv("QUICK") != "", "a look at everything in under a minute: fewer clients, keys and repetitions")
	only := flags.String("only", "", "etcd or holdfast: leave the other out")
	profile := flags.String("profile", "", "directory for CPU profiles of the members and the client, for each case")
	measure := flags.Duration("measure", 0, "how long to measure each load (default 2 s)")
	keys := flags.Int("keys", 0, "how many keys the large case has (default 1,000,000)")
	list := flags.Bool("list", false, "list the cases")
	if err := flags.Parse(args); err != nil {
		return err
	}
	re, err := regexp.Compile(*pattern)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	o := options{run: re, binary: *binary, out: *out, data: *data, reps: *reps, scale: fullScale, quick: *quick, onlySide: *only, profile: *profile}
	if o.quick {
		o.scale, o.reps = quickScale, 1
	}
	if *measure > 0 {
		o.scale.measure = *measure
	}
	if *keys > 0 {
		o.scale.keys = *keys
	}
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return err
	}
	if *list {
		for _, c := range o.scale.cases() {
			fmt.Println(c.name)
		}
		return nil
	}
	if _, err := os.Stat(o.binary); err != nil {
		return fmt.Errorf("the product is not built (make build): %w", err)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM) // not SIGPIPE: it comes with every connection to a killed member
	defer cancel()
	return measureAll(ctx, o)
}

// run is one run of the benchmark.
type run struct {
	options
	dir     string
	sides   map[string]side // those that run now
	which   string          // clusters those are
	filled  map[string]bool // sides with keys to read
	samples []sample
}

// measureAll runs the cases. A case that fails is reported, and the others go on.
func measureAll(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp(o.data, "bench-store-")
	if err != nil {
		return err
	}
	r := &run{options: o, dir: dir}
	defer func() {
		r.stop()
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	begin := time.Now()
	failed := 0
	for _, c := range o.scale.cases() {
		if !o.run.MatchString(c.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%5.0fs  %s\n", time.Since(begin).Seconds(), c.name)
		failed += r.measure(ctx, c)
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted in %q: the cases before it are kept", c.name)
		}
		// After each case: an hour's work does not hang on its last minute.
		if err := r.keep(time.Since(begin)); err != nil {
			return err
		}
	}
	r.stop()
	if err := r.keep(time.Since(begin)); err != nil { // without a case: draws what was kept
		return err
	}
	show(os.Stdout, report{About: about(o, time.Since(begin)), Samples: r.samples})
	if failed > 0 {
		return fmt.Errorf("%d measurements failed", failed)
	}
	return nil
}

// show writes what people read, then a line for each figure.
func show(w io.Writer, rep report) {
	for _, name := range slices.Sorted(mapKeys(rep.About)) {
		fmt.Fprintf(w, "%s: %s\n", name, rep.About[name])
	}
	printTable(w, rep.Samples)
	fmt.Fprintln(w)
	printLines(w, rep.Samples)
}

func mapKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (r *run) keep(took time.Duration) error {
	if r.out == "" {
		return nil
	}
	return keep(r.out, about(r.options, took), r.samples, r.scale.cases())
}

// keep writes the results of the cases that were measured, in place of what the
// directory has of the same cases, beside what it has of others.
func keep(dir string, about map[string]string, samples []sample, cases []testCase) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(dir, "store.json")
	rep, err := readJSON(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	rep.About = about
	rep.Samples = merge(rep.Samples, samples, cases)
	if err := writeJSON(path, rep); err != nil {
		return err
	}
	var text strings.Builder
	show(&text, rep)
	if err := os.WriteFile(filepath.Join(dir, "store.txt"), []byte(text.String()), 0o644); err != nil {
		return err
	}
	return plotAll(dir, rep.Samples)
}

// merge puts newer samples in the place of older ones of the same cases, in the
// order of cases. What is of no case any more goes.
func merge(older, newer []sample, cases []testCase) []sample {
	var out []sample
	for _, c := range cases {
		of := func(s sample) bool { return s.Case == c.name }
		from := older
		if slices.ContainsFunc(newer, of) {
			from = newer
		}
		for _, s := range from {
			if of(s) {
				out = append(out, s)
			}
		}
	}
	return out
}

// about says what ran where.
func about(o options, took time.Duration) map[string]string {
	out := map[string]string{
		"date": time.Now().UTC().Format(time.DateOnly), "go": runtime.Version(), "cpus": fmt.Sprint(runtime.NumCPU()),
		"repetitions": fmt.Sprint(o.reps), "took": took.Round(time.Second).String(),
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if dep.Path == "go.etcd.io/etcd/server/v3" {
				out["etcd"] = dep.Version
			}
		}
	}
	return out
}

// measure runs one case and returns how many of its measurements failed.
func (r *run) measure(ctx context.Context, c testCase) (failures int) {
	reps := r.reps
	if c.repetitions > 0 {
		reps = min(reps, c.repetitions)
	}
	gaveUp := map[string]bool{}
	for rep := range reps {
		for _, who := range c.contenders {
			if gaveUp[who.name] || (r.onlySide != "" && who.side != "" && who.side != r.onlySide) || ctx.Err() != nil {
				continue
			}
			s := sample{Case: c.name, Contender: who.name, Repetition: rep, Date: time.Now().UTC().Format(time.DateOnly)}
			err := r.prepare(ctx, c.clusters, who.side)
			if err == nil {
				var used rig.Spent
				stopProfile := r.startProfile(ctx, c, who)
				s.Values, used, err = c.run(ctx, r, who)
				stopProfile()
				s.Foreign, s.Noisy = used.Foreign, used.Foreign > maxForeign
			}
			if err != nil {
				if ctx.Err() != nil {
					return failures
				}
				s.Error = err.Error()
				gaveUp[who.name] = true
				failures++
				fmt.Fprintf(os.Stderr, "        %s: %v\n", who.name, err)
				// What state the members are in nobody knows.
				r.stop()
			} else if v, ok := s.Values[rig.Rate]; ok {
				fmt.Fprintf(os.Stderr, "        %-12s %8.0f/s  p99 %7.2f ms  servers %6.1f µs/op  client %6.1f µs/op  foreign %3.0f %%\n",
					who.name, v, s.Values[rig.P99], s.Values[rig.ServerCPU], s.Values[rig.ClientCPU], 100*s.Foreign)
			}
			r.samples = append(r.samples, s)
			if c.clusters == own {
				r.stop()
			}
		}
	}
	return failures
}

// prepare makes the clusters of a kind run, and no others. Of a case's own it is
// only the one side's: the other would take memory and time for nothing.
func (r *run) prepare(ctx context.Context, which, wanted string) error {
	if which == "" {
		return nil // it runs in this process; the members may stay, idle
	}
	if r.which != which {
		r.stop()
		r.which, r.sides, r.filled = which, map[string]side{}, map[string]bool{}
	}
	var delay time.Duration
	if which == slow {
		delay = 2 * time.Millisecond
	}
	names := []string{"etcd", "holdfast"}
	if which == own {
		names = []string{wanted}
	}
	for _, name := range names {
		if r.sides[name] != nil || (r.onlySide != "" && name != r.onlySide) {
			continue
		}
		dir, err := os.MkdirTemp(r.dir, name+"-")
		if err != nil {
			return err
		}
		var s side
		if name == "etcd" {
			s = &etcd{dir: dir, syncDelay: delay}
		} else {
			s = &holdfast{rig.Peers{Dir: dir, Binary: r.binary, Begin: slowly(delay)}}
		}
		r.sides[name] = s // to be stopped, whatever comes
		starting, cancel := context.WithTimeout(ctx, 2*time.Minute)
		err = s.start(starting)
		cancel()
		if err != nil {
			r.stop()
			return fmt.Errorf("start %s: %w", name, err)
		}
	}
	return nil
}

// stop ends all members.
func (r *run) stop() {
	for _, s := range r.sides {
		s.stop()
	}
	r.sides, r.which = nil, ""
}

// pids are those of all members, of both sides.
func (r *run) pids() []int {
	var out []int
	for _, s := range r.sides {
		out = append(out, s.pids()...)
	}
	return out
}
