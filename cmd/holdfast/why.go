package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) whyCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "why pod/NAME | KIND/NAME",
		Short: "Say why a pod waits, runs where it does, restarted or moved, or why there is none",
		Long: `Say why a pod waits: what keeps it from each node, and what would let it run; or why it
runs where it does. Then what its containers wait for, why they were started again, why
the pod ends, and what happened to it and its owner of late. The scheduler's rules answer,
on any peer, as things are now. Whoever may get the pod may ask; the names of nodes and
of pods that would make room are told to him as well.

Of what makes pods (a Deployment, a Job) it says what its conditions complain of, and the
last events of it and of what it makes: what refuses its pods, for one.`,
		Example: `  holdfast why pod/web-7f2ab
  holdfast why web-7f2ab -o json
  holdfast why deployment/web`,
		Args: between(1, 2, "KIND/NAME, or KIND NAME"),
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return a.liveNames(cmd, mustResource("pods")), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && !strings.Contains(args[0], "/") {
				args = []string{"pod", args[0]}
			}
			return a.runWhy(cmd.Context(), args, output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func (a *app) runWhy(ctx context.Context, args []string, output string) error {
	if err := checkOutput(output, "text", "json"); err != nil {
		return err
	}
	obj, err := a.one(ctx, args)
	if err != nil {
		return err
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok && object.PodTemplateOf(obj) != nil {
		return a.whyWorkload(ctx, obj, output)
	}
	if !ok {
		return failf(exitUsage, "pods can be asked about, and what makes pods, not a %s: 'holdfast describe' tells its story", object.ResourceOf(obj).Kind)
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	why, err := r.why.Pod(ctx, &holdfastv1.PodRequest{Namespace: pod.Namespace, Name: pod.Name})
	if err != nil {
		return a.explain(ctx, r, "ask why", err)
	}
	events, err := a.lately(ctx, r, pod)
	if err != nil {
		return err
	}
	if output == "json" {
		return a.whyJSON(pod, why, events)
	}
	fmt.Fprintln(a.stdout, "pod/"+pod.Name+" "+placeOf(pod, why))
	a.obstacles(why)
	for _, line := range podStory(pod) {
		fmt.Fprintln(a.stdout, line)
	}
	for _, line := range events {
		fmt.Fprintln(a.stdout, "- "+line)
	}
	return nil
}

// whyJSON prints the same for programs: what the API answers, and below "pod",
// "place", "story" and "events" what people read.
func (a *app) whyJSON(pod *corev1.Pod, why *holdfastv1.PodResponse, events []string) error {
	data, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(why)
	if err != nil {
		return err
	}
	all := map[string]any{}
	if err := json.Unmarshal(data, &all); err != nil {
		return err
	}
	all["pod"], all["place"] = pod.Namespace+"/"+pod.Name, placeOf(pod, why)
	all["story"], all["events"] = append([]string{}, podStory(pod)...), append([]string{}, events...)
	out := json.NewEncoder(a.stdout)
	out.SetIndent("", "  ")
	out.SetEscapeHTML(false)
	return out.Encode(all)
}

// placeOf says in a line where the pod is and why.
func placeOf(pod *corev1.Pod, why *holdfastv1.PodResponse) string {
	c := object.PodCondition(pod, corev1.PodScheduled)
	switch {
	case object.PodPhaseFinal(pod):
		return "has ended: " + strings.ToLower(string(pod.Status.Phase))
	case why.GetBound() && c != nil && c.Message != "":
		return "is on " + why.GetNode() + ": " + c.Message
	case why.GetBound():
		return "is on " + why.GetNode() + ": bound there by whoever created it"
	case len(why.GetFitting()) > 0:
		return fmt.Sprintf("waits, and could go to %s: %d of %d nodes fit", why.GetNode(), len(why.GetFitting()), why.GetNodes())
	default:
		return "waits: " + why.GetSummary()
	}
}

// obstacles prints what speaks against which nodes, and what would change it.
func (a *app) obstacles(why *holdfastv1.PodResponse) {
	table := tabwriter.NewWriter(a.stdout, 0, 0, 3, ' ', 0)
	for _, o := range why.GetObstacles() {
		fmt.Fprintf(table, "  %s\t%s\t%s\n", o.GetFilter(), o.GetReason(), some(o.GetNodes()))
	}
	table.Flush()
	if len(why.GetVictims()) > 0 {
		fmt.Fprintf(a.stdout, "On %s, pods of less priority make room: %s.\n", why.GetNode(), some(why.GetVictims()))
	}
	if remedies := why.GetRemedies(); len(remedies) > 0 {
		fmt.Fprintf(a.stdout, "Fits if %s.\n", strings.Join(remedies, ", or "))
	}
}

// some lists names, not all of very many.
func some(names []string) string {
	const most = 8
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// podStory tells what the pod's status says of waiting, restarting and ending.
func podStory(pod *corev1.Pod) (lines []string) {
	if object.Deleting(pod) {
		lines = append(lines, "It is being deleted, and killed if it has not ended by "+pod.DeletionTimestamp.UTC().Format("15:04:05 MST")+".")
	}
	if c := object.PodCondition(pod, corev1.DisruptionTarget); c != nil && c.Status == corev1.ConditionTrue {
		lines = append(lines, fmt.Sprintf("It was told to go (%s): %s", c.Reason, c.Message))
	}
	if pod.Status.Reason != "" {
		lines = append(lines, strings.TrimSuffix(pod.Status.Reason+": "+pod.Status.Message, ": "))
	}
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if w := s.State.Waiting; w != nil && w.Reason != "" {
			lines = append(lines, strings.TrimSuffix(fmt.Sprintf("Container %s waits (%s): %s", s.Name, w.Reason, w.Message), ": "))
		}
		if t := s.State.Terminated; t != nil && t.ExitCode != 0 {
			lines = append(lines, fmt.Sprintf("Container %s has ended: %s", s.Name, endOf(t)))
		}
		if s.RestartCount > 0 {
			line := fmt.Sprintf("Container %s was restarted %d times", s.Name, s.RestartCount)
			if t := s.LastTerminationState.Terminated; t != nil {
				line += ", last because of " + endOf(t)
			}
			lines = append(lines, line)
		}
	}
	return lines
}

func endOf(t *corev1.ContainerStateTerminated) string {
	text := fmt.Sprintf("exit code %d", t.ExitCode)
	if t.Signal != 0 {
		text = fmt.Sprintf("signal %d", t.Signal)
	}
	if t.Reason != "" {
		text += " (" + t.Reason + ")"
	}
	if message := strings.TrimSpace(t.Message); message != "" {
		text += ": " + message
	}
	return text
}

// lately returns the last events of the pod and of its owner: a pod that was moved is
// another pod now, and its owner knows why.
func (a *app) lately(ctx context.Context, r *remote, pod *corev1.Pod) (lines []string, err error) {
	about := []string{string(pod.UID)}
	if owner := object.ControllerOf(pod); owner != nil {
		about = append(about, string(owner.UID))
	}
	return a.eventsOf(ctx, r, about)
}

// eventsOf returns the last events of the objects with these uids.
func (a *app) eventsOf(ctx context.Context, r *remote, about []string) (lines []string, err error) {
	var events []*corev1.Event
	for _, uid := range about {
		objs, _, err := a.list(ctx, r, &holdfastv1.ListRequest{Kind: wireKind(mustResource("events")), FieldSelector: "involvedObject.uid=" + uid}, "events")
		if err != nil {
			return nil, err
		}
		for _, obj := range objs {
			if e, ok := obj.(*corev1.Event); ok {
				events = append(events, e)
			}
		}
	}
	slices.SortStableFunc(events, func(a, b *corev1.Event) int { return a.LastTimestamp.Compare(b.LastTimestamp.Time) })
	const most = 6
	for _, e := range events[max(len(events)-most, 0):] {
		lines = append(lines, fmt.Sprintf("%s/%s %s: %s", strings.ToLower(e.InvolvedObject.Kind), e.InvolvedObject.Name, e.Reason, e.Message))
	}
	return lines, nil
}
