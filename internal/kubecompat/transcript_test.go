package kubecompat

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write what was printed into testdata, for a person to read the diff")

// TestTranscripts plays testdata/*.txtar with every version of kubectl. Each file
// says in its comment which commands are given, one a line, has the files that they
// need, and under "want" what they print, with what differs from run to run made
// equal. Where an older version prints something else, that is under "want 1.29".
//
// In -short, only the newest and the oldest version play.
func TestTranscripts(t *testing.T) {
	needKubectl(t)
	all := versions()
	if testing.Short() && len(all) > 2 {
		all = []string{all[0], all[len(all)-1]}
	}
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		for i, version := range all {
			t.Run(name+"/"+version, func(t *testing.T) {
				namespace := strings.ReplaceAll(name, "_", "-") + "-" + strings.ReplaceAll(version, ".", "-")
				play(t, file, version, i == 0, kubectl(t, version, namespace, i%2 == 1))
			})
		}
	}
}

// play gives the commands of a file, and compares.
func play(t *testing.T, file, version string, newest bool, p program) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range archive.Files {
		if strings.HasPrefix(f.Name, "want") {
			continue
		}
		if err := os.WriteFile(filepath.Join(p.dir, f.Name), f.Data, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	namespace := strings.TrimSpace(regexp.MustCompile(`(?m)^ *namespace: (.*)$`).FindString(read(t, p.kubeconfig)))
	namespace = strings.TrimPrefix(namespace, "namespace: ")
	var out strings.Builder
	for line := range strings.Lines(string(archive.Comment)) {
		line = strings.TrimSpace(line)
		command, ok := strings.CutPrefix(line, "$ kubectl ")
		if !ok {
			continue
		}
		printed, code := p.run(t.Context(), words(command)...)
		fmt.Fprintf(&out, "%s\n%s", line, plain(printed, namespace))
		if code != 0 {
			fmt.Fprintf(&out, "exit %d\n", code)
		}
		out.WriteString("\n")
	}
	compare(t, file, archive, version, newest, out.String())
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// words splits a command line at spaces, but for those in single quotes.
func words(line string) []string {
	var out []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			out = append(out, part)
		} else {
			out = append(out, strings.Fields(part)...)
		}
	}
	return out
}

func compare(t *testing.T, file string, archive *txtar.Archive, version string, newest bool, got string) {
	t.Helper()
	own := "want " + version
	find := func(name string) int {
		for i, f := range archive.Files {
			if f.Name == name {
				return i
			}
		}
		return -1
	}
	want := ""
	if i := find(own); i >= 0 {
		want = string(archive.Files[i].Data)
	} else if i := find("want"); i >= 0 {
		want = string(archive.Files[i].Data)
	}
	if want == got {
		return
	}
	if !*update {
		t.Errorf("kubectl %s prints something else than %s says; run with -update and read the diff\n%s", version, file, diff(want, got))
		return
	}
	if i := find(own); i >= 0 {
		archive.Files = append(archive.Files[:i], archive.Files[i+1:]...)
	}
	if i := find("want"); newest || i < 0 {
		own = "want"
	} else if string(archive.Files[i].Data) == got {
		own = ""
	}
	if i := find(own); i >= 0 {
		archive.Files[i].Data = []byte(got)
	} else if own != "" {
		archive.Files = append(archive.Files, txtar.File{Name: own, Data: []byte(got)})
	}
	if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
		t.Fatal(err)
	}
}

// diff shows the lines that differ, with the first line number.
func diff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	var out bytes.Buffer
	for i := range max(len(w), len(g)) {
		a, b := "(end)", "(end)"
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			fmt.Fprintf(&out, "line %d:\n  want %s\n  got  %s\n", i+1, a, b)
			if out.Len() > 2000 {
				break
			}
		}
	}
	return out.String()
}

// varying is what differs from run to run, and what stands for it.
var varying = []struct {
	pattern *regexp.Regexp
	name    string
}{
	{regexp.MustCompile(`-[0-9a-f]{8,10}-[bcdfghjklmnpqrstvwxz2456789]{5}\b`), "-HASH-ID"},
	{regexp.MustCompile(`\b(web|d2|one)-[0-9a-f]{8,10}\b`), "$1-HASH"},
	{regexp.MustCompile(`pod-template-hash=[0-9a-f]+`), "pod-template-hash=HASH"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| \+0000)?( UTC)?`), "TIME"},
	{regexp.MustCompile(`[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d \+0000`), "TIME"},
	{regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+(:\d+)?(/\d+)?\b`), "ADDRESS"},
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "UID"},
	{regexp.MustCompile(`(resourceVersion: )"\d+"`), `$1"N"`},
	{regexp.MustCompile(`/tmp/[^\s]*/(LIVE|MERGED)-\d+`), "$1"},
	{regexp.MustCompile(`\b(\d+[smhd]){1,2}( ago)?\b|<invalid>`), "AGE"},
	{regexp.MustCompile(`" deleted from NAMESPACE namespace`), `" deleted`}, // as it reads since 1.34
	{regexp.MustCompile(` {2,}`), "  "},
	{regexp.MustCompile(`(Ready\S*  <none>  AGE  )\S+`), "${1}VERSION"}, // of the binary, as git has it
	{regexp.MustCompile(` +\n`), "\n"},
}

// narration are lines of which there may be any number.
var narration = regexp.MustCompile(`(?m)^(Waiting for .* to (finish|be ready|be observed).*|.*client-side throttling.*|Found existing alias.*)\n`)

// plain makes what differs from run to run equal, and leaves repeated lines out: of
// pods there is one order or another.
func plain(printed, namespace string) string {
	out := narration.ReplaceAllString(printed, "")
	out = strings.ReplaceAll(out, namespace, "NAMESPACE")
	for _, v := range varying {
		out = v.pattern.ReplaceAllString(out, v.name)
	}
	if out != "" && !strings.HasSuffix(out, "\n") {
		out += "\n"
	}
	return out
}
