package kube

import (
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/version"
)

// The version of Kubernetes whose API this is: that of the API's types. kubectl
// and Helm compare with it what they need.
const (
	kubernetesMajor = "1"
	kubernetesMinor = "37"
	kubernetesPatch = "2"
)

type versionInfo = version.Info

// versionOf says which Kubernetes this is, and behind it which Holdfast.
func versionOf(own string) versionInfo {
	suffix := strings.Map(func(r rune) rune {
		switch {
		case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '.', r == '-':
			return r
		}
		return '-'
	}, strings.TrimPrefix(own, "v"))
	git := fmt.Sprintf("v%s.%s.%s+holdfast", kubernetesMajor, kubernetesMinor, kubernetesPatch)
	if suffix != "" {
		git += "." + suffix
	}
	return versionInfo{
		Major: kubernetesMajor, Minor: kubernetesMinor, GitVersion: git, GitTreeState: "clean",
		GoVersion: runtime.Version(), Compiler: runtime.Compiler, Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
}

func (h *Handler) serveVersion(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "no-cache, private")
	return writeJSON(w, r, typeJSON, h.version)
}

// serveHealth answers /healthz and its like: "ok", or what is not, to anybody;
// with ?verbose a line for each check.
func (h *Handler) serveHealth(w http.ResponseWriter, r *http.Request, checks []Check) error {
	var lines strings.Builder
	failed := false
	excluded := r.URL.Query()["exclude"]
	for _, check := range append([]Check{{Name: "ping", Run: func() error { return nil }}}, checks...) {
		if slices.Contains(excluded, check.Name) {
			fmt.Fprintf(&lines, "[+]%s excluded: ok\n", check.Name)
			continue
		}
		if err := check.Run(); err != nil {
			failed = true
			fmt.Fprintf(&lines, "[-]%s failed: %v\n", check.Name, err)
			continue
		}
		fmt.Fprintf(&lines, "[+]%s ok\n", check.Name)
	}
	name := strings.TrimPrefix(r.URL.Path, "/")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache, private")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	body := "ok"
	switch {
	case failed:
		w.WriteHeader(http.StatusServiceUnavailable)
		body = lines.String() + name + " check failed\n"
	case r.URL.Query().Has("verbose"):
		body = lines.String() + name + " check passed\n"
	}
	_, _ = w.Write([]byte(body))
	return nil
}
