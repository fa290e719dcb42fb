package leftovers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFind leaves one thing of each kind, as far as it may, and looks for it; what is
// another's is not found.
func TestFind(t *testing.T) {
	mark := fmt.Sprintf("left-%d", os.Getpid())
	find := func() string {
		t.Helper()
		all, err := Find([]string{mark, ""}, t.TempDir(), filepath.Dir(t.TempDir()))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(all, "\n")
	}
	if got := find(); got != "" {
		t.Fatalf("before anything was made there is\n%s", got)
	}
	dir := filepath.Join(t.TempDir(), mark)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	want := []string{"file " + dir, fmt.Sprintf("process %d sleep 1000", cmd.Process.Pid)}
	if os.Geteuid() == 0 {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k"); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
		want = append(want, "mount ")
		cgroup := filepath.Join("/sys/fs/cgroup/memory", mark)
		if err := os.Mkdir(cgroup, 0o755); err == nil { // version 1
			defer func() { _ = os.Remove(cgroup) }()
			want = append(want, "cgroup "+cgroup)
		}
	}
	got := find()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%q is not found:\n%s", w, got)
		}
	}
}
