package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/cmd/holdfast/internal/rollout"
	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

const (
	revisionAnnotation  = "deployment.kubernetes.io/revision"
	causeAnnotation     = "kubernetes.io/change-cause"
	restartedAnnotation = "kubectl.kubernetes.io/restartedAt"
)

func (a *app) rolloutCommand() *cobra.Command {
	group := &cobra.Command{
		Use: "rollout", Short: "Follow, undo, restart or pause the rollouts of workloads",
		Example: "  holdfast rollout status deployment/web\n  holdfast rollout undo deployment/web", Args: groupArgs, RunE: showHelp,
	}
	group.AddCommand(a.rolloutStatusCommand(), a.rolloutHistoryCommand(), a.rolloutUndoCommand(), a.rolloutRestartCommand(),
		a.rolloutPauseCommand("pause", "Hold the rollout of deployments: changes of their template wait", "paused", true),
		a.rolloutPauseCommand("resume", "Go on with the rollout of paused deployments", "resumed", false))
	return group
}

func (a *app) rolloutStatusCommand() *cobra.Command {
	var wait waitFlags
	cmd := &cobra.Command{
		Use: "status KIND NAME", Short: "Follow a rollout to its end",
		Example:           "  holdfast rollout status deployment/web\n  holdfast rollout status deployment/web --detach   # only how far it is",
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			obj, err := a.one(ctx, args)
			if err != nil {
				return err
			}
			if !rollout.Follows(obj) {
				return failf(exitUsage, "nothing rolls %s out in this version", object.ResourceOf(obj).Plural)
			}
			r, err := a.dial()
			if err != nil {
				return err
			}
			if wait.detach {
				tracker := rollout.New([]object.Object{obj})
				for _, kind := range rollout.Watches(obj) {
					objs, _, err := a.list(ctx, r, &holdfastv1.ListRequest{Kind: wireKind(mustResource(kind)), Namespace: obj.GetNamespace()}, kind)
					if err != nil {
						return err
					}
					for _, o := range objs {
						tracker.Observe(o, false)
					}
				}
				for _, line := range append(tracker.Summary(), tracker.Obstacles()...) {
					fmt.Fprintln(a.stdout, line)
				}
				return nil
			}
			before, err := a.podsBefore(ctx, r, map[string]bool{obj.GetNamespace(): true})
			if err != nil {
				return err
			}
			return a.narrate(ctx, r, before, []object.Object{obj}, wait.timeout, a.stdout)
		},
	}
	wait.add(cmd.Flags())
	return cmd
}

// pastRevision is a template that a workload once had.
type pastRevision struct {
	number int64
	cause  string
	holder object.Object // the ReplicaSet or ControllerRevision
}

// revisions returns what is kept of a workload's past, the oldest first.
func (a *app) revisions(ctx context.Context, r *remote, obj object.Object) ([]pastRevision, error) {
	kind := "controllerrevisions"
	switch object.ResourceOf(obj).Kind {
	case "Deployment":
		kind = "replicasets"
	case "StatefulSet", "DaemonSet":
	default:
		return nil, failf(exitUsage, "%s have no revisions: deployments, statefulsets and daemonsets do", object.ResourceOf(obj).Plural)
	}
	found, _, err := a.list(ctx, r, &holdfastv1.ListRequest{Kind: wireKind(mustResource(kind)), Namespace: obj.GetNamespace()}, kind)
	if err != nil {
		return nil, err
	}
	var out []pastRevision
	for _, holder := range found {
		if ref := object.ControllerOf(holder); ref == nil || ref.UID != obj.GetUID() {
			continue
		}
		p := pastRevision{cause: holder.GetAnnotations()[causeAnnotation], holder: holder}
		if cr, ok := holder.(*appsv1.ControllerRevision); ok {
			p.number = cr.Revision
		} else if p.number, err = strconv.ParseInt(holder.GetAnnotations()[revisionAnnotation], 10, 64); err != nil {
			continue // not numbered yet
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b pastRevision) int { return int(a.number - b.number) })
	return out, nil
}

func (a *app) rolloutHistoryCommand() *cobra.Command {
	var revision int64
	cmd := &cobra.Command{
		Use: "history KIND NAME", Short: "Show the templates that a workload has had",
		Long:              "Show the templates that a workload has had. CHANGE-CAUSE is the annotation " + causeAnnotation + ".",
		Example:           "  holdfast rollout history deployment/web\n  holdfast rollout history deployment/web --revision 2",
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			obj, err := a.one(cmd.Context(), args)
			if err != nil {
				return err
			}
			r, err := a.dial()
			if err != nil {
				return err
			}
			past, err := a.revisions(cmd.Context(), r, obj)
			if err != nil {
				return err
			}
			t := object.Table{Columns: []object.Column{{Name: "REVISION"}, {Name: "AGE"}, {Name: "IMAGES"}, {Name: "CHANGE-CAUSE"}}}
			for _, p := range past {
				if revision == p.number {
					text, err := templateOf(p.holder)
					if err != nil {
						return err
					}
					return writeJSON(a.stdout, "yaml", jsonOf(text))
				}
				cause := p.cause
				if cause == "" {
					cause = "<none>"
				}
				t.Rows = append(t.Rows, []string{itoa(p.number), object.Age(p.holder.GetCreationTimestamp().Time, a.now()), imagesOf(p.holder), cause})
			}
			if revision > 0 {
				return failf(exitNotFound, "%s has no revision %d", title(obj), revision)
			}
			(&grid{w: a.stdout, header: true}).write(t)
			return nil
		},
	}
	cmd.Flags().Int64Var(&revision, "revision", 0, "show this one's template whole")
	return cmd
}

// templateOf returns the pod template that a revision holds.
func templateOf(holder object.Object) (map[string]any, error) {
	value, err := mapOf(holder)
	if err != nil {
		return nil, err
	}
	if _, ok := holder.(*appsv1.ControllerRevision); ok {
		value, _ = value["data"].(map[string]any) // a patch: {"spec": {"template": …}}
	}
	spec, _ := value["spec"].(map[string]any)
	template, _ := spec["template"].(map[string]any)
	delete(template, "$patch")
	if meta, ok := template["metadata"].(map[string]any); ok {
		if labels, ok := meta["labels"].(map[string]any); ok {
			delete(labels, appsv1.DefaultDeploymentUniqueLabelKey)
		}
	}
	if template == nil {
		return nil, fmt.Errorf("%s has no template", title(holder))
	}
	return template, nil
}

func imagesOf(holder object.Object) string {
	template, err := templateOf(holder)
	if err != nil {
		return "<unknown>"
	}
	var pod corev1.PodTemplateSpec
	if err := fromMap(template, &pod); err != nil {
		return "<unknown>"
	}
	var images []string
	for _, c := range pod.Spec.Containers {
		images = append(images, c.Image)
	}
	return strings.Join(images, ",")
}

func (a *app) rolloutUndoCommand() *cobra.Command {
	var revision int64
	cmd := a.setter(&cobra.Command{
		Use: "undo KIND NAME", Short: "Go back to an earlier template of a workload",
		Example: "  holdfast rollout undo deployment/web\n  holdfast rollout undo deployment/web --to-revision 2",
	}, func(ctx context.Context, f changeFlags, args []string) error {
		return a.changeAll(ctx, f, args, func(t doomed) (edit, error) {
			r, err := a.dial()
			if err != nil {
				return edit{}, err
			}
			obj, _, err := a.get(ctx, r, t.resource, t.namespace, t.name, &holdfastv1.ReadOptions{})
			if err != nil {
				return edit{}, err
			}
			past, err := a.revisions(ctx, r, obj)
			if err != nil {
				return edit{}, err
			}
			if d, ok := obj.(*appsv1.Deployment); ok && d.Spec.Paused {
				return edit{}, failf(exitRefused, "%s is paused: holdfast rollout resume %s first", t, t)
			}
			to, err := undoTo(past, revision)
			if err != nil {
				return edit{}, failf(exitNotFound, "%s %w", t, err)
			}
			template, err := templateOf(to.holder)
			if err != nil {
				return edit{}, err
			}
			patch := []map[string]any{{"op": "replace", "path": "/spec/template", "value": template}}
			return edit{
				kind: holdfastv1.PatchType_PATCH_TYPE_JSON, patch: jsonOf(patch),
				verb: fmt.Sprintf("rolled back to revision %d", to.number), idle: fmt.Sprintf("not changed: it is as revision %d already", to.number),
			}, nil
		})
	})
	cmd.Flags().Int64Var(&revision, "to-revision", 0, "the revision, as 'rollout history' shows it (default: the one before)")
	return cmd
}

// undoTo picks the revision to go back to; 0 means the one before the newest.
func undoTo(past []pastRevision, revision int64) (pastRevision, error) {
	if revision == 0 {
		if len(past) < 2 {
			return pastRevision{}, fmt.Errorf("has no earlier revision to go back to")
		}
		return past[len(past)-2], nil
	}
	var numbers []string
	for _, p := range past {
		if p.number == revision {
			return p, nil
		}
		numbers = append(numbers, itoa(p.number))
	}
	return pastRevision{}, fmt.Errorf("has no revision %d; there are %s", revision, orNone(numbers))
}

func (a *app) rolloutRestartCommand() *cobra.Command {
	return a.setter(&cobra.Command{
		Use: "restart KIND NAME", Short: "Replace the pods of workloads by new ones, bit by bit",
		Example: "  holdfast rollout restart deployment/web\n  holdfast rollout restart deployments -l app=shop",
	}, func(ctx context.Context, f changeFlags, args []string) error {
		return a.changeAll(ctx, f, args, func(t doomed) (edit, error) {
			if t.resource.Group != "apps" || t.resource.Kind == "ReplicaSet" || t.resource.Kind == "ControllerRevision" {
				return edit{}, failf(exitUsage, "%s cannot be restarted: deployments, statefulsets and daemonsets can", t.resource.Plural)
			}
			patch := within([]string{"spec", "template", "metadata", "annotations"}, map[string]any{restartedAnnotation: a.now().UTC().Format(time.RFC3339Nano)})
			return edit{kind: holdfastv1.PatchType_PATCH_TYPE_STRATEGIC, patch: jsonOf(patch), verb: "restarted", idle: "restarted already"}, nil
		})
	})
}

func (a *app) rolloutPauseCommand(verb, short, done string, paused bool) *cobra.Command {
	cmd := a.setter(&cobra.Command{
		Use: verb + " KIND NAME", Short: short, Example: "  holdfast rollout " + verb + " deployment/web",
	}, func(ctx context.Context, f changeFlags, args []string) error {
		f.wait.waits = !paused
		return a.changeAll(ctx, f, args, func(t doomed) (edit, error) {
			if t.resource.Kind != "Deployment" {
				return edit{}, failf(exitUsage, "only deployments can be paused, not %s", t.resource.Plural)
			}
			var value any
			if paused {
				value = true
			}
			return merge(map[string]any{"spec": map[string]any{"paused": value}}, done, "already "+done)
		})
	})
	return cmd
}
