package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-io/holdfast/bench/rig"
	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// lists measures a list of many pods, whole and in pages, and the same over REST.
func lists(ctx context.Context, r *run, out *result) error {
	leader, err := r.prepare(ctx)
	if err != nil {
		return err
	}
	if err := r.fill(ctx, leader, r.list); err != nil {
		return err
	}
	c := r.peers.Client(leader)
	defer c.Close()
	out.add("list_pods", float64(r.list), "objects")
	page := func(ctx context.Context, limit int32) (bytes int, err error) {
		for next := ""; ; {
			resp, err := c.Objects().List(ctx, &holdfastv1.ListRequest{Kind: podKind, Namespace: namespace, Limit: limit, Continue: next})
			if err != nil {
				return 0, err
			}
			for _, obj := range resp.GetObjects() {
				bytes += len(obj.GetData())
			}
			if next = resp.GetContinue(); next == "" {
				return bytes, nil
			}
		}
	}
	rest := newRESTConn(r, restProto, leader)
	defer rest.close()
	for _, how := range []struct {
		name string
		list func() (bytes int, err error)
	}{
		// As many on a page as there may be: what does not fit into an answer comes in the next.
		{"list_whole", func() (int, error) { return page(ctx, int32(r.list)) }},
		{"list_pages_of_500", func() (int, error) { return page(ctx, 500) }},
		{"list_rest_proto", func() (int, error) { return 0, rest.do(ctx, http.MethodGet, "pods", nil) }},
	} {
		before, err := r.counters(ctx, leader)
		if err != nil {
			return err
		}
		usage, begin := rig.ReadUsage(r.peers.PIDs()), time.Now()
		bytes, err := how.list()
		if err != nil {
			return fmt.Errorf("%s: %w", how.name, err)
		}
		took := time.Since(begin)
		spent := rig.ReadUsage(r.peers.PIDs()).Since(usage, r.peers.PIDs(), r.peers.Member(leader).PID())
		after, err := r.counters(ctx, leader)
		if err != nil {
			return err
		}
		out.add(how.name+"_time", took.Seconds(), "s")
		out.add(how.name+"_leader", spent.Leader.Seconds(), "s of CPU")
		out.add(how.name+"_allocations", after["go_memstats_mallocs_total"]-before["go_memstats_mallocs_total"], "on the peer")
		out.add(how.name+"_allocated", (after["go_memstats_alloc_bytes_total"]-before["go_memstats_alloc_bytes_total"])/(1<<20), "MiB on the peer")
		if bytes > 0 {
			out.add(how.name+"_bytes", float64(bytes)/(1<<20), "MiB of objects")
		}
	}
	return nil
}

// counters returns a peer's metrics without labels.
func (r *run) counters(ctx context.Context, peer int) (map[string]float64, error) {
	transport := &http.Transport{TLSClientConfig: r.peers.Credentials.ClientTLS(pki.RolePeer, "http/1.1")}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+r.peers.Addresses[peer]+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out := make(map[string]float64)
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, text, _ := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(text, 64); err == nil {
			out[name] = v
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the peer shows no metrics")
	}
	return out, nil
}

// starts measures the whole process of `holdfast get pods`.
func starts(ctx context.Context, r *run, out *result) error {
	if _, err := r.prepare(ctx); err != nil {
		return err
	}
	var wall, cpu []time.Duration
	for range r.starts {
		cmd := exec.CommandContext(ctx, r.peers.Binary, "get", "pods", "--namespace", "default")
		cmd.Env = append(os.Environ(), client.EnvConfig+"="+r.peers.Config())
		begin := time.Now()
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, text)
		}
		wall = append(wall, time.Since(begin))
		used := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		cpu = append(cpu, time.Duration(used.Utime.Nano()+used.Stime.Nano()))
	}
	slices.Sort(wall)
	slices.Sort(cpu)
	out.add("cli_get_pods_p50", rig.Milliseconds(rig.Quantile(wall, 0.5)), "ms")
	out.add("cli_get_pods_least", rig.Milliseconds(wall[0]), "ms")
	out.add("cli_get_pods_cpu", rig.Milliseconds(rig.Quantile(cpu, 0.5)), "ms of CPU")
	return nil
}
