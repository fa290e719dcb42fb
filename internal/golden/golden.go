package golden

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "rewrite the expected outputs of golden tests")

// want is the file of an archive that holds the expected output.
const want = "want"

// Input is one case.
type Input struct {
	t       testing.TB
	Name    string // of the file, without directory and extension
	Comment string // what stands above the first file
	files   []txtar.File
}

// File returns the contents of the input file of that name. The test fails at
// once if the case has no such file.
func (in Input) File(name string) []byte {
	in.t.Helper()
	data, ok := in.Lookup(name)
	if !ok {
		in.t.Fatalf("the case has no file %q", name)
	}
	return data
}

// Lookup returns the contents of the input file of that name, and whether there
// is one.
func (in Input) Lookup(name string) ([]byte, bool) {
	for _, f := range in.files {
		if f.Name == name {
			return f.Data, true
		}
	}
	return nil, false
}

// Names returns the names of the input files in the order of the archive.
func (in Input) Names() []string {
	names := make([]string, len(in.files))
	for i, f := range in.files {
		names[i] = f.Name
	}
	return names
}

// Run runs fn as a subtest for each file that pattern matches, and compares what
// it returns with the case's file "want". A final newline is added to both if it
// is missing. It fails if nothing matches: a test without cases tests nothing.
func Run(t *testing.T, pattern string, fn func(t *testing.T, in Input) string) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatalf("golden: pattern %q: %v", pattern, err)
	}
	if len(paths) == 0 {
		t.Fatalf("golden: no file matches %s", pattern)
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
		t.Run(name, func(t *testing.T) { runFile(t, path, name, *update, fn) })
	}
}

func runFile(t *testing.T, path, name string, update bool, fn func(t *testing.T, in Input) string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c := parse(data)
	got := fn(t, Input{t: t, Name: name, Comment: string(c.archive.Comment), files: c.inputs})
	if !update {
		if complaint := c.check(got); complaint != "" {
			t.Errorf("%s: %s", path, complaint)
		}
		return
	}
	if t.Failed() {
		t.Fatalf("%s: not updated, because the test failed by itself", path)
	}
	if out := c.update(got); !bytes.Equal(out, data) {
		if err := os.WriteFile(path, out, 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

// testCase is a parsed case.
type testCase struct {
	archive *txtar.Archive
	inputs  []txtar.File
	want    int // where it is in the archive, -1 if it is not
}

func parse(data []byte) testCase {
	c := testCase{archive: txtar.Parse(data), want: -1}
	for i, f := range c.archive.Files {
		if f.Name == want {
			c.want = i
		} else {
			c.inputs = append(c.inputs, f)
		}
	}
	return c
}

// check returns what is wrong with the output, "" if nothing is.
func (c testCase) check(got string) string {
	got = endLine(got)
	if c.want < 0 {
		return "has no file \"" + want + "\"; run the test with -update to write it. Got:\n" + got
	}
	expected := endLine(string(c.archive.Files[c.want].Data))
	if diff := cmp.Diff(expected, got); diff != "" {
		return "output differs (-want +got); if the new one is right, run the test with -update:\n" + diff
	}
	return ""
}

// update returns the case with the output as the expected one.
func (c testCase) update(got string) []byte {
	out := &txtar.Archive{Comment: c.archive.Comment, Files: slices.Clone(c.archive.Files)}
	at := c.want
	if at < 0 {
		at = len(out.Files)
		out.Files = append(out.Files, txtar.File{Name: want})
	}
	out.Files[at].Data = []byte(endLine(got))
	return txtar.Format(out)
}

func endLine(s string) string {
	if s != "" && !strings.HasSuffix(s, "\n") {
		s += "\n"
	}
	return s
}
