//go:build linux

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSmoke plays five rows of the fault matrix, briefly, with real processes.
// `make chaos` plays them all, and for longer.
func TestSmoke(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	dir := t.TempDir()
	binary := filepath.Join(dir, "holdfast")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../../cmd/holdfast")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	var out, log bytes.Buffer
	ok, err := run(t.Context(), []string{
		"-binary", binary, "-dir", "/tmp/holdfast-chaos-test", "-keep", "/tmp/holdfast-chaos-test-failed",
		"-rows", "1 3 4 9 11", "-seconds", "9", "-rate", "200",
	}, &out, &log)
	t.Logf("%s", out.Bytes())
	if err != nil || !ok {
		t.Errorf("failed: %v; histories are in /tmp/holdfast-chaos-test-failed\n%s", err, log.Bytes())
	}
	if n := strings.Count(out.String(), "\nchaos_") + strings.Count(out.String(), "row "); n < 10 {
		t.Errorf("%d lines of results, want one a row and its measurements", n)
	}
	if left, err := os.ReadDir("/tmp/holdfast-chaos-test"); err == nil {
		t.Errorf("it left %d files behind", len(left))
	}
}
