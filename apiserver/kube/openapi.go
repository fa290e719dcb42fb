package kube

import (
	"cmp"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/klauspost/compress/gzip"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// A document of OpenAPI v3 is at a URL that holds its hash, and may be kept for
// ever: so a client loads the 2 MB of the core group once, and not for each apply.

// openAPIAge is how long a client may keep a document by its URL: "for ever".
const openAPIAge = 365 * 24 * time.Hour

// serveOpenAPI answers /openapi/v3, and /openapi/v3/apis/G/V below it.
func (h *Handler) serveOpenAPI(w http.ResponseWriter, r *http.Request, catalog *object.Catalog, at path) error {
	rest, ok := strings.CutPrefix(at.rest, "v3")
	if !ok {
		return errNoPath // v2 is for kubectl before 1.29, in a protobuf of its own
	}
	if rest == "" {
		return h.serveOpenAPIIndex(w, r, catalog)
	}
	group, v, ok := openAPIVersion(strings.TrimPrefix(rest, "/"))
	if !ok {
		return errNoPath
	}
	doc, err := h.cfg.Objects.Schema(r.Context(), &holdfastv1.SchemaRequest{Group: group, Version: v})
	if connect.CodeOf(err) == connect.CodeNotFound && err != nil {
		return errNoPath
	}
	if err != nil {
		return err
	}
	hash := openAPIHash(doc)
	if want := r.URL.Query().Get("hash"); want != "" {
		if want != hash {
			http.Redirect(w, r, r.URL.Path+"?hash="+url.QueryEscape(hash), http.StatusMovedPermanently)
			return nil
		}
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", h.now().Add(openAPIAge).UTC().Format(http.TimeFormat))
	} else {
		w.Header().Set("Cache-Control", "no-cache, private")
	}
	w.Header().Add("Vary", "Accept")
	if notModified(w, r, hash) {
		return nil
	}
	w.Header().Set("Content-Type", typeJSON)
	data := doc.GetDocument()
	if acceptsGzip(r.Header) {
		if data, err = h.zipped(group+"/"+v, hash, data); err != nil {
			return err
		}
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Add("Vary", "Accept-Encoding")
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(data)
	}
	return nil
}

func openAPIHash(doc *holdfastv1.SchemaResponse) string {
	return cmp.Or(strings.Trim(doc.GetEtag(), `"`), etagOf(doc.GetDocument()))
}

// openAPIVersion takes "api/v1" and "apis/apps/v1" apart.
func openAPIVersion(p string) (group, v string, ok bool) {
	parts := strings.Split(p, "/")
	switch {
	case len(parts) == 2 && parts[0] == "api":
		return "", parts[1], true
	case len(parts) == 3 && parts[0] == "apis":
		return parts[1], parts[2], true
	}
	return "", "", false
}

func (h *Handler) serveOpenAPIIndex(w http.ResponseWriter, r *http.Request, catalog *object.Catalog) error {
	type entry struct {
		ServerRelativeURL string `json:"serverRelativeURL"`
	}
	paths := make(map[string]entry)
	for _, version := range versionsOf(catalog) {
		doc, err := h.cfg.Objects.Schema(r.Context(), &holdfastv1.SchemaRequest{Group: version.Group, Version: version.Version})
		if err != nil && (connect.CodeOf(err) == connect.CodeNotFound || connect.CodeOf(err) == connect.CodeUnimplemented) {
			continue
		}
		if err != nil {
			return err
		}
		at := "apis/" + version.Group + "/" + version.Version
		if version.Group == "" {
			at = "api/" + version.Version
		}
		paths[at] = entry{"/openapi/v3/" + at + "?hash=" + url.QueryEscape(openAPIHash(doc))}
	}
	w.Header().Set("Cache-Control", "no-cache, private")
	return writeJSON(w, r, typeJSON, map[string]any{"paths": paths})
}

// versionsOf returns the groups and versions of the catalog, each once, as
// resources without a kind.
func versionsOf(catalog *object.Catalog) []object.Resource {
	var out []object.Resource
	seen := make(map[[2]string]bool)
	for _, r := range catalog.Versions() {
		if key := [2]string{r.Group, r.Version}; !seen[key] {
			seen[key] = true
			out = append(out, object.Resource{Group: r.Group, Version: r.Version})
		}
	}
	return out
}

// zips keeps the compressed form of the newest document of each version.
type zips struct {
	mu sync.Mutex
	of map[string]zip
}

type zip struct {
	hash string
	data []byte
}

func (h *Handler) zipped(name, hash string, data []byte) ([]byte, error) {
	h.zips.mu.Lock()
	defer h.zips.mu.Unlock()
	if have := h.zips.of[name]; have.hash == hash {
		return have.data, nil
	}
	var out strings.Builder
	w := gzip.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if h.zips.of == nil {
		h.zips.of = make(map[string]zip)
	}
	h.zips.of[name] = zip{hash, []byte(out.String())}
	return h.zips.of[name].data, nil
}
