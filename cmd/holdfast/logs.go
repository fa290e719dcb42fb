package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

type logsFlags struct {
	container     string
	allContainers bool
	labels        string
	follow        bool
	tail          int64
	timestamps    bool
	previous      bool
	prefix        bool
	prefixSet     bool
	since         time.Duration
	sinceTime     string
	limitBytes    int64
	maxRequests   int
	node          string
}

func (a *app) logsCommand() *cobra.Command {
	var f logsFlags
	cmd := &cobra.Command{
		Use:   "logs POD | KIND/NAME | -l LABELS",
		Short: "Show what containers have written",
		Long: `Show what a pod's container has written, or all pods of a workload, or with some
labels, together: then each line has its pod's name before it, and that of its
container with --all-containers. Nodes keep the logs of deleted pods for a while; the
command says so when it shows one.

With -f it goes on with new lines until the container has ended; with a workload or
labels it also takes in what is started later. The death of a peer on the way does
not end it: it goes on through another one, without losing lines.`,
		Example: `  holdfast logs web-7f2ab
  holdfast logs -f deployment/web --tail 10
  holdfast logs -l app=web --all-containers --since 10m
  holdfast logs web-7f2ab --previous`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case f.labels == "" && len(args) != 1:
				return failf(exitUsage, "%d arguments given, want one POD or KIND/NAME, or -l LABELS", len(args))
			case f.labels != "" && len(args) > 0:
				return failf(exitUsage, "a name and --selector do not go together")
			}
			return nil
		},
		ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.prefixSet = cmd.Flags().Changed("prefix")
			return a.runLogs(cmd.Context(), f, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.container, "container", "c", "", "which container, if the pod has several")
	flags.BoolVar(&f.allContainers, "all-containers", false, "all containers of each pod")
	flags.StringVarP(&f.labels, "selector", "l", "", "all pods with these labels, such as app=web,tier!=cache")
	flags.BoolVarP(&f.follow, "follow", "f", false, "go on with new lines")
	flags.Int64Var(&f.tail, "tail", -1, "only the last so many lines of each log; -1 means all")
	flags.BoolVar(&f.timestamps, "timestamps", false, "the time before each line")
	flags.BoolVarP(&f.previous, "previous", "p", false, "the log of the container's run before the last restart")
	flags.BoolVar(&f.prefix, "prefix", false, "the pod's name before each line, or never with --prefix=false (default: if there may be several)")
	flags.DurationVar(&f.since, "since", 0, "only lines that are not older, such as 10m")
	flags.StringVar(&f.sinceTime, "since-time", "", "only lines since then, such as 2026-01-31T12:00:00Z")
	flags.Int64Var(&f.limitBytes, "limit-bytes", 0, "at most so many bytes of each log; 0 means all")
	flags.IntVar(&f.maxRequests, "max-log-requests", 20, "how many logs may be open at the same time with --follow")
	flags.StringVar(&f.node, "node", "", "which node to ask for the log of a deleted pod (default: the one that its events tell of)")
	return cmd
}

func (a *app) runLogs(ctx context.Context, f logsFlags, args []string) error {
	switch {
	case f.previous && f.follow:
		return failf(exitUsage, "--previous shows a run that has ended: there is nothing to follow")
	case f.allContainers && f.container != "":
		return failf(exitUsage, "--container and --all-containers do not go together")
	case f.since > 0 && f.sinceTime != "":
		return failf(exitUsage, "--since and --since-time do not go together")
	case f.limitBytes < 0:
		return failf(exitUsage, "--limit-bytes %d: want at least 1, or 0 for all", f.limitBytes)
	case f.maxRequests < 1:
		return failf(exitUsage, "--max-log-requests %d: want at least 1", f.maxRequests)
	}
	l := &logReader{app: a, f: f, out: &lineWriter{w: a.stdout}}
	switch {
	case f.since > 0:
		l.since = timestamppb.New(a.now().Add(-f.since))
	case f.sinceTime != "":
		at, err := time.Parse(time.RFC3339, f.sinceTime)
		if err != nil {
			return failf(exitUsage, "--since-time %s: want a time such as 2026-01-31T12:00:00Z", f.sinceTime)
		}
		l.since = timestamppb.New(at)
	}
	var res object.Resource
	name, selector, what := "", f.labels, "selected"
	if len(args) > 0 {
		var err error
		if res, name, err = parseWorkload(args[0]); err != nil {
			return err
		}
		what = "of " + kindName(res) + "/" + name
	}
	var err error
	if l.r, err = a.dial(); err != nil {
		return err
	}
	if res.Kind == "Pod" {
		return a.interruptedSilently(ctx, l.pod(ctx, name))
	}
	if name != "" {
		obj, _, err := a.get(ctx, l.r, res, a.inNamespace(), name, nil)
		if err != nil {
			return err
		}
		if selector, err = podSelector(obj); err != nil {
			return err
		}
	}
	return a.interruptedSilently(ctx, l.pods(ctx, selector, what))
}

// interruptedSilently makes Ctrl-C the normal end that it is for what never ends
// by itself.
func (a *app) interruptedSilently(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return exit(exitInterrupted)
	}
	return err
}

// logReader reads the logs that a command asks for.
type logReader struct {
	app   *app
	r     *remote
	f     logsFlags
	since *timestamppb.Timestamp
	out   *lineWriter
}

// prefix is what stands before each line of a container's log.
func (l *logReader) prefix(pod, container string, several bool) string {
	switch {
	case l.f.prefixSet && !l.f.prefix || !several && !l.f.prefix:
		return ""
	case l.f.allContainers:
		return "[" + pod + " " + container + "] "
	}
	return "[" + pod + "] "
}

// pod reads one pod.
func (l *logReader) pod(ctx context.Context, name string) error {
	if !l.f.allContainers {
		return l.log(ctx, name, l.f.container, l.prefix(name, l.f.container, false), l.f.tail)
	}
	obj, _, err := l.app.get(ctx, l.r, mustResource("pods"), l.app.inNamespace(), name, nil)
	if failed, ok := errors.AsType[*failure](err); ok && failed.code == exitNotFound {
		return l.removedPod(ctx, name, err)
	}
	if err != nil {
		return err
	}
	runs := l.runs(obj.(*corev1.Pod))
	if l.f.follow && len(runs) > l.f.maxRequests {
		return l.tooMany(len(runs))
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, run := range runs {
		group.Go(func() error {
			return l.log(ctx, name, run.container, l.prefix(name, run.container, true), l.f.tail)
		})
	}
	return group.Wait()
}

// removedPod reads all logs that a node has kept of a pod that there is no more, one after
// the other. gone is what to say if there is none.
func (l *logReader) removedPod(ctx context.Context, name string, gone error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := l.r.pods.Logs(ctx, &holdfastv1.LogsRequest{Namespace: l.app.inNamespace(), Pod: name, Removed: true, Node: l.f.node, ListContainers: true})
	if err != nil {
		return l.app.explain(ctx, l.r, "logs of pod/"+name, err)
	}
	defer stream.Close()
	list, err := stream.Receive()
	switch {
	case connect.CodeOf(err) == connect.CodeNotFound:
		return gone
	case err != nil:
		return l.app.explain(ctx, l.r, "logs of pod/"+name, err)
	case len(list.GetContainers()) == 0: // of a peer or a node that knows no such question
		return gone
	}
	for _, container := range list.GetContainers() {
		if err := l.log(ctx, name, container, l.prefix(name, container, true), l.f.tail); err != nil {
			return err
		}
	}
	return nil
}

func (l *logReader) tooMany(n int) error {
	return failf(exitRefused, "%d logs to follow are more than --max-log-requests %d: choose fewer, or raise it", n, l.f.maxRequests)
}

// logRun is one run of a container that has a log.
type logRun struct {
	container string
	restarts  int32
}

// runs returns those of a pod that are asked for and have begun, init containers
// first. An empty container is the pod's only one.
func (l *logReader) runs(pod *corev1.Pod) []logRun {
	var out []logRun
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses) {
		if s.State.Running == nil && s.State.Terminated == nil && s.LastTerminationState.Terminated == nil {
			continue
		}
		if l.f.allContainers || s.Name == l.f.container || l.f.container == "" && len(pod.Spec.Containers) == 1 && s.Name == pod.Spec.Containers[0].Name {
			out = append(out, logRun{s.Name, s.RestartCount})
		}
	}
	if len(out) == 0 && l.f.container == "" && len(pod.Spec.Containers) > 1 && hasStarted(pod) {
		out = append(out, logRun{}) // the peer says what there is to choose from
	}
	return out
}

// log writes the log of one container. It goes on through another peer when a
// stream breaks, from the time of the last line that it has written.
func (l *logReader) log(ctx context.Context, pod, container, prefix string, tail int64) error {
	a, f := l.app, l.f
	req := &holdfastv1.LogsRequest{
		Namespace: a.inNamespace(), Pod: pod, Container: container,
		Follow: f.follow, TailLines: tail, Previous: f.previous, Since: l.since,
		Timestamps: true, // to know where to go on
		Removed:    true, Node: f.node,
	}
	log := &resumableLog{note: a.note, out: l.out, prefix: prefix, timestamps: f.timestamps, left: f.limitBytes, limited: f.limitBytes > 0}
	var lost time.Time
	for pause := watchRetry; ; pause = min(2*pause, watchRetryMax) {
		progress, err := log.once(ctx, l.r, req)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if progress {
			lost, pause = time.Time{}, watchRetry
		}
		if lost.IsZero() {
			lost = a.now()
		}
		code := connect.CodeOf(err)
		again := code == connect.CodeUnavailable || code == connect.CodeCanceled || code == connect.CodeUnknown
		if !again || !f.follow || log.begun() && a.now().Sub(lost) > watchPatience || !log.begun() && a.now().Sub(lost) > a.requestTimeout {
			return a.explain(ctx, l.r, "logs of pod/"+pod, err)
		}
		log.resume(req)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// resumableLog takes a log with times and writes it once, whatever breaks.
type resumableLog struct {
	note       func(format string, args ...any)
	out        *lineWriter
	prefix     string
	timestamps bool
	limited    bool
	left       int64 // bytes that may still be written, if limited

	last  time.Time // of the last line written
	atIt  int       // how many lines of that time were written
	skip  int       // how many of that time are still to be left out
	parts []byte    // a line that is not complete
}

func (l *resumableLog) begun() bool { return !l.last.IsZero() }

// resume makes req ask for what comes after the last line.
func (l *resumableLog) resume(req *holdfastv1.LogsRequest) {
	l.parts = nil
	if l.begun() {
		req.Since = timestamppb.New(l.last)
		req.TailLines = -1
		l.skip = l.atIt
	}
}

func (l *resumableLog) once(ctx context.Context, r *remote, req *holdfastv1.LogsRequest) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.pods.Logs(ctx, req)
	if err != nil {
		return false, err
	}
	defer stream.Close()
	for {
		res, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			l.line(l.parts) // a last line without line feed
			l.parts = nil
			return true, nil
		}
		if err != nil {
			return progress, err
		}
		progress = true
		if notice := res.GetNotice(); notice != "" && !l.begun() {
			l.note("%s", notice)
		}
		l.take(res.GetData())
		if l.limited && l.left <= 0 {
			return true, nil
		}
	}
}

func (l *resumableLog) take(data []byte) {
	l.parts = append(l.parts, data...)
	for {
		i := bytes.IndexByte(l.parts, '\n')
		if i < 0 {
			return
		}
		l.line(l.parts[:i])
		l.parts = l.parts[i+1:]
	}
}

// line writes a line, "2026-01-02T15:04:05.999999999Z text", unless it has been
// written before.
func (l *resumableLog) line(line []byte) {
	if len(line) == 0 {
		return
	}
	text := line
	if stamp, rest, ok := bytes.Cut(line, []byte(" ")); ok || len(stamp) > 0 {
		if at, err := time.Parse(time.RFC3339Nano, string(stamp)); err == nil {
			switch {
			case at.Before(l.last):
				if l.skip > 0 {
					return
				}
			case at.Equal(l.last):
				if l.skip > 0 {
					l.skip--
					return
				}
				l.atIt++
			default:
				l.last, l.atIt, l.skip = at, 1, 0
			}
			if !l.timestamps {
				text = rest
			}
		}
	}
	text = append(text[:len(text):len(text)], '\n')
	if l.limited {
		text = text[:min(int64(len(text)), l.left)]
		l.left -= int64(len(text))
	}
	l.out.write(l.prefix, text)
}

// lineWriter writes whole lines from several goroutines.
type lineWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (w *lineWriter) write(prefix string, line []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(line) > 0 {
		_, _ = w.w.Write(append([]byte(prefix), line...))
	}
}

// pods reads all pods with some labels together.
func (l *logReader) pods(ctx context.Context, selector, what string) error {
	a := l.app
	group, groupCtx := errgroup.WithContext(ctx)
	type key struct {
		uid string
		run logRun
	}
	var (
		began = map[key]bool{}
		open  atomic.Int64
	)
	begin := func(pod *corev1.Pod, tail int64) error {
		for _, run := range l.runs(pod) {
			k := key{string(pod.UID), run}
			if began[k] {
				continue
			}
			began[k] = true
			if n := open.Add(1); l.f.follow && n > int64(l.f.maxRequests) {
				return l.tooMany(int(n))
			}
			if run.restarts > 0 && began[key{k.uid, logRun{run.container, run.restarts - 1}}] {
				tail = -1 // all of the next run
			}
			group.Go(func() error {
				defer open.Add(-1)
				err := l.log(groupCtx, pod.Name, run.container, l.prefix(pod.Name, run.container, true), tail)
				if l.f.follow && isNotFound(err) {
					return nil // deleted meanwhile
				}
				return err
			})
		}
		return nil
	}
	req := &holdfastv1.WatchRequest{Kind: wireKind(mustResource("pods")), Namespace: a.inNamespace(), LabelSelector: selector}
	if l.f.follow {
		group.Go(func() error {
			return a.watch(groupCtx, l.r, []*holdfastv1.WatchRequest{req}, 0, func(u update) error {
				for _, c := range u.changes {
					if pod, ok := c.obj.(*corev1.Pod); ok && c.kind != holdfastv1.ChangeType_CHANGE_TYPE_DELETED {
						if err := begin(pod, l.f.tail); err != nil {
							return err
						}
					}
				}
				return nil
			})
		})
		return group.Wait()
	}
	group.SetLimit(l.f.maxRequests)
	pods, _, err := a.list(ctx, l.r, &holdfastv1.ListRequest{Kind: req.GetKind(), Namespace: req.GetNamespace(), LabelSelector: selector}, "pods")
	if err != nil {
		return err
	}
	for _, pod := range pods {
		_ = begin(pod.(*corev1.Pod), l.f.tail) // only following has a limit
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if len(began) == 0 {
		a.note("None of the %d pods %s has started.", len(pods), what)
	}
	return nil
}

// podSelector returns the label selector of a workload's pods.
func podSelector(obj object.Object) (string, error) {
	var selector *metav1.LabelSelector
	switch obj := obj.(type) {
	case *appsv1.Deployment:
		selector = obj.Spec.Selector
	case *appsv1.ReplicaSet:
		selector = obj.Spec.Selector
	case *appsv1.StatefulSet:
		selector = obj.Spec.Selector
	case *appsv1.DaemonSet:
		selector = obj.Spec.Selector
	case *batchv1.Job:
		selector = obj.Spec.Selector
	case *corev1.ReplicationController:
		return labels.Set(obj.Spec.Selector).String(), nil
	case *corev1.Service:
		if len(obj.Spec.Selector) > 0 {
			return labels.Set(obj.Spec.Selector).String(), nil
		}
	}
	if selector == nil {
		return "", fmt.Errorf("%s selects no pods", title(obj))
	}
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return "", fmt.Errorf("%s: its selector: %w", title(obj), err)
	}
	return s.String(), nil
}

// hasStarted tells whether a container of the pod has run, so that there is a log.
func hasStarted(pod *corev1.Pod) bool {
	for _, s := range pod.Status.ContainerStatuses {
		if s.State.Running != nil || s.State.Terminated != nil || s.LastTerminationState.Terminated != nil {
			return true
		}
	}
	return false
}
