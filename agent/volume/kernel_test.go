package volume

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// kernel skips the test without root, and unmounts at its end what it left.
func kernel(t *testing.T, dir string) Kernel {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	t.Cleanup(func() {
		if left := mountpoints(t, dir); len(left) > 0 {
			t.Errorf("mounts are left: %v", left)
		}
		if err := (Kernel{}).Unmount(dir); err != nil {
			t.Error(err)
		}
	})
	return Kernel{}
}

func mountpoints(t *testing.T, dir string) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return mountsBelow(data, dir)
}

// TestKernelVolumes: secrets and memory are in memory, of the size and mode that
// was asked for, and are not mounted twice; tearing down leaves no mount and
// removes nothing behind one.
func TestKernelVolumes(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	m := New(Config{Dir: dir, Node: "n1", Mounts: kernel(t, dir)})
	pod := podWith(t, `
- {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
- {name: password, secret: {secretName: s}}
- {name: settings, configMap: {name: cm}}
- {name: work, emptyDir: {}}
- {name: node, hostPath: {path: `+outside+`}}
`)
	group := int64(4242)
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group}
	for range 2 {
		if err := m.SetUp(t.Context(), pod, someSources()); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{m.path(pod, "memory"), m.path(pod, "password")}
	if got := mountpoints(t, dir); !slices.Equal(got, want) {
		t.Errorf("mounted are %v, want %v", got, want)
	}
	err := os.WriteFile(filepath.Join(m.path(pod, "memory"), "big"), make([]byte, 2<<20), 0o600)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("2 MiB into memory of 1 MiB: error is %v, want no space left", err)
	}
	for name, mode := range map[string]fs.FileMode{"memory": 0o777, "work": 0o777} {
		info, err := os.Stat(m.path(pod, name))
		if err != nil {
			t.Fatal(err)
		}
		if stat := new(unix.Stat_t); unix.Stat(m.path(pod, name), stat) != nil || stat.Gid != 4242 || info.Mode() != fs.ModeDir|fs.ModeSetgid|mode {
			t.Errorf("%s is %v of group %d, want it open to the fsGroup", name, info.Mode(), stat.Gid)
		}
	}
	if stat := new(unix.Stat_t); unix.Stat(filepath.Join(m.path(pod, "password"), "key"), stat) != nil || stat.Gid != 4242 || stat.Mode&0o777 != 0o644 {
		t.Errorf("a secret's file is %o of group %d", stat.Mode, stat.Gid)
	}

	// A part of a hostPath, bound below the pod's directory.
	if err := os.Mkdir(filepath.Join(outside, "part"), 0o755); err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(outside, "part", "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := &corev1.Container{Name: "main", VolumeMounts: []corev1.VolumeMount{
		{Name: "node", MountPath: "/part", SubPath: "part"},
		{Name: "settings", MountPath: "/a", SubPath: "a"},
	}}
	for range 2 { // a second run of the container
		mounts, err := m.ContainerMounts(pod, c, someSources(), noVariables)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(mounts[0].HostPath, "precious")); err != nil {
			t.Error(err)
		}
		if data, err := os.ReadFile(mounts[1].HostPath); err != nil || string(data) != "1" {
			t.Errorf("the bound file is %q (%v)", data, err)
		}
		// The container swaps the directory for a link: what is bound stays what it was.
		if err := os.Rename(filepath.Join(outside, "part"), filepath.Join(outside, "moved")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/etc", filepath.Join(outside, "part")); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(mounts[0].HostPath, "precious")); err != nil {
			t.Errorf("after the swap: %v", err)
		}
		if _, err := m.ContainerMounts(pod, c, someSources(), noVariables); err == nil {
			t.Error("a subPath that became a link to /etc is mounted")
		}
		if err := os.Remove(filepath.Join(outside, "part")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(outside, "moved"), filepath.Join(outside, "part")); err != nil {
			t.Fatal(err)
		}
	}
	// What a container has mounted in its volume, and what lies over it.
	inner := filepath.Join(m.path(pod, "work"), "inner")
	for range 2 {
		if err := os.MkdirAll(inner, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(outside, inner, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.TearDown("u1"); err != nil {
		t.Fatal(err)
	}
	if got := mountpoints(t, dir); len(got) > 0 {
		t.Errorf("after the end, mounted are %v", got)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Errorf("the end of a pod has removed what was not its own: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
}

func TestMountsBelow(t *testing.T) {
	const info = `22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
30 22 0:30 / /data/volumes/u1/volumes/a rw - tmpfs tmpfs rw
31 22 0:31 / /data/volumes/u10/volumes/a rw - tmpfs tmpfs rw
32 22 8:1 /x /data/volumes/u1/with\040space rw - ext4 /dev/sda1 rw
`
	if got, want := mountsBelow([]byte(info), "/data/volumes/u1"), []string{"/data/volumes/u1/volumes/a", "/data/volumes/u1/with space"}; !slices.Equal(got, want) {
		t.Errorf("mounts below are %q, want %q", got, want)
	}
}
