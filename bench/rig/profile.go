package rig

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// FetchProfile takes a CPU profile of a process with net/http/pprof, for d, at least a
// second, and writes it to a file.
func FetchProfile(ctx context.Context, address string, config *tls.Config, d time.Duration, path string) error {
	seconds := max(1, int(d.Seconds()))
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds+10)*time.Second)
	defer cancel()
	return fetch(ctx, fmt.Sprintf("https://%s/debug/pprof/profile?seconds=%d", address, seconds), config, path)
}

func fetch(ctx context.Context, url string, config *tls.Config, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	_, err = io.Copy(out, resp.Body)
	return err
}
