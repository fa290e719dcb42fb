package containerd

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serveRegistry serves the image "box:1", as reference ref, the way registries
// do, without TLS on the loopback, and returns its address.
func serveRegistry(t testing.TB, ref string) string {
	t.Helper()
	return serveRegistryBy(t, ref, func(next http.Handler) http.Handler { return next })
}

// serveRegistryBy has each request pass what wrap makes.
func serveRegistryBy(t testing.TB, ref string, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	dir := t.TempDir()
	writeTestImages(t, dir)
	archive, err := os.ReadFile(filepath.Join(dir, "box.tar"))
	if err != nil {
		t.Fatal(err)
	}
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
	}
	blobs := map[string][]byte{} // by digest
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		blobs["sha256:"+filepath.Base(hdr.Name)] = data
		if hdr.Name == "index.json" {
			if err := json.Unmarshal(data, &index); err != nil {
				t.Fatal(err)
			}
		}
	}
	manifest := index.Manifests[0]
	name, tag, _ := strings.Cut(ref, ":")
	server := httptest.NewServer(wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, ok := strings.CutPrefix(r.URL.Path, "/v2/"+name+"/")
		kind, id, _ := strings.Cut(rest, "/")
		if id == tag {
			id = manifest.Digest
		}
		data := blobs[id]
		if !ok || data == nil || (kind == "manifests") != (id == manifest.Digest) {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		if kind == "manifests" {
			w.Header().Set("Content-Type", manifest.MediaType)
		}
		w.Header().Set("Docker-Content-Digest", id)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	})))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}
