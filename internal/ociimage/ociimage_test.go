package ociimage

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

var example = Image{
	Ref: "web:1",
	Files: map[string]File{
		"/bin/web":      {Data: []byte("program"), Mode: 0o755},
		"etc/motd":      {Data: []byte("hello")},
		"/bin/alias":    {Link: "web"},
		"/var/lib/data": {Dir: true, Mode: 0o700},
	},
	Entrypoint: []string{"/bin/web"}, Cmd: []string{"--port=80"}, Env: []string{"A=1"},
	ExposedPorts: []string{"80/tcp"}, WorkingDir: "/var/lib/data", User: "1000", StopSignal: "SIGQUIT", Architecture: "arm64",
}

func write(t *testing.T, images ...Image) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := Write(&buf, images...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// entries reads a tar as lines "name mode link: content".
func entries(t *testing.T, data []byte) (names []string, contents map[string][]byte) {
	t.Helper()
	contents = map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, strings.TrimSpace(fmt.Sprintf("%s %o %s", hdr.Name, hdr.Mode, hdr.Linkname)))
		contents[hdr.Name] = content
	}
}

func TestWrite(t *testing.T) {
	_, files := entries(t, write(t, example))
	if got := string(files["oci-layout"]); got != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout is %s", got)
	}
	blob := func(digest string, v any) []byte {
		t.Helper()
		data := files["blobs/"+strings.Replace(digest, ":", "/", 1)]
		if got := fmt.Sprintf("sha256:%x", sha256.Sum256(data)); got != digest {
			t.Fatalf("blob %s has digest %s", digest, got)
		}
		if v != nil {
			if err := json.Unmarshal(data, v); err != nil {
				t.Fatal(err)
			}
		}
		return data
	}
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(files["index.json"], &index); err != nil || len(index.Manifests) != 1 {
		t.Fatalf("index is %s, error %v", files["index.json"], err)
	}
	m := index.Manifests[0]
	if m.Annotations[annotationRefName] != "web:1" || m.Annotations[annotationImageName] != "web:1" || m.Platform.Architecture != "arm64" || m.Platform.OS != "linux" {
		t.Errorf("the index says %+v", m)
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	if data := blob(m.Digest, &manifest); len(data) != m.Size {
		t.Errorf("the manifest has %d bytes, its descriptor says %d", len(data), m.Size)
	}
	var config struct {
		Architecture string
		Config       imageConfig
		RootFS       struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	blob(manifest.Config.Digest, &config)
	if got, want := fmt.Sprintf("%s %+v", config.Architecture, config.Config),
		"arm64 {Env:[A=1] Entrypoint:[/bin/web] Cmd:[--port=80] ExposedPorts:map[80/tcp:{}] WorkingDir:/var/lib/data User:1000 StopSignal:SIGQUIT}"; got != want {
		t.Errorf("the configuration is\n%s, want\n%s", got, want)
	}
	layer := blob(manifest.Layers[0].Digest, nil)
	if len(config.RootFS.DiffIDs) != 1 || config.RootFS.DiffIDs[0] != manifest.Layers[0].Digest {
		t.Errorf("diff ids %v, layer %s: an uncompressed layer has one digest", config.RootFS.DiffIDs, manifest.Layers[0].Digest)
	}
	names, contents := entries(t, layer)
	want := "bin/ 755\ndev/ 755\netc/ 755\nproc/ 755\nrun/ 755\nsys/ 755\ntmp/ 1777\nvar/ 755\nvar/lib/ 755\nvar/lib/data/ 700\nbin/alias 777 web\nbin/web 755\netc/motd 644"
	if got := strings.Join(names, "\n"); got != want {
		t.Errorf("the layer has\n%s\nwant\n%s", got, want)
	}
	if string(contents["bin/web"]) != "program" {
		t.Errorf("bin/web is %q", contents["bin/web"])
	}
}

func TestSameBytes(t *testing.T) {
	first := write(t, example, Image{Ref: "other:1", Files: example.Files})
	for range 5 {
		if !bytes.Equal(write(t, example, Image{Ref: "other:1", Files: example.Files}), first) {
			t.Fatal("the same images give other bytes")
		}
	}
	if n := bytes.Count(first, []byte("program")); n != 1 {
		t.Errorf("a layer that two images share is written %d times", n)
	}
}

func TestRefused(t *testing.T) {
	for name, img := range map[string]Image{
		"no reference":       {},
		"a path outside":     {Ref: "a:1", Files: map[string]File{"../etc/passwd": {}}},
		"the root":           {Ref: "a:1", Files: map[string]File{"/": {}}},
		"twice":              {Ref: "a:1", Files: map[string]File{"/a": {}, "a": {}}},
		"a file as a parent": {Ref: "a:1", Files: map[string]File{"/a": {}, "/a/b": {}}},
	} {
		if err := Write(io.Discard, img); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if err := Write(io.Discard); err == nil {
		t.Error("no image is accepted")
	}
	if err := Write(fullDisk{}, example); !errors.Is(err, errFull) {
		t.Errorf("a failing writer: error %v", err)
	}
}

var errFull = errors.New("full")

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }
