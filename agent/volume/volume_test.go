package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// sources are what a test's pod can name.
type sources struct {
	configMaps map[string]*corev1.ConfigMap
	secrets    map[string]*corev1.Secret
	claims     map[string]*corev1.PersistentVolumeClaim
	volumes    map[string]*corev1.PersistentVolume
	tokens     map[string]string // by audience
}

func (s sources) ConfigMap(name string) *corev1.ConfigMap         { return s.configMaps[name] }
func (s sources) Secret(name string) *corev1.Secret               { return s.secrets[name] }
func (s sources) Claim(name string) *corev1.PersistentVolumeClaim { return s.claims[name] }
func (s sources) Volume(name string) *corev1.PersistentVolume     { return s.volumes[name] }
func (s sources) Token(p *corev1.ServiceAccountTokenProjection) (text, version string) {
	return s.tokens[p.Audience], s.tokens[p.Audience]
}
func (s sources) Field(path string) (string, error) { return "<" + path + ">", nil }
func (s sources) Resource(ref *corev1.ResourceFieldSelector) (string, error) {
	return "<" + ref.ContainerName + " " + ref.Resource + ">", nil
}

func someSources() sources {
	return sources{
		configMaps: map[string]*corev1.ConfigMap{
			"cm": {ObjectMeta: metav1.ObjectMeta{ResourceVersion: "1"}, Data: map[string]string{"a": "1", "b": "2"}, BinaryData: map[string][]byte{"bin": {0, 1}}},
		},
		secrets: map[string]*corev1.Secret{"s": {ObjectMeta: metav1.ObjectMeta{ResourceVersion: "1"}, Data: map[string][]byte{"key": []byte("hunter2")}}},
	}
}

// podWith returns a pod of which the volumes are given as YAML.
func podWith(t *testing.T, volumes string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "default", Name: "web", UID: "u1",
		Labels: map[string]string{"b": "2", "a": "1"}, Annotations: map[string]string{"note": "line 1\nline \"2\""},
	}}
	if err := yaml.UnmarshalStrict([]byte(volumes), &pod.Spec.Volumes); err != nil {
		t.Fatal(err)
	}
	return pod
}

func filesText(files map[string]file) string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		lines = append(lines, fmt.Sprintf("%s %o %q", name, files[name].mode, files[name].data))
	}
	return strings.Join(lines, "\n")
}

// TestContent: which files a volume shows.
func TestContent(t *testing.T) {
	for _, c := range []struct{ name, volume, want, err string }{
		{"all of a config map", "configMap: {name: cm}", "a 644 \"1\"\nb 644 \"2\"\nbin 644 \"\\x00\\x01\"", ""},
		{"items of it, with modes", "configMap: {name: cm, defaultMode: 0600, items: [{key: a, path: d/e}, {key: b, path: x, mode: 0400}]}", "d/e 600 \"1\"\nx 400 \"2\"", ""},
		{"an item that is not there", "configMap: {name: cm, items: [{key: z, path: z}]}", "", `key "z" of configmap "cm" not found`},
		{"one that need not be there", "configMap: {name: cm, optional: true, items: [{key: z, path: z}, {key: a, path: a}]}", `a 644 "1"`, ""},
		{"a config map that is not there", "configMap: {name: none}", "", `configmap "none" not found`},
		{"and need not be", "configMap: {name: none, optional: true}", "", ""},
		{"a secret", "secret: {secretName: s, defaultMode: 0400}", `key 400 "hunter2"`, ""},
		{"a secret that is not there", "secret: {secretName: none}", "", `secret "none" not found`},
		{"the downward API", `
downwardAPI:
  defaultMode: 0640
  items:
  - {path: labels, fieldRef: {fieldPath: metadata.labels}}
  - {path: annotations, fieldRef: {fieldPath: metadata.annotations}}
  - {path: name, mode: 0444, fieldRef: {fieldPath: metadata.name}}
  - {path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu}}
`, `annotations 640 "note=\"line 1\\nline \\\"2\\\"\""
cpu 640 "<main limits.cpu>"
labels 640 "a=\"1\"\nb=\"2\""
name 444 "<metadata.name>"`, ""},
		{"a projection of all, later ones over earlier", `
projected:
  defaultMode: 0440
  sources:
  - configMap: {name: cm, items: [{key: a, path: same}, {key: b, path: d/b, mode: 0600}]}
  - secret: {name: s, items: [{key: key, path: same}]}
  - secret: {name: none, optional: true}
  - downwardAPI: {items: [{path: d/name, fieldRef: {fieldPath: metadata.name}}]}
`, "d/b 600 \"2\"\nd/name 440 \"<metadata.name>\"\nsame 440 \"hunter2\"", ""},
		{"a projection that lacks something", "projected: {sources: [{secret: {name: none}}]}", "", `secret "none" not found`},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := podWith(t, "[{name: v}]")
			if err := yaml.UnmarshalStrict([]byte(c.volume), &pod.Spec.Volumes[0].VolumeSource); err != nil {
				t.Fatal(err)
			}
			files, err := content(pod, &pod.Spec.Volumes[0], someSources())
			if c.err != "" {
				if !errors.Is(err, ErrMissing) || err.Error() != c.err {
					t.Errorf("error is %v, want %s", err, c.err)
				}
				return
			}
			if got := filesText(files); err != nil || got != c.want {
				t.Errorf("files are\n%s\n(%v), want\n%s", got, err, c.want)
			}
		})
	}
}

// TestKey: the key changes with what is shown and with nothing else.
func TestKey(t *testing.T) {
	pod := podWith(t, "[{name: a, configMap: {name: cm}}, {name: b, projected: {sources: [{secret: {name: s}}, {downwardAPI: {}}]}}]")
	src := someSources()
	first := Key(pod, src)
	again := pod.DeepCopy()
	again.ResourceVersion, again.Status.Phase = "99", corev1.PodRunning
	if Key(again, src) != first {
		t.Error("a new status of the pod changes the key")
	}
	keys := map[string]string{"nothing": first}
	expect := func(what string, key string) {
		for before, k := range keys {
			if k == key {
				t.Errorf("%s: the key is that of %s", what, before)
			}
		}
		keys[what] = key
	}
	src.configMaps["cm"].ResourceVersion = "2"
	expect("another config map", Key(pod, src))
	src.secrets["s"].ResourceVersion = "2"
	expect("another secret", Key(pod, src))
	delete(src.secrets, "s")
	expect("no secret", Key(pod, src))
	pod.Labels["c"] = "3"
	expect("another label", Key(pod, src))
	plain := podWith(t, "[{name: a, emptyDir: {}}]")
	if Key(plain, src) != "" {
		t.Error("a pod that shows nothing has a key")
	}
}

// shown returns what a reader finds in a volume.
func shown(t *testing.T, dir string) string {
	t.Helper()
	files := map[string]file{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var walk func(name string)
	walk = func(name string) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("%s cannot be read: %v", name, err)
			return
		}
		if !info.IsDir() {
			data, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Error(err)
			}
			files[name] = file{data: data, mode: info.Mode()}
			return
		}
		below, err := os.ReadDir(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		}
		for _, e := range below {
			walk(filepath.Join(name, e.Name()))
		}
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") {
			walk(e.Name())
		}
	}
	return filesText(files)
}

func generations(t *testing.T, dir string) int {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, generationPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(found)
}

// TestWrite: files appear, change and go; the generation before stays until the
// next change; an equal content changes nothing.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	must := func(what string, files map[string]file, wantChanged bool, wantGenerations int) {
		t.Helper()
		changed, err := write(dir, files, nil)
		if err != nil || changed != wantChanged {
			t.Fatalf("%s: changed is %v (%v), want %v", what, changed, err, wantChanged)
		}
		if got, want := shown(t, dir), filesText(files); got != want {
			t.Errorf("%s: shown are\n%s\nwant\n%s", what, got, want)
		}
		if got := generations(t, dir); got != wantGenerations {
			t.Errorf("%s: %d generations, want %d", what, got, wantGenerations)
		}
	}
	f := func(data string, mode fs.FileMode) file { return file{data: []byte(data), mode: mode} }
	must("nothing", nil, true, 1)
	must("nothing again", nil, false, 1)
	must("some", map[string]file{"a": f("1", 0o644), "d/e/f": f("2", 0o600), "d/g": f("3", 0o400)}, true, 2)
	must("the same", map[string]file{"a": f("1", 0o644), "d/e/f": f("2", 0o600), "d/g": f("3", 0o400)}, false, 2)
	must("another mode", map[string]file{"a": f("1", 0o640), "d/e/f": f("2", 0o600), "d/g": f("3", 0o400)}, true, 2)
	must("another value of the same size", map[string]file{"a": f("9", 0o640), "d/e/f": f("2", 0o600), "d/g": f("3", 0o400)}, true, 2)
	must("one less", map[string]file{"a": f("9", 0o640)}, true, 2)
	must("a directory becomes a file", map[string]file{"d": f("x", 0o644)}, true, 2)

	// What a crash leaves is made good: half a generation, a link that was not
	// renamed, a name that leads nowhere, one that is missing.
	want := map[string]file{"d": f("x", 0o644)}
	if err := os.Symlink("nowhere", filepath.Join(dir, "..data_tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "..2020_01_01_00_00_00.1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..data/old", filepath.Join(dir, "old")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "d")); err != nil {
		t.Fatal(err)
	}
	must("after a crash", want, false, 3)
	must("and the next change", map[string]file{"d": f("y", 0o644)}, true, 2)

	for _, name := range []string{"../x", "/x", "a/../../x", "..data"} {
		if _, err := write(dir, map[string]file{name: f("", 0o644)}, nil); err == nil {
			t.Errorf("file %q is taken", name)
		}
	}
}

// TestWriteIsAtomic: a reader that goes on while the files change sees all of one
// generation.
func TestWriteIsAtomic(t *testing.T) {
	dir := t.TempDir()
	both := func(i int) map[string]file {
		f := file{data: fmt.Append(nil, i), mode: 0o644}
		return map[string]file{"a": f, "b": f}
	}
	if _, err := write(dir, both(0), nil); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		for i := range 100 {
			if _, err := write(dir, both(i+1), nil); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	for reads := 0; ; reads++ {
		generation, err := os.Readlink(filepath.Join(dir, dataLink))
		if err != nil {
			t.Fatalf("after %d reads: %v", reads, err)
		}
		a, erra := os.ReadFile(filepath.Join(dir, generation, "a"))
		b, errb := os.ReadFile(filepath.Join(dir, generation, "b"))
		// A reader that is two changes late finds its generation gone, and starts over.
		if erra == nil && errb == nil && string(a) != string(b) {
			t.Fatalf("one generation has %q and %q", a, b)
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
		}
	}
}

func newManager(t *testing.T) *Manager {
	return New(Config{Dir: filepath.Join(t.TempDir(), "volumes"), Node: "n1", Mounts: Folders{}})
}

// TestSetUp: volumes are made, brought up to date, and removed.
func TestSetUp(t *testing.T) {
	m, src := newManager(t), someSources()
	pod := podWith(t, `
- {name: work, emptyDir: {}}
- {name: open, emptyDir: {mode: 0o1777}}
- {name: settings, configMap: {name: cm, items: [{key: a, path: a}]}}
- {name: password, secret: {secretName: s}}
`)
	if err := m.SetUp(t.Context(), pod, src); err != nil {
		t.Fatal(err)
	}
	mode := func(path string) fs.FileMode {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode()
	}
	if got := mode(m.path(pod, "work")); got != fs.ModeDir|0o777 {
		t.Errorf("an emptyDir is %v", got)
	}
	if got := mode(m.path(pod, "open")); got != fs.ModeDir|fs.ModeSticky|0o777 {
		t.Errorf("an emptyDir of mode 1777 is %v", got)
	}
	kept := filepath.Join(m.path(pod, "work"), "kept")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	src.configMaps["cm"].Data["a"] = "changed"
	src.secrets["s"].Data = map[string][]byte{"other": []byte("x")}
	if err := m.SetUp(t.Context(), pod, src); err != nil {
		t.Fatal(err)
	}
	if got := shown(t, m.path(pod, "settings")) + ", " + shown(t, m.path(pod, "password")); got != `a 644 "changed", other 644 "x"` {
		t.Errorf("after a change, shown are %s", got)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("what the pod wrote is gone: %v", err)
	}
	// What an object that went away had shown stays, and the error says what is missing.
	delete(src.configMaps, "cm")
	if err := m.SetUp(t.Context(), pod, src); !errors.Is(err, ErrMissing) || err.Error() != `volume "settings": configmap "cm" not found` {
		t.Errorf("without its config map the error is %v", err)
	}
	if got := shown(t, m.path(pod, "settings")); got != `a 644 "changed"` {
		t.Errorf("without its config map, shown is %s", got)
	}
	if uids, err := m.List(); err != nil || !slices.Equal(uids, []string{"u1"}) {
		t.Errorf("listed are %v (%v)", uids, err)
	}
	for range 2 {
		if err := m.TearDown("u1"); err != nil {
			t.Fatal(err)
		}
	}
	if uids, err := m.List(); err != nil || len(uids) > 0 {
		t.Errorf("left are %v (%v)", uids, err)
	}
}

// TestHostPath: what each type takes, refuses and makes.
func TestHostPath(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := os.Symlink(filepath.Join(dir, "file"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	const ok = ""
	for _, c := range []struct {
		path string
		kind corev1.HostPathType
		err  string
	}{
		{"file", "", ok},
		{"new", "", ok},
		{"new", corev1.HostPathDirectory, ok},
		{"a/b/c", corev1.HostPathDirectoryOrCreate, ok},
		{"file", corev1.HostPathDirectoryOrCreate, "is not of type DirectoryOrCreate"},
		{"file", corev1.HostPathFile, ok},
		{"link", corev1.HostPathFile, ok},
		{".", corev1.HostPathFile, "is not of type File"},
		{"none", corev1.HostPathFile, "no such file"},
		{"none", corev1.HostPathDirectory, "no such file"},
		{"new-file", corev1.HostPathFileOrCreate, ok},
		{"new-file", corev1.HostPathFile, ok},
		{"nowhere/file", corev1.HostPathFileOrCreate, "no such file"},
		{"socket", corev1.HostPathSocket, ok},
		{"file", corev1.HostPathSocket, "is not of type Socket"},
		{"/dev/null", corev1.HostPathCharDev, ok},
		{"/dev/null", corev1.HostPathBlockDev, "is not of type BlockDevice"},
	} {
		path := c.path
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		err := hostPath(&corev1.HostPathVolumeSource{Path: path, Type: &c.kind})
		if (err == nil) != (c.err == ok) || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s of type %q: error is %v, want %q", c.path, c.kind, err, c.err)
		}
	}
}

func noVariables(s string) (string, error) { return strings.ReplaceAll(s, "$(POD)", "web"), nil }

// TestContainerMounts: what is mounted where, and how.
func TestContainerMounts(t *testing.T) {
	m, src := newManager(t), someSources()
	outside := t.TempDir()
	pod := podWith(t, `
- {name: work, emptyDir: {}}
- {name: settings, configMap: {name: cm}}
- {name: node, hostPath: {path: `+outside+`}}
`)
	if err := m.SetUp(t.Context(), pod, src); err != nil {
		t.Fatal(err)
	}
	var c corev1.Container
	if err := yaml.UnmarshalStrict([]byte(`
name: main
volumeMounts:
- {name: work, mountPath: /work}
- {name: work, mountPath: relative, readOnly: true, mountPropagation: HostToContainer}
- {name: settings, mountPath: /etc/settings}
- {name: settings, mountPath: /etc/a.conf, subPath: a}
- {name: work, mountPath: /sub, subPath: made/by/us}
- {name: node, mountPath: /node, mountPropagation: Bidirectional}
- {name: work, mountPath: /expr, subPathExpr: logs/$(POD)}
`), &c); err != nil {
		t.Fatal(err)
	}
	mounts, err := m.ContainerMounts(pod, &c, src, noVariables)
	if err != nil {
		t.Fatal(err)
	}
	generation, err := os.Readlink(filepath.Join(m.path(pod, "settings"), dataLink))
	if err != nil {
		t.Fatal(err)
	}
	base := m.podDir("u1") + "/volumes"
	var got []string
	for _, mount := range mounts {
		got = append(got, fmt.Sprintf("%s at %s ro=%v %s", strings.ReplaceAll(strings.ReplaceAll(mount.HostPath, generation, "GENERATION"), base, "VOLUMES"), mount.ContainerPath, mount.ReadOnly, mount.Propagation))
	}
	want := []string{
		"VOLUMES/work at /work ro=false ",
		"VOLUMES/work at /relative ro=true rslave",
		"VOLUMES/settings at /etc/settings ro=true ",
		"VOLUMES/settings/GENERATION/a at /etc/a.conf ro=true ",
		"VOLUMES/work/made/by/us at /sub ro=false ",
		outside + " at /node ro=false rshared",
		"VOLUMES/work/logs/web at /expr ro=false ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("mounts are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if info, err := os.Stat(filepath.Join(m.path(pod, "work"), "made/by")); err != nil || info.Mode() != fs.ModeDir|0o777 {
		t.Errorf("a subPath's directory is %v (%v), want the volume's mode", info.Mode(), err)
	}
}

// TestSubPathStaysInside: no link and no name leads a subPath out of its volume.
func TestSubPathStaysInside(t *testing.T) {
	m := newManager(t)
	pod := podWith(t, "[{name: work, emptyDir: {}}, {name: settings, configMap: {name: cm, optional: true}}]")
	if err := m.SetUp(t.Context(), pod, someSources()); err != nil {
		t.Fatal(err)
	}
	root := m.path(pod, "work")
	for _, d := range []string{"inside", "deep/er"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{
		"absolute": "/etc", "up": "../../..", "deep/up": "../../work/inside", "good": "inside", "deep/good": "../inside",
		"chain": "deep/up", "proc": "/proc/self/root", "dangling": "/nowhere", "to-new": "../outside-new",
	} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ sub, want string }{
		{"inside", "inside"},
		{"good", "inside"},
		{"deep/good", "inside"},
		{"good/new/dir", "inside/new/dir"},
		{"absolute", ""},
		{"absolute/passwd", ""},
		{"up", ""},
		{"up/x", ""},
		{"deep/up", ""},
		{"chain", ""},
		{"proc/etc", ""},
		{"dangling", ""},
		{"dangling/x", ""},
		{"to-new", ""},
		{"to-new/x", ""},
		{"..", ""},
		{"../settings", ""},
		{"/etc", ""},
		{"inside/../../x", ""},
	} {
		got, err := m.subPath(root, c.sub, filepath.Join(t.TempDir(), "target"), true)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("subPath %q leads to %s, want it refused", c.sub, got)
		case c.want != "" && (err != nil || got != filepath.Join(root, c.want)):
			t.Errorf("subPath %q leads to %q (%v), want %s", c.sub, got, err, c.want)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "../outside-new")); err == nil {
		t.Error("a directory was made outside of the volume")
	}
	// A file that is not shown is not made.
	if _, err := m.subPath(m.path(pod, "settings"), "none", "", false); !errors.Is(err, ErrMissing) {
		t.Errorf("a subPath of a config map without that key: error is %v", err)
	}
}

// TestUsage: what counts, and what does not.
func TestUsage(t *testing.T) {
	m := newManager(t)
	pod := podWith(t, `
- {name: work, emptyDir: {sizeLimit: 1Mi}}
- {name: memory, emptyDir: {medium: Memory}}
- {name: settings, configMap: {name: cm}}
`)
	if err := m.SetUp(t.Context(), pod, someSources()); err != nil {
		t.Fatal(err)
	}
	before, err := m.Usage(context.Background(), pod, nil)
	if err != nil || len(before) != 1 || before[0].Volume != "work" || before[0].Limit != 1<<20 {
		t.Fatalf("usage is %+v (%v), want that of the emptyDir on disk", before, err)
	}
	big := filepath.Join(m.path(pod, "work"), "big")
	if err := os.WriteFile(big, make([]byte, 256<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(big, big+"-too"); err != nil {
		t.Fatal(err)
	}
	after, err := m.Usage(context.Background(), pod, nil)
	if grown := after[0].Bytes - before[0].Bytes; err != nil || grown < 256<<10 || grown > 300<<10 {
		t.Errorf("a file of 256 KiB with two names adds %d bytes (%v)", grown, err)
	}
}

func TestMemorySize(t *testing.T) {
	limited := func(limits ...string) *corev1.Pod {
		pod := &corev1.Pod{}
		for _, l := range limits {
			c := corev1.Container{}
			if l != "" {
				c.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(l)}
			}
			pod.Spec.Containers = append(pod.Spec.Containers, c)
		}
		return pod
	}
	for _, c := range []struct {
		pod   *corev1.Pod
		limit string
		want  int64
	}{
		{limited(""), "", 0},
		{limited(""), "1Mi", 1 << 20},
		{limited("2Mi", "3Mi"), "", 5 << 20},
		{limited("2Mi", "3Mi"), "1Mi", 1 << 20},
		{limited("2Mi"), "1Gi", 2 << 20},
		{limited("2Mi", ""), "", 0},
	} {
		e := &corev1.EmptyDirVolumeSource{}
		if c.limit != "" {
			e.SizeLimit = new(resource.MustParse(c.limit))
		}
		if got := memorySize(c.pod, e); got != c.want {
			t.Errorf("with limit %q the size is %d, want %d", c.limit, got, c.want)
		}
	}
}
