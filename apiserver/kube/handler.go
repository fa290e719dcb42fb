package kube

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/holdfast-io/holdfast/apiserver"
	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// Objects is the ObjectService of this peer, called in process. Calls are
// authorized, bounded and counted as those that come over Connect are.
type Objects interface {
	Get(context.Context, *holdfastv1.GetRequest) (*holdfastv1.GetResponse, error)
	List(context.Context, *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error)
	// WatchObjects blocks until the watch ends; send is never called twice at once.
	WatchObjects(ctx context.Context, req *holdfastv1.WatchRequest, send func(*holdfastv1.WatchResponse) error) error
	Create(context.Context, *holdfastv1.CreateRequest) (*holdfastv1.CreateResponse, error)
	Update(context.Context, *holdfastv1.UpdateRequest) (*holdfastv1.UpdateResponse, error)
	Patch(context.Context, *holdfastv1.PatchRequest) (*holdfastv1.PatchResponse, error)
	Delete(context.Context, *holdfastv1.DeleteRequest) (*holdfastv1.DeleteResponse, error)
	DeleteCollection(context.Context, *holdfastv1.DeleteCollectionRequest) (*holdfastv1.DeleteCollectionResponse, error)
	Evict(context.Context, *holdfastv1.EvictRequest) (*holdfastv1.EvictResponse, error)
	Bind(context.Context, *holdfastv1.BindRequest) (*holdfastv1.BindResponse, error)
	Schema(context.Context, *holdfastv1.SchemaRequest) (*holdfastv1.SchemaResponse, error)
}

// Pods reaches into running pods, in process. It asks nobody whether the caller may:
// the Handler does that first.
type Pods interface {
	PodStreams
	Logs(context.Context, *holdfastv1.LogsRequest, apiserver.Replies[holdfastv1.LogsResponse]) error
}

// Tokens makes and checks the tokens of service accounts, in process, as Objects.
type Tokens interface {
	IssueToken(context.Context, *holdfastv1.IssueTokenRequest) (*holdfastv1.IssueTokenResponse, error)
	ReviewToken(context.Context, *holdfastv1.ReviewTokenRequest) (*holdfastv1.ReviewTokenResponse, error)
}

// Check is one line of /readyz?verbose.
type Check struct {
	Name string
	Run  func() error
}

// Config says what a Handler is made of.
type Config struct {
	// Objects, Pods and Tokens do the work. Required.
	Objects Objects
	Pods    Pods
	Tokens  Tokens
	// Usage is what the metrics API is made of. It asks nobody whether the caller
	// may, either. Optional: without it there is no such API.
	Usage holdfastv1connect.UsageServiceHandler
	// Catalog returns the kinds that are served now. Required.
	Catalog func() *object.Catalog
	// Authorize returns nil if the caller of ctx may do what the attributes say, and
	// an error with Connect's code PermissionDenied or Unauthenticated if not.
	// Required.
	Authorize func(context.Context, apiserver.Attributes) error
	// Allowed says whether somebody else may do it, and by which binding or, if not, what
	// would allow it; Rules lists what somebody may do in a namespace. Required.
	Allowed func(apiserver.Caller, apiserver.Attributes) (by, remedy string, ok bool, err error)
	Rules   func(who apiserver.Caller, namespace string) []rbacv1.PolicyRule
	// Documents are further JSON documents by their paths, for whom a role allows them:
	// those of OpenID Connect's discovery. Optional.
	Documents map[string]func() ([]byte, error)
	// Version is Holdfast's own, shown behind Kubernetes'.
	Version string
	// Live and Ready are what /livez and /readyz look at. Optional.
	Live, Ready []Check
	// Logger is optional; nil discards.
	Logger *slog.Logger
	// Now is the clock for ages in tables. Optional; time.Now.
	Now func() time.Time
}

// PodHandler answers a subresource of a pod that is a stream of its own.
type PodHandler func(w http.ResponseWriter, r *http.Request, namespace, pod string)

// Handler serves Kubernetes' REST API. Safe for concurrent use once it is built.
type Handler struct {
	cfg     Config
	log     *slog.Logger
	now     func() time.Time
	streams map[string]PodHandler
	version versionInfo
	zips    zips
}

// New builds a Handler. It starts nothing. It panics if something required is not
// set.
func New(cfg Config) *Handler {
	if cfg.Objects == nil || cfg.Pods == nil || cfg.Tokens == nil || cfg.Catalog == nil || cfg.Authorize == nil || cfg.Allowed == nil || cfg.Rules == nil {
		panic("kube: Config.Objects, Pods, Tokens, Catalog, Authorize, Allowed and Rules must be set")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	h := &Handler{cfg: cfg, log: cfg.Logger, now: cfg.Now, streams: make(map[string]PodHandler), version: versionOf(cfg.Version)}
	for subresource, stream := range StreamHandlers(cfg.Pods, h.WriteError) {
		h.HandlePod(subresource, stream)
	}
	return h
}

// HandlePod makes f answer a subresource of pods: "exec", "attach",
// "portforward". From then on discovery shows it. The caller is authorized
// before f runs. To be called before the handler serves.
func (h *Handler) HandlePod(subresource string, f PodHandler) { h.streams[subresource] = f }

// ServeHTTP answers one request. The caller's identity is in its context.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := &response{ResponseWriter: w}
	defer func() {
		reason := recover()
		if reason == nil {
			return
		}
		if reason == http.ErrAbortHandler {
			panic(reason)
		}
		h.log.Error("handler panicked", "method", r.Method, "path", r.URL.Path, "panic", reason, "stack", string(debug.Stack()))
		if out.begun {
			panic(http.ErrAbortHandler) // half an answer must not look like a whole one
		}
		h.WriteError(out, r, apierrors.NewInternalError(errors.New("the peer's log has more")))
	}()
	if err := h.serve(out, r); err != nil {
		if out.begun {
			panic(http.ErrAbortHandler)
		}
		h.WriteError(out, r, err)
	}
}

// response knows whether the answer has begun.
type response struct {
	http.ResponseWriter
	begun bool
}

func (r *response) WriteHeader(code int) {
	r.begun = r.begun || code >= 200
	r.ResponseWriter.WriteHeader(code)
}

func (r *response) Write(data []byte) (int, error) {
	r.begun = true
	return r.ResponseWriter.Write(data)
}

// Unwrap is for http.ResponseController, which flushes and hijacks.
func (r *response) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// serve answers r, or returns an error for WriteError.
func (h *Handler) serve(w *response, r *http.Request) error {
	switch r.URL.Path {
	case "/version", "/version/":
		return h.serveVersion(w, r)
	case "/healthz", "/livez":
		return h.serveHealth(w, r, h.cfg.Live)
	case "/readyz":
		return h.serveHealth(w, r, h.cfg.Ready)
	}
	if err := apiserver.Stranger(r.Context()); err != nil {
		return err
	}
	if document := h.cfg.Documents[r.URL.Path]; document != nil {
		return h.serveDocument(w, r, document)
	}
	at, ok := parsePath(r.URL.Path)
	if !ok {
		return errNoPath
	}
	if at.kind != pathObjects {
		if err := h.cfg.Authorize(r.Context(), apiserver.Attributes{Verb: strings.ToLower(r.Method), Path: r.URL.Path}); err != nil {
			return err
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			return apierrors.NewMethodNotSupported(groupResource("", "paths"), strings.ToLower(r.Method))
		}
	}
	catalog := h.cfg.Catalog()
	switch at.kind {
	case pathCore, pathGroups, pathGroup, pathVersion:
		return h.serveDiscovery(w, r, catalog, at)
	case pathOpenAPI:
		return h.serveOpenAPI(w, r, catalog, at)
	default:
		return h.serveObjects(w, r, catalog, at)
	}
}

// serveDocument answers with a document for whoever may read it.
func (h *Handler) serveDocument(w *response, r *http.Request, document func() ([]byte, error)) error {
	if err := h.cfg.Authorize(r.Context(), apiserver.Attributes{Verb: strings.ToLower(r.Method), Path: r.URL.Path}); err != nil {
		return err
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return apierrors.NewMethodNotSupported(groupResource("", "paths"), strings.ToLower(r.Method))
	}
	data, err := document()
	if err != nil {
		return err
	}
	typ := "application/json"
	if strings.HasSuffix(r.URL.Path, "/jwks") {
		typ = "application/jwk-set+json"
	}
	w.Header().Set("Content-Type", typ)
	w.Header().Set("Cache-Control", "public, max-age=3600")
	_, err = w.Write(data)
	return err
}

// errNoPath is the answer to a path at which nothing is.
var errNoPath = apierrors.NewGenericServerResponse(http.StatusNotFound, "", groupResource("", ""), "", "", 0, false)

// call is one request about objects, and where its answer goes.
type call struct {
	*Handler
	w        *response
	r        *http.Request
	at       path
	resource object.Resource
	catalog  *object.Catalog
	query    query
	accept   media
	began    time.Time
}

func (h *Handler) serveObjects(w *response, r *http.Request, catalog *object.Catalog, at path) error {
	c := &call{Handler: h, w: w, r: r, at: at, catalog: catalog, began: time.Now()}
	var err error
	if c.query, err = parseQuery(r.URL.Query()); err != nil {
		return err
	}
	if review, ok := reviews[at.group+"/"+at.plural]; ok && at.version == "v1" {
		if r.Method != http.MethodPost || at.name != "" {
			return apierrors.NewMethodNotSupported(c.groupResource(), verbOf(r.Method, at, false))
		}
		c.accept = media{typ: negotiateType(r.Header.Values("Accept"))}
		return review(c)
	}
	if at.group == "" && at.version == "v1" && at.plural == "bindings" && at.namespace != "" && at.name == "" {
		if r.Method != http.MethodPost {
			return c.notAllowed()
		}
		c.resource, _ = catalog.ForPlural("", "v1", "pods") // which a binding is about
		c.accept = media{typ: negotiateType(r.Header.Values("Accept"))}
		return c.bind("")
	}
	if at.group == metricsGroup && h.hasMetrics() {
		return c.metrics()
	}
	var ok bool
	if c.resource, ok = catalog.ForPlural(at.group, at.version, at.plural); !ok {
		return errNoPath
	}
	if at.namespace != "" && !c.resource.Namespaced {
		return errNoPath
	}
	if at.name != "" && at.namespace == "" && c.resource.Namespaced {
		return errNoPath
	}
	if at.subresource != "" {
		return c.subresource()
	}
	if c.accept, err = negotiate(r.Header.Values("Accept"), c.resource.Custom); err != nil {
		return err
	}
	if at.name == "" {
		switch r.Method {
		case http.MethodGet:
			if c.query.watch {
				return c.watch()
			}
			return c.list()
		case http.MethodPost:
			return c.create()
		case http.MethodDelete:
			return c.deleteCollection()
		}
	} else {
		switch r.Method {
		case http.MethodGet:
			if c.query.watch {
				return c.watch()
			}
			return c.get("")
		case http.MethodPut:
			return c.update("")
		case http.MethodPatch:
			return c.patch("")
		case http.MethodDelete:
			return c.delete()
		}
	}
	return c.notAllowed()
}

func (c *call) notAllowed() error {
	return apierrors.NewMethodNotSupported(c.groupResource(), verbOf(c.r.Method, c.at, c.query.watch))
}

func (c *call) kind() *holdfastv1.Kind {
	return &holdfastv1.Kind{Group: c.resource.Group, Version: c.resource.Version, Kind: c.resource.Kind}
}

// verbOf names a method as Kubernetes' authorization does.
func verbOf(method string, at path, watch bool) string {
	switch method {
	case http.MethodGet, http.MethodHead:
		switch {
		case watch:
			return "watch"
		case at.name == "":
			return "list"
		}
		return "get"
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		if at.name == "" {
			return "deletecollection"
		}
		return "delete"
	}
	return strings.ToLower(method)
}
