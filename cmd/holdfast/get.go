package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

type getFlags struct {
	manifests     manifestFlags
	allNamespaces bool
	labels        string
	fields        string
	outputFlags
	watch bool
	reads readFlags
}

func (a *app) getCommand() *cobra.Command {
	var f getFlags
	cmd := &cobra.Command{
		Use:   "get KIND[,KIND...] [NAME...] | KIND/NAME... | -f FILE",
		Short: "Show objects",
		Long: `Show objects: kinds by name ("pods", "po", "deployments.apps"), single objects by
kind and name, or "all", which means every kind that runs something or leads to it.

Reads are linearizable: they show everything that was acknowledged to anybody
before. --max-age 10s is content with what a peer knows to be at most that old,
--consistency local with whatever it has, however old; neither needs a quorum.
--at shows everything as it was at a revision.`,
		Example: `  holdfast get pods -o wide
  holdfast get deployments,pods -l app=web -A
  holdfast get pod/web-7f2ab deployment/web -o yaml
  holdfast get pods -w
  holdfast get nodes -L disk --sort-by .metadata.creationTimestamp
  holdfast get pods -o jsonpath='{range .items[*]}{.metadata.name}{"\n"}{end}'
  holdfast get pods -o custom-columns=NAME:.metadata.name,NODE:.spec.nodeName
  holdfast get -f examples/web.yaml
  holdfast get nodes --consistency local`,
		ValidArgsFunction: a.completeObjects,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runGet(cmd.Context(), f, args) },
	}
	flags := cmd.Flags()
	f.manifests.add(flags)
	flags.BoolVarP(&f.allNamespaces, "all-namespaces", "A", false, "objects of all namespaces")
	flags.StringVarP(&f.labels, "selector", "l", "", "only objects with these labels, such as app=web,tier!=cache")
	flags.StringVar(&f.fields, "field-selector", "", "only objects with these fields, such as spec.nodeName=n1")
	f.outputFlags.add(flags)
	flags.BoolVarP(&f.watch, "watch", "w", false, "then go on showing changes, until interrupted")
	f.reads.add(flags)
	return cmd
}

// checkOutput refuses a form of output that is not among the possible ones.
func checkOutput(output string, possible ...string) error {
	if output == "" || slices.Contains(possible, output) {
		return nil
	}
	return failf(exitUsage, "-o %s: want %s", output, strings.Join(possible, ", "))
}

func (a *app) runGet(ctx context.Context, f getFlags, args []string) error {
	show, err := a.shower(f.outputFlags, f.allNamespaces)
	if err != nil {
		return err
	}
	selections, err := a.selected(ctx, f.manifests, args)
	if err != nil {
		return err
	}
	read, err := f.reads.options()
	if err != nil {
		return err
	}
	named := len(selections[0].names) > 0
	if named && (f.labels != "" || f.fields != "") {
		return failf(exitUsage, "names and selectors do not go together")
	}
	if err := checkLabels(f.labels); err != nil {
		return err
	}
	if named && f.allNamespaces {
		return failf(exitUsage, "names and --all-namespaces do not go together: a name belongs to one namespace, -n")
	}
	for _, s := range selections {
		if _, err := object.FieldSelector(s.resource, f.fields); err != nil {
			return failf(exitUsage, "%w", err)
		}
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	if f.watch {
		if len(selections) != 1 || len(selections[0].names) > 1 {
			return failf(exitUsage, "--watch shows one kind, or one object")
		}
		return a.watchObjects(ctx, r, f, show, selections[0], read)
	}
	found, failed, err := a.find(ctx, r, f, selections, read)
	if err != nil {
		return err
	}
	if err := show.show(found, named && len(selections) == 1 && len(selections[0].names) == 1); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if len(slices.Concat(found...)) == 0 && slices.Contains([]string{"", "table", "wide"}, f.output) {
		a.noteNothing(ctx, r, f, selections)
	}
	return nil
}

// checkLabels refuses a label selector that is none.
func checkLabels(selector string) error {
	if _, err := labels.Parse(selector); err != nil {
		return failf(exitUsage, "--selector %q: %w; want something such as app=web,tier!=cache", selector, err)
	}
	return nil
}

// noteNothing says that there are no objects, and where it looked.
func (a *app) noteNothing(ctx context.Context, r *remote, f getFlags, selections []selection) {
	ns := a.inNamespace()
	switch {
	case f.allNamespaces || !slices.ContainsFunc(selections, func(s selection) bool { return s.resource.Namespaced }):
		a.note("No objects found.")
	case a.namespace != "" && a.missing(ctx, r, mustResource("namespaces"), ns):
		a.note("No objects found: there is no namespace %s.", ns)
	default:
		a.note("No objects found in namespace %s.", ns)
	}
}

// missing tells that an object does not exist, as far as the answering peer knows.
func (a *app) missing(ctx context.Context, r *remote, res object.Resource, name string) bool {
	ctx, cancel := a.request(ctx)
	defer cancel()
	_, err := r.objects.Get(ctx, &holdfastv1.GetRequest{
		Kind: wireKind(res), Name: name, Read: &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL},
	})
	return connect.CodeOf(err) == connect.CodeNotFound
}

// find reads the selected objects, one slice for each selection. Named objects
// that do not exist come back as failed, beside those that do.
func (a *app) find(ctx context.Context, r *remote, f getFlags, selections []selection, read *holdfastv1.ReadOptions) (found [][]object.Object, failed, err error) {
	var answer *holdfastv1.Answer
	for _, s := range selections {
		var objs []object.Object
		for _, name := range s.names {
			obj, answered, err := a.get(ctx, r, s.resource, a.scopeOf(s), name, read)
			if isNotFound(err) {
				failed = errors.Join(failed, err)
				continue
			}
			if err != nil {
				return nil, nil, err
			}
			answer = answered
			objs = append(objs, obj)
		}
		if len(s.names) == 0 {
			req := &holdfastv1.ListRequest{Kind: wireKind(s.resource), LabelSelector: f.labels, FieldSelector: f.fields, Read: read}
			if !f.allNamespaces {
				req.Namespace = a.scope(s.resource)
			}
			if objs, answer, err = a.list(ctx, r, req, s.resource.Plural); err != nil {
				return nil, nil, err
			}
			if s.resource.Kind == "Event" {
				sortEvents(objs)
			}
		}
		found = append(found, objs)
	}
	if failed != nil {
		failed = &failure{exitNotFound, failed}
	}
	a.tellAge(read, answer)
	return found, failed, nil
}

// sortEvents puts the latest last.
func sortEvents(objs []object.Object) {
	slices.SortStableFunc(objs, func(a, b object.Object) int { return eventTime(a).Compare(eventTime(b)) })
}

func eventTime(obj object.Object) time.Time {
	e, ok := obj.(*corev1.Event)
	if !ok {
		return obj.GetCreationTimestamp().Time
	}
	if !e.LastTimestamp.IsZero() {
		return e.LastTimestamp.Time
	}
	if !e.EventTime.IsZero() {
		return e.EventTime.Time
	}
	return e.CreationTimestamp.Time
}

// tableOf returns the table of objects of one kind.
func tableOf(objs []object.Object, now time.Time, kindBeforeName, namespaces bool) object.Table {
	t := object.Print(objs, now)
	if kindBeforeName {
		for col, c := range t.Columns {
			if c.Name == "NAME" {
				for i, row := range t.Rows {
					row[col] = title(objs[i])
				}
			}
		}
	}
	if namespaces && object.ResourceOf(objs[0]).Namespaced {
		t = t.WithNamespaces(objs)
	}
	return t
}

// writeJSON writes JSON as people read it: indented, or as YAML.
func writeJSON(w io.Writer, output string, data []byte) error {
	if output == "yaml" {
		text, err := yaml.JSONToYAML(data)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	var indented strings.Builder
	var value json.RawMessage = data
	encoder := json.NewEncoder(&indented)
	encoder.SetIndent("", "    ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return err
	}
	_, err := io.WriteString(w, indented.String())
	return err
}

// watchObjects shows the objects there are, then each that changes.
func (a *app) watchObjects(ctx context.Context, r *remote, f getFlags, show shower, s selection, read *holdfastv1.ReadOptions) error {
	req := &holdfastv1.WatchRequest{Kind: wireKind(s.resource), LabelSelector: f.labels, FieldSelector: f.fields, Read: read}
	if !f.allNamespaces {
		req.Namespace = a.scopeOf(s)
	}
	if len(s.names) == 1 {
		// So that a name that does not exist is an error, not an endless wait.
		if _, _, err := a.get(ctx, r, s.resource, a.scopeOf(s), s.names[0], read); err != nil {
			return err
		}
		req.FieldSelector = "metadata.name=" + s.names[0]
	}
	var first []object.Object // all that is there at first, for columns in line
	synced := false
	err := a.watch(ctx, r, []*holdfastv1.WatchRequest{req}, 0, func(u update) error {
		var changed []object.Object
		for _, c := range u.changes {
			changed = append(changed, c.obj)
		}
		if synced {
			return show.next(changed)
		}
		first = append(first, changed...)
		if !u.synced {
			return nil
		}
		synced = true
		if s.resource.Kind == "Event" {
			sortEvents(first)
		}
		return show.next(first)
	})
	if ctx.Err() != nil {
		return exit(exitInterrupted)
	}
	return err
}
