package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync"

	"github.com/holdfast-io/holdfast/bench/rig"
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
		address, config = s.Addresses[i], s.Credentials.ClientTLS(pki.RolePeer, "http/1.1")
	}
	return rig.FetchProfile(ctx, address, config, r.scale.warmUp+r.scale.measure, path)
}
