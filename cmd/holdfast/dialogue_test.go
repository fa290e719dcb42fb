package main

import (
	"bytes"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/internal/testcluster"
)

var rewrite = flag.Bool("update", false, "write what is printed into the dialogues")

// changing is what differs from run to run, and what stands for it.
var changing = []struct {
	of *regexp.Regexp
	to string
}{
	{regexp.MustCompile(`eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+`), "JWT"},
	{regexp.MustCompile(`/tmp/holdfast-edit-\d+`), "/tmp/holdfast-edit-X"},
	{regexp.MustCompile(`\b([a-z]+)-[bcdf0-9][bcdfghjklmnpqrstvwxz0-9]{5,9}(-[bcdfghjklmnpqrstvwxz2456789]{5})?\b`), "$1-X"},
	{regexp.MustCompile(`revision \d{2,}`), "revision R"},
	{regexp.MustCompile(`holdfast-[0-9a-f]{6}\b`), "holdfast-X"},
	{regexp.MustCompile(`score -?\d+`), "score S"},
	{regexp.MustCompile(`newest is \d+`), "newest is R"},
	{regexp.MustCompile(`in \d+(\.\d)? s\b`), "in T s"},
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "UID"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:.]+Z`), "TIME"},
	{regexp.MustCompile(`(?m)(^| +)(\d+[ms]){1,2}( +|$)`), " AGE "},
	{regexp.MustCompile(`\b10\.\d+\.\d+\.\d+`), "10.X"},
}

// TestDialogues plays what people type, and compares what they read. Each file is
// a dialogue with a cluster of its own files: "$ holdfast …" and below it what is
// printed, each line after a >; "| grep RE" keeps the lines that match, "| quiet"
// leaves it out, and "[exit N]" ends it unless N is 0. "< FILE" is standard input,
// and http://files/ serves the dialogue's files.
func TestDialogues(t *testing.T) {
	files, err := filepath.Glob("testdata/dialogues/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dialogues: %v", err)
	}
	c := testcluster.Start(t, testcluster.Config{Peers: 1, Nodes: 2})
	config := filepath.Join(t.TempDir(), "config.yaml")
	t.Setenv("HOLDFAST_CONFIG", config)
	t.Setenv("HOLDFAST_CONTEXT", "")
	known := &client.ConfigFile{}
	known.Set(c.Context())
	known.Current = c.Context().Name
	if err := known.Save(config); err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		path, err := filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Chdir(t.TempDir())
			server := httptest.NewServer(http.FileServer(http.Dir(".")))
			defer server.Close()
			for _, f := range archive.Files {
				if err := os.MkdirAll(filepath.Dir(f.Name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(f.Name, f.Data, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			got := play(t, string(archive.Comment), server.URL)
			if *rewrite {
				archive.Comment = []byte(got)
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(strings.Split(string(archive.Comment), "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// play returns the script with what its commands print now. files is the URL that
// stands behind http://files.
func play(t *testing.T, script, files string) string {
	var out strings.Builder
	for line := range strings.Lines(script) {
		if strings.HasPrefix(line, "#") || line == "\n" {
			out.WriteString(line)
			continue
		}
		typed, ok := strings.CutPrefix(line, "$ holdfast ")
		if !ok {
			continue // what was printed the last time
		}
		out.WriteString(line)
		typed, filter, _ := strings.Cut(strings.TrimSpace(typed), " | ")
		typed, input, _ := strings.Cut(typed, " < ")
		var stdin []byte
		if input != "" {
			var err error
			if stdin, err = os.ReadFile(input); err != nil {
				t.Fatal(err)
			}
		}
		var printed strings.Builder
		a := newApp()
		a.stdin, a.stdout, a.stderr = bytes.NewReader(stdin), &printed, &printed
		a.getenv = func(name string) string {
			if name == "EDITOR" {
				return "sh ./editor"
			}
			return ""
		}
		code := a.run(t.Context(), words(t, strings.ReplaceAll(typed, "http://files", files)))
		text := strings.ReplaceAll(printed.String(), files, "http://files")
		for _, c := range changing {
			text = c.of.ReplaceAllString(text, c.to)
		}
		for line := range strings.Lines(filtered(t, text, filter)) {
			out.WriteString(strings.TrimRight("> "+line, " \n") + "\n")
		}
		if code != 0 {
			out.WriteString("[exit " + strconv.Itoa(code) + "]\n")
		}
	}
	return out.String()
}

func filtered(t *testing.T, text, filter string) string {
	name, arg, _ := strings.Cut(filter, " ")
	switch name {
	case "":
	case "quiet":
		return ""
	case "grep":
		re := regexp.MustCompile(arg)
		var kept strings.Builder
		seen := map[string]bool{}
		for line := range strings.Lines(text) {
			if re.MatchString(strings.TrimSuffix(line, "\n")) && !seen[line] {
				seen[line] = true
				kept.WriteString(line)
			}
		}
		return kept.String()
	default:
		t.Fatalf("| %s: want grep or quiet", filter)
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text
}

// words splits a line as a shell does, with single quotes.
func words(t *testing.T, line string) []string {
	var out []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 0 {
			fields := strings.Fields(part)
			if i > 0 && len(fields) > 0 && part[0] != ' ' { // 'a'b
				out[len(out)-1] += fields[0]
				fields = fields[1:]
			}
			out = append(out, fields...)
			continue
		}
		before := line[:strings.Index(line, "'"+part+"'")]
		if before != "" && before[len(before)-1] != ' ' { // --for='a b'
			out[len(out)-1] += part
			continue
		}
		out = append(out, part)
	}
	if strings.Count(line, "'")%2 != 0 {
		t.Fatalf("%s: a quote is open", line)
	}
	return out
}
