package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

const (
	// keptLogsPeriod is how often logs of removed pods are looked through.
	keptLogsPeriod = time.Minute
	// How long, and how much of, the logs of removed pods are kept.
	defaultKeptLogsAge   = 24 * time.Hour
	defaultKeptLogsBytes = 1 << 30
)

// planKeptLogs chooses the logs of removed pods that are too old, or the oldest
// beyond what they may take together. It is pure.
func planKeptLogs(all []runtime.KeptLogs, age time.Duration, bytes int64, now time.Time) (remove []string) {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b runtime.KeptLogs) int { // the newest first
		return cmp.Or(b.RemovedAt.Compare(a.RemovedAt), cmp.Compare(a.UID, b.UID))
	})
	var sum int64
	for _, k := range all {
		if sum += k.Bytes; now.Sub(k.RemovedAt) > age || sum > bytes {
			remove = append(remove, k.UID)
		}
	}
	return remove
}

// logKeeper keeps the logs of removed pods for a while, and not for longer.
type logKeeper struct {
	runtime runtime.Runtime
	age     time.Duration
	bytes   int64
	log     *slog.Logger
}

// run looks through the logs until ctx ends.
func (k *logKeeper) run(ctx context.Context) error {
	for {
		k.collect(ctx, k.bytes)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(keptLogsPeriod):
		}
	}
}

// collect removes what is too old, or too much for bytes in all.
func (k *logKeeper) collect(ctx context.Context, bytes int64) {
	all, err := k.runtime.KeptLogs(ctx)
	if err != nil {
		if ctx.Err() == nil {
			k.log.Warn("logs of removed pods cannot be listed", "error", err)
		}
		return
	}
	for _, uid := range planKeptLogs(all, k.age, bytes, time.Now()) {
		if err := k.runtime.RemoveLogs(ctx, uid); err != nil {
			k.log.Warn("logs of a removed pod stay", "uid", uid, "error", err)
		}
	}
}

// latest returns the pod of that name that was removed last and has logs, and the names of
// its containers that have.
func (k *logKeeper) latest(ctx context.Context, node, namespace, name string) (pod runtime.KeptLogs, names []string, err error) {
	all, err := k.runtime.KeptLogs(ctx)
	if err != nil {
		return pod, nil, err
	}
	all = slices.DeleteFunc(all, func(l runtime.KeptLogs) bool { return l.Namespace != namespace || l.Name != name || len(l.Runs) == 0 })
	if len(all) == 0 {
		return pod, nil, connect.Errorf(connect.CodeNotFound, "pod %s/%s is not on node %s, and no log of it: logs of removed pods stay for %v, and %d MiB of them", namespace, name, node, k.age, k.bytes>>20)
	}
	pod = slices.MaxFunc(all, func(a, b runtime.KeptLogs) int { return a.RemovedAt.Compare(b.RemovedAt) })
	for _, run := range pod.Runs {
		if !slices.Contains(names, run.Name) {
			names = append(names, run.Name)
		}
	}
	return pod, names, nil
}

// containers returns those of a removed pod that have a log, and what to say about it.
func (k *logKeeper) containers(ctx context.Context, node, namespace, name string) (names []string, notice string, err error) {
	pod, names, err := k.latest(ctx, node, namespace, name)
	if err != nil {
		return nil, "", err
	}
	return names, k.notice(node, pod), nil
}

// notice is what callers are told of the log of a pod that was removed.
func (k *logKeeper) notice(node string, pod runtime.KeptLogs) string {
	return fmt.Sprintf("Pod %s/%s was deleted; node %s has kept its log since %s, until %s at the latest.",
		pod.Namespace, pod.Name, node, pod.RemovedAt.UTC().Format(time.RFC3339), pod.RemovedAt.Add(k.age).UTC().Format(time.RFC3339))
}

// find returns the run of a container of the pod of that name that was removed last, and what to say
// about it.
func (k *logKeeper) find(ctx context.Context, node, namespace, name, container string, previous bool) (runtime.ContainerID, string, error) {
	none := runtime.ContainerID{}
	pod, names, err := k.latest(ctx, node, namespace, name)
	if err != nil {
		return none, "", err
	}
	if container == "" && len(names) > 1 {
		return none, "", connect.Errorf(connect.CodeInvalidArgument, "pod %s/%s had several containers, name one of %q", namespace, name, names)
	}
	if container == "" {
		container = names[0]
	}
	runs := slices.DeleteFunc(slices.Clone(pod.Runs), func(run runtime.ContainerID) bool { return run.Name != container })
	back := 1
	if previous {
		back = 2
	}
	if len(runs) < back {
		what := "log"
		if previous {
			what = "log of an earlier run"
		}
		return none, "", connect.Errorf(connect.CodeNotFound, "of container %q of pod %s/%s, which was removed, node %s has no %s; it has logs of %q", container, namespace, name, node, what, names)
	}
	return runs[len(runs)-back], k.notice(node, pod), nil
}
