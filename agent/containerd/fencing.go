package containerd

import (
	"os"
	"path/filepath"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

var _ runtime.Cgroups = (*Runtime)(nil)

// NodeCgroup implements [runtime.Cgroups].
func (r *Runtime) NodeCgroup() string { return r.cgroup }

// PodCgroup implements [runtime.Cgroups].
func (r *Runtime) PodCgroup(uid string) string { return r.podCgroup(uid) }

// InstallProgram implements [runtime.Cgroups].
func (r *Runtime) InstallProgram(name string) (string, error) {
	dir := filepath.Join(r.cfg.Root, "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	return path, installProgram(path, r.cfg.Program)
}
