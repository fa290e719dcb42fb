package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/agent/volume"
)

const (
	// evictionPeriod is how often the node is looked at.
	evictionPeriod = 10 * time.Second
	// diskPeriod is how often it is measured what pods take of the disk that have a limit:
	// all their files are walked.
	diskPeriod = time.Minute
	// evictionGrace is what an evicted pod's containers have to end. Kubernetes'.
	evictionGrace = time.Second
)

// NodeSignals measures what the node has and what of it is left, but for the disk with
// the images, of which the runtime tells. What cannot be measured is missing.
type NodeSignals func() map[Signal]SignalAmount

// SignalAmount is how much there is of something, and how much of it is left.
type SignalAmount = amount

// evictor keeps the node from running out of what its pods share, by ending some of
// them.
type evictor struct {
	pods       *pods
	images     *imageCollector
	logs       *logKeeper
	runtime    runtime.Runtime
	volumes    *volume.Manager
	log        *slog.Logger
	thresholds []Threshold
	transition time.Duration
	signals    NodeSignals
	// register tells the cluster of the node's conditions.
	register func(context.Context) error

	lastMet  map[corev1.NodeConditionType]time.Time
	measured time.Time // when pods with limits were last measured
	told     []corev1.NodeConditionType
	failing  bool // what happened was told to the log already
}

// run looks at the node until ctx ends.
func (e *evictor) run(ctx context.Context) error {
	for {
		e.pass(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(evictionPeriod):
		}
	}
}

// pass looks at the node once, and ends one pod at most.
func (e *evictor) pass(ctx context.Context) {
	node := e.look(ctx)
	in := evictionInput{Thresholds: e.thresholds, Node: node, LastMet: e.lastMet, Transition: e.transition}
	in.Pods = e.measure(ctx, metThresholds(e.thresholds, node))
	plan := planEviction(in, time.Now())
	e.settle(ctx, plan)
	if plan.Reclaim {
		short := metThresholds(e.thresholds, node)
		e.log.Warn("the node is short of disk: what nobody needs is removed", "signal", short[0].Signal, "available", node[short[0].Signal].Available)
		e.pods.reclaim(ctx)
		e.logs.collect(ctx, 0)
		e.images.collectAll(ctx)
		in.Node, in.Reclaimed = e.look(ctx), true
		in.Pods = e.measure(ctx, metThresholds(e.thresholds, in.Node))
		plan = planEviction(in, time.Now())
	}
	switch {
	case ctx.Err() != nil:
	case plan.Evict != nil:
		e.log.Warn("pod is evicted", "pod", podKey(plan.Evict), "uid", plan.Evict.UID, "because", strings.TrimSpace(plan.Message))
		e.pods.evict(string(plan.Evict.UID), plan.Message)
	case plan.Stuck != "" && !e.failing:
		e.failing = true
		e.log.Error("the node is short of something, and no pod is left that could be evicted for it", "signal", plan.Stuck)
	case plan.Stuck == "":
		e.failing = false
	}
}

// settle takes in which conditions are true, and tells the cluster.
func (e *evictor) settle(ctx context.Context, plan evictionPlan) {
	e.lastMet = plan.LastMet
	if e.pods.press(plan.Pressure) {
		e.log.Info("the node's conditions have changed", "true", fmt.Sprint(plan.Pressure))
	}
	if slices.Equal(e.told, plan.Pressure) {
		return
	}
	if err := e.register(ctx); err != nil {
		e.log.Info("the node's conditions are not told to the cluster yet; trying again", "error", err)
		return
	}
	e.told = plan.Pressure
}

// look returns what is left of what the node has.
func (e *evictor) look(ctx context.Context) map[Signal]amount {
	node := maps.Clone(e.signals())
	if node == nil {
		node = map[Signal]amount{}
	}
	if disk, err := e.runtime.ImageDisk(ctx); err == nil {
		node[SignalImageFS] = amount{disk.FreeBytes, disk.Bytes}
		node[SignalImageInodes] = amount{disk.FreeInodes, disk.Inodes}
	}
	return node
}

// measure returns the pods that run, with as much of their use as is needed: what the
// thresholds that are met are about, and, once in a while, the disk that those with a
// limit take.
func (e *evictor) measure(ctx context.Context, met []Threshold) []podUse {
	short := map[corev1.NodeConditionType]bool{}
	for _, t := range met {
		short[signalInfo[t.Signal].condition] = true
	}
	limits := time.Since(e.measured) >= diskPeriod
	if limits {
		e.measured = time.Now()
	}
	var all []podUse
	for _, p := range e.pods.active() {
		u := podUse{Pod: p.pod, Static: p.static, Containers: map[string]containerUse{}}
		if short[corev1.NodeMemoryPressure] || short[corev1.NodePIDPressure] {
			for _, c := range p.observed.Containers {
				if c.State != runtime.StateRunning {
					continue
				}
				got, err := e.runtime.Usage(ctx, c.ID)
				if err != nil {
					continue // it has ended just now
				}
				have := u.Containers[c.ID.Name]
				have.Memory += got.MemoryBytes
				u.Containers[c.ID.Name] = have
				u.PIDs += got.PIDs
			}
		}
		claims := e.volumes.LimitedClaims(p.pod, p.sources())
		if short[corev1.NodeDiskPressure] || limits && (measuresDisk(p.pod, nil) || len(claims) > 0) {
			if err := e.measureDisk(ctx, p, &u); err != nil && ctx.Err() == nil {
				e.log.Info("what a pod takes of the disk cannot be measured", "pod", podKey(p.pod), "error", err)
			}
		}
		all = append(all, u)
	}
	return all
}

func (e *evictor) measureDisk(ctx context.Context, p activePod, u *podUse) error {
	disks, err := e.runtime.DiskUsage(ctx, string(p.pod.UID))
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return err
	}
	for _, d := range disks {
		have := u.Containers[d.Name]
		have.Root += d.RootBytes
		have.Logs += d.LogBytes
		have.Inodes += d.Inodes
		u.Containers[d.Name] = have
	}
	volumes, err := e.volumes.Usage(ctx, p.pod, p.sources())
	for _, v := range volumes {
		u.Volumes = append(u.Volumes, volumeUse{Name: v.Volume, Claim: v.Claim, Bytes: v.Bytes, Inodes: v.Inodes, Limit: v.Limit})
	}
	return err
}

// activePod is a pod that is neither at its end nor past it.
type activePod struct {
	pod      *corev1.Pod
	static   bool
	observed runtime.PodState
	inputs   podInputs
}

func (p activePod) sources() volume.Sources {
	return podSources{pod: p.pod, at: podEnv{inputs: p.inputs}}
}

// active returns the pods that are to run, or run.
func (p *pods) active() []activePod {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []activePod
	for uid, w := range p.workers {
		pod, gone := w.desired()
		if gone || pod == nil || pod.DeletionTimestamp != nil || final(pod.Status.Phase) || w.ended() {
			continue
		}
		all = append(all, activePod{pod: pod, static: p.static[uid] != nil, observed: p.listed[uid], inputs: p.inputs[uid]})
	}
	return all
}

// evict ends a pod for good.
func (p *pods) evict(uid, message string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.workers[uid]; w != nil {
		w.evict(message)
	}
}

// press sets which conditions of the node are true. It returns whether that is news.
func (p *pods) press(pressure []corev1.NodeConditionType) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	news := !slices.Equal(p.pressure, pressure)
	p.pressure = pressure
	return news
}

// underPressure returns which conditions of the node are true.
func (p *pods) underPressure() []corev1.NodeConditionType {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pressure
}

// reclaimTimeout bounds the wait for ended containers to go.
const reclaimTimeout = 15 * time.Second

// reclaim has all workers remove the containers that have ended and that nobody needs, and
// waits until they have, for a while.
func (p *pods) reclaim(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, reclaimTimeout)
	defer cancel()
	p.reclaiming.Store(true)
	defer p.reclaiming.Store(false)
	p.notifyAll()
	for {
		left := false
		p.mu.Lock()
		for uid, w := range p.workers {
			pod, _ := w.desired()
			left = left || pod != nil && w.ended() && slices.ContainsFunc(p.listed[uid].Containers, hasExited)
		}
		p.mu.Unlock()
		if !left {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func hasExited(c runtime.ContainerState) bool { return c.State == runtime.StateExited }

// nodeConditions are the conditions of the node that the agent knows of.
func (a *Agent) nodeConditions() []corev1.NodeCondition {
	all := append(pressureConditions(a.pods.underPressure()), a.routes.conditions()...)
	now := metav1.Now().Rfc3339Copy()
	for i := range all {
		all[i].LastTransitionTime, all[i].LastHeartbeatTime = now, now
	}
	return all
}

// nodeSignals measures this machine: its memory and processes, and the file system
// that dir is on.
func nodeSignals(dir string) NodeSignals {
	return func() map[Signal]amount {
		node := map[Signal]amount{}
		var fs unix.Statfs_t
		if unix.Statfs(existing(dir), &fs) == nil {
			// As df counts: of what is kept for root nobody here gets anything.
			node[SignalNodeFS] = amount{int64(fs.Bavail) * fs.Bsize, int64(fs.Blocks-fs.Bfree+fs.Bavail) * fs.Bsize}
			node[SignalNodeInodes] = amount{int64(fs.Ffree), int64(fs.Files)}
		}
		if meminfo, err := os.ReadFile("/proc/meminfo"); err == nil {
			total, err := memoryLine(string(meminfo), "MemTotal:")
			available, err2 := memoryLine(string(meminfo), "MemAvailable:")
			if err == nil && err2 == nil {
				node[SignalMemory] = amount{available, total}
			}
		}
		if pids, ok := pidsLeft(os.ReadFile); ok {
			node[SignalPIDs] = pids
		}
		return node
	}
}

// pidsLeft reads how many processes and threads there may be, and how many more.
func pidsLeft(read func(string) ([]byte, error)) (amount, bool) {
	number := func(path string) (int64, bool) {
		data, err := read(path)
		if err != nil {
			return 0, false
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
		return n, err == nil
	}
	most, ok := number("/proc/sys/kernel/pid_max")
	if threads, has := number("/proc/sys/kernel/threads-max"); has && ok {
		most = min(most, threads)
	}
	load, err := read("/proc/loadavg") // "0.20 0.18 0.12 1/80 11206": those that run, of all
	if err != nil || !ok {
		return amount{}, false
	}
	fields := strings.Fields(string(load))
	if len(fields) < 4 {
		return amount{}, false
	}
	_, all, found := strings.Cut(fields[3], "/")
	n, err := strconv.ParseInt(all, 10, 64)
	return amount{max(most-n, 0), most}, found && err == nil
}
