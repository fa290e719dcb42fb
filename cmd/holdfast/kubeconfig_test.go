package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/client"
)

func TestKubeconfigOf(t *testing.T) {
	c := client.Context{Name: "prod", Peers: []string{"10.0.0.1:7443", "10.0.0.2:7443"}, CA: "ca", Cert: "cert", Key: "key"}
	config, err := kubeconfigOf(c, "team", "")
	if err != nil {
		t.Fatal(err)
	}
	data, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"server: https://10.0.0.1:7443", "tls-server-name: kubernetes", "certificate-authority-data: Y2E=",
		"client-certificate-data: Y2VydA==", "client-key-data: a2V5", "current-context: holdfast-prod", "namespace: team",
	} {
		if !strings.Contains(string(data), line) {
			t.Errorf("no %q in\n%s", line, data)
		}
	}
	config, err = kubeconfigOf(c, "", "127.0.0.1:8001")
	if err != nil {
		t.Fatal(err)
	}
	if data, _ := yaml.Marshal(config); strings.Contains(string(data), "key-data") || !strings.Contains(string(data), "server: http://127.0.0.1:8001") {
		t.Errorf("through the proxy:\n%s", data)
	}
}

// TestProxyIsForThisMachine holds who is kept out.
func TestProxyIsForThisMachine(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", ":8001", "192.0.2.1:80", "example.com:80", "8001"} {
		if listener, err := listenLoopback(t.Context(), address); err == nil {
			listener.Close()
			t.Errorf("--listen %s was taken", address)
		}
	}
	passed := onlyFromHere(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}))
	for _, tt := range []struct {
		host, origin string
		code         int
	}{
		{"127.0.0.1:8001", "", 200},
		{"localhost:8001", "", 200},
		{"[::1]:8001", "", 200},
		{"evil.example:8001", "", 403},
		{"127.0.0.1:8001", "https://evil.example", 403},
	} {
		r := httptest.NewRequest("GET", "/api", nil)
		r.Host = tt.host
		if tt.origin != "" {
			r.Header.Set("Origin", tt.origin)
		}
		w := httptest.NewRecorder()
		passed.ServeHTTP(w, r)
		if w.Code != tt.code {
			t.Errorf("%+v: got %d", tt, w.Code)
		}
	}

	path := filepath.Join(t.TempDir(), "s")
	listener, err := listenLoopback(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- serveProxy(ctx, listener, roundTrip(func(r *http.Request) (*http.Response, error) {
			w := httptest.NewRecorder()
			w.Body.WriteString("peer says " + r.URL.Path)
			return w.Result(), nil
		}))
	}()
	browse := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	resp, err := browse.Get("http://anything/api/v1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := listenLoopback(t.Context(), "unix:"+path); err == nil || !strings.Contains(err.Error(), "another program listens") {
		t.Errorf("a second proxy on the socket: %v", err)
	}
	if resp.StatusCode != 200 {
		t.Errorf("%s", resp.Status)
	}
	browse.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
