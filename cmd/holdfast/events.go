package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) eventsCommand() *cobra.Command {
	var f getFlags
	var about string
	var types []string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened, the latest last",
		Example: `  holdfast events
  holdfast events --for deployment/web -w
  holdfast events -A --types Warning`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runEvents(cmd.Context(), f, about, types) },
	}
	flags := cmd.Flags()
	flags.BoolVarP(&f.allNamespaces, "all-namespaces", "A", false, "of all namespaces")
	flags.StringVar(&about, "for", "", "only those about this object, KIND/NAME")
	flags.StringSliceVar(&types, "types", nil, "only those of these types: Normal, Warning")
	flags.BoolVarP(&f.watch, "watch", "w", false, "then go on showing new ones, until interrupted")
	f.outputFlags.add(flags)
	return cmd
}

// ofTypes shows those events only that are of some types.
type ofTypes struct {
	shower
	types []string
}

func (o ofTypes) pick(objs []object.Object) []object.Object {
	return slices.DeleteFunc(slices.Clone(objs), func(obj object.Object) bool {
		e, ok := obj.(*corev1.Event)
		return ok && len(o.types) > 0 && !slices.ContainsFunc(o.types, func(t string) bool { return strings.EqualFold(t, e.Type) })
	})
}

func (o ofTypes) show(found [][]object.Object, single bool) error {
	for i := range found {
		found[i] = o.pick(found[i])
	}
	return o.shower.show(found, single)
}

func (o ofTypes) next(objs []object.Object) error { return o.shower.next(o.pick(objs)) }

func (a *app) runEvents(ctx context.Context, f getFlags, about string, types []string) error {
	for _, t := range types {
		if !strings.EqualFold(t, corev1.EventTypeNormal) && !strings.EqualFold(t, corev1.EventTypeWarning) {
			return failf(exitUsage, "--types %s: want Normal or Warning", t)
		}
	}
	if about != "" {
		kind, name, ok := strings.Cut(about, "/")
		if !ok || name == "" {
			return failf(exitUsage, "--for %s: want KIND/NAME", about)
		}
		res, err := a.resourceFor(ctx, kind)
		if err != nil {
			return failf(exitUsage, "%w", err)
		}
		f.fields = "involvedObject.kind=" + res.Kind + ",involvedObject.name=" + name
	}
	show, err := a.shower(f.outputFlags, f.allNamespaces)
	if err != nil {
		return err
	}
	show = ofTypes{show, types}
	r, err := a.dial()
	if err != nil {
		return err
	}
	s := selection{resource: mustResource("events")}
	read := &holdfastv1.ReadOptions{}
	if f.watch {
		return a.watchObjects(ctx, r, f, show, s, read)
	}
	found, _, err := a.find(ctx, r, f, []selection{s}, read)
	if err != nil {
		return err
	}
	if len(ofTypes{types: types}.pick(found[0])) == 0 && slices.Contains([]string{"", "table", "wide"}, f.output) {
		a.noteNothing(ctx, r, f, []selection{s})
		return nil
	}
	return show.show(found, false)
}
