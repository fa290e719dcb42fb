// Command image writes an example's OCI image from a static binary: one file, such as
// /web, and nothing else. It needs no container tools.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/holdfast-io/holdfast/internal/ociimage"
)

func main() {
	binary := flag.String("binary", "bin/web", "static Linux binary of an example; the file in the image has its name")
	ref := flag.String("ref", "holdfast.dev/web:1", "the image's reference")
	out := flag.String("o", "bin/images/web.tar", "file to write")
	flag.Parse()
	if err := write(*binary, *ref, *out); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// write writes the archive whole or not at all: nodes may be looking for it.
func write(binary, ref, out string) (err error) {
	program, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(out), ".image-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			file.Close()
			os.Remove(file.Name())
		}
	}()
	path := "/" + filepath.Base(binary)
	err = ociimage.Write(file, ociimage.Image{
		Ref:          ref,
		Files:        map[string]ociimage.File{path: {Data: program, Mode: 0o755}},
		Entrypoint:   []string{path},
		ExposedPorts: []string{"8080/tcp"},
		User:         "65532:65532",
	})
	if err != nil {
		return err
	}
	if err := file.Chmod(0o644); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	return os.Rename(file.Name(), out)
}
