package systemtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/holdfast-io/holdfast/internal/ociimage"
)

// TestWorkloads plays testdata/workloads/*.txtar with real containers on two nodes:
// each kind of workload is created, updated, broken, healed, rolled back, scaled and
// deleted. Each file is a scenario, played in a namespace of its own, beside all
// others; those whose names begin with "last" come when these are done, by themselves:
// they do something to nodes.
//
// Above the files, the manifests, a line is a command line that must succeed; with
// "!" in front it must fail. Lines with ">" below it are regular expressions, all of
// which must match what it printed.
func TestWorkloads(t *testing.T) {
	files, err := filepath.Glob("testdata/workloads/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	m := newMachine(t)
	m.addImages("holdfast.dev/web:1", "holdfast.dev/web:2")
	c := m.up("--peers", "1", "--nodes", "2")
	var together sync.WaitGroup
	var last []string
	play := func(file string) {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			here := *m
			here.t = t
			here.play(file, name)
			t.Logf("%s took %v", name, time.Since(began).Round(100*time.Millisecond))
		})
	}
	for _, file := range files {
		if strings.HasPrefix(filepath.Base(file), "last") {
			last = append(last, file)
			continue
		}
		together.Go(func() { play(file) })
	}
	together.Wait()
	for _, file := range last {
		play(file)
	}
	c.stop()
	if left := m.leavings(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

// addImages puts the example's program into images of other names.
func (m *machine) addImages(refs ...string) {
	m.t.Helper()
	program, err := os.ReadFile(filepath.Join(filepath.Dir(m.binary), "web"))
	if err != nil {
		m.t.Fatal(err)
	}
	var images []ociimage.Image
	for _, ref := range refs {
		images = append(images, ociimage.Image{
			Ref: ref, Files: map[string]ociimage.File{"/web": {Data: program, Mode: 0o755}}, Entrypoint: []string{"/web"}, User: "65532:65532",
		})
	}
	m.writeImages("more.tar", images)
}

func (m *machine) writeImages(name string, images []ociimage.Image) {
	m.t.Helper()
	file, err := os.Create(filepath.Join(m.images, name))
	if err != nil {
		m.t.Fatal(err)
	}
	defer file.Close()
	if err := ociimage.Write(file, images...); err != nil {
		m.t.Fatal(err)
	}
}

// play plays a scenario in a namespace.
func (m *machine) play(file, namespace string) {
	m.t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		m.t.Fatal(err)
	}
	dir := m.t.TempDir()
	for _, f := range archive.Files {
		if err := os.WriteFile(filepath.Join(dir, f.Name), f.Data, 0o644); err != nil {
			m.t.Fatal(err)
		}
	}
	m.must("create", "namespace", namespace)
	did, printed := "", ""
	for line := range strings.Lines(string(archive.Comment)) {
		line = strings.TrimSpace(line)
		if want, ok := strings.CutPrefix(line, "> "); ok {
			if !regexp.MustCompile(want).MatchString(printed) {
				m.t.Fatalf("%s\n%s\nwant %q in it", did, printed, want)
			}
			continue
		}
		typed, fails := strings.CutPrefix(line, "! ")
		typed, ok := strings.CutPrefix(typed, "holdfast ")
		if !ok {
			continue // what people read
		}
		var args []string
		for _, word := range words(typed) {
			for _, f := range archive.Files {
				if word == f.Name {
					word = filepath.Join(dir, f.Name)
				}
			}
			args = append(args, word)
		}
		code := 0
		did = line
		printed, code = m.holdfast(append([]string{"--namespace", namespace}, args...)...)
		if (code != 0) != fails {
			pods, _ := m.holdfast("--namespace", namespace, "get", "pods", "-o", "wide")
			events, _ := m.holdfast("--namespace", namespace, "get", "events")
			m.t.Fatalf("%s: exit code %d\n%s\n%s\n%s", did, code, printed, pods, events)
		}
	}
}

// words splits a line as a shell does, with single quotes.
func words(line string) (out []string) {
	var word strings.Builder
	quoted, any := false, false
	for _, c := range line {
		switch {
		case c == '\'':
			quoted, any = !quoted, true
		case c == ' ' && !quoted:
			if any {
				out = append(out, word.String())
			}
			word.Reset()
			any = false
		default:
			word.WriteRune(c)
			any = true
		}
	}
	if any {
		out = append(out, word.String())
	}
	return out
}
