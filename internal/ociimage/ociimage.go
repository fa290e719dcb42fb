// Package ociimage writes small container images as OCI archives: one layer,
// built from files in memory, the same bytes for the same input. It serves the
// tests and the example image; it is no general image builder.
package ociimage

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"
)

// File is a file of an image.
type File struct {
	Data []byte
	Mode fs.FileMode // permission bits; 0 means 0644, or 0755 for a directory
	Link string      // target, for a symbolic link
	Dir  bool        // a directory; parents of other files need not be named
}

// Image is an image to be written.
type Image struct {
	Ref string // full reference with tag, such as "docker.io/library/web:1" or "web:1"; required
	// Files by absolute or relative path, such as "/bin/web". The directories
	// that runtimes mount over (proc, sys, dev, tmp, etc, run) are always there.
	Files        map[string]File
	Entrypoint   []string
	Cmd          []string
	Env          []string // "NAME=value"
	ExposedPorts []string // "8080/tcp"
	WorkingDir   string
	User         string // "", "1000", "1000:1000" or a name from the image's /etc/passwd
	StopSignal   string // "", "SIGQUIT"
	Architecture string // Go's name for it; "" means that of this program
}

// Media types and paths of the OCI image layout, version 1.0.0.
const (
	mediaTypeIndex    = "application/vnd.oci.image.index.v1+json"
	mediaTypeManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaTypeConfig   = "application/vnd.oci.image.config.v1+json"
	mediaTypeLayer    = "application/vnd.oci.image.layer.v1.tar"

	annotationRefName   = "org.opencontainers.image.ref.name"
	annotationImageName = "io.containerd.image.name" // what containerd imports it as
)

// baseDirs are in every image, with their modes.
var baseDirs = map[string]fs.FileMode{
	"proc": 0o755, "sys": 0o755, "dev": 0o755, "etc": 0o755, "run": 0o755, "tmp": 0o1777,
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type imageConfig struct {
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	User         string              `json:"User,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
}

// Write writes images as one OCI archive (a tar of an image layout) to w. The
// archive is uncompressed. It returns an error for an image without a
// reference, a path that leaves the root, or a failed write.
func Write(w io.Writer, images ...Image) error {
	if len(images) == 0 {
		return errors.New("no image to write")
	}
	out := &layout{tw: tar.NewWriter(w), seen: map[string]bool{}}
	out.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	var manifests []descriptor
	for _, img := range images {
		desc, err := out.image(img)
		if err != nil {
			return fmt.Errorf("image %q: %w", img.Ref, err)
		}
		manifests = append(manifests, desc)
	}
	out.file("index.json", mustJSON(map[string]any{
		"schemaVersion": 2, "mediaType": mediaTypeIndex, "manifests": manifests,
	}))
	if out.err != nil {
		return out.err
	}
	return out.tw.Close()
}

// layout is an image layout being written. The first error sticks.
type layout struct {
	tw   *tar.Writer
	seen map[string]bool // blobs written, by digest
	err  error
}

func (l *layout) file(name string, data []byte) {
	if l.err != nil {
		return
	}
	if l.err = l.tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(0, 0)}); l.err == nil {
		_, l.err = l.tw.Write(data)
	}
}

func (l *layout) blob(mediaType string, data []byte) descriptor {
	sum := sha256.Sum256(data)
	name := hex.EncodeToString(sum[:])
	if !l.seen[name] {
		l.seen[name] = true
		l.file("blobs/sha256/"+name, data)
	}
	return descriptor{MediaType: mediaType, Digest: "sha256:" + name, Size: len(data)}
}

func (l *layout) image(img Image) (descriptor, error) {
	if img.Ref == "" {
		return descriptor{}, errors.New("it has no reference")
	}
	layerTar, err := layerOf(img.Files)
	if err != nil {
		return descriptor{}, err
	}
	layer := l.blob(mediaTypeLayer, layerTar)
	where := platform{Architecture: img.Architecture, OS: "linux"}
	if where.Architecture == "" {
		where.Architecture = runtime.GOARCH
	}
	ports := map[string]struct{}{}
	for _, p := range img.ExposedPorts {
		ports[p] = struct{}{}
	}
	config := l.blob(mediaTypeConfig, mustJSON(map[string]any{
		"architecture": where.Architecture,
		"os":           where.OS,
		"config": imageConfig{
			Env: img.Env, Entrypoint: img.Entrypoint, Cmd: img.Cmd, ExposedPorts: ports,
			WorkingDir: img.WorkingDir, User: img.User, StopSignal: img.StopSignal,
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layer.Digest}},
	}))
	manifest := l.blob(mediaTypeManifest, mustJSON(map[string]any{
		"schemaVersion": 2, "mediaType": mediaTypeManifest,
		"config": config, "layers": []descriptor{layer},
	}))
	manifest.Platform = &where
	manifest.Annotations = map[string]string{annotationImageName: img.Ref, annotationRefName: img.Ref}
	return manifest, l.err
}

// layerOf is the layer's tar: all directories first, each once, then the files.
func layerOf(files map[string]File) ([]byte, error) {
	clean := map[string]File{}
	dirs := maps.Clone(baseDirs)
	for name, f := range files {
		p := strings.TrimPrefix(path.Clean("/"+name), "/")
		if p == "" || slices.Contains(strings.Split(name, "/"), "..") {
			return nil, fmt.Errorf("path %q is not one inside the image", name)
		}
		for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
			if _, ok := dirs[dir]; !ok {
				dirs[dir] = 0o755
			}
		}
		if f.Dir {
			dirs[p] = orMode(f.Mode, 0o755)
			continue
		}
		if _, twice := clean[p]; twice {
			return nil, fmt.Errorf("path %q is there twice", name)
		}
		clean[p] = f
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		if _, both := clean[dir]; both {
			return nil, fmt.Errorf("path %q is both a file and a directory", dir)
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: int64(dirs[dir]), ModTime: time.Unix(0, 0)}); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(clean)) {
		f := clean[name]
		hdr := &tar.Header{Name: name, ModTime: time.Unix(0, 0), Mode: int64(orMode(f.Mode, 0o644).Perm())}
		if f.Link != "" {
			hdr.Typeflag, hdr.Linkname, hdr.Mode = tar.TypeSymlink, f.Link, 0o777
		} else {
			hdr.Typeflag, hdr.Size = tar.TypeReg, int64(len(f.Data))
		}
		if err := tw.WriteHeader(hdr); err != nil {
			return nil, fmt.Errorf("path %q: %w", name, err)
		}
		if f.Link == "" {
			if _, err := tw.Write(f.Data); err != nil {
				return nil, err
			}
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func orMode(mode, or fs.FileMode) fs.FileMode {
	if mode == 0 {
		return or
	}
	return mode
}

// mustJSON encodes values of this package's own making, which always can be.
func mustJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("ociimage: encode %T: %v", v, err))
	}
	return data
}
