package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

type drainFlags struct {
	changeFlags
	ignoreDaemonSets, deleteEmptyDir, force bool
	replaceFirst, detach                    bool
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

The cluster does it, and this command tells how far it is: when it is interrupted, or
loses its connection, the drain goes on. The node's condition Drained says the same.
'holdfast uncordon' ends a drain, and takes the node back into service.`,
		Example: `  holdfast drain n1 --ignore-daemonsets
  holdfast drain n1 --ignore-daemonsets --delete-emptydir-data --timeout 10m
  holdfast drain n1 --force --detach    # and later: holdfast wait node/n1 --for condition=Drained`,
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
	flags.DurationVar(&f.timeout, "timeout", 0, "how long to try; 0 means for ever")
	flags.BoolVar(&f.detach, "detach", false, "do not wait: the cluster goes on")
	flags.Var(&f.dryRun, "dry-run", "server or client: only say what would be evicted")
	flags.Lookup("dry-run").NoOptDefVal = "server"
	return cmd
}

// request is what the flags ask the cluster for.
func (f drainFlags) request() object.Drain {
	d := object.Drain{
		IgnoreDaemonSets: f.ignoreDaemonSets, DeleteEmptyDirData: f.deleteEmptyDir, Force: f.force, ReplaceFirst: f.replaceFirst,
	}
	if f.grace >= 0 {
		d.GracePeriodSeconds = new(int64((f.grace + time.Second - 1) / time.Second))
	}
	if f.timeout > 0 {
		d.Timeout = f.timeout.String()
	}
	return d
}

func (a *app) runDrain(ctx context.Context, f drainFlags, node string) error {
	r, err := a.dial()
	if err != nil {
		return err
	}
	obj, _, err := a.get(ctx, r, mustResource("nodes"), "", node, &holdfastv1.ReadOptions{})
	if err != nil {
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
	request := f.request()
	leave, stay, forbid := request.Sort(pods)
	if len(forbid) > 0 {
		return notDrained(node, forbid)
	}
	if f.dryRun != "" {
		for _, pod := range leave {
			fmt.Fprintf(a.stdout, "pod/%s would be evicted%s\n", pod.Name, f.dryRun.suffix())
		}
		return nil
	}
	if len(stay) > 0 {
		var names []string
		for _, pod := range stay {
			names = append(names, object.DrainName(pod))
		}
		a.note("Staying: %s.", strings.Join(names, ", "))
	}
	request.ID = rand.Text()
	done := "cordoned"
	if obj.(*corev1.Node).Spec.Unschedulable {
		done = "already cordoned"
	}
	ask, err := merge(map[string]any{
		"spec":     map[string]any{"unschedulable": true},
		"metadata": map[string]any{"annotations": map[string]any{object.DrainAnnotation: request.String()}},
	}, done, done)
	if err != nil {
		return err
	}
	began := a.now()
	asked, _, err := a.patchOne(ctx, r, f.changeFlags, doomed{mustResource("nodes"), "", node}, ask)
	if err != nil {
		return err
	}
	if f.detach {
		a.note("The cluster drains node %s. 'holdfast wait node/%s --for condition=Drained' waits for it, 'holdfast uncordon %s' ends it.", node, node, node)
		return nil
	}
	return a.followDrain(ctx, r, asked, request, leave, began)
}

func notDrained(node string, forbid []string) error {
	return failf(exitRefused, "node %s was not drained:\n  %s", node, strings.Join(forbid, "\n  "))
}

// followDrain tells how far the cluster is with a request, until that has ended.
// asked is the node with the request.
func (a *app) followDrain(ctx context.Context, r *remote, asked object.Object, request object.Drain, pods []*corev1.Pod, began time.Time) error {
	node := asked.GetName()
	story := drainStory{out: a.stdout, request: request.ID, since: revisionOf(asked), left: map[types.UID]*corev1.Pod{}, evicted: map[types.UID]bool{}, waits: map[string]string{}}
	for _, pod := range pods {
		story.left[pod.UID] = pod
	}
	requests := []*holdfastv1.WatchRequest{
		{Kind: wireKind(mustResource("pods")), FieldSelector: "spec.nodeName=" + node},
		{Kind: wireKind(mustResource("nodes")), FieldSelector: "metadata.name=" + node},
	}
	err := a.watch(ctx, r, requests, 0, func(u update) error {
		for _, c := range u.changes {
			story.take(c)
		}
		if story.over {
			return errStopWatching
		}
		return nil
	})
	switch {
	case ctx.Err() != nil:
		return failf(exitInterrupted, "no longer waiting: the cluster goes on draining node %s; 'holdfast uncordon %s' ends that", node, node)
	case err != nil:
		return err
	}
	what := strings.ReplaceAll(story.message, "\n", "\n  ")
	switch story.reason {
	case object.DrainDone:
		fmt.Fprintf(a.stdout, "node/%s drained in %s\n", node, brief(a.now().Sub(began)))
		return nil
	case object.DrainTimedOut:
		return failf(exitTimeout, "not drained after %s; node %s stays cordoned:\n  %s", request.Timeout, node, what)
	case object.DrainRefused:
		return notDrained(node, strings.Split(story.message, "\n"))
	case drainReplaced:
		return failf(exitRefused, "another drain of node %s has begun and goes on in place of this one", node)
	}
	return failf(exitRefused, "node %s is no longer drained: somebody has uncordoned or removed it", node)
}

// drainReplaced is a drainStory's reason when another request took the place of its own.
const drainReplaced = "Replaced"

// drainStory tells what becomes of a drain from the changes of its node and pods.
type drainStory struct {
	out     io.Writer
	request string // the id
	since   int64  // the revision of the node with the request
	left    map[types.UID]*corev1.Pod
	evicted map[types.UID]bool
	waits   map[string]string // what was told, by pod

	over            bool
	reason, message string // of the node's condition at the end; "" if it has none
}

func (s *drainStory) take(c change) {
	gone := c.kind == holdfastv1.ChangeType_CHANGE_TYPE_DELETED
	switch obj := c.obj.(type) {
	case *corev1.Pod:
		if object.Deleting(obj) && !s.evicted[obj.UID] {
			s.evicted[obj.UID] = true
			fmt.Fprintf(s.out, "pod/%s evicted\n", obj.Name)
		}
		if _, ours := s.left[obj.UID]; gone && (ours || s.evicted[obj.UID]) {
			fmt.Fprintf(s.out, "pod/%s gone\n", obj.Name)
			delete(s.left, obj.UID)
		}
	case *corev1.Node:
		if s.over || !gone && revisionOf(obj) < s.since {
			return
		}
		if gone {
			s.over = true
			return
		}
		condition := object.NodeCondition(obj, object.NodeDrained)
		now, asked, err := object.DrainOf(obj)
		switch {
		case asked && err == nil && now.ID == s.request:
			if condition != nil && condition.Reason == object.DrainGoesOn {
				s.tell(condition.Message)
			}
		case asked:
			s.over, s.reason = true, drainReplaced
		default:
			s.over = true
			if condition != nil {
				s.reason, s.message = condition.Reason, condition.Message
			}
			if s.reason == object.DrainDone { // the word of the node may come before that of its last pods
				for _, pod := range slices.SortedFunc(maps.Values(s.left), func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) }) {
					fmt.Fprintf(s.out, "pod/%s gone\n", pod.Name)
				}
			}
		}
	}
}

// tell tells what pods wait for, once.
func (s *drainStory) tell(message string) {
	for line := range strings.Lines(message) {
		pod, why, ok := strings.Cut(strings.TrimSpace(line), " waits: ")
		if ok && s.waits[pod] != why {
			s.waits[pod] = why
			name, _, _ := strings.Cut(pod, " (")
			fmt.Fprintf(s.out, "%s waits: %s\n", name, why)
		}
	}
}

func revisionOf(obj object.Object) int64 {
	revision, _ := strconv.ParseInt(obj.GetResourceVersion(), 10, 64)
	return revision
}
