package datadir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLockKeepsOthersOut(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	lock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir); err == nil || !strings.Contains(err.Error(), "in use by another holdfast process") {
		t.Fatalf("second lock: %v, want a refusal that says why", err)
	}
	lock.Close()
	again, err := Lock(dir)
	if err != nil {
		t.Fatalf("lock after the first was closed: %v", err)
	}
	again.Close()
}

func TestWriteFileIsPrivateAndLeavesNothingBehind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	for _, content := range []string{"one", "two"} {
		if err := WriteFile(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Fatalf("read %q, %v; want %q", got, err, content)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, want 0600", info.Mode().Perm())
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("directory holds %v (%v), want the one file", entries, err)
	}
}

func TestReadJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.json")
	var got struct{ Name string }
	if ok, err := ReadJSON(path, &got, "delete it"); ok || err != nil {
		t.Fatalf("missing file: %v, %v; want false and no error", ok, err)
	}
	if err := WriteJSON(path, struct{ Name string }{"p1"}); err != nil {
		t.Fatal(err)
	}
	if ok, err := ReadJSON(path, &got, "delete it"); !ok || err != nil || got.Name != "p1" {
		t.Fatalf("got %v %v %+v, want p1", ok, err, got)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadJSON(path, &got, "delete it"); err == nil || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), "delete it") {
		t.Fatalf("damaged file: %v, want what is wrong and what to do", err)
	}
}
