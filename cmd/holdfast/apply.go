package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/cmd/holdfast/internal/rollout"
	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

type applyFlags struct {
	manifests manifestFlags
	dryRun    string
	wait      waitFlags
	output    string
	force     bool
	set       string
	prune     bool
}

func (a *app) applyCommand() *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make the cluster what manifests say, and wait until it is",
		Long: `Make the cluster what manifests say: create what is missing, change what differs.

Everything is checked first, and all faults are told at once with file and line.
Then all objects change in one transaction, or none does.

A field that somebody else set, and that the manifests set to another value, is a
conflict: apply names the owner and changes nothing, until --force-conflicts says
to take it over.

Nothing is deleted, but with --prune --set NAME: the cluster remembers what each
apply of that set had, and prune deletes what it has no longer. There is no name
by default, so that two folders never prune each other's objects.

apply waits until workloads run as asked for, and tells what happens meanwhile.
Interrupting it (Ctrl-C) or --detach ends the waiting, not the change. A rollout
that fails (exit 5) or times out (exit 6) is left as it is: look at it, correct
the manifest, and apply it again.`,
		Example: `  holdfast apply -f examples/web.yaml
  holdfast apply -f manifests/ -R --timeout 10m
  holdfast apply -f shop/ --set shop --prune
  cat web.yaml | holdfast apply -f - --dry-run=server`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runApply(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	f.manifests.add(flags)
	flags.StringVar(&f.dryRun, "dry-run", "none", "none, client (only check the manifests) or server (let the cluster check, and change nothing)")
	flags.Lookup("dry-run").NoOptDefVal = "client"
	f.wait.add(flags)
	flags.BoolVar(&f.force, "force-conflicts", false, "take over fields that another manager owns")
	flags.StringVar(&f.set, "set", "", "remember what is applied under this name, in the namespace of the flags")
	flags.BoolVar(&f.prune, "prune", false, "delete what this --set held before and the manifests no longer have")
	flags.Bool("server-side", true, "as apply always is")
	_ = flags.MarkHidden("server-side")
	flags.StringVarP(&f.output, "output", "o", "", "write the objects: name, json or yaml; the progress goes to standard error then")
	return cmd
}

func (a *app) runApply(ctx context.Context, f applyFlags) error {
	if !slices.Contains([]string{"none", "client", "server"}, f.dryRun) {
		return failf(exitUsage, "--dry-run=%s: want none, client or server", f.dryRun)
	}
	if err := checkOutput(f.output, "name", "json", "yaml"); err != nil {
		return err
	}
	if f.prune && f.set == "" {
		return failf(exitUsage, "--prune: say with --set NAME which set of objects these manifests are all of")
	}
	docs, err := a.checkedManifests(f.manifests)
	if err != nil {
		return err
	}
	if f.dryRun == "client" {
		var objs []object.Object
		for _, doc := range docs {
			objs = append(objs, doc.Object)
		}
		return a.printApplied(f, objs, func(int) string { return "is well-formed (client dry run)" })
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	tracker, applied, err := a.apply(ctx, r, docs, f)
	if err != nil || tracker == nil {
		return err
	}
	return a.await(ctx, r, tracker, applied, f.wait.timeout, a.progress(f.output))
}

// checkedManifests reads manifests, puts the objects into their namespaces, and
// finds what can be found without the cluster.
func (a *app) checkedManifests(f manifestFlags) ([]object.Document, error) {
	docs, err := a.readManifests(f)
	if err != nil {
		return nil, err
	}
	if err := a.inPlace(docs); err != nil {
		return nil, err
	}
	return docs, checkAll(docs)
}

// checkAll finds what can be found without the cluster, in all files together.
func checkAll(docs []object.Document) error {
	var faults object.Faults
	first := map[object.Key]object.Document{}
	for _, doc := range docs {
		faults = append(faults, doc.Check()...)
		key := object.KeyOf(doc.Object)
		if before, ok := first[key]; ok {
			faults = append(faults, object.Fault{
				File: doc.File, Line: doc.Line, Object: object.Title(doc.Object),
				Message: fmt.Sprintf("is in %s:%d already: an object can be given once", before.File, before.Line),
			})
			continue
		}
		first[key] = doc
	}
	if len(faults) > 0 {
		return refusedFaults(faults)
	}
	return nil
}

// apply sends the objects and prints what came of each. It returns no tracker
// when there is nothing to wait for.
func (a *app) apply(ctx context.Context, r *remote, docs []object.Document, f applyFlags) (*rollout.Tracker, []object.Object, error) {
	dry := f.dryRun == "server"
	var before []*corev1.Pod
	req, err := a.applyRequest(docs, f, dry)
	if err != nil {
		return nil, nil, err
	}
	waits := !dry && !f.wait.detach && slices.ContainsFunc(docs, func(doc object.Document) bool { return rollout.Follows(doc.Object) })
	if waits {
		if before, err = a.podsBefore(ctx, r, namespacesOf(docs)); err != nil {
			return nil, nil, err
		}
	}
	callCtx, cancel := a.request(ctx)
	defer cancel()
	answer, err := r.objects.Apply(callCtx, req)
	if err != nil {
		return nil, nil, a.explainAt(callCtx, r, docs, "apply", err)
	}
	a.warn(answer.GetAnswer())
	var applied []object.Object
	for _, result := range answer.GetResults() {
		obj, err := a.decode(result.GetObject())
		if err != nil {
			return nil, nil, err
		}
		applied = append(applied, obj)
	}
	err = a.printApplied(f, applied, func(i int) string {
		word := appliedWord(answer.GetResults()[i].GetAction())
		if dry {
			word += " (server dry run)"
		}
		return word
	})
	if err != nil || !waits {
		return nil, nil, err
	}
	kept := slices.Collect(func(yield func(object.Object) bool) {
		for i, obj := range applied {
			if answer.GetResults()[i].GetAction() != holdfastv1.ApplyAction_APPLY_ACTION_PRUNED && rollout.Follows(obj) && !yield(obj) {
				return
			}
		}
	})
	tracker := rollout.New(kept)
	for _, pod := range before {
		tracker.Known(pod)
	}
	return tracker, kept, nil
}

// applyRequest is the request that applies docs.
func (a *app) applyRequest(docs []object.Document, f applyFlags, dry bool) (*holdfastv1.ApplyRequest, error) {
	req := &holdfastv1.ApplyRequest{FieldManager: fieldManager, DryRun: dry, Force: f.force, Set: f.set, Prune: f.prune}
	if f.set != "" {
		req.SetNamespace = a.inNamespace()
	}
	for _, doc := range docs {
		o, err := encode(doc.Object)
		if err != nil {
			return nil, err
		}
		req.Objects = append(req.Objects, o)
	}
	return req, nil
}

// explainAt explains an error about objects of manifests, at their lines.
func (a *app) explainAt(ctx context.Context, r *remote, docs []object.Document, doing string, err error) *failure {
	faults := faultsIn(err)
	switch {
	case len(faults) == 0:
		return a.explain(ctx, r, doing, err)
	case connect.CodeOf(err) == connect.CodeAborted:
		return failf(exitRefused, "others own fields that the manifests set, and nothing was changed:\n%w\nLeave the fields out of the manifests, or take them over with --force-conflicts", located(docs, faults))
	}
	return refusedFaults(located(docs, faults))
}

func appliedWord(action holdfastv1.ApplyAction) string {
	switch action {
	case holdfastv1.ApplyAction_APPLY_ACTION_CREATED:
		return "created"
	case holdfastv1.ApplyAction_APPLY_ACTION_CONFIGURED:
		return "configured"
	case holdfastv1.ApplyAction_APPLY_ACTION_UNCHANGED:
		return "unchanged"
	case holdfastv1.ApplyAction_APPLY_ACTION_PRUNED:
		return "pruned"
	case holdfastv1.ApplyAction_APPLY_ACTION_UNSPECIFIED:
	}
	return "applied"
}

func (a *app) printApplied(f applyFlags, objs []object.Object, what func(i int) string) error {
	if f.output != "" {
		return writeObjects(a.stdout, f.output, objs, len(objs) == 1)
	}
	for i, obj := range objs {
		fmt.Fprintf(a.stdout, "%s %s\n", title(obj), what(i))
	}
	return nil
}

// await follows a rollout to its end and narrates it.
func (a *app) await(ctx context.Context, r *remote, tracker *rollout.Tracker, applied []object.Object, timeout time.Duration, out io.Writer) error {
	began := a.now()
	waitCtx, cancel := ctx, context.CancelFunc(func() {})
	if timeout > 0 {
		waitCtx, cancel = context.WithTimeout(ctx, timeout)
	}
	defer cancel()
	live := a.newLiveLine(out)
	defer live.clear()

	var requests []*holdfastv1.WatchRequest
	waitingFor := 0
	for ns, w := range watchedIn(applied) {
		for _, kind := range slices.Sorted(maps.Keys(w.kinds)) {
			requests = append(requests, &holdfastv1.WatchRequest{
				Kind: wireKind(mustResource(kind)), Namespace: ns,
				Read: &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL, MinRevision: w.revision},
			})
			waitingFor++
		}
		requests = append(requests, &holdfastv1.WatchRequest{
			Kind: wireKind(mustResource("events")), Namespace: ns,
			Read: &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL},
		})
	}
	var verdict rollout.Verdict
	err := a.watch(waitCtx, r, requests, time.Second, func(u update) error {
		for _, c := range u.changes {
			tracker.Observe(c.obj, c.kind == holdfastv1.ChangeType_CHANGE_TYPE_DELETED)
		}
		if u.synced && u.resource.Kind != "Event" {
			waitingFor--
		}
		for _, line := range tracker.Lines() {
			live.print(line)
		}
		elapsed := a.now().Sub(began)
		live.show(fmt.Sprintf("%s  (%s)", strings.Join(tracker.Summary(), ", "), elapsed.Round(time.Second)))
		if waitingFor > 0 {
			return nil // half the picture may look finished
		}
		if verdict = tracker.Verdict(); verdict.State != rollout.Waiting {
			return errStopWatching
		}
		return nil
	})
	live.clear()
	elapsed := brief(a.now().Sub(began))
	switch {
	case err == nil && verdict.State == rollout.Done:
		for _, line := range tracker.Summary() {
			fmt.Fprintln(out, line)
		}
		fmt.Fprintf(out, "done in %s\n", elapsed)
		return nil
	case err == nil:
		return failf(exitRollout, "the rollout failed after %s: %s%s", elapsed, verdict.Reason, rest(tracker)+a.lastWords(ctx, r, tracker))
	case ctx.Err() != nil:
		return failf(exitInterrupted, "no longer waiting; the change goes on. `%s` shows how far it is", followCommand(applied))
	case errors.Is(err, context.DeadlineExceeded):
		return failf(exitTimeout, "not there after %s: %s; the change goes on%s", elapsed, strings.Join(tracker.Summary(), ", "), rest(tracker)+whyCommand(tracker, applied)+a.lastWords(ctx, r, tracker))
	}
	return err
}

// rest lists what still stands in the way, on lines of its own.
func rest(tracker *rollout.Tracker) string {
	obstacles := tracker.Obstacles()
	if len(obstacles) == 0 {
		return ""
	}
	return "\n  " + strings.Join(obstacles, "\n  ")
}

// lastWords returns the end of the log of a container that crashed, on lines of its
// own. A log that cannot be had is not worth another error.
func (a *app) lastWords(ctx context.Context, r *remote, tracker *rollout.Tracker) string {
	c, crashed := tracker.Crash()
	if !crashed {
		return ""
	}
	ctx, cancel := a.request(context.WithoutCancel(ctx))
	defer cancel()
	for _, previous := range []bool{c.Previous, !c.Previous} { // it may have begun again meanwhile
		var log strings.Builder
		_, err := (&resumableLog{out: &lineWriter{w: &log}, prefix: "  | "}).once(ctx, r, &holdfastv1.LogsRequest{
			Namespace: c.Namespace, Pod: c.Pod, Container: c.Container, Previous: previous, TailLines: lastLines, Timestamps: true,
		})
		if err == nil && log.Len() > 0 {
			return fmt.Sprintf("\nThe last lines of container %s of pod/%s:\n%s", c.Container, c.Pod, strings.TrimRight(log.String(), "\n"))
		}
	}
	return ""
}

// lastLines is how many lines of a crashed container's log are shown.
const lastLines = 10

// followCommand is how to look at a change later.
func followCommand(applied []object.Object) string {
	for _, obj := range applied {
		if rollout.Follows(obj) {
			return fmt.Sprintf("holdfast get %s -n %s -w", title(obj), obj.GetNamespace())
		}
	}
	return "holdfast get all"
}

// whyCommand says, on a line of its own, how to learn what would let a pod that waits for
// a node have one.
func whyCommand(tracker *rollout.Tracker, applied []object.Object) string {
	for _, obstacle := range tracker.Obstacles() {
		pod, _, waits := strings.Cut(obstacle, ": no node for it: ")
		if !waits {
			continue
		}
		for _, obj := range applied {
			if rollout.Follows(obj) {
				return fmt.Sprintf("\n`holdfast why %s -n %s` says why, and what would change it", pod, obj.GetNamespace())
			}
		}
	}
	return ""
}

func namespacesOf(docs []object.Document) map[string]bool {
	out := map[string]bool{}
	for _, doc := range docs {
		if rollout.Follows(doc.Object) {
			out[doc.Object.GetNamespace()] = true
		}
	}
	return out
}

// watched is what to watch in a namespace: kinds by their plurals, from the
// revision on that shows the change.
type watched struct {
	kinds    map[string]bool
	revision int64
}

// watchedIn returns what to watch of the namespaces of applied objects.
func watchedIn(applied []object.Object) map[string]*watched {
	out := map[string]*watched{}
	for _, obj := range applied {
		if !rollout.Follows(obj) {
			continue
		}
		w := out[obj.GetNamespace()]
		if w == nil {
			w = &watched{kinds: map[string]bool{}}
			out[obj.GetNamespace()] = w
		}
		for _, kind := range rollout.Watches(obj) {
			w.kinds[kind] = true
		}
		var revision int64
		_, _ = fmt.Sscan(obj.GetResourceVersion(), &revision)
		w.revision = max(w.revision, revision)
	}
	return out
}

// brief writes a duration as people say it.
func brief(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	default:
		return d.Round(time.Second).String()
	}
}
