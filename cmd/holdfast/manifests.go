package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// manifestFlags say which manifests a command takes.
type manifestFlags struct {
	files     []string
	recursive bool
	kustomize string
}

func (f *manifestFlags) add(flags *pflag.FlagSet) {
	flags.StringSliceVarP(&f.files, "filename", "f", nil, "file, directory or http(s) URL of manifests, in YAML or JSON; - reads standard input")
	flags.BoolVarP(&f.recursive, "recursive", "R", false, "also look into directories within directories")
	flags.StringVarP(&f.kustomize, "kustomize", "k", "", "folder of kustomize, whose manifests are built first")
}

func (f manifestFlags) given() bool { return len(f.files) > 0 || f.kustomize != "" }

// readManifests reads the objects in files, directories, URLs, "-", standard
// input, or a folder of kustomize. All faults of all of them come at once, each
// with its line.
func (a *app) readManifests(f manifestFlags) ([]object.Document, error) {
	if !f.given() {
		return nil, failf(exitUsage, "say what with -f FILE, -f DIRECTORY, -f - or -k DIRECTORY")
	}
	if len(f.files) > 0 && f.kustomize != "" {
		return nil, failf(exitUsage, "-f and -k do not go together")
	}
	var docs []object.Document
	var faults object.Faults
	read := func(name string, data []byte) error {
		found, err := a.kinds().ParseManifests(name, data)
		if err != nil && a.learnKinds(context.Background()) { // of a custom kind, perhaps
			found, err = a.kinds().ParseManifests(name, data)
		}
		var bad object.Faults
		if errors.As(err, &bad) {
			faults = append(faults, bad...)
			return nil
		}
		for _, doc := range found {
			if crd, ok := doc.Object.(*apiextensionsv1.CustomResourceDefinition); ok {
				a.addKind(crd) // for the files that follow
			}
		}
		docs = append(docs, found...)
		return err
	}
	if f.kustomize != "" {
		text, err := buildKustomization(f.kustomize)
		if err != nil {
			return nil, err
		}
		if err := read(f.kustomize+" (built)", text); err != nil {
			return nil, err
		}
	}
	for _, path := range f.files {
		if path == "-" {
			data, err := io.ReadAll(a.stdin)
			if err != nil {
				return nil, fmt.Errorf("read standard input: %w", err)
			}
			if err := read("-", data); err != nil {
				return nil, err
			}
			continue
		}
		if strings.HasPrefix(path, "http://") || strings.HasPrefix(path, "https://") {
			data, err := fetch(path)
			if err != nil {
				return nil, err
			}
			if err := read(path, data); err != nil {
				return nil, err
			}
			continue
		}
		files, err := manifestFiles(path, f.recursive)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			if err := read(file, data); err != nil {
				return nil, err
			}
		}
	}
	if len(faults) > 0 {
		return nil, refusedFaults(faults)
	}
	if len(docs) == 0 {
		return nil, failf(exitRefused, "%s: no objects in there", cmp.Or(f.kustomize, strings.Join(f.files, ", ")))
	}
	return docs, nil
}

// A manifest behind a URL must come whole within fetchTimeout, and be no larger
// than fetchLimit.
const (
	fetchTimeout = 30 * time.Second
	fetchLimit   = 16 << 20
)

func fetch(url string) ([]byte, error) {
	client := http.Client{Timeout: fetchTimeout}
	resp, err := client.Get(url)
	if err != nil {
		return nil, failf(exitError, "read %s: %w", url, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		code := exitError
		if resp.StatusCode == http.StatusNotFound {
			code = exitNotFound
		}
		return nil, failf(code, "read %s: the server answers %s", url, resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, fetchLimit+1))
	if err != nil {
		return nil, failf(exitError, "read %s: %w", url, err)
	}
	if len(data) > fetchLimit {
		return nil, failf(exitRefused, "read %s: it is larger than %d MiB: load it down and look at it first", url, fetchLimit>>20)
	}
	return data, nil
}

// refusedFaults is the error about objects that are not as they should be.
func refusedFaults(faults object.Faults) *failure {
	things := "1 thing is"
	if len(faults) != 1 {
		things = fmt.Sprintf("%d things are", len(faults))
	}
	return failf(exitRefused, "%s wrong, and nothing was changed:\n%w", things, faults)
}

// manifestFiles returns the file at path or, for a directory, the manifests in
// it, in the order of their names.
func manifestFiles(path string, recursive bool) ([]string, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, failf(exitNotFound, "there is no file %s", path)
	}
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	var out []string
	err = filepath.WalkDir(path, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if file != path && !recursive {
				return fs.SkipDir
			}
			return nil
		}
		if slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(file)) {
			out = append(out, file)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		hint := ""
		if !recursive {
			hint = "; -R looks into directories within"
		}
		return nil, failf(exitNotFound, "%s: no *.yaml, *.yml or *.json in this directory%s", path, hint)
	}
	return out, nil
}

// inPlace gives objects without a namespace the one that the flags ask for, and
// refuses those that are in another than the flags say.
func (a *app) inPlace(docs []object.Document) error {
	var faults object.Faults
	for _, doc := range docs {
		if !object.ResourceOf(doc.Object).Namespaced {
			continue
		}
		switch ns := doc.Object.GetNamespace(); {
		case ns == "":
			doc.Object.SetNamespace(a.inNamespace())
		case a.namespace != "" && ns != a.namespace:
			faults = append(faults, object.Fault{
				File: doc.File, Line: doc.LineOf("metadata.namespace"), Object: object.Title(doc.Object), Field: "metadata.namespace",
				Message: fmt.Sprintf("is %s, and --namespace says %s: leave one of the two out", ns, a.namespace),
			})
		}
	}
	if len(faults) > 0 {
		return refusedFaults(faults)
	}
	return nil
}

// located turns faults from the cluster into faults of the files that the
// objects came from.
func located(docs []object.Document, faults []*holdfastv1.Fault) object.Faults {
	var out object.Faults
	for _, f := range faults {
		at := object.Fault{Object: f.GetObject(), Field: f.GetField(), Message: f.GetMessage(), Index: int(f.GetIndex())}
		if i := at.Index; i >= 0 && i < len(docs) {
			at.File, at.Line = docs[i].File, docs[i].LineOf(strings.TrimPrefix(f.GetField(), ".")) // owners' paths begin with a dot
			at.Object = object.Title(docs[i].Object)
		}
		out = append(out, at)
	}
	return out
}
