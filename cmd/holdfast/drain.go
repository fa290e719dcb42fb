package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// evictRetry is how long an eviction that a budget refused waits for its next try.
const evictRetry = 5 * time.Second

// replaceRetry is the same for a pod that goes once another serves in its place.
const replaceRetry = time.Second

type drainFlags struct {
	changeFlags
	ignoreDaemonSets, deleteEmptyDir, force bool
	replaceFirst                            bool
	grace                                   time.Duration
	timeout                                 time.Duration
}

func (a *app) drainCommand() *cobra.Command {
	f := drainFlags{grace: -1}
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Empty a node: keep new pods away, and evict those that run there",
		Long: `Empty a node, for maintenance: it is cordoned, and its pods are evicted. Disruption
budgets are kept: what they hold back is told, and tried again until --timeout. Of pods
that a budget cannot spare, and of the only one that serves of a ReplicaSet (and so of a
Deployment) or ReplicationController, another is started first; they go once it serves.
'holdfast uncordon' takes the node back into service.`,
		Example: `  holdfast drain n1 --ignore-daemonsets
  holdfast drain n1 --ignore-daemonsets --delete-emptydir-data --timeout 10m`,
		Args:              exactArgs(1, "the NODE"),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runDrain(cmd.Context(), f, bareNodes(args)[0])
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.ignoreDaemonSets, "ignore-daemonsets", false, "leave pods of DaemonSets, which would only come back")
	flags.BoolVar(&f.deleteEmptyDir, "delete-emptydir-data", false, "also evict pods with data in emptyDir volumes, which is lost")
	flags.BoolVar(&f.force, "force", false, "also evict pods that nothing will bring back")
	flags.BoolVar(&f.replaceFirst, "replace-first", true, "start another pod before the only one of a ReplicaSet goes, although no budget says so")
	flags.Var((*graceValue)(&f.grace), "grace-period", "time that pods have to stop in (default: what each asks for)")
	flags.DurationVar(&f.timeout, "timeout", 0, "how long to wait; 0 means for ever")
	flags.Var(&f.dryRun, "dry-run", "server or client: only say what would be evicted")
	flags.Lookup("dry-run").NoOptDefVal = "server"
	return cmd
}

// drainable sorts pods of a node into those to evict and those that stay, and
// says what forbids the drain.
func drainable(pods []*corev1.Pod, f drainFlags) (evict []*corev1.Pod, stay, forbid []string) {
	for _, pod := range pods {
		name := "pod/" + pod.Name + " (" + pod.Namespace + ")"
		owner := object.ControllerOf(pod)
		if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
			stay = append(stay, name) // the node runs it from a file, whatever becomes of the object
			continue
		}
		if object.PodPhaseFinal(pod) {
			evict = append(evict, pod)
			continue
		}
		if owner != nil && owner.Kind == "DaemonSet" {
			if f.ignoreDaemonSets {
				stay = append(stay, name)
			} else {
				forbid = append(forbid, name+" belongs to a DaemonSet: --ignore-daemonsets leaves it there")
			}
			continue
		}
		if owner == nil && !f.force {
			forbid = append(forbid, name+" belongs to nothing that would bring it back: --force evicts it for good")
			continue
		}
		hasData := slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.EmptyDir != nil })
		if hasData && !f.deleteEmptyDir {
			forbid = append(forbid, name+" has data in an emptyDir volume: --delete-emptydir-data loses it")
			continue
		}
		evict = append(evict, pod)
	}
	return evict, stay, forbid
}

func (a *app) runDrain(ctx context.Context, f drainFlags, node string) error {
	r, err := a.dial()
	if err != nil {
		return err
	}
	if _, _, err := a.get(ctx, r, mustResource("nodes"), "", node, &holdfastv1.ReadOptions{}); err != nil {
		return err
	}
	on := &holdfastv1.ListRequest{Kind: wireKind(mustResource("pods")), FieldSelector: "spec.nodeName=" + node}
	found, _, err := a.list(ctx, r, on, "pods")
	if err != nil {
		return err
	}
	var pods []*corev1.Pod
	for _, obj := range found {
		if pod, ok := obj.(*corev1.Pod); ok {
			pods = append(pods, pod)
		}
	}
	evict, stay, forbid := drainable(pods, f)
	if len(forbid) > 0 {
		return failf(exitRefused, "node %s was not drained:\n  %s", node, strings.Join(forbid, "\n  "))
	}
	if f.dryRun != "" {
		for _, pod := range evict {
			fmt.Fprintf(a.stdout, "pod/%s would be evicted%s\n", pod.Name, f.dryRun.suffix())
		}
		return nil
	}
	cordon, err := merge(map[string]any{"spec": map[string]any{"unschedulable": true}}, "cordoned", "already cordoned")
	if err != nil {
		return err
	}
	if _, _, err := a.patchOne(ctx, r, f.changeFlags, doomed{mustResource("nodes"), "", node}, cordon); err != nil {
		return err
	}
	if len(stay) > 0 {
		a.note("Staying: %s.", strings.Join(stay, ", "))
	}
	return a.evictAll(ctx, r, f, node, evict)
}

// eviction is how far one pod is.
type eviction struct {
	pod     *corev1.Pod
	evicted bool
	next    time.Time
	why     string
}

// evictAll evicts pods and waits until they are gone.
func (a *app) evictAll(ctx context.Context, r *remote, f drainFlags, node string, pods []*corev1.Pod) error {
	began := a.now()
	left := map[string]*eviction{}
	for _, pod := range pods {
		left[string(pod.UID)] = &eviction{pod: pod}
	}
	waitCtx, cancel := ctx, context.CancelFunc(func() {})
	if f.timeout > 0 {
		waitCtx, cancel = context.WithTimeout(ctx, f.timeout)
	}
	defer cancel()
	synced, seen := false, map[string]bool{}
	req := &holdfastv1.WatchRequest{Kind: wireKind(mustResource("pods")), FieldSelector: "spec.nodeName=" + node}
	err := a.watch(waitCtx, r, []*holdfastv1.WatchRequest{req}, time.Second, func(u update) error {
		gone := func(uid string) {
			if e, ok := left[uid]; ok {
				fmt.Fprintf(a.stdout, "pod/%s gone\n", e.pod.Name)
				delete(left, uid)
			}
		}
		for _, c := range u.changes {
			if c.kind == holdfastv1.ChangeType_CHANGE_TYPE_DELETED {
				gone(string(c.obj.GetUID()))
				continue
			}
			seen[string(c.obj.GetUID())] = true
		}
		if u.synced {
			synced = true
			for _, uid := range slices.Sorted(maps.Keys(left)) {
				if !seen[uid] {
					gone(uid)
				}
			}
		}
		if !synced {
			return nil
		}
		for _, uid := range slices.Sorted(maps.Keys(left)) {
			if err := a.evictOne(waitCtx, r, f, left[uid]); err != nil {
				return err
			}
		}
		if len(left) == 0 {
			return errStopWatching
		}
		return nil
	})
	var open []string
	for _, uid := range slices.Sorted(maps.Keys(left)) {
		e := left[uid]
		why := e.why
		if e.evicted {
			why = "is stopping"
		}
		open = append(open, fmt.Sprintf("pod/%s %s", e.pod.Name, why))
	}
	switch {
	case err == nil:
		fmt.Fprintf(a.stdout, "node/%s drained in %s\n", node, brief(a.now().Sub(began)))
		return nil
	case ctx.Err() != nil:
		return failf(exitInterrupted, "no longer draining; node %s stays cordoned, and pods that were evicted go on stopping", node)
	case errors.Is(err, context.DeadlineExceeded), waitCtx.Err() != nil:
		return failf(exitTimeout, "not drained after %v; node %s stays cordoned:\n  %s", f.timeout, node, strings.Join(open, "\n  "))
	}
	return err
}

// evictOne tries to evict a pod, if it is time to. What refuses it is told once.
func (a *app) evictOne(ctx context.Context, r *remote, f drainFlags, e *eviction) error {
	if e.evicted || a.now().Before(e.next) {
		return nil
	}
	callCtx, cancel := a.request(ctx)
	defer cancel()
	req := &holdfastv1.EvictRequest{Namespace: e.pod.Namespace, Name: e.pod.Name, Uid: string(e.pod.UID), ReplaceFirst: f.replaceFirst}
	if f.grace >= 0 {
		req.GracePeriod = durationpb.New(f.grace)
	}
	_, err := r.objects.Evict(callCtx, req)
	switch connect.CodeOf(err) {
	case connect.CodeResourceExhausted:
		var rpc *connect.Error
		why := err.Error()
		if errors.As(err, &rpc) {
			why = rpc.Message()
		}
		for _, fault := range faultsIn(err) {
			why = fault.GetMessage()
		}
		if why != e.why {
			fmt.Fprintf(a.stdout, "pod/%s waits: %s\n", e.pod.Name, why)
		}
		e.why, e.next = why, a.now().Add(evictRetry)
		if object.CanReplaceFirst(e.pod) {
			e.next = a.now().Add(replaceRetry)
		}
		return nil
	case connect.CodeNotFound:
		e.evicted = true // gone already; the watch will say so
		return nil
	}
	if err != nil {
		return a.explain(callCtx, r, "evict pod/"+e.pod.Name, err)
	}
	e.evicted = true
	fmt.Fprintf(a.stdout, "pod/%s evicted\n", e.pod.Name)
	return nil
}
