package client

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-io/holdfast/pki"
)

func testContext(t *testing.T, name string) Context {
	t.Helper()
	c, err := NewContext(name, []string{"10.0.0.1:7443"}, issue(t, testCA(t), pki.RoleAdmin, "admin"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConfigRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "config.yaml")
	t.Setenv(EnvConfig, path)
	t.Setenv(EnvContext, "")
	empty, err := LoadConfig("")
	if err != nil {
		t.Fatalf("a file that is not there: %v", err)
	}
	if _, err := empty.Context(""); err == nil || !strings.Contains(err.Error(), "holdfast dev") || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want the file and what to do", err)
	}
	empty.Set(testContext(t, "b"))
	empty.Set(testContext(t, "a"))
	if err := empty.Save(""); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v; want 0600: it holds a key", info.Mode(), err)
	}
	f, err := LoadConfig("")
	if err != nil {
		t.Fatal(err)
	}
	if f.Current != "b" {
		t.Errorf("current context %q, want b, the first that was set", f.Current)
	}
	for name, want := range map[string]string{"": "b", "a": "a"} {
		c, err := f.Context(name)
		if err != nil || c.Name != want {
			t.Errorf("Context(%q) = %q, %v; want %s", name, c.Name, err, want)
		}
		creds, err := c.Credentials()
		if err != nil || creds.Identity().Role != pki.RoleAdmin {
			t.Errorf("credentials of %s: %v", c.Name, err)
		}
	}
	t.Setenv(EnvContext, "a")
	if c, err := f.Context(""); err != nil || c.Name != "a" {
		t.Errorf("with %s=a: %q, %v", EnvContext, c.Name, err)
	}
	t.Setenv(EnvContext, "")
	if _, err := f.Context("c"); err == nil || !strings.Contains(err.Error(), "there are a, b") {
		t.Errorf("error %v, want the names that there are", err)
	}
	if !f.Remove("b") || f.Current != "" || f.Remove("b") {
		t.Error("Remove of the current context")
	}
	if c, err := f.Context(""); err != nil || c.Name != "a" {
		t.Errorf("with one context left: %q, %v; want it", c.Name, err)
	}
	f.Set(testContext(t, "z"))
	f.Current = ""
	if _, err := f.Context(""); err == nil || !strings.Contains(err.Error(), "choose one of a, z") {
		t.Errorf("error %v, want a choice", err)
	}
}

func TestLoadConfigRefuses(t *testing.T) {
	tests := []struct {
		name, data string
		mode       os.FileMode
		want       string
	}{
		{"readable by others", "contexts: []\n", 0o644, "chmod 600"},
		{"unknown field", "contexts: []\nkontext: x\n", 0o600, "kontext"},
		{"not YAML", "{", 0o600, "mend it"},
		{"no name", "contexts: [{peers: [a]}]\n", 0o600, "no name"},
		{"twice", "contexts: [{name: a, peers: [a]}, {name: a, peers: [a]}]\n", 0o600, "two contexts a"},
		{"no peers", "contexts: [{name: a}]\n", 0o600, "no peers"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(path, []byte(tt.data), tt.mode); err != nil {
				t.Fatal(err)
			}
			_, err := LoadConfig(path)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want the file and %q", err, tt.want)
			}
		})
	}
}

func TestContextOfAnotherCluster(t *testing.T) {
	c := testContext(t, "a")
	c.Cluster = "c-2"
	if _, err := c.Credentials(); !errors.Is(err, pki.ErrWrongCluster) {
		t.Errorf("error %v, want ErrWrongCluster", err)
	}
	c.Key = ""
	if _, err := c.Credentials(); err == nil || !strings.Contains(err.Error(), "context a") {
		t.Errorf("error %v, want the context's name", err)
	}
}

// TestUpdateConfig: many programs add their contexts at once, and none is lost.
func TestUpdateConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	c := testContext(t, "x")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			err := UpdateConfig(path, func(f *ConfigFile) error {
				c := c
				c.Name = fmt.Sprintf("c%02d", i)
				f.Set(c)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	f, err := LoadConfig(path)
	if err != nil || len(f.Contexts) != 20 {
		t.Fatalf("%d contexts, %v; want 20", len(f.Contexts), err)
	}
	failed := errors.New("no")
	err = UpdateConfig(path, func(f *ConfigFile) error {
		f.Contexts = nil
		return failed
	})
	if !errors.Is(err, failed) {
		t.Errorf("error %v", err)
	}
	if f, err := LoadConfig(path); err != nil || len(f.Contexts) != 20 {
		t.Errorf("a change that failed was saved: %d contexts, %v", len(f.Contexts), err)
	}
}
