package systemtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-io/holdfast/internal/leftovers"
)

// marks are in the names of what the tests of this process make beside their files: the
// ids of their clusters.
var marks names

type names struct {
	mu  sync.Mutex
	all []string
}

func (n *names) add(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, name)
}

// TestMain fails when the tests leave something on the machine: a mount, network
// namespace, control group, process, network interface or file. Rules of nftables are in
// the namespaces.
func TestMain(m *testing.M) { os.Exit(runClean(m)) }

func runClean(m *testing.M) int {
	dir, err := os.MkdirTemp("", "holdfast-systemtest-") // what tests make is below it, mounts too
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	os.Setenv("TMPDIR", dir)
	code := m.Run()
	left, err := leftovers.Find(append(marks.all, filepath.Base(dir)), "/run/holdfast-dev", "/run/holdfast", "/run/containerd")
	if left = append(left, leftovers.Files(dir)...); code != 0 && err == nil {
		return code // what a test that failed leaves says nothing more
	}
	if len(left) > 0 || err != nil {
		fmt.Fprintf(os.Stderr, "the tests have left on the machine (error %v):\n%s\n", err, strings.Join(left, "\n"))
		return 1
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}
