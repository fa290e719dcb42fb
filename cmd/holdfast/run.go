package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) runCommand() *cobra.Command {
	var f makeFlags
	var image, restart, pull, account string
	var port int32
	var env, labels []string
	var command bool
	cmd := &cobra.Command{
		Use:   "run NAME --image IMAGE [-- ARGS...]",
		Short: "Run one pod, and wait until it does",
		Long: `Run one pod, and wait until it does. Nothing brings it back when its node is lost:
for that, make a deployment with 'holdfast create deployment'.`,
		Example: `  holdfast run web --image nginx:1.29 --port 80
  holdfast run once --image busybox:1.37 --restart Never -- echo hello
  holdfast run web --image nginx:1.29 --dry-run=client -o yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var rest []string
			if at := cmd.ArgsLenAtDash(); at >= 0 {
				args, rest = args[:at], args[at:]
			}
			if len(args) != 1 {
				return failf(exitUsage, "want one NAME for the pod; arguments of what it runs stand behind --")
			}
			if image == "" {
				return failf(exitUsage, "say what to run, with --image")
			}
			c := corev1.Container{Name: args[0], Image: image, Args: rest, ImagePullPolicy: corev1.PullPolicy(pull)}
			if command {
				c.Command, c.Args = rest, nil
			}
			if port > 0 {
				c.Ports = []corev1.ContainerPort{{ContainerPort: port}}
			}
			for _, pair := range env {
				name, value, ok := strings.Cut(pair, "=")
				if !ok || name == "" {
					return failf(exitUsage, "--env %q: want NAME=VALUE", pair)
				}
				c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: value})
			}
			pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{c}, RestartPolicy: corev1.RestartPolicy(restart), ServiceAccountName: account}}
			pod.Name, pod.Labels = args[0], map[string]string{"run": args[0]}
			if len(labels) > 0 {
				pod.Labels = map[string]string{}
			}
			for _, pair := range labels {
				name, value, ok := strings.Cut(pair, "=")
				if !ok || name == "" {
					return failf(exitUsage, "--labels %q: want NAME=VALUE", pair)
				}
				pod.Labels[name] = value
			}
			return a.make(cmd.Context(), documentsOf(pod), f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&image, "image", "", "image to run")
	flags.Int32Var(&port, "port", 0, "port that the container listens on")
	flags.StringArrayVar(&env, "env", nil, "an environment variable, NAME=VALUE")
	flags.StringSliceVarP(&labels, "labels", "l", nil, "labels, NAME=VALUE (default run=NAME)")
	flags.StringVar(&restart, "restart", "Always", "what happens when the container ends: Always, OnFailure or Never")
	flags.StringVar(&pull, "image-pull-policy", "", "Always, IfNotPresent or Never")
	flags.StringVar(&account, "serviceaccount", "", "service account that it runs as")
	flags.BoolVar(&command, "command", false, "what stands behind -- replaces the image's command, not only its arguments")
	f.add(flags)
	return cmd
}

func (a *app) exposeCommand() *cobra.Command {
	var f makeFlags
	var port int32
	var target, name, typ, protocol, selector string
	cmd := &cobra.Command{
		Use:   "expose KIND NAME --port PORT",
		Short: "Make a service for the pods of a workload",
		Example: `  holdfast expose deployment web --port 80 --target-port 8080
  holdfast expose pod web --port 80 --name front --type NodePort`,
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			obj, err := a.one(cmd.Context(), args)
			if err != nil {
				return err
			}
			svc := &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceType(typ), Selector: selectorOf(obj)}}
			svc.Name, svc.Namespace, svc.Labels = obj.GetName(), obj.GetNamespace(), maps.Clone(obj.GetLabels())
			if name != "" {
				svc.Name = name
			}
			if selector != "" {
				if svc.Spec.Selector, err = pairsOf(selector); err != nil {
					return failf(exitUsage, "--selector: %w", err)
				}
			}
			if len(svc.Spec.Selector) == 0 {
				return failf(exitUsage, "%s selects no pods by labels alone: say which with --selector", title(obj))
			}
			ports := []int32{port}
			if port == 0 {
				ports = portsOf(obj)
			}
			if len(ports) == 0 {
				return failf(exitUsage, "%s declares no ports: say which with --port", title(obj))
			}
			for _, p := range ports {
				sp := corev1.ServicePort{Port: p, Protocol: corev1.Protocol(strings.ToUpper(protocol)), TargetPort: intstr.FromInt32(p)}
				if target != "" {
					sp.TargetPort = intstr.Parse(target)
				}
				if len(ports) > 1 {
					sp.Name = "port-" + strconv.Itoa(int(p))
				}
				svc.Spec.Ports = append(svc.Spec.Ports, sp)
			}
			return a.make(cmd.Context(), documentsOf(svc), f)
		},
	}
	flags := cmd.Flags()
	flags.Int32Var(&port, "port", 0, "port of the service (default: those that the containers declare)")
	flags.StringVar(&target, "target-port", "", "port of the pods, a number or a name (default: the same)")
	flags.StringVar(&name, "name", "", "name of the service (default: that of the object)")
	flags.StringVar(&typ, "type", "", "ClusterIP, NodePort or LoadBalancer")
	flags.StringVar(&protocol, "protocol", "TCP", "TCP, UDP or SCTP")
	flags.StringVar(&selector, "selector", "", "labels of the pods (default: those that the object selects)")
	f.add(flags)
	return cmd
}

// one reads the object that arguments name.
func (a *app) one(ctx context.Context, args []string) (object.Object, error) {
	selections, err := a.parseSelections(ctx, args)
	if err != nil {
		return nil, err
	}
	if len(selections) != 1 || len(selections[0].names) != 1 {
		return nil, failf(exitUsage, "name one object: KIND NAME or KIND/NAME")
	}
	r, err := a.dial()
	if err != nil {
		return nil, err
	}
	obj, _, err := a.get(ctx, r, selections[0].resource, a.scope(selections[0].resource), selections[0].names[0], &holdfastv1.ReadOptions{})
	return obj, err
}

// selectorOf returns the labels that an object's pods have; nil if they cannot be
// told by labels alone.
func selectorOf(obj object.Object) map[string]string {
	switch o := obj.(type) {
	case *corev1.Pod:
		return maps.Clone(o.Labels)
	case *corev1.Service:
		return maps.Clone(o.Spec.Selector)
	}
	value, err := mapOf(obj)
	if err != nil {
		return nil
	}
	spec, _ := value["spec"].(map[string]any)
	selector, _ := spec["selector"].(map[string]any)
	if labels, ok := selector["matchLabels"].(map[string]any); ok {
		if selector["matchExpressions"] != nil {
			return nil
		}
		selector = labels
	}
	out := map[string]string{}
	for key, v := range selector {
		s, ok := v.(string)
		if !ok {
			return nil
		}
		out[key] = s
	}
	return out
}

// portsOf returns the ports that an object's containers declare.
func portsOf(obj object.Object) []int32 {
	var out []int32
	if svc, ok := obj.(*corev1.Service); ok {
		for _, p := range svc.Spec.Ports {
			out = append(out, p.Port)
		}
		return out
	}
	spec := podSpecOf(obj)
	if spec == nil {
		return nil
	}
	for _, c := range spec.Containers {
		for _, p := range c.Ports {
			if !slices.Contains(out, p.ContainerPort) {
				out = append(out, p.ContainerPort)
			}
		}
	}
	return out
}

func (a *app) autoscaleCommand() *cobra.Command {
	var f makeFlags
	var least, most, cpu int32
	var name string
	cmd := &cobra.Command{
		Use:               "autoscale KIND NAME --max N",
		Short:             "Let a workload's number of pods follow their load",
		Example:           `  holdfast autoscale deployment web --min 2 --max 10 --cpu-percent 70`,
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			if most < 1 || least > most {
				return failf(exitUsage, "say how many pods there may be, with --max N, no fewer than --min")
			}
			obj, err := a.one(cmd.Context(), args)
			if err != nil {
				return err
			}
			r := object.ResourceOf(obj)
			if !r.Scale {
				return failf(exitUsage, "%s cannot be scaled", r.Plural)
			}
			hpa := &autoscalingv2.HorizontalPodAutoscaler{Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
				ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: r.APIVersion(), Kind: r.Kind, Name: obj.GetName()},
				MaxReplicas:    most,
			}}
			hpa.Name, hpa.Namespace = obj.GetName(), obj.GetNamespace()
			if name != "" {
				hpa.Name = name
			}
			if least > 0 {
				hpa.Spec.MinReplicas = &least
			}
			if cpu > 0 {
				hpa.Spec.Metrics = []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
					Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &cpu},
				}}}
			}
			return a.make(cmd.Context(), documentsOf(hpa), f)
		},
	}
	flags := cmd.Flags()
	flags.Int32Var(&least, "min", 0, "no fewer pods than this (default 1)")
	flags.Int32Var(&most, "max", 0, "no more pods than this")
	flags.Int32Var(&cpu, "cpu-percent", 0, "use of the CPU to aim at, as a percentage of what the pods request")
	flags.StringVar(&name, "name", "", "name of the autoscaler (default: that of the object)")
	f.add(flags)
	return cmd
}

// podSpecOf returns the pod spec in an object, or nil.
func podSpecOf(obj object.Object) *corev1.PodSpec {
	value, err := mapOf(obj)
	if err != nil {
		return nil
	}
	for _, field := range podSpecPath(object.ResourceOf(obj)) {
		value, _ = value[field].(map[string]any)
	}
	spec := &corev1.PodSpec{}
	if value == nil || fromMap(value, spec) != nil {
		return nil
	}
	return spec
}

// podSpecPath is where a kind has its pods' spec; nil if it has none.
func podSpecPath(r object.Resource) []string {
	switch {
	case r.Group == "" && r.Kind == "Pod":
		return []string{"spec"}
	case r.Kind == "CronJob" && r.Group == "batch":
		return []string{"spec", "jobTemplate", "spec", "template", "spec"}
	case makesPods(r):
		return []string{"spec", "template", "spec"}
	}
	return nil
}

// within wraps a value in maps: within("spec", "template")(x) is
// {"spec": {"template": x}}.
func within(path []string, value any) map[string]any {
	for _, field := range slices.Backward(path) {
		value = map[string]any{field: value}
	}
	out, ok := value.(map[string]any)
	if !ok {
		panic(fmt.Sprintf("%T at an empty path", value))
	}
	return out
}
