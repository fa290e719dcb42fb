package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// debugPatience is how long a debugging container may take to be started, its image
// included.
const debugPatience = 5 * time.Minute

type debugFlags struct {
	execFlags
	image, target, pull string
	env                 map[string]string
	command             []string
}

func (a *app) debugCommand() *cobra.Command {
	var f debugFlags
	cmd := &cobra.Command{
		Use:   "debug POD | KIND/NAME --image IMAGE [-- COMMAND [ARGUMENT...]]",
		Short: "Look into a running pod with a container of your own",
		Long: `Add a container to a running pod, with an image that has the tools that the pod's own
lacks. It has the pod's network and, with --target, sees the processes of one of its
containers. With -it this terminal is the container's.

It is an ephemeral container: it is run once, nobody starts it again, and it stays in the
pod's spec until the pod goes. Its output is in the pod's logs: holdfast logs POD -c NAME.`,
		Example: `  holdfast debug -it web-7f2ab --image busybox:1.37 --target web -- sh
  holdfast debug web-7f2ab --image busybox:1.37 -- nslookup db`,
		ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			if at := cmd.ArgsLenAtDash(); at >= 0 {
				args, f.command = args[:at], args[at:]
			}
			if len(args) != 1 {
				return failf(exitUsage, "want one POD or KIND/NAME; what to run stands behind --")
			}
			if f.image == "" {
				return failf(exitUsage, "say what to look with, with --image")
			}
			return a.runDebug(cmd.Context(), f, args[0])
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.image, "image", "", "image of the container")
	flags.StringVarP(&f.container, "container", "c", "", "name of the container (default debugger-XXXXX)")
	flags.StringVar(&f.target, "target", "", "container of which it sees the processes")
	flags.StringVar(&f.pull, "image-pull-policy", "", "Always, IfNotPresent or Never")
	flags.StringToStringVar(&f.env, "env", nil, "environment variables, NAME=VALUE")
	flags.BoolVarP(&f.stdin, "stdin", "i", false, "pass standard input on")
	flags.BoolVarP(&f.tty, "tty", "t", false, "give it a terminal")
	return cmd
}

func (a *app) runDebug(ctx context.Context, f debugFlags, arg string) error {
	r, pod, err := a.dialPod(ctx, arg)
	if err != nil {
		return err
	}
	if f.container == "" {
		f.container = debuggerName()
		a.note("The container is called %s.", f.container)
	}
	obj, _, err := a.get(ctx, r, mustResource("pods"), a.inNamespace(), pod, nil)
	if err != nil {
		return err
	}
	for _, c := range obj.(*corev1.Pod).Spec.EphemeralContainers {
		if c.Name == f.container { // a patch would be merged into it
			return failf(exitRefused, "pod/%s has had a container %s already, which runs only once: choose another name", pod, f.container)
		}
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"ephemeralContainers": []corev1.EphemeralContainer{debugger(f)}}})
	if err != nil {
		return err
	}
	if err := a.addContainer(ctx, r, pod, patch); err != nil {
		return err
	}
	status, err := a.debuggerBegun(ctx, r, pod, f.container)
	if err != nil {
		return err
	}
	if f.stdin && status.State.Running != nil {
		return a.runAttach(ctx, f.execFlags, pod)
	}
	// It has ended already, or is not talked with: what it says is in its log.
	logs := logsFlags{container: f.container, follow: true, tail: -1, maxRequests: 1}
	if err := a.runLogs(ctx, logs, []string{pod}); err != nil {
		return err
	}
	if obj, _, err = a.get(ctx, r, mustResource("pods"), a.inNamespace(), pod, nil); err != nil {
		return err
	}
	if t := debuggerStatus(obj, f.container).State.Terminated; t != nil && t.ExitCode != 0 {
		return exit(int(t.ExitCode))
	}
	return nil
}

// addContainer patches the pod's ephemeral containers.
func (a *app) addContainer(ctx context.Context, r *remote, pod string, patch []byte) error {
	ctx, cancel := a.request(ctx)
	defer cancel()
	answer, err := r.objects.Patch(ctx, &holdfastv1.PatchRequest{
		Kind: wireKind(mustResource("pods")), Namespace: a.inNamespace(), Name: pod, Subresource: object.EphemeralSubresource,
		Type: holdfastv1.PatchType_PATCH_TYPE_STRATEGIC, Patch: patch, FieldManager: changeManager,
	})
	if err != nil {
		return a.explain(ctx, r, "debug pod/"+pod, err)
	}
	a.warn(answer.GetAnswer())
	return nil
}

func debugger(f debugFlags) corev1.EphemeralContainer {
	c := corev1.EphemeralContainer{TargetContainerName: f.target}
	c.Name, c.Image, c.ImagePullPolicy = f.container, f.image, corev1.PullPolicy(f.pull)
	c.Stdin, c.TTY = f.stdin, f.tty
	if len(f.command) > 0 {
		c.Command, c.Args = f.command[:1], f.command[1:]
	}
	for _, name := range slices.Sorted(maps.Keys(f.env)) {
		c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: f.env[name]})
	}
	return c
}

// debuggerBegun waits until a container runs or has ended.
func (a *app) debuggerBegun(ctx context.Context, r *remote, pod, container string) (corev1.ContainerStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, debugPatience)
	defer cancel()
	var status corev1.ContainerStatus
	told := ""
	request := &holdfastv1.WatchRequest{Kind: wireKind(mustResource("pods")), Namespace: a.inNamespace(), FieldSelector: "metadata.name=" + pod}
	err := a.watch(ctx, r, []*holdfastv1.WatchRequest{request}, 0, func(u update) error {
		for _, c := range u.changes {
			if c.kind == holdfastv1.ChangeType_CHANGE_TYPE_DELETED {
				return failf(exitRefused, "pod/%s was deleted", pod)
			}
			status = debuggerStatus(c.obj, container)
			if status.State.Running != nil || status.State.Terminated != nil {
				return errStopWatching
			}
			if p := c.obj.(*corev1.Pod); object.PodPhaseFinal(p) {
				return failf(exitRefused, "pod/%s has ended", pod)
			}
			if w := status.State.Waiting; w != nil && w.Message != "" && w.Reason != told {
				told = w.Reason
				a.note("%s: %s", w.Reason, w.Message)
			}
		}
		return nil
	})
	if ctx.Err() != nil && err != nil {
		return status, fmt.Errorf("container %s of pod/%s has not been started: %w", container, pod, err)
	}
	return status, err
}

func debuggerStatus(obj object.Object, container string) corev1.ContainerStatus {
	if pod, ok := obj.(*corev1.Pod); ok {
		for _, s := range pod.Status.EphemeralContainerStatuses {
			if s.Name == container {
				return s
			}
		}
	}
	return corev1.ContainerStatus{}
}

// debuggerName is a name that no other is likely to have taken.
func debuggerName() string {
	const alphabet = "bcdfghjklmnpqrstvwxz2456789" // no vowels: no words
	b := []byte("debugger-12345")
	for i := len(b) - 5; i < len(b); i++ {
		b[i] = alphabet[rand.IntN(len(alphabet))]
	}
	return string(b)
}
