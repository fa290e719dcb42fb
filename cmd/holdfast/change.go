package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/cmd/holdfast/internal/rollout"
	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// changeFlags are what commands have in common that change objects which exist.
type changeFlags struct {
	manifests manifestFlags
	labels    string
	all       bool
	dryRun    dryRun
	output    string
	wait      waitFlags
}

// waitFlags say whether a command waits for what it began. Commands that never
// wait do not add them.
type waitFlags struct {
	waits   bool
	detach  bool
	timeout time.Duration
}

func (f *waitFlags) add(flags *pflag.FlagSet) {
	f.waits = true
	flags.BoolVar(&f.detach, "detach", false, "do not wait until the cluster is as asked for")
	flags.DurationVar(&f.timeout, "timeout", 5*time.Minute, "how long to wait; 0 means for ever")
}

func (f *changeFlags) add(flags *pflag.FlagSet) {
	f.manifests.add(flags)
	flags.StringVarP(&f.labels, "selector", "l", "", "all objects of the kind with these labels")
	flags.BoolVar(&f.all, "all", false, "all objects of the kind in the namespace")
	flags.Var(&f.dryRun, "dry-run", "server: check all and change nothing; client: only show what would be sent")
	flags.Lookup("dry-run").NoOptDefVal = "server"
	flags.StringVarP(&f.output, "output", "o", "", "how to show the objects afterwards: name, json or yaml (default: a line each)")
}

// dryRun is the value of --dry-run: "", "client" or "server".
type dryRun string

func (d *dryRun) String() string { return string(*d) }
func (d *dryRun) Type() string   { return "string" }

func (d *dryRun) Set(s string) error {
	switch s {
	case "none", "false":
		*d = ""
	case "server", "true":
		*d = "server"
	case "client":
		*d = "client"
	default:
		return errors.New(`want "server", "client" or "none"`)
	}
	return nil
}

// suffix follows a line about a change that was not made.
func (d dryRun) suffix() string {
	if d == "" {
		return ""
	}
	return " (" + string(d) + " dry run)"
}

// targets returns the objects that flags and arguments name. Nothing is read of
// those that are named.
func (a *app) targets(ctx context.Context, f changeFlags, args []string) ([]doomed, *remote, error) {
	targets, r, err := a.victims(ctx, deleteFlags{manifests: f.manifests, labels: f.labels, all: f.all}, args)
	if err == nil && len(targets) == 0 {
		a.note("No objects found.")
	}
	return targets, r, err
}

// edit is a patch for one object and what to call it.
type edit struct {
	kind        holdfastv1.PatchType
	patch       []byte
	subresource string
	// verb says what was done, "labeled"; idle what is said when the object was so
	// already, "not labeled".
	verb, idle string
}

// merge makes a change of a JSON merge patch.
func merge(patch any, verb, idle string) (edit, error) {
	data, err := json.Marshal(patch)
	return edit{kind: holdfastv1.PatchType_PATCH_TYPE_MERGE, patch: data, verb: verb, idle: idle}, err
}

// patchOne sends a change of one object and tells what came of it.
// began tells whether anything has to follow: the object's spec is another now.
func (a *app) patchOne(ctx context.Context, r *remote, f changeFlags, t doomed, c edit) (obj object.Object, began bool, err error) {
	name := kindName(t.resource) + "/" + t.name
	if f.dryRun == "client" {
		fmt.Fprintf(a.stdout, "%s %s%s: %s\n", name, c.verb, f.dryRun.suffix(), c.patch)
		return nil, false, nil
	}
	callCtx, cancel := a.request(ctx)
	defer cancel()
	before, err := r.objects.Get(callCtx, &holdfastv1.GetRequest{Kind: wireKind(t.resource), Namespace: t.namespace, Name: t.name})
	if err != nil {
		return nil, false, a.explain(callCtx, r, "", err)
	}
	answer, err := r.objects.Patch(callCtx, &holdfastv1.PatchRequest{
		Kind: wireKind(t.resource), Namespace: t.namespace, Name: t.name, Subresource: c.subresource,
		Type: c.kind, Patch: c.patch, FieldManager: changeManager, DryRun: f.dryRun != "",
	})
	if err != nil {
		return nil, false, a.explain(callCtx, r, "change "+name, err)
	}
	a.warn(answer.GetAnswer())
	if obj, err = a.decode(answer.GetObject()); err != nil {
		return nil, false, err
	}
	old, err := a.decode(before.GetObject())
	if err != nil {
		return nil, false, err
	}
	began = f.dryRun == "" && old.GetGeneration() != obj.GetGeneration()
	switch {
	case f.output == "name":
		fmt.Fprintln(a.stdout, name)
	case f.output != "":
		return obj, began, writeObjects(a.stdout, f.output, []object.Object{obj}, true)
	case f.dryRun == "" && answer.GetObject().GetRevision() == before.GetObject().GetRevision():
		fmt.Fprintf(a.stdout, "%s %s\n", name, c.idle)
	default:
		fmt.Fprintf(a.stdout, "%s %s%s\n", name, c.verb, f.dryRun.suffix())
	}
	return obj, began, nil
}

// changeAll makes one change of all targets. All of them are tried; what failed
// is told at the end.
func (a *app) changeAll(ctx context.Context, f changeFlags, args []string, of func(doomed) (edit, error)) error {
	targets, r, err := a.targets(ctx, f, args)
	if err != nil {
		return err
	}
	var failed error
	code := 0
	waits := f.wait.waits && !f.wait.detach && f.dryRun == ""
	var before []*corev1.Pod
	if waits {
		spaces := map[string]bool{}
		for _, t := range targets {
			if makesPods(t.resource) {
				spaces[t.namespace] = true
			}
		}
		if before, err = a.podsBefore(ctx, r, spaces); err != nil {
			return err
		}
	}
	var changed []object.Object
	for _, t := range targets {
		c, err := of(t)
		if err != nil {
			return err
		}
		obj, began, err := a.patchOne(ctx, r, f, t, c)
		if began && t.resource.Kind != "Pod" && rollout.Follows(obj) {
			changed = append(changed, obj)
		}
		if err != nil {
			var known *failure
			if errors.As(err, &known) && code == 0 {
				code = known.code
			}
			failed = errors.Join(failed, err)
		}
	}
	if failed != nil {
		return &failure{max(code, exitError), failed}
	}
	if !waits || len(changed) == 0 {
		return nil
	}
	return a.narrate(ctx, r, before, changed, f.wait.timeout, a.progress(f.output))
}

// podsBefore reads the pods that are there before a change, whose past is no news.
func (a *app) podsBefore(ctx context.Context, r *remote, namespaces map[string]bool) ([]*corev1.Pod, error) {
	var before []*corev1.Pod
	for ns := range namespaces {
		pods, _, err := a.list(ctx, r, &holdfastv1.ListRequest{Kind: wireKind(mustResource("pods")), Namespace: ns}, "pods")
		if err != nil {
			return nil, err
		}
		for _, obj := range pods {
			if pod, ok := obj.(*corev1.Pod); ok {
				before = append(before, pod)
			}
		}
	}
	return before, nil
}

// narrate waits for what was changed, and tells what happens.
func (a *app) narrate(ctx context.Context, r *remote, before []*corev1.Pod, changed []object.Object, timeout time.Duration, out io.Writer) error {
	tracker := rollout.New(changed)
	for _, pod := range before {
		tracker.Known(pod)
	}
	return a.await(ctx, r, tracker, changed, timeout, out)
}

// progress is where a narration goes: away from what -o writes.
func (a *app) progress(output string) io.Writer {
	if output != "" {
		return a.stderr
	}
	return a.stdout
}

// warn tells what a write's answer warns of.
func (a *app) warn(answer *holdfastv1.Answer) {
	for _, warning := range answer.GetWarnings() {
		a.note("Warning: %s", warning)
	}
}

// splitPairs takes arguments apart: those before the first KEY=VALUE or KEY- name
// objects, the others are pairs, of which KEY- removes.
func splitPairs(args []string) (names []string, set map[string]*string, err error) {
	set = map[string]*string{}
	for _, arg := range args {
		key, value, isSet := strings.Cut(arg, "=")
		removed, isRemoval := strings.CutSuffix(arg, "-")
		switch {
		case isSet && key == "":
			return nil, nil, failf(exitUsage, "%q: a key must stand before the =", arg)
		case isSet:
			if _, twice := set[key]; twice {
				return nil, nil, failf(exitUsage, "%s is given twice", key)
			}
			set[key] = &value
		case isRemoval && len(names) > 0 && !strings.Contains(removed, " "):
			if _, twice := set[removed]; twice {
				return nil, nil, failf(exitUsage, "%s is given twice", removed)
			}
			set[removed] = nil
		case len(set) > 0:
			return nil, nil, failf(exitUsage, "%q: want KEY=VALUE to set, or KEY- to remove", arg)
		default:
			names = append(names, arg)
		}
	}
	return names, set, nil
}
