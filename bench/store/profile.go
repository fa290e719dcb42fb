package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-io/holdfast/pki"
)

// startProfile takes CPU profiles of all members and of this process while a case
// runs, if asked to. The function returned ends the client's and waits for all.
func (r *run) startProfile(ctx context.Context, c testCase, who contender) func() {
	if r.profile == "" {
		return func() {}
	}
	name := filepath.Join(r.profile, strings.NewReplacer(" ", "-", ",", "").Replace(c.name+" "+who.name))
	var fetches sync.WaitGroup
	for i := range members {
		if who.side == "" {
			break // this process is all there is
		}
		fetches.Go(func() {
			if err := r.fetchProfile(ctx, who.side, i, fmt.Sprintf("%s-%d.pprof", name, i)); err != nil {
				fmt.Fprintln(os.Stderr, "profile:", err)
			}
		})
	}
	out, err := os.Create(name + "-client.pprof")
	if err != nil || pprof.StartCPUProfile(out) != nil {
		return fetches.Wait
	}
	return func() {
		pprof.StopCPUProfile()
		out.Close()
		fetches.Wait()
	}
}

func (r *run) fetchProfile(ctx context.Context, name string, i int, path string) error {
	var address string
	var config *tls.Config
	switch s := r.sides[name].(type) {
	case *etcd:
		address, config = s.configs[i].Client, s.tls
	case *holdfast:
		address, config = s.addresses[i], s.creds.ClientTLS(pki.RolePeer, "http/1.1")
	}
	seconds := max(1, int((r.scale.warmUp + r.scale.measure).Seconds()))
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds+10)*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("https://%s/debug/pprof/profile?seconds=%d", address, seconds), nil)
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
		return fmt.Errorf("%s: %s", address, resp.Status)
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	_, err = io.Copy(out, resp.Body)
	return err
}
