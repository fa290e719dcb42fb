// Command mutants puts known bugs back into the store, one after the other, and
// demands that its tests see each: who trusts the tests need not take their word.
//
//	go run ./internal/mutants [-run REGEXP] [-v]
//
// A mutant is a txtar archive in testdata: what the bug is; "seeds: N", how many
// seeds of the simulation it may survive (0: it is not played, because the
// simulation cannot see it); "tests: PACKAGE REGEXP", tests that are to see it where
// the simulation does not; then pairs of files, "PATH old" and "PATH new", with the
// text to replace. A text that is not there exactly once is an error: the bug, or
// its cure, has moved, and the mutant must follow. Nothing is written into the
// tree: go's -overlay builds the mutant.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/tools/txtar"
)

// mutant is one known bug.
type mutant struct {
	name, about string
	seeds       int
	tests       [][2]string       // package, regexp
	files       map[string]string // path in the tree: what it becomes
}

func main() {
	only := flag.String("run", "", "only mutants whose name matches")
	verbose := flag.Bool("v", false, "print what the tests say")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *only, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string, verbose bool) error {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	paths, err := filepath.Glob("internal/mutants/testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		return errors.Join(err, errors.New("no mutants here: run from the root of the tree"))
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "mutant\tseen by\tafter\tin")
	var survivors []string
	for _, path := range paths {
		if !pattern.MatchString(strings.TrimSuffix(filepath.Base(path), ".txtar")) {
			continue
		}
		m, err := load(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		begin := time.Now()
		by, after, err := m.hunt(ctx, verbose)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if by == "" {
			by = "NOBODY"
			survivors = append(survivors, m.name)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%v\n", m.name, by, after, time.Since(begin).Round(time.Second))
		table.Flush()
	}
	if len(survivors) > 0 {
		return fmt.Errorf("the tests do not see %s", strings.Join(survivors, ", "))
	}
	return nil
}

// load reads a mutant and applies it, in memory.
func load(path string) (*mutant, error) {
	archive, err := txtar.ParseFile(path)
	if err != nil {
		return nil, err
	}
	m := &mutant{name: strings.TrimSuffix(filepath.Base(path), ".txtar"), seeds: -1, files: make(map[string]string)}
	for lines := bufio.NewScanner(bytes.NewReader(archive.Comment)); lines.Scan(); {
		line := lines.Text()
		if text, ok := strings.CutPrefix(line, "seeds: "); ok {
			if m.seeds, err = strconv.Atoi(text); err != nil {
				return nil, err
			}
		} else if text, ok := strings.CutPrefix(line, "tests: "); ok {
			pkg, pattern, _ := strings.Cut(text, " ")
			m.tests = append(m.tests, [2]string{pkg, pattern})
		} else {
			m.about += line + "\n"
		}
	}
	if m.seeds < 0 || m.seeds == 0 && len(m.tests) == 0 {
		return nil, errors.New("it does not say who is to see it: \"seeds: N\" and \"tests: PACKAGE REGEXP\"")
	}
	if len(archive.Files) == 0 || len(archive.Files)%2 != 0 {
		return nil, errors.New("it needs pairs of files, old and new")
	}
	for i := 0; i < len(archive.Files); i += 2 {
		before, after := archive.Files[i], archive.Files[i+1]
		file, kind, _ := strings.Cut(before.Name, " ")
		if kind != "old" || after.Name != file+" new" {
			return nil, fmt.Errorf("files %q and %q are no pair of PATH old, PATH new", before.Name, after.Name)
		}
		text, ok := m.files[file]
		if !ok {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			text = string(data)
		}
		was, becomes := strings.TrimSuffix(string(before.Data), "\n"), strings.TrimSuffix(string(after.Data), "\n")
		if n := strings.Count(text, was); n != 1 {
			return nil, fmt.Errorf("its text is %d times in %s, want once: the code has moved on; make the mutant fit again", n, file)
		}
		m.files[file] = strings.Replace(text, was, becomes, 1)
	}
	return m, nil
}

// step is how many seeds are played between looks.
const step = 10

// hunt returns what saw the mutant, and after how many seeds.
func (m *mutant) hunt(ctx context.Context, verbose bool) (by, after string, err error) {
	dir, err := os.MkdirTemp("", "mutant")
	if err != nil {
		return "", "", err
	}
	defer os.RemoveAll(dir)
	replace := make(map[string]string)
	for file, text := range m.files {
		to := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			return "", "", err
		}
		from, err := filepath.Abs(file)
		if err != nil {
			return "", "", err
		}
		replace[from] = to
	}
	overlay := filepath.Join(dir, "overlay.json")
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err == nil {
		err = os.WriteFile(overlay, data, 0o644)
	}
	if err != nil {
		return "", "", err
	}
	build := func(pkg string) (string, error) {
		binary := filepath.Join(dir, strings.ReplaceAll(strings.Trim(pkg, "./"), "/", "_")+".test")
		out, err := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", overlay, "-o", binary, pkg).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("the mutant does not build: %w\n%s", err, out)
		}
		return binary, nil
	}
	test := func(binary, pkg string, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, binary, append(args, "-test.timeout=2m", "-test.failfast")...)
		cmd.Dir = pkg
		out, err := cmd.CombinedOutput()
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if err == nil {
			return "", nil
		}
		if verbose {
			os.Stdout.Write(out)
		}
		return symptom(out), nil
	}
	if m.seeds > 0 {
		const pkg = "./raftstore"
		binary, err := build(pkg)
		if err != nil {
			return "", "", err
		}
		for first := 0; first < m.seeds; first += step {
			what, err := test(binary, pkg, "-test.run=^TestSimulation$", fmt.Sprintf("-raftstore.seeds=%d", min(step, m.seeds-first)), fmt.Sprintf("-raftstore.first=%d", first))
			if err != nil {
				return "", "", err
			}
			if what != "" {
				return what, fmt.Sprintf("%d seeds", first+step), nil
			}
		}
	}
	for _, t := range m.tests {
		binary, err := build(t[0])
		if err != nil {
			return "", "", err
		}
		what, err := test(binary, t[0], "-test.run="+t[1])
		if err != nil {
			return "", "", err
		}
		if what != "" {
			return what, t[1], nil
		}
	}
	return "", "all", nil
}

var (
	property = regexp.MustCompile(`\bP\d+: .*`)
	failed   = regexp.MustCompile(`--- FAIL: (\S+)`)
	panicked = regexp.MustCompile(`(?m)^(panic|fatal error): .*`)
	said     = regexp.MustCompile(`\w+\.go:\d+: [^\d].*`) // but not a simulation's totals, which begin with a number
)

// symptom is the line of a failed test's output that says most.
func symptom(out []byte) string {
	for _, pattern := range []*regexp.Regexp{property, panicked, said, failed} {
		if line := pattern.Find(out); line != nil {
			if len(line) > 90 {
				line = append(line[:87:87], "..."...)
			}
			return string(line)
		}
	}
	return "a failure without a word"
}
