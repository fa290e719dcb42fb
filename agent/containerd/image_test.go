package containerd

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/internal/ociimage"
)

func writeArchive(t *testing.T, path string, compress bool, images ...ociimage.Image) {
	t.Helper()
	var buf bytes.Buffer
	if err := ociimage.Write(&buf, images...); err != nil {
		t.Fatal(err)
	}
	data := buf.Bytes()
	if compress {
		var zipped bytes.Buffer
		w := gzip.NewWriter(&zipped)
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		data = zipped.Bytes()
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func small(ref, text string) ociimage.Image {
	return ociimage.Image{Ref: ref, Files: map[string]ociimage.File{"/text": {Data: []byte(text)}}}
}

// TestImageDirs covers images that come as files: found at the start and later,
// under every name they may be asked by, and replaced by newer files.
func TestImageDirs(t *testing.T) {
	n, cfg := newNode(t)
	dir := cfg.ImageDirs[0]
	ensure := func(ref string, policy corev1.PullPolicy) (runtime.Image, error) {
		return n.EnsureImage(n.ctx(), ref, policy, nil)
	}
	for _, ref := range []string{"box:1", "library/box:1", "docker.io/library/box:1"} {
		img, err := ensure(ref, corev1.PullNever)
		if err != nil || img.Ref != ref || !strings.HasPrefix(img.Digest, "sha256:") {
			t.Errorf("%s: %+v, error %v", ref, img, err)
		}
	}
	if _, err := ensure("late", corev1.PullNever); !errors.Is(err, runtime.ErrImageNeverPull) {
		t.Errorf("an image that is not there: error %v, want ErrImageNeverPull", err)
	}
	writeArchive(t, filepath.Join(dir, "late.tgz"), true, small("late:latest", "first"))
	first, err := ensure("late", corev1.PullIfNotPresent)
	if err != nil {
		t.Fatalf("a file that came later, compressed, asked for without a tag: %v", err)
	}
	writeArchive(t, filepath.Join(dir, "other.tar"), false, small("example.test:5000/team/app:2", "app"))
	if _, err := ensure("example.test:5000/team/app:2", corev1.PullIfNotPresent); err != nil {
		t.Errorf("an image of another registry, from a file: %v", err)
	}

	// A newer file of the same image counts for Always, and only for that.
	path := filepath.Join(dir, "late.tgz")
	writeArchive(t, path, true, small("late:latest", "second"))
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if img, err := ensure("late", corev1.PullIfNotPresent); err != nil || img != first {
		t.Errorf("IfNotPresent gives %+v, error %v; want what was there, %+v", img, err, first)
	}
	second, err := ensure("late", corev1.PullAlways)
	if err != nil || second.Digest == first.Digest {
		t.Errorf("Always gives %+v, error %v; want the newer file's image", second, err)
	}

	// A file that is not (yet) an image does not keep others from being found.
	if err := os.WriteFile(filepath.Join(dir, "a-half.tar"), []byte("half a file"), 0o644); err != nil {
		t.Fatal(err)
	}
	writeArchive(t, filepath.Join(dir, "z.tar"), false, small("after:1", "after"))
	if _, err := ensure("after:1", corev1.PullNever); err != nil {
		t.Errorf("an image beside a broken file: %v", err)
	}
}

// TestImportOnce makes sure that a start does not read again what it has.
func TestImportOnce(t *testing.T) {
	cfg := testConfig(t)
	r, stop := start(t, cfg)
	if _, err := r.EnsureImage(testContext(t), "box:1", corev1.PullNever, nil); err != nil {
		t.Fatal(err)
	}
	stop()
	// Were it read again, it would be found to be no image any more.
	path := filepath.Join(cfg.ImageDirs[0], "box.tar")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, info.Size()), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, info.ModTime()); err != nil {
		t.Fatal(err)
	}
	r, _ = start(t, cfg)
	if err := r.images.importDirs(r.containerdContext(testContext(t))); err != nil {
		t.Errorf("the unchanged archive was read again: %v", err)
	}
}

func TestPull(t *testing.T) {
	n, _ := newNode(t)
	registry := serveRegistry(t, "team/box:7")
	var said []string
	img, err := n.EnsureImage(n.ctx(), registry+"/team/box:7", corev1.PullIfNotPresent, func(s string) { said = append(said, s) })
	if err != nil {
		t.Fatal(err)
	}
	if len(said) != 2 || !strings.HasPrefix(said[0], "pulling ") || !strings.HasPrefix(said[1], "pulled ") {
		t.Errorf("progress is %q", said)
	}
	if again, err := n.EnsureImage(n.ctx(), registry+"/team/box@"+img.Digest, corev1.PullIfNotPresent, nil); err != nil || again.Digest != img.Digest {
		t.Errorf("by digest: %+v, error %v", again, err)
	}
	n.pod("p")
	log, state := n.finished("p", "main", "echo runs", func(c *runtime.Container) { c.Image = registry + "/team/box:7" })
	if log != "runs\n" || state.ImageID != img.Digest {
		t.Errorf("a container of the pulled image logs %q and is %+v", log, state)
	}
	_, err = n.EnsureImage(n.ctx(), registry+"/team/none:1", corev1.PullIfNotPresent, nil)
	if err == nil || !strings.Contains(err.Error(), "not found") || !strings.Contains(err.Error(), "team/none:1") {
		t.Errorf("an image that the registry does not have: error %v", err)
	}
	if _, err := n.EnsureImage(n.ctx(), "No Such Name", corev1.PullIfNotPresent, nil); err == nil || !strings.Contains(err.Error(), `"No Such Name"`) {
		t.Errorf("a reference that is none: error %v", err)
	}
}

// TestCollectedSnapshot: a container starts though the snapshot of its image was
// collected after the image was found.
func TestCollectedSnapshot(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p")
	if _, err := n.EnsureImage(n.ctx(), "box:1", corev1.PullIfNotPresent, nil); err != nil {
		t.Fatal(err)
	}
	info, err := n.images.info(n.ctx(), "box:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.client.SnapshotService(n.cfg.Snapshotter).Remove(n.ctx(), info.chainID); err != nil {
		t.Fatal(err)
	}
	err = n.RunContainer(n.ctx(), runtime.Container{
		ID: runtime.ContainerID{PodUID: "p", Name: "main"}, Image: "box:1", Command: []string{"sh", "-c", "echo runs"},
	})
	if err != nil {
		t.Error(err)
	}
}

// TestPullWithCredentials: the registry is shown one credential after the other, and
// a mirror none of them.
func TestPullWithCredentials(t *testing.T) {
	n, _ := newNode(t)
	var mu sync.Mutex
	var shown []string
	registry := serveRegistryBy(t, "private/box:1", func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			user, password, given := r.BasicAuth()
			mu.Lock()
			if given && !slices.Contains(shown, user) {
				shown = append(shown, user)
			}
			mu.Unlock()
			if user != "right" || password != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				http.Error(w, "who are you?", http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	ref := registry + "/private/box:1"
	for _, credentials := range [][]runtime.Credential{nil, {{Username: "wrong", Password: "x"}}} {
		if _, err := n.EnsureImage(n.ctx(), ref, corev1.PullIfNotPresent, nil, credentials...); err == nil {
			t.Errorf("the image came with credentials %v", credentials)
		} else if !strings.Contains(err.Error(), "401") && !strings.Contains(err.Error(), "authorization") && !strings.Contains(err.Error(), "credentials") {
			t.Errorf("with credentials %v the error is %q, which does not say why", credentials, err)
		}
	}
	if _, err := n.EnsureImage(n.ctx(), ref, corev1.PullIfNotPresent, nil, runtime.Credential{Username: "old", Password: "x"}, runtime.Credential{Username: "right", Password: "secret"}); err != nil {
		t.Errorf("with the right one as the second: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if got := strings.Join(shown, " "); got != "wrong old right" {
		t.Errorf("the registry was shown %q", got)
	}
}

// TestPullByMirror: what a registry's hosts.toml says is done.
func TestPullByMirror(t *testing.T) {
	cfg := testConfig(t)
	cfg.RegistryDir = t.TempDir()
	given := make(chan string, 100)
	mirror := serveRegistryBy(t, "team/box:7", func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			given <- r.Header.Get("Authorization")
			next.ServeHTTP(w, r)
		})
	})
	dir := filepath.Join(cfg.RegistryDir, "registry.example")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	hosts := fmt.Sprintf("server = \"http://127.0.0.1:1\"\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o644); err != nil {
		t.Fatal(err)
	}
	r, _ := start(t, cfg)
	if _, err := r.EnsureImage(testContext(t), "registry.example/team/box:7", corev1.PullIfNotPresent, nil, runtime.Credential{Username: "u", Password: "p"}); err != nil {
		t.Fatal(err)
	}
	close(given)
	for authorization := range given {
		if authorization != "" {
			t.Fatalf("the mirror was shown %q", authorization)
		}
	}
}

// TestPullOnce: pods that want an image at the same time have it fetched once.
func TestPullOnce(t *testing.T) {
	cfg := testConfig(t)
	cfg.ImageDirs = nil // which have the same
	r, _ := start(t, cfg)
	n := node{r, t}
	var mu sync.Mutex
	fetched := map[string]int{}
	registry := serveRegistryBy(t, "team/box:7", func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				mu.Lock()
				fetched[r.URL.Path]++
				mu.Unlock()
			}
			next.ServeHTTP(w, r)
		})
	})
	var pulls sync.WaitGroup
	for range 8 {
		pulls.Go(func() {
			if _, err := n.EnsureImage(n.ctx(), registry+"/team/box:7", corev1.PullIfNotPresent, nil); err != nil {
				t.Error(err)
			}
		})
	}
	pulls.Wait()
	if len(fetched) == 0 {
		t.Error("nothing was fetched")
	}
	for path, times := range fetched {
		if times != 1 {
			t.Errorf("%s was fetched %d times", path, times)
		}
	}
}

// TestPullCorrupt: what is not what its digest says is refused, and the image comes
// once the registry is well.
func TestPullCorrupt(t *testing.T) {
	cfg := testConfig(t)
	cfg.ImageDirs = nil // which have the same
	r, _ := start(t, cfg)
	n := node{r, t}
	var well atomic.Bool
	registry := serveRegistryBy(t, "team/box:7", func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !well.Load() && strings.Contains(r.URL.Path, "/blobs/") {
				w = &spoiler{ResponseWriter: w}
			}
			next.ServeHTTP(w, r)
		})
	})
	_, err := n.EnsureImage(n.ctx(), registry+"/team/box:7", corev1.PullIfNotPresent, nil)
	if err == nil || !strings.Contains(err.Error(), "sha256:") {
		t.Fatalf("a spoiled image: error %v, want one that names the digest", err)
	}
	all, err := n.Images(n.ctx())
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range all {
		if strings.Contains(strings.Join(image.Names, " "), "team/box") {
			t.Errorf("the spoiled image is there: %+v", image)
		}
	}
	well.Store(true)
	if _, err := n.EnsureImage(n.ctx(), registry+"/team/box:7", corev1.PullIfNotPresent, nil); err != nil {
		t.Errorf("from the registry that is well again: %v", err)
	}
}

// spoiler changes the first byte of what is written.
type spoiler struct {
	http.ResponseWriter
	done bool
}

func (s *spoiler) Write(p []byte) (int, error) {
	if !s.done && len(p) > 0 {
		s.done = true
		p = append([]byte{p[0] ^ 1}, p[1:]...)
	}
	return s.ResponseWriter.Write(p)
}

func TestArchivesIn(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"new.tar", "old.tar.gz", "middle.tgz", "notes.txt", "x.tar.zst"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		age := []int{1, 9, 5, 3, 7}[i]
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-time.Duration(age)*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "dir.tar"), 0o755); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, path := range archivesIn([]string{filepath.Join(dir, "missing"), dir}) {
		got = append(got, filepath.Base(path))
	}
	if want := []string{"old.tar.gz", "x.tar.zst", "middle.tgz", "new.tar"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q: oldest first", got, want)
	}
}
