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
	"syscall"
	"time"

	"github.com/holdfast-io/holdfast/bench/rig"
)

func main() {
	if err := mainE(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench-schedule:", err)
		os.Exit(1)
	}
}

// shapeTimeout bounds one shape.
const shapeTimeout = 3 * time.Minute

// maxForeign is the CPU of others, in cores, up to which a shape counts as measured in
// quiet.
const maxForeign = 0.15

func mainE(args []string) error {
	flags := flag.NewFlagSet("bench-schedule", flag.ExitOnError)
	pattern := flags.String("run", "", "only shapes whose names match this regular expression")
	binary := flags.String("holdfast", "bin/holdfast", "the product")
	data := flags.String("data", os.TempDir(), "where peers keep their data")
	quick := flags.Bool("quick", os.Getenv("QUICK") != "", "a look at every shape in under a minute")
	nodes := flags.Int("nodes", 5000, "how many nodes")
	pods := flags.Int("pods", 10_000, "how many pods are measured")
	profile := flags.String("profile", "", "directory for CPU profiles of the peers")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *quick {
		*nodes, *pods = 300, 600
	}
	re, err := regexp.Compile(*pattern)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
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

	begin, failed := time.Now(), 0
	for _, s := range shapesFor(*nodes) {
		if !re.MatchString(s.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%5.0fs  %s\n", time.Since(begin).Seconds(), s.name)
		m, err := measure(ctx, product, *data, *profile, s, *nodes, *pods)
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		if err != nil {
			failed++
			fmt.Printf("# path_%s failed: %v\n", s.name, err)
			fmt.Fprintf(os.Stderr, "        %v\n", err)
			continue
		}
		m.print(s)
	}
	if failed > 0 {
		return fmt.Errorf("%d shapes failed", failed)
	}
	return nil
}

// measured is what became of one shape.
type measured struct {
	nodes, pods    int
	created, bound time.Duration // from the first create to the last answer, and to the last binding
	spent          rig.Spent
}

func (m measured) print(s shape) {
	if m.spent.Foreign > maxForeign {
		fmt.Printf("# path_%s: others used %.0f %% of a core meanwhile, so rates mean little\n", s.name, 100*m.spent.Foreign)
	}
	pods := float64(m.pods)
	rate := pods / m.bound.Seconds()
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / pods }
	fmt.Printf("path_%s_nodes %d nodes\n", s.name, m.nodes)
	fmt.Printf("path_%s_pods %d pods\n", s.name, m.pods)
	fmt.Printf("path_%s %.0f pods/s\n", s.name, rate)
	fmt.Printf("path_%s_vs_kube_threshold %.1f x\n", s.name, rate/s.kube)
	fmt.Printf("path_%s_created %.0f pods/s\n", s.name, pods/m.created.Seconds())
	fmt.Printf("path_%s_servers %.0f us/pod\n", s.name, each(m.spent.Servers))
	fmt.Printf("path_%s_leader %.0f us/pod\n", s.name, each(m.spent.Leader))
	fmt.Printf("path_%s_client %.0f us/pod\n", s.name, each(m.spent.Client))
	fmt.Printf("path_%s_cpu %.2f s\n", s.name, (m.spent.Servers + m.spent.Client).Seconds())
}

// measure plays one shape on a new cluster.
func measure(ctx context.Context, product, data, profile string, s shape, nodes, pods int) (m measured, err error) {
	ctx, cancel := context.WithTimeout(ctx, shapeTimeout)
	defer cancel()
	dir, err := os.MkdirTemp(data, "bench-schedule-")
	if err != nil {
		return m, err
	}
	peers := &rig.Peers{Dir: dir, Binary: product, Patience: rig.CallTimeout}
	defer func() {
		peers.Stop()
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	if err := peers.Start(ctx); err != nil {
		return m, fmt.Errorf("start the peers: %w", err)
	}
	f := &field{peers: peers, nodes: nodes, profile: profile}
	defer f.close()
	if err := f.begin(ctx); err != nil {
		return m, err
	}
	return f.play(ctx, s, pods)
}
