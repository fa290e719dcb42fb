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

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

type deleteFlags struct {
	manifests   manifestFlags
	labels      string
	all         bool
	yes         bool
	wait        bool
	force       bool
	gracePeriod time.Duration
	cascade     cascade
	timeout     time.Duration
	missingOK   bool
	dryRun      dryRun
	output      string
}

func (a *app) deleteCommand() *cobra.Command {
	var f deleteFlags
	cmd := &cobra.Command{
		Use:   "delete -f FILE | KIND NAME... | KIND/NAME...",
		Short: "Delete objects and what they own, and wait until all of it is gone",
		Long: `Delete objects and what they own, and wait until all of it is gone: a pod is gone
when its node has said that nothing of it is left, no container, mount or address.
What they own goes after them, or before them with --cascade=foreground; with
--cascade=orphan it stays and is owned by nobody.

--wait=false ends without waiting, and so does Ctrl-C; the deletion goes on.`,
		Example: `  holdfast delete -f examples/web.yaml
  holdfast delete pod web-7f2ab --grace-period 5s
  holdfast delete deployments -l app=web
  holdfast delete replicaset web-5c9f --cascade=orphan
  holdfast delete pods --all --yes`,
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runDelete(cmd.Context(), f, args)
		},
	}
	flags := cmd.Flags()
	f.manifests.add(flags)
	flags.StringVarP(&f.labels, "selector", "l", "", "all objects of the kind with these labels")
	flags.BoolVar(&f.all, "all", false, "all objects of the kind in the namespace; asks first")
	flags.BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	flags.BoolVar(&f.wait, "wait", true, "wait until all is gone")
	flags.Var((*graceValue)(&f.gracePeriod), "grace-period", "time that pods have to stop in, such as 5s (default: what each pod asks for)")
	f.gracePeriod = -1
	f.cascade = "background"
	flags.Var(&f.cascade, "cascade", "what becomes of what they own: background, foreground, orphan")
	flags.Lookup("cascade").NoOptDefVal = "background"
	flags.BoolVar(&f.force, "force", false, "kill pods at once: the same as --grace-period 0")
	flags.DurationVar(&f.timeout, "timeout", 5*time.Minute, "how long to wait; 0 means for ever")
	flags.Var(&f.dryRun, "dry-run", "server: check all and delete nothing; client: only show what would be deleted")
	flags.Lookup("dry-run").NoOptDefVal = "server"
	flags.StringVarP(&f.output, "output", "o", "", "name: write only what is deleted, as KIND/NAME")
	flags.BoolVar(&f.missingOK, "ignore-not-found", false, "objects that do not exist are no error")
	return cmd
}

// graceValue is a time that may be written as kubectl has it, in bare seconds.
type graceValue time.Duration

func (g *graceValue) String() string {
	if *g < 0 {
		return ""
	}
	return time.Duration(*g).String()
}

func (g *graceValue) Type() string { return "duration" }

func (g *graceValue) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		if d, err = time.ParseDuration(s + "s"); err != nil {
			return errors.New("want a duration such as 30s, or a number of seconds")
		}
	}
	if d < 0 {
		return errors.New("want 0 or more")
	}
	*g = graceValue(d)
	return nil
}

// cascade says what becomes of what an object owns that is deleted, as kubectl does.
type cascade string

func (c *cascade) String() string { return string(*c) }

func (c *cascade) Type() string { return "string" }

func (c *cascade) Set(s string) error {
	switch s {
	case "background", "foreground", "orphan":
		*c = cascade(s)
		return nil
	}
	return errors.New("want background, foreground or orphan")
}

func (c cascade) wire() holdfastv1.Propagation {
	switch c {
	case "foreground":
		return holdfastv1.Propagation_PROPAGATION_FOREGROUND
	case "orphan":
		return holdfastv1.Propagation_PROPAGATION_ORPHAN
	}
	return holdfastv1.Propagation_PROPAGATION_BACKGROUND
}

// doomed is an object to delete.
type doomed struct {
	resource        object.Resource
	namespace, name string
}

func (d doomed) String() string { return kindName(d.resource) + "/" + d.name }

func (a *app) runDelete(ctx context.Context, f deleteFlags, args []string) error {
	if f.force {
		if f.gracePeriod > 0 {
			return failf(exitUsage, "--force kills at once and --grace-period %s does not: leave one out", f.gracePeriod)
		}
		f.gracePeriod = 0
	}
	if err := checkOutput(f.output, "name"); err != nil {
		return err
	}
	victims, r, err := a.victims(ctx, f, args)
	if err != nil {
		return err
	}
	if len(victims) == 0 {
		a.note("No objects found.")
		return nil
	}
	if f.dryRun == "client" {
		for _, v := range victims {
			f.tell(a.stdout, v, "deleted")
		}
		return nil
	}
	if f.all && !f.yes && f.dryRun == "" {
		var names []string
		for _, v := range victims {
			names = append(names, v.String())
		}
		question := fmt.Sprintf("This deletes %d objects in context %s: %s.", len(names), r.name, strings.Join(names, ", "))
		if _, ok := a.terminal(a.stdin); ok {
			question += " Go on?"
		}
		if err := a.confirm(false, question); err != nil {
			return err
		}
	}
	began := a.now()
	w, err := a.newVigil(ctx, r, victims, f.cascade == "orphan")
	if err != nil {
		return err
	}
	var missing error
	for _, v := range victims {
		gone, err := a.deleteOne(ctx, r, v, f, a.stdout)
		if gone {
			w.told[v.String()+v.namespace] = true
		}
		if isNotFound(err) {
			// What was there a moment ago has gone by itself, or with its namespace or its
			// owner, which were deleted before it: that is as good.
			if !f.missingOK && !f.all && f.labels == "" && !w.found[v.String()+v.namespace] {
				missing = errors.Join(missing, err)
			}
		} else if err != nil {
			return err
		}
	}
	if f.wait && f.dryRun == "" {
		if err := a.awaitGone(ctx, r, w, f.timeout, began, a.progress(f.output)); err != nil {
			return err
		}
	}
	if missing != nil {
		return &failure{exitNotFound, missing}
	}
	return nil
}

// victims finds out what to delete.
func (a *app) victims(ctx context.Context, f deleteFlags, args []string) ([]doomed, *remote, error) {
	if f.manifests.given() {
		if len(args) > 0 || f.all || f.labels != "" {
			return nil, nil, failf(exitUsage, "-f names the objects: leave KIND, --all and --selector out")
		}
		docs, err := a.readManifests(f.manifests)
		if err != nil {
			return nil, nil, err
		}
		if err := a.inPlace(docs); err != nil {
			return nil, nil, err
		}
		r, err := a.dial()
		if err != nil {
			return nil, nil, err
		}
		var out []doomed
		for _, doc := range docs {
			out = append(out, doomed{object.ResourceOf(doc.Object), doc.Object.GetNamespace(), doc.Object.GetName()})
		}
		return out, r, nil
	}
	if err := checkLabels(f.labels); err != nil {
		return nil, nil, err
	}
	selections, err := a.parseSelections(ctx, args)
	if err != nil {
		return nil, nil, err
	}
	var out []doomed
	for _, s := range selections {
		switch {
		case len(s.names) > 0 && (f.all || f.labels != ""):
			return nil, nil, failf(exitUsage, "names do not go with --all or --selector")
		case len(s.names) == 0 && !f.all && f.labels == "":
			return nil, nil, failf(exitUsage, "say which %s: by name, with --selector, or --all", s.resource.Plural)
		case f.all && f.labels != "":
			return nil, nil, failf(exitUsage, "--all and --selector do not go together")
		}
	}
	r, err := a.dial()
	if err != nil {
		return nil, nil, err
	}
	for _, s := range selections {
		for _, name := range s.names {
			out = append(out, doomed{s.resource, a.scope(s.resource), name})
		}
		if len(s.names) > 0 {
			continue
		}
		objs, _, err := a.list(ctx, r, &holdfastv1.ListRequest{Kind: wireKind(s.resource), Namespace: a.scope(s.resource), LabelSelector: f.labels}, s.resource.Plural)
		if err != nil {
			return nil, nil, err
		}
		for _, obj := range objs {
			out = append(out, doomed{s.resource, obj.GetNamespace(), obj.GetName()})
		}
	}
	return out, r, nil
}

// tell writes what becomes of v.
func (f deleteFlags) tell(w io.Writer, v doomed, what string) {
	if f.output == "name" {
		fmt.Fprintln(w, v)
		return
	}
	fmt.Fprintf(w, "%s %s%s\n", v, what, f.dryRun.suffix())
}

func (a *app) deleteOne(ctx context.Context, r *remote, v doomed, f deleteFlags, out io.Writer) (gone bool, err error) {
	callCtx, cancel := a.request(ctx)
	defer cancel()
	req := &holdfastv1.DeleteRequest{Kind: wireKind(v.resource), Namespace: v.namespace, Name: v.name, DryRun: f.dryRun != "", Propagation: f.cascade.wire()}
	if f.gracePeriod >= 0 {
		req.GracePeriod = durationpb.New(f.gracePeriod)
	}
	answer, err := r.objects.Delete(callCtx, req)
	if err != nil {
		return false, a.explain(callCtx, r, "delete "+v.String(), err)
	}
	switch {
	case answer.GetGone(), f.dryRun != "":
		f.tell(out, v, "deleted")
	case answer.GetDeadline() != nil:
		left := answer.GetDeadline().AsTime().Sub(a.now())
		f.tell(out, v, fmt.Sprintf("is being deleted (killed in %s at the latest)", brief(max(left, 0))))
	default:
		f.tell(out, v, "is being deleted")
	}
	return answer.GetGone(), nil
}

// vigil is what is known, while waiting, of the objects that must go.
type vigil struct {
	app        *app
	orphan     bool // what the victims own stays
	namespaces map[string]bool
	resources  []object.Resource // beside workloads
	doomed     map[types.UID]bool
	left       map[types.UID]object.Object
	owned      map[types.UID]object.Object // of the watched kinds: everything there is
	nodes      map[string]*corev1.Node
	counts     map[string]int  // gone, by kind
	found      map[string]bool // victims that were there before anything was deleted
	told       map[string]bool // victims that were gone at once, which has been said
}

// newVigil looks, before anything is deleted, at what belongs to the victims.
func (a *app) newVigil(ctx context.Context, r *remote, victims []doomed, orphan bool) (*vigil, error) {
	w := &vigil{
		app: a, orphan: orphan, namespaces: map[string]bool{}, doomed: map[types.UID]bool{}, left: map[types.UID]object.Object{},
		owned: map[types.UID]object.Object{}, nodes: map[string]*corev1.Node{}, counts: map[string]int{}, found: map[string]bool{}, told: map[string]bool{},
	}
	for _, kind := range []string{"deployments", "replicasets", "pods"} {
		w.resources = append(w.resources, mustResource(kind))
	}
	addKind := func(res object.Resource) {
		if !slices.ContainsFunc(w.resources, func(r object.Resource) bool { return r.String() == res.String() }) {
			w.resources = append(w.resources, res)
		}
	}
	for _, v := range victims {
		w.namespaces[v.namespace] = true
		switch v.resource.Kind { // what owns more than the above
		case "CronJob":
			addKind(mustResource("jobs"))
		case "StatefulSet", "DaemonSet":
			addKind(mustResource("controllerrevisions"))
		}
		addKind(v.resource)
	}
	for _, res := range w.resources {
		for ns := range w.namespaces {
			if (ns == "") == res.Namespaced {
				continue
			}
			objs, _, err := a.list(ctx, r, &holdfastv1.ListRequest{Kind: wireKind(res), Namespace: ns}, res.Plural)
			if err != nil {
				return nil, err
			}
			for _, obj := range objs {
				w.owned[obj.GetUID()] = obj
				for _, v := range victims {
					if v.resource.String() == res.String() && v.name == obj.GetName() && v.namespace == obj.GetNamespace() {
						w.doomed[obj.GetUID()] = true
						w.found[v.String()+v.namespace] = true
					}
				}
			}
		}
	}
	w.spread()
	return w, nil
}

// spread marks what the doomed own, and what that owns.
func (w *vigil) spread() {
	for grown := true; grown; {
		grown = false
		for uid, obj := range w.owned {
			if w.doomed[uid] {
				w.left[uid] = obj
				continue
			}
			for _, owner := range obj.GetOwnerReferences() {
				if w.doomed[owner.UID] && !w.orphan {
					w.doomed[uid], grown = true, true
				}
			}
		}
	}
}

// take brings the vigil up to date and returns what there is to say.
func (w *vigil) take(u update) []string {
	var out []string
	for _, c := range u.changes {
		if node, ok := c.obj.(*corev1.Node); ok {
			w.nodes[node.Name] = node
			if !w.doomed[node.UID] {
				continue
			}
		}
		uid := c.obj.GetUID()
		if c.kind != holdfastv1.ChangeType_CHANGE_TYPE_DELETED {
			w.owned[uid] = c.obj
			continue
		}
		delete(w.owned, uid)
		if _, waited := w.left[uid]; waited {
			out = append(out, w.gone(c.obj)...)
		}
	}
	before := len(w.left)
	was := map[types.UID]bool{}
	for uid := range w.left {
		was[uid] = true
	}
	w.spread()
	if len(w.left) == before && len(u.changes) == 0 {
		return out
	}
	for uid, obj := range w.left {
		if c := w.owned[uid]; !was[uid] && c != nil {
			out = append(out, title(obj)+" belongs to it and goes too")
		}
	}
	return out
}

// gone takes an object off the list and returns the line about it, if it is news.
func (w *vigil) gone(obj object.Object) []string {
	delete(w.left, obj.GetUID())
	w.counts[object.ResourceOf(obj).Singular]++
	if w.told[title(obj)+obj.GetNamespace()] {
		return nil
	}
	return []string{title(obj) + " gone"}
}

// obstacles says what is still there, and why as far as can be told.
func (w *vigil) obstacles() []string {
	var out []string
	for _, obj := range w.left {
		why := "still there"
		if f := obj.GetFinalizers(); len(f) > 0 {
			why = "held by finalizers " + strings.Join(f, ", ")
		}
		if pod, ok := obj.(*corev1.Pod); ok && pod.Spec.NodeName != "" {
			why = "has not stopped on " + pod.Spec.NodeName + " yet"
			node, known := w.nodes[pod.Spec.NodeName]
			if known && !object.NodeReady(node) {
				why = fmt.Sprintf("is on %s, which does not answer: its container may still run there; it goes when the node is back or is deleted (holdfast delete node %s)", node.Name, node.Name)
			}
		}
		out = append(out, title(obj)+" "+why)
	}
	slices.Sort(out)
	return out
}

// awaitGone waits until all that is doomed is gone.
func (a *app) awaitGone(ctx context.Context, r *remote, w *vigil, timeout time.Duration, began time.Time, out io.Writer) error {
	waitCtx, cancel := ctx, context.CancelFunc(func() {})
	if timeout > 0 {
		waitCtx, cancel = context.WithTimeout(ctx, timeout)
	}
	defer cancel()
	live := a.newLiveLine(out)
	defer live.clear()
	requests := []*holdfastv1.WatchRequest{{
		Kind: wireKind(mustResource("nodes")),
		Read: &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LINEARIZABLE},
	}}
	waitingFor := 1
	for _, res := range w.resources {
		for ns := range w.namespaces {
			if (ns == "") == res.Namespaced || res.Kind == "Node" {
				continue
			}
			requests = append(requests, &holdfastv1.WatchRequest{
				Kind: wireKind(res), Namespace: ns,
				Read: &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LINEARIZABLE},
			})
			waitingFor++
		}
	}
	present := map[types.UID]bool{} // in the first full picture
	err := a.watch(waitCtx, r, requests, time.Second, func(u update) error {
		for _, c := range u.changes {
			present[c.obj.GetUID()] = true
		}
		for _, line := range w.take(u) {
			live.print(line)
		}
		if u.synced {
			if waitingFor--; waitingFor == 0 {
				for _, line := range w.dropAbsent(present) {
					live.print(line)
				}
			}
		}
		if waitingFor > 0 {
			return nil
		}
		if len(w.left) == 0 {
			return errStopWatching
		}
		obstacles := w.obstacles()
		live.show(fmt.Sprintf("%d left: %s  (%s)", len(obstacles), obstacles[0], a.now().Sub(began).Round(time.Second)))
		return nil
	})
	live.clear()
	elapsed := brief(a.now().Sub(began))
	switch {
	case err == nil:
		fmt.Fprintf(out, "all gone in %s: %s\n", elapsed, w.tally())
		return nil
	case ctx.Err() != nil:
		return failf(exitInterrupted, "no longer waiting; the deletion goes on")
	case errors.Is(err, context.DeadlineExceeded):
		return failf(exitTimeout, "not all gone after %s; the deletion goes on:\n  %s", elapsed, strings.Join(w.obstacles(), "\n  "))
	}
	return err
}

// dropAbsent takes what went between the deletion and the first full picture.
func (w *vigil) dropAbsent(present map[types.UID]bool) []string {
	var out []string
	for uid, obj := range w.left {
		if !present[uid] {
			delete(w.owned, uid)
			out = append(out, w.gone(obj)...)
		}
	}
	slices.Sort(out)
	return out
}

// tally counts what is gone: "1 deployment, 1 replicaset, 3 pods".
func (w *vigil) tally() string {
	var out []string
	count := func(singular, plural string) {
		switch n := w.counts[singular]; n {
		case 0:
		case 1:
			out = append(out, "1 "+singular)
		default:
			out = append(out, fmt.Sprintf("%d %s", n, plural))
		}
	}
	known := map[string]bool{}
	for _, res := range object.Resources() {
		known[res.Singular] = true
		count(res.Singular, res.Plural)
	}
	for _, singular := range slices.Sorted(maps.Keys(w.counts)) {
		if !known[singular] { // a custom kind
			count(singular, singular+"s")
		}
	}
	if len(out) == 0 {
		return "nothing was there"
	}
	return strings.Join(out, ", ")
}
