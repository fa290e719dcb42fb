// Command licences prints the licences of all modules that are part of holdfast's
// programs, and fails for one that is none of those that CONTRIBUTING.md allows, or that
// it cannot find. Run it in the module to be checked: make licences.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// allowed are the licences, by the names that licensecheck has for them.
var allowed = []string{"MIT", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "MPL-2.0", "ISC"}

// enough is how much of a licence's file must be words of known licences, in percent:
// names of authors and notices are not.
const enough = 60

func main() {
	if err := run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "licences:", err)
		os.Exit(1)
	}
}

func run(out io.Writer) error {
	modules, err := modules()
	if err != nil {
		return err
	}
	var faults []error
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		found, err := licencesOf(modules[path])
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", path, err))
			continue
		}
		fmt.Fprintf(out, "%-70s %s\n", path, strings.Join(found, ", "))
	}
	return errors.Join(faults...)
}

// modules returns the directory of each module that a package of this one needs, tests
// left out, by path.
func modules() (map[string]string, error) {
	cmd := exec.Command("go", "list", "-deps", "-json=Module", "./...")
	cmd.Stderr = os.Stderr
	data, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	found := make(map[string]string)
	for decoder := json.NewDecoder(bufio.NewReader(bytes.NewReader(data))); ; {
		var pkg struct {
			Module *struct {
				Path, Dir string
				Main      bool
				Replace   *struct{ Dir string }
			}
		}
		if err := decoder.Decode(&pkg); errors.Is(err, io.EOF) {
			return found, nil
		} else if err != nil {
			return nil, err
		}
		if m := pkg.Module; m != nil && !m.Main {
			found[m.Path] = m.Dir
			if m.Replace != nil {
				found[m.Path] = cmp.Or(m.Replace.Dir, m.Dir)
			}
		}
	}
}

// licencesOf returns the licences of a module: of the files in its first directory whose
// names say that they are licences.
func licencesOf(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	found := make(map[string]bool)
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		if e.IsDir() || !strings.HasPrefix(name, "LICENSE") && !strings.HasPrefix(name, "LICENCE") && !strings.HasPrefix(name, "COPYING") {
			continue
		}
		if strings.HasSuffix(name, ".DOCS") { // of texts, which are no part of a program
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		names, err := classify(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name(), err)
		}
		for _, name := range names {
			found[name] = true
		}
	}
	if len(found) == 0 {
		return nil, errors.New("there is no licence in its directory")
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// classify names the licences in a text, all of which are allowed.
func classify(text []byte) (names []string, err error) {
	cover := licensecheck.Scan(text)
	if cover.Percent < enough {
		return nil, fmt.Errorf("no licence that is known: %.0f %% of it are", cover.Percent)
	}
	for _, match := range cover.Match {
		if !slices.Contains(allowed, match.ID) {
			return nil, fmt.Errorf("%s; allowed are %s", match.ID, strings.Join(allowed, ", "))
		}
		names = append(names, match.ID)
	}
	return names, nil
}
