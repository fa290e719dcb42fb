package object

import (
	stdcmp "cmp"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCorpus reads the manifests of testdata/corpus as "apply" reads them, and
// compares with testdata/corpus/report.txt: for each kind how many objects pass,
// and for each refusal its place and reason. An object that passes also survives
// storage, and a second reading of what is written.
func TestCorpus(t *testing.T) {
	const dir, report = "testdata/corpus", "testdata/corpus/report.txt"
	type count struct{ all, pass int }
	kinds := map[string]*count{}
	var refusals []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".yaml") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		docs, err := Builtin().ParseManifests(filepath.ToSlash(name), data)
		var faults Faults
		if err != nil && !errors.As(err, &faults) {
			return err
		}
		bad := map[int]bool{}
		refuse := func(faults Faults) {
			for _, f := range faults {
				refusals = append(refusals, f.String())
				if !bad[f.Index] {
					bad[f.Index] = true
					word, _, _ := strings.Cut(f.Object, " ")
					word = stdcmp.Or(word, "(not an object)")
					if kinds[word] == nil {
						kinds[word] = &count{}
					}
					kinds[word].all++
				}
			}
		}
		if len(faults) > 0 { // the others of the file are not applied either: count them too
			docs, _ = Builtin().parse(name, data)
		}
		refuse(faults)
		for _, d := range docs {
			if len(faults) == 0 {
				refuse(d.Check())
			}
			if bad[d.Index] {
				continue
			}
			kind := ResourceOf(d.Object).Kind
			if kinds[kind] == nil {
				kinds[kind] = &count{}
			}
			kinds[kind].all++
			kinds[kind].pass++
			storedAndBack(t, path, d.Object)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	var b strings.Builder
	b.WriteString("Objects that pass, of those there are:\n\n")
	total := count{}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		fmt.Fprintf(&b, "%4d of %4d  %s\n", kinds[kind].pass, kinds[kind].all, kind)
		total.all += kinds[kind].all
		total.pass += kinds[kind].pass
	}
	fmt.Fprintf(&b, "%4d of %4d  in all\n\nRefusals:\n\n", total.pass, total.all)
	for _, line := range refusals {
		b.WriteString(line + "\n")
	}
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(report, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(b.String(), "\n")); diff != "" {
		t.Errorf("report differs (-want +got); run with -update and read the difference:\n%s", diff)
	}
}

func storedAndBack(t *testing.T, path string, obj Object) {
	t.Helper()
	Default(obj)
	data, err := Encode(obj)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Decode(data, 0)
	if err != nil {
		t.Fatal(err)
	}
	if back, err = Convert(back, ResourceOf(obj)); err != nil {
		t.Fatal(err)
	}
	if !sameValue(obj, back) {
		t.Errorf("%s: %s: changed by storage:\n%s", path, Title(obj), cmp.Diff(obj, back))
	}
	text, err := EncodeYAML(back)
	if err != nil {
		t.Fatal(err)
	}
	docs, err := ParseManifests("", text)
	if err != nil {
		t.Fatalf("%s: %s: what is written cannot be read: %v", path, Title(obj), err)
	}
	if !sameValue(docs[0].Object, back) {
		t.Errorf("%s: %s: changed by YAML:\n%s", path, Title(obj), cmp.Diff(back, docs[0].Object))
	}
}
