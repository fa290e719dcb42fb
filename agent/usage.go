package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/holdfast-io/holdfast/agent/runtime"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

const (
	// usageFirst is when the first report comes: CPU use is an average over time.
	usageFirst = 2 * time.Second
	// usagePeriod is how often usage is measured until a peer says otherwise.
	usagePeriod    = 15 * time.Second
	usagePeriodMin = time.Second
	usageTimeout   = 5 * time.Second
)

// usage measures what the node and its containers use, and tells the peer in
// use. A report that is lost is followed by the next.
type usage struct {
	a    *Agent
	last map[runtime.ContainerID]sample
	node sample
}

// sample is the CPU time that something had used by a moment.
type sample struct {
	at  time.Time
	cpu time.Duration
}

// nanocores is the average use of CPU from s to now, in billionths of one.
func (s sample) nanocores(now sample) int64 {
	window := now.at.Sub(s.at)
	if window <= 0 || now.cpu < s.cpu { // another run, or a clock that was set
		return 0
	}
	return int64(float64(now.cpu-s.cpu) / window.Seconds())
}

func newUsage(a *Agent) *usage {
	return &usage{a: a, last: map[runtime.ContainerID]sample{}}
}

// run measures and reports until ctx ends.
func (u *usage) run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-u.a.session.registered:
	}
	u.measure(ctx)
	failing := false
	for period, next := usagePeriod, usageFirst; ; next = period {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(next):
		}
		report := u.measure(ctx)
		rctx, cancel := context.WithTimeout(ctx, usageTimeout)
		res, err := u.a.cfg.Client.Agent().ReportUsage(rctx, report)
		cancel()
		if err != nil && !failing && ctx.Err() == nil {
			u.a.log.Info("usage cannot be reported", "peer", u.a.cfg.Client.Peer(), "error", err)
		}
		failing = err != nil
		if p := res.GetPeriod().AsDuration(); p > 0 {
			period = max(p, usagePeriodMin)
		}
	}
}

// measure takes a measure of everything that runs, relative to the last one.
func (u *usage) measure(ctx context.Context) *agentv1.ReportUsageRequest {
	report := &agentv1.ReportUsageRequest{}
	cpu, memory, err := machineUsage(os.ReadFile)
	now := sample{time.Now(), cpu}
	if err != nil {
		u.a.log.Debug("the node's usage cannot be measured", "error", err)
	} else {
		report.Node = &holdfastv1.NodeUsage{
			CpuNanocores: u.node.nanocores(now), MemoryBytes: memory, Window: durationpb.New(now.at.Sub(u.node.at)),
		}
		u.node = now
	}
	seen := map[runtime.ContainerID]sample{}
	for _, state := range u.a.pods.all() {
		pod := &holdfastv1.PodUsage{Namespace: state.Namespace, Name: state.Name, Uid: state.UID}
		if id, ok := u.a.pods.reported(state.UID); ok { // the cluster knows a static pod by its mirror
			pod.Uid = string(id.UID)
		}
		var window time.Duration
		for _, c := range state.Containers {
			if c.State != runtime.StateRunning {
				continue
			}
			got, err := u.a.cfg.Runtime.Usage(ctx, c.ID)
			if err != nil {
				if !errors.Is(err, runtime.ErrNotRunning) && !errors.Is(err, runtime.ErrNotFound) {
					u.a.log.Debug("a container's usage cannot be measured", "pod", state.Namespace+"/"+state.Name, "container", c.ID.Name, "error", err)
				}
				continue
			}
			now := sample{time.Now(), got.CPU}
			before, ok := u.last[c.ID]
			if !ok {
				before = sample{at: c.StartedAt} // it had used nothing then
			}
			seen[c.ID] = now
			window = max(window, now.at.Sub(before.at))
			pod.Containers = append(pod.Containers, &holdfastv1.ContainerUsage{
				Name: c.ID.Name, CpuNanocores: before.nanocores(now), MemoryBytes: got.MemoryBytes,
			})
		}
		if len(pod.GetContainers()) == 0 {
			continue
		}
		slices.SortFunc(pod.GetContainers(), func(a, b *holdfastv1.ContainerUsage) int { return cmp.Compare(a.GetName(), b.GetName()) })
		pod.Window = durationpb.New(window)
		report.Pods = append(report.Pods, pod)
	}
	u.last = seen
	return report
}

// userHz is how many ticks /proc counts in a second, on every architecture that
// Linux has today.
const userHz = 100

// machineUsage returns the CPU time that the machine has spent on work since its
// start, and the memory that cannot be given away.
func machineUsage(read func(string) ([]byte, error)) (cpu time.Duration, memory int64, err error) {
	stat, err := read("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	ticks, err := busyTicks(string(stat))
	if err != nil {
		return 0, 0, fmt.Errorf("read /proc/stat: %w", err)
	}
	meminfo, err := read("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	total, err := memoryLine(string(meminfo), "MemTotal:")
	if err == nil {
		var available int64
		available, err = memoryLine(string(meminfo), "MemAvailable:")
		memory = total - available
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read /proc/meminfo: %w", err)
	}
	return time.Duration(ticks) * (time.Second / userHz), memory, nil
}

// busyTicks adds up what /proc/stat says of all CPUs but for idle, iowait, steal,
// and what guests have used, which is in user and nice already.
func busyTicks(stat string) (int64, error) {
	for line := range strings.Lines(stat) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "cpu" {
			continue
		}
		var busy int64
		for i, field := range fields[1:] {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, err
			}
			const idle, iowait, steal = 3, 4, 7
			if i != idle && i != iowait && i < steal {
				busy += n
			}
		}
		return busy, nil
	}
	return 0, errors.New("no line cpu")
}
