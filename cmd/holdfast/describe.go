package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) describeCommand() *cobra.Command {
	var f getFlags
	cmd := &cobra.Command{
		Use:   "describe KIND [NAME...] | KIND/NAME... | -f FILE",
		Short: "Tell all about objects, with what belongs to them and their events",
		Example: `  holdfast describe pod web-7f2ab
  holdfast describe deployment/web
  holdfast describe pods -l app=web
  holdfast describe nodes`,
		ValidArgsFunction: a.completeObjects,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runDescribe(cmd.Context(), f, args) },
	}
	flags := cmd.Flags()
	f.manifests.add(flags)
	flags.BoolVarP(&f.allNamespaces, "all-namespaces", "A", false, "in all namespaces")
	flags.StringVarP(&f.labels, "selector", "l", "", "only objects with these labels, such as app=web,tier!=cache")
	return cmd
}

func (a *app) runDescribe(ctx context.Context, f getFlags, args []string) error {
	selections, err := a.selected(ctx, f.manifests, args)
	if err != nil {
		return err
	}
	if f.labels != "" && slices.ContainsFunc(selections, func(s selection) bool { return len(s.names) > 0 }) {
		return failf(exitUsage, "names and selectors do not go together")
	}
	if err := checkLabels(f.labels); err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	read := &holdfastv1.ReadOptions{}
	found, failed, err := a.find(ctx, r, f, selections, read)
	if err != nil {
		return err
	}
	first := true
	for _, objs := range found {
		for _, obj := range objs {
			text, err := a.describe(ctx, r, obj)
			if err != nil {
				return err
			}
			if !first {
				fmt.Fprint(a.stdout, "\n\n")
			}
			first = false
			fmt.Fprint(a.stdout, text)
		}
	}
	if first && failed == nil {
		a.noteNothing(ctx, r, f, selections)
	}
	return failed
}

func (a *app) describe(ctx context.Context, r *remote, obj object.Object) (string, error) {
	var related []object.Object
	for _, req := range surroundings(obj) {
		objs, _, err := a.list(ctx, r, req, req.GetKind().GetKind())
		if err != nil {
			return "", err
		}
		related = append(related, objs...)
	}
	about := "involvedObject.uid=" + string(obj.GetUID())
	if obj.GetUID() == "" {
		about = "involvedObject.name=" + obj.GetName()
	}
	found, _, err := a.list(ctx, r, &holdfastv1.ListRequest{Kind: wireKind(mustResource("events")), FieldSelector: about}, "events")
	if err != nil {
		return "", err
	}
	sortEvents(found)
	var events []*corev1.Event
	for _, o := range found {
		if event, ok := o.(*corev1.Event); ok {
			events = append(events, event)
		}
	}
	return object.Describe(obj, related, events, a.now()), nil
}

// surroundings says what to read beside an object to tell all about it: what its kind's
// description shows of others.
func surroundings(obj object.Object) []*holdfastv1.ListRequest {
	of := func(kind, namespace, fields string) *holdfastv1.ListRequest {
		return &holdfastv1.ListRequest{Kind: wireKind(mustResource(kind)), Namespace: namespace, FieldSelector: fields}
	}
	beside := func(kinds ...string) (out []*holdfastv1.ListRequest) {
		for _, kind := range kinds {
			out = append(out, of(kind, obj.GetNamespace(), ""))
		}
		return out
	}
	switch obj := obj.(type) {
	case *appsv1.Deployment:
		return beside("replicasets", "pods")
	case *appsv1.ReplicaSet, *appsv1.StatefulSet, *appsv1.DaemonSet, *corev1.ReplicationController, *batchv1.Job, *corev1.PersistentVolumeClaim:
		return beside("pods")
	case *batchv1.CronJob:
		return beside("jobs")
	case *corev1.Service:
		slices := of("endpointslices", obj.Namespace, "")
		slices.LabelSelector = discoveryv1.LabelServiceName + "=" + obj.Name
		return []*holdfastv1.ListRequest{slices}
	case *networkingv1.Ingress:
		return beside("services", "endpointslices")
	case *rbacv1.ClusterRole:
		if obj.AggregationRule != nil {
			return beside("clusterroles")
		}
	case *corev1.Namespace:
		return []*holdfastv1.ListRequest{of("resourcequotas", obj.Name, ""), of("limitranges", obj.Name, "")}
	case *corev1.Node:
		return []*holdfastv1.ListRequest{of("pods", "", "spec.nodeName="+obj.Name)}
	}
	return nil
}
