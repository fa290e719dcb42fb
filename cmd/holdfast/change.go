package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// changeFlags are what commands have in common that change objects which exist.
type changeFlags struct {
	files     []string
	recursive bool
	labels    string
	all       bool
	dryRun    dryRun
	output    string
}

func (f *changeFlags) add(flags *pflag.FlagSet) {
	flags.StringSliceVarP(&f.files, "filename", "f", nil, "file or directory with manifests that name the objects; - reads standard input")
	flags.BoolVarP(&f.recursive, "recursive", "R", false, "also look into directories within directories")
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
	targets, r, err := a.victims(ctx, deleteFlags{files: f.files, recursive: f.recursive, labels: f.labels, all: f.all}, args)
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
func (a *app) patchOne(ctx context.Context, r *remote, f changeFlags, t doomed, c edit) (object.Object, error) {
	name := kindName(t.resource) + "/" + t.name
	if f.dryRun == "client" {
		fmt.Fprintf(a.stdout, "%s %s%s: %s\n", name, c.verb, f.dryRun.suffix(), c.patch)
		return nil, nil
	}
	callCtx, cancel := a.request(ctx)
	defer cancel()
	before, err := r.objects.Get(callCtx, &holdfastv1.GetRequest{Kind: wireKind(t.resource), Namespace: t.namespace, Name: t.name})
	if err != nil {
		return nil, a.explain(callCtx, r, "", err)
	}
	answer, err := r.objects.Patch(callCtx, &holdfastv1.PatchRequest{
		Kind: wireKind(t.resource), Namespace: t.namespace, Name: t.name, Subresource: c.subresource,
		Type: c.kind, Patch: c.patch, FieldManager: fieldManager, DryRun: f.dryRun != "",
	})
	if err != nil {
		return nil, a.explain(callCtx, r, "change "+name, err)
	}
	a.warn(answer.GetAnswer())
	obj, err := a.decode(answer.GetObject())
	if err != nil {
		return nil, err
	}
	switch {
	case f.output == "name":
		fmt.Fprintln(a.stdout, name)
	case f.output != "":
		return obj, writeObjects(a.stdout, f.output, []object.Object{obj}, true)
	case f.dryRun == "" && answer.GetObject().GetRevision() == before.GetObject().GetRevision():
		fmt.Fprintf(a.stdout, "%s %s\n", name, c.idle)
	default:
		fmt.Fprintf(a.stdout, "%s %s%s\n", name, c.verb, f.dryRun.suffix())
	}
	return obj, nil
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
	for _, t := range targets {
		c, err := of(t)
		if err != nil {
			return err
		}
		if _, err := a.patchOne(ctx, r, f, t, c); err != nil {
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
	return nil
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
