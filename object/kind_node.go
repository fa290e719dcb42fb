package object

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindNode = define(Resource{Version: "v1", Kind: "Node", Plural: "nodes", Singular: "node", ShortNames: []string{"no"}, Status: true},
	func() *corev1.Node { return new(corev1.Node) },
	rules[*corev1.Node]{
		supported: `
			spec.unschedulable
			spec.taints
			spec.podCIDR
			spec.podCIDRs
			status
		`,
		defaults:       defaultNode,
		validate:       validateNode,
		validateUpdate: validateNodeUpdate,
		selectable: func(node *corev1.Node, set fields.Set) {
			set["spec.unschedulable"] = strconv.FormatBool(node.Spec.Unschedulable)
		},
		columns: columns("NAME", "STATUS", "ROLES", "AGE", "VERSION", "|", "INTERNAL-IP", "EXTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME"),
		row:     nodeRow,
		describe: func(d *describer, node *corev1.Node, related []Object) {
			d.node(node, only[*corev1.Pod](related))
		},
	})

func defaultNode(node *corev1.Node) {
	if node.Spec.PodCIDR == "" && len(node.Spec.PodCIDRs) > 0 {
		node.Spec.PodCIDR = node.Spec.PodCIDRs[0]
	}
	if node.Spec.PodCIDR != "" && len(node.Spec.PodCIDRs) == 0 {
		node.Spec.PodCIDRs = []string{node.Spec.PodCIDR}
	}
	if node.Status.Allocatable == nil && node.Status.Capacity != nil {
		node.Status.Allocatable = node.Status.Capacity.DeepCopy()
	}
}

func validateNode(node *corev1.Node) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("spec")
	if _, _, err := DrainOf(node); err != nil {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "annotations").Key(DrainAnnotation), node.Annotations[DrainAnnotation], err.Error()))
	}
	errs = append(errs, validateTaints(node.Spec.Taints, path.Child("taints"))...)
	seen := map[string]bool{}
	for i, cidr := range node.Spec.PodCIDRs {
		at := path.Child("podCIDRs").Index(i)
		if prefix, err := netip.ParsePrefix(cidr); err != nil || prefix != prefix.Masked() {
			errs = append(errs, field.Invalid(at, cidr, `must be a network such as "10.244.1.0/24"`))
		}
		if seen[cidr] {
			errs = append(errs, field.Duplicate(at, cidr))
		}
		seen[cidr] = true
	}
	if len(errs) == 0 {
		families := map[corev1.IPFamily]bool{}
		for i, cidr := range node.Spec.PodCIDRs {
			family := familyOf(netip.MustParsePrefix(cidr).Addr())
			if families[family] {
				errs = append(errs, field.Invalid(path.Child("podCIDRs").Index(i), cidr, "may specify no more than one CIDR for each IP family"))
			}
			families[family] = true
		}
	}
	if first := node.Spec.PodCIDR; first != "" && (len(node.Spec.PodCIDRs) == 0 || node.Spec.PodCIDRs[0] != first) {
		errs = append(errs, field.Invalid(path.Child("podCIDR"), first, "must be the first of podCIDRs"))
	}
	return errs
}

var taintEffects = []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}

func validateTaints(taints []corev1.Taint, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := map[string]bool{}
	for i, taint := range taints {
		at := path.Index(i)
		errs = append(errs, validateQualifiedName(taint.Key, at.Child("key"))...)
		for _, msg := range validation.IsValidLabelValue(taint.Value) {
			errs = append(errs, field.Invalid(at.Child("value"), taint.Value, msg))
		}
		errs = append(errs, oneOf(taint.Effect, taintEffects, at.Child("effect"))...)
		id := taint.Key + ":" + string(taint.Effect)
		if seen[id] {
			errs = append(errs, field.Duplicate(at, id))
		}
		seen[id] = true
	}
	return errs
}

func validateNodeUpdate(node, old *corev1.Node) field.ErrorList {
	path := field.NewPath("spec", "podCIDRs")
	if len(old.Spec.PodCIDRs) > 0 && !slices.Equal(node.Spec.PodCIDRs, old.Spec.PodCIDRs) {
		return field.ErrorList{field.Forbidden(path, fmt.Sprintf("a node keeps its pod network for life, here %s", strings.Join(old.Spec.PodCIDRs, ", ")))}
	}
	return nil
}

func nodeRow(node *corev1.Node, now time.Time) []string {
	info := node.Status.NodeInfo
	return []string{
		node.Name, NodeStatus(node), orNone(strings.Join(nodeRoles(node), ",")), ageOf(node, now), info.KubeletVersion,
		orNone(nodeAddress(node, corev1.NodeInternalIP)), orNone(nodeAddress(node, corev1.NodeExternalIP)),
		orUnknown(info.OSImage), orUnknown(info.KernelVersion), orUnknown(info.ContainerRuntimeVersion),
	}
}

// Reasons of a node's condition Ready while it is not ready: the state of its
// health.
const (
	// NodeIsolated: no peer hears the agent, but other machines see this one.
	NodeIsolated = "Isolated"
	// NodeSuspect: nobody sees it, and that is not enough to give it up.
	NodeSuspect = "Suspect"
	// NodeHeld: it is suspect, and too many fell together with it to give it up.
	NodeHeld = "EvictionHeld"
	// NodeLost: it is given up, and what ran on it is replaced.
	NodeLost = "Lost"
)

// NodeStatus returns what kubectl shows as a node's status: "Ready", "NotReady"
// or "Unknown" (before its first report), after "NotReady" the state of its health,
// ",Lost", and ",SchedulingDisabled" if it is cordoned.
func NodeStatus(node *corev1.Node) string {
	word := "Unknown"
	if c := NodeCondition(node, corev1.NodeReady); c != nil {
		word = "NotReady"
		switch {
		case c.Status == corev1.ConditionTrue:
			word = "Ready"
		case c.Reason == NodeIsolated, c.Reason == NodeSuspect, c.Reason == NodeLost:
			word += "," + c.Reason
		case c.Reason == NodeHeld:
			word += "," + NodeSuspect
		}
	}
	if node.Spec.Unschedulable {
		word += ",SchedulingDisabled"
	}
	return word
}

func nodeRoles(node *corev1.Node) []string {
	var roles []string
	for label, value := range node.Labels {
		if role, ok := strings.CutPrefix(label, "node-role.kubernetes.io/"); ok && role != "" {
			roles = append(roles, role)
		} else if label == "kubernetes.io/role" && value != "" {
			roles = append(roles, value)
		}
	}
	slices.Sort(roles)
	return slices.Compact(roles)
}

func nodeAddress(node *corev1.Node, t corev1.NodeAddressType) string {
	for _, a := range node.Status.Addresses {
		if a.Type == t {
			return a.Address
		}
	}
	return ""
}

func (d *describer) node(node *corev1.Node, pods []*corev1.Pod) {
	d.line(0, "Name:", node.Name)
	d.line(0, "Roles:", orNone(strings.Join(nodeRoles(node), ",")))
	d.labels(node)
	d.line(0, "CreationTimestamp:", d.time(node.CreationTimestamp))
	var taints []string
	for _, t := range node.Spec.Taints {
		taints = append(taints, t.ToString())
	}
	d.list(0, "Taints:", taints)
	d.line(0, "Unschedulable:", fmt.Sprint(node.Spec.Unschedulable))
	if len(node.Status.Conditions) > 0 {
		d.line(0, "Conditions:")
		d.line(1, "Type", "Status", "LastTransitionTime", "Reason", "Message")
		for _, c := range node.Status.Conditions {
			d.line(1, string(c.Type), string(c.Status), d.time(c.LastTransitionTime), c.Reason, c.Message)
		}
	}
	if len(node.Status.Addresses) > 0 {
		d.line(0, "Addresses:")
		for _, a := range node.Status.Addresses {
			d.line(1, string(a.Type)+":", a.Address)
		}
	}
	for _, list := range []struct {
		name string
		list corev1.ResourceList
	}{{"Capacity:", node.Status.Capacity}, {"Allocatable:", node.Status.Allocatable}} {
		if len(list.list) == 0 {
			continue
		}
		d.line(0, list.name)
		for _, key := range slices.Sorted(maps.Keys(list.list)) {
			q := list.list[key]
			d.line(1, string(key)+":", q.String())
		}
	}
	info := node.Status.NodeInfo
	d.line(0, "System Info:")
	for _, pair := range [][2]string{
		{"Machine ID:", info.MachineID},
		{"Boot ID:", info.BootID},
		{"Kernel Version:", info.KernelVersion},
		{"OS Image:", info.OSImage},
		{"Operating System:", info.OperatingSystem},
		{"Architecture:", info.Architecture},
		{"Container Runtime Version:", info.ContainerRuntimeVersion},
		{"Agent Version:", info.KubeletVersion},
	} {
		if pair[1] != "" {
			d.line(1, pair[0], pair[1])
		}
	}
	if len(node.Spec.PodCIDRs) > 0 {
		d.line(0, "PodCIDRs:", strings.Join(node.Spec.PodCIDRs, ","))
	}
	d.nodePods(node, pods)
}

// nodePods writes the pods that take up room on a node, and how much.
func (d *describer) nodePods(node *corev1.Node, pods []*corev1.Pod) {
	var own []*corev1.Pod
	for _, pod := range pods {
		if pod.Spec.NodeName == node.Name && !PodPhaseFinal(pod) {
			own = append(own, pod)
		}
	}
	d.line(0, fmt.Sprintf("Non-terminated Pods: (%d in total)", len(own)))
	room := node.Status.Allocatable
	if len(room) == 0 {
		room = node.Status.Capacity
	}
	requests, limits := corev1.ResourceList{}, corev1.ResourceList{}
	if len(own) > 0 {
		d.line(1, "Namespace", "Name", "CPU Requests", "CPU Limits", "Memory Requests", "Memory Limits", "Age")
		d.line(1, "---------", "----", "------------", "----------", "---------------", "-------------", "---")
	}
	for _, pod := range own {
		r, l := PodResources(pod), PodLimits(pod)
		addResources(requests, r)
		addResources(limits, l)
		d.line(1, pod.Namespace, pod.Name,
			share(r, room, corev1.ResourceCPU), share(l, room, corev1.ResourceCPU),
			share(r, room, corev1.ResourceMemory), share(l, room, corev1.ResourceMemory), ageOf(pod, d.now))
	}
	d.line(0, "Allocated resources:")
	d.line(1, "Resource", "Requests", "Limits")
	d.line(1, "--------", "--------", "------")
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		d.line(1, string(name), share(requests, room, name), share(limits, room, name))
	}
	if q, ok := room[corev1.ResourcePods]; ok {
		d.line(1, string(corev1.ResourcePods), fmt.Sprintf("%d of %s", len(own), q.String()), "")
	}
}

// share writes an amount and what part of room it is: "500m (25%)".
func share(list, room corev1.ResourceList, name corev1.ResourceName) string {
	q, have := list[name], room[name]
	if have.IsZero() {
		return q.String()
	}
	percent := 100 * q.AsApproximateFloat64() / have.AsApproximateFloat64()
	return fmt.Sprintf("%s (%d%%)", q.String(), int64(percent))
}
