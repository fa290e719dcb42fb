package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

type logsFlags struct {
	container  string
	follow     bool
	tail       int64
	timestamps bool
	previous   bool
	since      time.Duration
}

func (a *app) logsCommand() *cobra.Command {
	var f logsFlags
	cmd := &cobra.Command{
		Use:   "logs POD | KIND/NAME",
		Short: "Show what containers have written",
		Long: `Show what a pod's container has written, or all pods of a workload together, each
line with its pod's name before it.

With -f it goes on with new lines until the container has ended, and with a
workload also takes in pods that are started later. The death of a peer on the
way does not end it: it goes on through another one, without losing lines.`,
		Example: `  holdfast logs web-7f2ab
  holdfast logs -f deployment/web --tail 10
  holdfast logs web-7f2ab --previous`,
		Args:              exactArgs(1, "one POD or KIND/NAME"),
		ValidArgsFunction: a.completePods,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runLogs(cmd.Context(), f, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.container, "container", "c", "", "which container, if the pod has several")
	flags.BoolVarP(&f.follow, "follow", "f", false, "go on with new lines")
	flags.Int64Var(&f.tail, "tail", -1, "only the last so many lines of each log; -1 means all")
	flags.BoolVar(&f.timestamps, "timestamps", false, "the time before each line")
	flags.BoolVarP(&f.previous, "previous", "p", false, "the log of the container's run before the last restart")
	flags.DurationVar(&f.since, "since", 0, "only lines that are not older, such as 10m")
	return cmd
}

// exactArgs wants n arguments and says which.
func exactArgs(n int, which string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return failf(exitUsage, "%d arguments given, want %s", len(args), which)
		}
		return nil
	}
}

func (a *app) runLogs(ctx context.Context, f logsFlags, arg string) error {
	if f.previous && f.follow {
		return failf(exitUsage, "--previous shows a run that has ended: there is nothing to follow")
	}
	res, name, err := parseWorkload(arg)
	if err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	out := &lineWriter{w: a.stdout}
	if res.Kind == "Pod" {
		return a.interruptedSilently(ctx, a.podLog(ctx, r, f, name, "", out))
	}
	return a.interruptedSilently(ctx, a.workloadLogs(ctx, r, f, res, name, out))
}

// interruptedSilently makes Ctrl-C the normal end that it is for what never ends
// by itself.
func (a *app) interruptedSilently(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return exit(exitInterrupted)
	}
	return err
}

// podLog writes the log of one container. It goes on through another peer when
// a stream breaks, from the time of the last line that it has written.
func (a *app) podLog(ctx context.Context, r *remote, f logsFlags, pod, prefix string, out *lineWriter) error {
	req := &holdfastv1.LogsRequest{
		Namespace: a.inNamespace(), Pod: pod, Container: f.container,
		Follow: f.follow, TailLines: f.tail, Previous: f.previous,
		Timestamps: true, // to know where to go on
	}
	if f.since > 0 {
		req.Since = timestamppb.New(a.now().Add(-f.since))
	}
	log := &resumableLog{out: out, prefix: prefix, timestamps: f.timestamps}
	var lost time.Time
	for pause := watchRetry; ; pause = min(2*pause, watchRetryMax) {
		progress, err := log.once(ctx, r, req)
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
			return a.explain(ctx, r, "logs of pod/"+pod, err)
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
	out        *lineWriter
	prefix     string
	timestamps bool

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
		l.take(res.GetData())
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
	l.out.line(l.prefix, text)
}

// lineWriter writes whole lines from several goroutines.
type lineWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (w *lineWriter) line(prefix string, text []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, _ = w.w.Write(append(append([]byte(prefix), text...), '\n'))
}

// workloadLogs writes the logs of all pods of a workload together.
func (a *app) workloadLogs(ctx context.Context, r *remote, f logsFlags, res object.Resource, name string, out *lineWriter) error {
	obj, _, err := a.get(ctx, r, res, a.inNamespace(), name, nil)
	if err != nil {
		return err
	}
	selector, err := podSelector(obj)
	if err != nil {
		return err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	began := map[string]bool{}
	begin := func(pod *corev1.Pod) {
		if began[string(pod.UID)] || !hasStarted(pod) {
			return
		}
		began[string(pod.UID)] = true
		group.Go(func() error {
			err := a.podLog(groupCtx, r, f, pod.Name, "["+pod.Name+"] ", out)
			if f.follow && isNotFound(err) {
				return nil // deleted meanwhile
			}
			return err
		})
	}
	if !f.follow {
		pods, _, err := a.list(ctx, r, &holdfastv1.ListRequest{Kind: wireKind(mustResource("pods")), Namespace: a.inNamespace(), LabelSelector: selector}, "pods")
		if err != nil {
			return err
		}
		for _, pod := range pods {
			begin(pod.(*corev1.Pod))
		}
		if err := group.Wait(); err != nil {
			return err
		}
		if len(began) == 0 {
			a.note("None of the %d pods of %s/%s has started.", len(pods), kindName(res), name)
		}
		return nil
	}
	group.Go(func() error {
		return a.watch(groupCtx, r, []*holdfastv1.WatchRequest{{
			Kind: wireKind(mustResource("pods")), Namespace: a.inNamespace(), LabelSelector: selector,
		}}, 0, func(u update) error {
			for _, c := range u.changes {
				if pod, ok := c.obj.(*corev1.Pod); ok && c.kind != holdfastv1.ChangeType_CHANGE_TYPE_DELETED {
					begin(pod)
				}
			}
			return nil
		})
	})
	return group.Wait()
}

// podSelector returns the label selector of a workload's pods.
func podSelector(obj object.Object) (string, error) {
	var selector *metav1.LabelSelector
	switch obj := obj.(type) {
	case *appsv1.Deployment:
		selector = obj.Spec.Selector
	case *appsv1.ReplicaSet:
		selector = obj.Spec.Selector
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
