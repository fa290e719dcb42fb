package kube_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/apiserver"
	"github.com/holdfast-io/holdfast/apiserver/eventlog"
	"github.com/holdfast-io/holdfast/apiserver/kube"
	"github.com/holdfast-io/holdfast/pki"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// server is a peer's API over a real store, with TLS, and its clients.
type server struct {
	t      testing.TB
	url    string
	admin  *http.Client
	node   *http.Client
	nobody *http.Client
	store  *raftstore.Store
	stop   func()
	user   func(name string) *http.Client  // with a certificate of that user
	bearer func(token string) *http.Client // with a token, and no certificate
	now    atomic.Pointer[time.Time]
}

func start(t testing.TB, change ...func(*kube.Config)) *server {
	t.Helper()
	store := storetest.New(t, func(cfg *raftstore.Config) { cfg.Logger = nil })
	ca, err := pki.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	events, err := eventlog.New(eventlog.Config{Peer: "p1"})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, store: store}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s.now.Store(&now)
	var uids atomic.Int64
	api, err := apiserver.New(apiserver.Config{
		Store: store, PeerID: "p1", ClusterID: "test", Version: "v0-test", Events: events, CA: ca,
		Peers:  func() map[string]string { return map[string]string{"p1": "10.0.0.1:7443"} },
		Now:    func() time.Time { return *s.now.Load() },
		NewUID: func() string { return fmt.Sprint("uid-", uids.Add(1)) },
		Kube: func(api *apiserver.Server) http.Handler {
			cfg := kube.Config{
				Objects: api.Objects(), Pods: api.Pods(), Tokens: api.Tokens(), Catalog: api.Catalog, Authorize: api.Authorize, Allowed: api.Allowed, Rules: api.Rules,
				Documents: api.DiscoveryDocuments(),
				Version:   "v0-test", Ready: []kube.Check{{Name: "store", Run: api.Ready}},
				Now:    func() time.Time { return s.now.Load().Add(time.Minute) },
				Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
			}
			for _, f := range change {
				f(&cfg)
			}
			return kube.New(cfg)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	issue := func(role pki.Role, name string) *pki.Credentials {
		creds, err := ca.Issue(pki.Identity{Cluster: "test", Role: role, Name: name}, "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		return creds
	}
	web := httptest.NewUnstartedServer(api.Handler())
	web.TLS = issue(pki.RolePeer, "p1").ServerTLS("h2", "http/1.1")
	web.EnableHTTP2 = true
	web.StartTLS()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- api.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		s.stop()
		web.CloseClientConnections()
		web.Close()
	})
	client := func(creds *pki.Credentials) *http.Client {
		transport := &http.Transport{TLSClientConfig: creds.ClientTLS(pki.RolePeer), ForceAttemptHTTP2: true, DisableCompression: true}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport}
	}
	s.url = web.URL
	s.admin, s.node = client(issue(pki.RoleAdmin, "alice")), client(issue(pki.RoleNode, "n1"))
	bare := issue(pki.RoleAdmin, "bare").ClientTLS(pki.RolePeer)
	bare.GetClientCertificate, bare.Certificates = nil, nil
	s.nobody = &http.Client{Transport: &http.Transport{TLSClientConfig: bare}}
	s.user = func(name string) *http.Client { return client(issue(pki.RoleUser, name)) }
	s.bearer = func(token string) *http.Client {
		return &http.Client{Transport: bearing{s.nobody.Transport, token}}
	}
	return s
}

// answer is what a request brought.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

func (a answer) String() string { return fmt.Sprintf("%d %s", a.code, a.body) }

// at returns the value under a path of keys and indexes, "metadata.name".
func (a answer) at(path string) any {
	var v any
	if err := json.Unmarshal(a.body, &v); err != nil {
		return "not JSON: " + string(a.body)
	}
	for key := range strings.SplitSeq(path, ".") {
		switch node := v.(type) {
		case map[string]any:
			v = node[key]
		case []any:
			var i int
			if _, err := fmt.Sscan(key, &i); err != nil || i >= len(node) {
				return nil
			}
			v = node[i]
		default:
			return nil
		}
	}
	return v
}

// header is "Name: value" in a request's options.
func (s *server) request(client *http.Client, method, path, body string, headers ...string) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		req.Header.Set(name, value)
	}
	resp, err := client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return answer{resp.StatusCode, resp.Header, bytes.TrimSpace(data)}
}

func (s *server) do(method, path, body string, headers ...string) answer {
	s.t.Helper()
	return s.request(s.admin, method, path, body, headers...)
}

// want fails the test unless the request is answered with code.
func (s *server) want(code int, method, path, body string, headers ...string) answer {
	s.t.Helper()
	a := s.do(method, path, body, headers...)
	if a.code != code {
		s.t.Fatalf("%s %s: got %v, want %d", method, path, a, code)
	}
	return a
}

// wantStatus fails the test unless the request is refused as described.
func (s *server) wantStatus(code int, reason, text, method, path, body string, headers ...string) answer {
	s.t.Helper()
	a := s.want(code, method, path, body, headers...)
	message, _ := a.at("message").(string)
	if a.at("kind") != "Status" || a.at("status") != "Failure" || a.at("reason") != reason || !strings.Contains(message, text) || a.at("code") != float64(code) {
		s.t.Errorf("%s %s: got %v, want reason %s with %q", method, path, a, reason, text)
	}
	return a
}

// bearing adds a token to requests.
type bearing struct {
	http.RoundTripper
	token string
}

func (b bearing) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+b.token)
	return b.RoundTripper.RoundTrip(req)
}
