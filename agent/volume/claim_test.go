package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

// boundClaim returns sources with a claim that is bound to a local volume.
func boundClaim(enforce, size string) sources {
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data", UID: "c1"}}
	claim.Spec.VolumeName, claim.Status.Phase = "pv", corev1.ClaimBound
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}}
	pv.Spec.ClaimRef = &corev1.ObjectReference{Name: "data", UID: "c1"}
	pv.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
	pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{
		Driver: object.LocalProvisioner, VolumeHandle: "pv", VolumeAttributes: map[string]string{"node": "n1", "enforce": enforce},
	}
	return sources{
		claims:  map[string]*corev1.PersistentVolumeClaim{"data": claim},
		volumes: map[string]*corev1.PersistentVolume{"pv": pv},
	}
}

func claimingPod(t *testing.T, uid string) *corev1.Pod {
	pod := podWith(t, "[{name: d, persistentVolumeClaim: {claimName: data}}]")
	pod.UID = types.UID(uid)
	return pod
}

// TestClaim: what pods write to a claim's volume outlives them, and goes when it
// is to.
func TestClaim(t *testing.T) {
	m, src := newManager(t), boundClaim("none", "1Gi")
	first, second := claimingPod(t, "u1"), claimingPod(t, "u2")
	c := &corev1.Container{Name: "main", VolumeMounts: []corev1.VolumeMount{{Name: "d", MountPath: "/data"}}}
	where := func(pod *corev1.Pod) string {
		t.Helper()
		if err := m.SetUp(t.Context(), pod, src); err != nil {
			t.Fatal(err)
		}
		mounts, err := m.ContainerMounts(pod, c, src, noVariables)
		if err != nil {
			t.Fatal(err)
		}
		return mounts[0].HostPath
	}
	path := where(first)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("the volume is %v (%v), want it open to any user of a container", info, err)
	}
	if err := os.WriteFile(filepath.Join(path, "kept"), []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.TearDown("u1"); err != nil {
		t.Fatal(err)
	}
	if again := where(second); again != path {
		t.Errorf("the second pod finds the volume at %s, want %s", again, path)
	}
	if _, err := os.Stat(filepath.Join(path, "kept")); err != nil {
		t.Errorf("the end of a pod has removed the data of its claim: %v", err)
	}
	if err := m.RemoveClaim("pv"); !errors.Is(err, ErrInUse) {
		t.Errorf("removing what a pod has: error is %v, want ErrInUse", err)
	}
	if err := m.TearDown("u2"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.RemoveClaim("pv"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the data is left: %v", err)
	}
	for _, handle := range []string{"", ".", "..", "../x", "a/b", ".new"} {
		if err := m.RemoveClaim(handle); err == nil {
			t.Errorf("handle %q is taken", handle)
		}
	}
}

// TestClaimRefused: a pod gets no volume that is not its claim's, or not here.
func TestClaimRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(sources)
		want   string
	}{
		{"no claim", func(s sources) { delete(s.claims, "data") }, `volume "d": claim "data" not found`},
		{"not bound yet", func(s sources) { s.claims["data"].Status.Phase = corev1.ClaimPending }, `claim "data" is not bound to a volume yet`},
		{"no volume", func(s sources) { delete(s.volumes, "pv") }, `volume "pv" of claim "data" not found`},
		{"another's volume", func(s sources) { s.volumes["pv"].Spec.ClaimRef.UID = "c2" }, `volume "pv" is not bound to claim "data"`},
		{"nobody's volume", func(s sources) { s.volumes["pv"].Spec.ClaimRef = nil }, `volume "pv" is not bound to claim "data"`},
		{"on another node", func(s sources) { s.volumes["pv"].Spec.CSI.VolumeAttributes["node"] = "n2" }, `volume "pv" is on node n2, this is n1`},
		{"another driver", func(s sources) { s.volumes["pv"].Spec.CSI.Driver = "x" }, `volume "pv" is of a type that nodes here cannot mount`},
		{"a handle that leads out", func(s sources) { s.volumes["pv"].Spec.CSI.VolumeHandle = "../../x" }, `is no name of a directory`},
	} {
		src := boundClaim("none", "1Gi")
		c.change(src)
		if err := newManager(t).SetUp(t.Context(), claimingPod(t, "u1"), src); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want %s", c.name, err, c.want)
		}
	}
}

// TestOwn: a group gets all of a volume, and links in it lead nowhere.
func TestOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing groups needs root")
	}
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	for path, mode := range map[string]os.FileMode{outside: 0o600, filepath.Join(dir, "file"): 0o600} {
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	state := func(path string) string {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%v %d", info.Mode(), info.Sys().(*syscall.Stat_t).Gid)
	}
	before := state(outside)
	if err := own(dir, 4242, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := state(filepath.Join(dir, "file"))+", "+state(filepath.Join(dir, "sub")), "-rw-rw---- 4242, dgrwxrwx--- 4242"; got != want {
		t.Errorf("files are %s, want %s", got, want)
	}
	if got := state(outside); got != before {
		t.Errorf("what a link led to was %s and is %s", before, got)
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := own(dir, 4242, new(corev1.FSGroupChangeOnRootMismatch)); err != nil || !strings.HasPrefix(state(filepath.Join(dir, "new")), "-rw-------") {
		t.Errorf("under OnRootMismatch a file below a right top is %s (%v), want it left alone", state(filepath.Join(dir, "new")), err)
	}
}

// TestClaimImage: a size that is enforced is, and the image is mounted while pods
// have the volume and no longer.
func TestClaimImage(t *testing.T) {
	dir := t.TempDir()
	m := New(Config{Dir: dir, Node: "n1", Mounts: kernel(t, dir)})
	src := boundClaim("loop", "8Mi")
	probe := filepath.Join(t.TempDir(), "probe")
	if err := (Kernel{}).MakeImage(t.Context(), probe, 8<<20); err != nil {
		t.Fatal(err) // make test-deps installs what it takes
	}
	for round, uid := range []string{"u1", "u2"} {
		pod := claimingPod(t, uid)
		for range 2 {
			if err := m.SetUp(t.Context(), pod, src); err != nil {
				t.Fatal(err)
			}
		}
		data := filepath.Join(dir, "claims", "pv", "data")
		if got := mountpoints(t, dir); len(got) != 1 || got[0] != data {
			t.Fatalf("mounted are %v, want %s", got, data)
		}
		if info, err := os.Stat(data); err != nil || info.Mode().Perm() != 0o777 {
			t.Errorf("the top of the volume is %v (%v)", info.Mode(), err)
		}
		if round == 0 {
			err := os.WriteFile(filepath.Join(data, "big"), make([]byte, 16<<20), 0o600)
			if !errors.Is(err, unix.ENOSPC) {
				t.Errorf("16 MiB into 8: error is %v, want no space left", err)
			}
			if err := os.WriteFile(filepath.Join(data, "big"), []byte("1"), 0o600); err != nil {
				t.Error(err)
			}
		} else if kept, err := os.ReadFile(filepath.Join(data, "big")); err != nil || string(kept) != "1" {
			t.Errorf("after the volume was mounted again its file is %q (%v)", kept, err)
		}
		if err := m.TearDown(uid); err != nil {
			t.Fatal(err)
		}
		if got := mountpoints(t, dir); len(got) > 0 {
			t.Errorf("without a pod, mounted are %v", got)
		}
	}
	if err := m.RemoveClaim("pv"); err != nil {
		t.Fatal(err)
	}
}
