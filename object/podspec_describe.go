package object

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (d *describer) pod(pod *corev1.Pod) {
	d.line(0, "Name:", pod.Name)
	d.line(0, "Namespace:", pod.Namespace)
	node := "<none>"
	if pod.Spec.NodeName != "" {
		node = pod.Spec.NodeName
		if pod.Status.HostIP != "" {
			node += "/" + pod.Status.HostIP
		}
	}
	d.priority(0, &pod.Spec)
	if class := pod.Spec.RuntimeClassName; class != nil && *class != "" {
		d.line(0, "Runtime Class Name:", *class)
	}
	if pod.Spec.ServiceAccountName != "" {
		d.line(0, "Service Account:", pod.Spec.ServiceAccountName)
	}
	d.line(0, "Node:", node)
	if t := pod.Status.StartTime; t != nil {
		d.line(0, "Start Time:", d.time(*t))
	}
	d.labels(pod)
	if t := pod.DeletionTimestamp; t != nil {
		if left := t.Sub(d.now); left > 0 {
			d.line(0, "Status:", fmt.Sprintf("Terminating (killed in %s)", since(d.now.Add(-left), d.now)))
		} else {
			d.line(0, "Status:", fmt.Sprintf("Terminating (lasts %s)", since(t.Time, d.now)))
		}
		if g := pod.DeletionGracePeriodSeconds; g != nil {
			d.line(0, "Termination Grace Period:", fmt.Sprintf("%ds", *g))
		}
	} else {
		d.line(0, "Status:", string(pod.Status.Phase))
	}
	if pod.Status.Reason != "" {
		d.line(0, "Reason:", pod.Status.Reason)
	}
	if pod.Status.Message != "" {
		d.line(0, "Message:", pod.Status.Message)
	}
	if sc := pod.Spec.SecurityContext; sc != nil {
		d.seccomp(0, sc.SeccompProfile)
	}
	d.line(0, "IP:", pod.Status.PodIP)
	if len(pod.Status.PodIPs) > 0 {
		d.line(0, "IPs:")
		for _, ip := range pod.Status.PodIPs {
			d.line(1, "IP:", ip.IP)
		}
	}
	d.controlledBy(pod)
	if pod.Status.NominatedNodeName != "" {
		d.line(0, "NominatedNodeName:", pod.Status.NominatedNodeName)
	}
	if res := pod.Spec.Resources; res != nil {
		d.line(0, "Resources:")
		d.quantities(1, "Limits:", res.Limits)
		d.quantities(1, "Requests:", res.Requests)
	}
	d.containers(0, &pod.Spec, pod)
	if len(pod.Spec.ReadinessGates) > 0 {
		d.line(0, "Readiness Gates:")
		d.line(1, "Type", "Status")
		for _, gate := range pod.Spec.ReadinessGates {
			status := "<none>"
			if c := PodCondition(pod, gate.ConditionType); c != nil {
				status = string(c.Status)
			}
			d.line(1, string(gate.ConditionType), status)
		}
	}
	if len(pod.Status.Conditions) > 0 {
		d.line(0, "Conditions:")
		d.line(1, "Type", "Status", "Reason", "Message")
		for _, c := range pod.Status.Conditions {
			d.line(1, string(c.Type), string(c.Status), c.Reason, c.Message)
		}
	}
	d.volumes(0, pod.Spec.Volumes)
	d.line(0, "QoS Class:", string(QOSClass(pod)))
	d.placement(0, &pod.Spec)
}

// placement writes where pods may run.
func (d *describer) placement(level int, spec *corev1.PodSpec) {
	d.pairs(level, "Node-Selectors:", "=", spec.NodeSelector)
	d.list(level, "Tolerations:", tolerationTexts(spec.Tolerations))
	if len(spec.SchedulingGates) > 0 {
		var gates []string
		for _, gate := range spec.SchedulingGates {
			gates = append(gates, gate.Name)
		}
		d.list(level, "Scheduling Gates:", gates)
	}
	if len(spec.TopologySpreadConstraints) > 0 {
		var texts []string
		for _, c := range spec.TopologySpreadConstraints {
			text := fmt.Sprintf("%s:%s when max skew %d is exceeded", c.TopologyKey, c.WhenUnsatisfiable, c.MaxSkew)
			if c.LabelSelector != nil {
				text += " for selector " + metav1.FormatLabelSelector(c.LabelSelector)
			}
			texts = append(texts, text)
		}
		d.list(level, "Topology Spread Constraints:", texts)
	}
}

func (d *describer) priority(level int, spec *corev1.PodSpec) {
	if p := spec.Priority; p != nil {
		d.line(level, "Priority:", itoa(*p))
	}
	if spec.PriorityClassName != "" {
		d.line(level, "Priority Class Name:", spec.PriorityClassName)
	}
}

func (d *describer) seccomp(level int, p *corev1.SeccompProfile) {
	if p == nil {
		return
	}
	d.line(level, "SeccompProfile:", string(p.Type))
	if p.LocalhostProfile != nil {
		d.line(level, "LocalhostProfile:", *p.LocalhostProfile)
	}
}

// containers writes the containers of a pod, or of a template if pod is nil.
func (d *describer) containers(level int, spec *corev1.PodSpec, pod *corev1.Pod) {
	var init, main, ephemeral []corev1.ContainerStatus
	if pod != nil {
		init, main, ephemeral = pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses
	}
	last := containerKind("")
	eachContainer(spec, func(c *corev1.Container, kind containerKind, _ int) {
		heading, statuses := "Containers:", main
		switch kind {
		case initContainer:
			heading, statuses = "Init Containers:", init
		case ephemeralContainer:
			heading, statuses = "Ephemeral Containers:", ephemeral
		}
		if kind != last {
			d.line(level, heading)
			last = kind
		}
		d.container(level+1, c, pod, statuses)
	})
}

// container writes a container of a pod, or of a template if pod is nil. level is
// that of its name.
func (d *describer) container(level int, c *corev1.Container, pod *corev1.Pod, statuses []corev1.ContainerStatus) {
	var status *corev1.ContainerStatus
	for i := range statuses {
		if s := &statuses[i]; s.Name == c.Name {
			status = s
		}
	}
	d.line(level, c.Name+":")
	if status != nil {
		d.line(level+1, "Container ID:", status.ContainerID)
	}
	d.line(level+1, "Image:", c.Image)
	if status != nil {
		d.line(level+1, "Image ID:", status.ImageID)
	}
	var ports []string
	for _, p := range c.Ports {
		text := fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol)
		if p.Name != "" {
			text += " (" + p.Name + ")"
		}
		ports = append(ports, text)
	}
	d.line(level+1, "Ports:", orNone(strings.Join(ports, ", ")))
	if hosts := hostPorts(c.Ports); hosts != "" {
		d.line(level+1, "Host Ports:", hosts)
	}
	if sc := c.SecurityContext; sc != nil {
		d.seccomp(level+1, sc.SeccompProfile)
	}
	for _, words := range []struct {
		name  string
		words []string
	}{{"Command:", c.Command}, {"Args:", c.Args}} {
		if len(words.words) == 0 {
			continue
		}
		d.line(level+1, words.name)
		for _, w := range words.words {
			for line := range strings.SplitSeq(w, "\n") {
				d.line(level+2, line)
			}
		}
	}
	if c.WorkingDir != "" {
		d.line(level+1, "Working Dir:", c.WorkingDir)
	}
	if status != nil {
		d.state(level+1, "State:", status.State)
		if status.LastTerminationState.Terminated != nil {
			d.state(level+1, "Last State:", status.LastTerminationState)
		}
		d.line(level+1, "Ready:", yesNo(status.Ready))
		d.line(level+1, "Restart Count:", itoa(status.RestartCount))
	}
	d.quantities(level+1, "Limits:", c.Resources.Limits)
	d.quantities(level+1, "Requests:", c.Resources.Requests)
	for _, p := range []struct {
		name string
		of   *corev1.Probe
	}{{"Liveness:", c.LivenessProbe}, {"Readiness:", c.ReadinessProbe}, {"Startup:", c.StartupProbe}} {
		if p.of != nil {
			d.line(level+1, p.name, probeText(p.of))
		}
	}
	d.envFrom(level+1, c.EnvFrom)
	d.env(level+1, c, pod)
	d.mounts(level+1, c)
}

// hostPorts lists the ports that a container takes on its node, by kubectl's
// rule in the order of its ports; "" if it takes none.
func hostPorts(ports []corev1.ContainerPort) string {
	var texts []string
	any := false
	for _, p := range ports {
		any = any || p.HostPort != 0
		texts = append(texts, fmt.Sprintf("%d/%s", p.HostPort, p.Protocol))
	}
	if !any {
		return ""
	}
	return strings.Join(texts, ", ")
}

func probeText(p *corev1.Probe) string {
	times := fmt.Sprintf("delay=%ds timeout=%ds period=%ds #success=%d #failure=%d", p.InitialDelaySeconds, p.TimeoutSeconds, p.PeriodSeconds, p.SuccessThreshold, p.FailureThreshold)
	switch {
	case p.Exec != nil:
		return fmt.Sprintf("exec %v %s", p.Exec.Command, times)
	case p.HTTPGet != nil:
		get := p.HTTPGet
		return fmt.Sprintf("http-get %s://%s:%s%s %s", strings.ToLower(string(get.Scheme)), get.Host, get.Port.String(), get.Path, times)
	case p.TCPSocket != nil:
		return fmt.Sprintf("tcp-socket %s:%s %s", p.TCPSocket.Host, p.TCPSocket.Port.String(), times)
	case p.GRPC != nil:
		service := ""
		if p.GRPC.Service != nil {
			service = *p.GRPC.Service
		}
		return fmt.Sprintf("grpc <pod>:%d %s %s", p.GRPC.Port, service, times)
	}
	return "unknown " + times
}

func (d *describer) mounts(level int, c *corev1.Container) {
	if len(c.VolumeMounts) > 0 {
		d.line(level, "Mounts:")
		mounts := slices.SortedFunc(slices.Values(c.VolumeMounts), func(a, b corev1.VolumeMount) int { return cmp.Compare(a.MountPath, b.MountPath) })
		for _, m := range mounts {
			how := "rw"
			if m.ReadOnly {
				how = "ro"
			}
			if sub := cmp.Or(m.SubPath, m.SubPathExpr); sub != "" {
				how += fmt.Sprintf(",path=%q", sub)
			}
			d.line(level+1, fmt.Sprintf("%s from %s (%s)", m.MountPath, m.Name, how))
		}
	}
	if len(c.VolumeDevices) > 0 {
		d.line(level, "Devices:")
		for _, dev := range c.VolumeDevices {
			d.line(level+1, fmt.Sprintf("%s from %s", dev.DevicePath, dev.Name))
		}
	}
}

func (d *describer) state(level int, name string, s corev1.ContainerState) {
	switch {
	case s.Running != nil:
		d.line(level, name, "Running")
		d.line(level+1, "Started:", d.time(s.Running.StartedAt))
	case s.Waiting != nil:
		d.line(level, name, "Waiting")
		if s.Waiting.Reason != "" {
			d.line(level+1, "Reason:", s.Waiting.Reason)
		}
		if s.Waiting.Message != "" {
			d.line(level+1, "Message:", s.Waiting.Message)
		}
	case s.Terminated != nil:
		t := s.Terminated
		d.line(level, name, "Terminated")
		if t.Reason != "" {
			d.line(level+1, "Reason:", t.Reason)
		}
		if t.Message != "" {
			d.line(level+1, "Message:", t.Message)
		}
		d.line(level+1, "Exit Code:", itoa(t.ExitCode))
		if t.Signal != 0 {
			d.line(level+1, "Signal:", itoa(t.Signal))
		}
		if !t.StartedAt.IsZero() {
			d.line(level+1, "Started:", d.time(t.StartedAt))
		}
		if !t.FinishedAt.IsZero() {
			d.line(level+1, "Finished:", d.time(t.FinishedAt))
		}
	default:
		d.line(level, name, "Waiting")
	}
}

func (d *describer) envFrom(level int, sources []corev1.EnvFromSource) {
	if len(sources) == 0 {
		return
	}
	d.line(level, "Environment Variables from:")
	for _, from := range sources {
		name, what, optional := "", "", false
		switch {
		case from.ConfigMapRef != nil:
			name, what, optional = from.ConfigMapRef.Name, "ConfigMap", deref(from.ConfigMapRef.Optional)
		case from.SecretRef != nil:
			name, what, optional = from.SecretRef.Name, "Secret", deref(from.SecretRef.Optional)
		}
		if from.Prefix != "" {
			what += " with prefix '" + from.Prefix + "'"
		}
		d.line(level+1, name, what, fmt.Sprintf("Optional: %t", optional))
	}
}

func (d *describer) env(level int, c *corev1.Container, pod *corev1.Pod) {
	if len(c.Env) == 0 {
		d.line(level, "Environment:", "<none>")
		return
	}
	d.line(level, "Environment:")
	for _, e := range c.Env {
		cells := []string{e.Name + ":", strings.TrimSpace(strings.ReplaceAll(e.Value, "\n", " "))}
		if from := e.ValueFrom; from != nil {
			cells = append(cells[:1], envSource(from, pod)...)
		}
		d.line(level+1, cells...)
	}
}

// envSource says where a variable's value comes from, and what it is where that
// is known.
func envSource(from *corev1.EnvVarSource, pod *corev1.Pod) []string {
	switch {
	case from.FieldRef != nil:
		path := from.FieldRef.FieldPath
		text := "(" + path + ")"
		if pod != nil {
			if v, ok := FieldValue(pod, path); ok {
				text = v + " " + text
			}
		}
		return []string{strings.TrimSpace(strings.ReplaceAll(text, "\n", " "))}
	case from.ResourceFieldRef != nil:
		return []string{"(" + from.ResourceFieldRef.Resource + ")"}
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		return []string{fmt.Sprintf("<set to the key '%s' in secret '%s'>", ref.Key, ref.Name), fmt.Sprintf("Optional: %t", deref(ref.Optional))}
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		return []string{fmt.Sprintf("<set to the key '%s' of config map '%s'>", ref.Key, ref.Name), fmt.Sprintf("Optional: %t", deref(ref.Optional))}
	case from.FileKeyRef != nil:
		ref := from.FileKeyRef
		return []string{fmt.Sprintf("<set to the variable '%s' of the file '%s' in volume '%s'>", ref.Key, ref.Path, ref.VolumeName), fmt.Sprintf("Optional: %t", deref(ref.Optional))}
	}
	return []string{""}
}

func tolerationTexts(tolerations []corev1.Toleration) []string {
	var texts []string
	for _, t := range tolerations {
		text := t.Key
		if t.Value != "" {
			text += "=" + t.Value
		}
		if t.Effect != "" {
			text += ":" + string(t.Effect)
		}
		if t.Operator == corev1.TolerationOpExists {
			text = strings.TrimSpace(text + " op=Exists")
		}
		if t.TolerationSeconds != nil {
			text += fmt.Sprintf(" for %ds", *t.TolerationSeconds)
		}
		texts = append(texts, text)
	}
	return texts
}

// volumes writes what containers can mount, in kubectl's words.
func (d *describer) volumes(level int, volumes []corev1.Volume) {
	if len(volumes) == 0 {
		return
	}
	d.line(level, "Volumes:")
	for i := range volumes {
		v := &volumes[i]
		d.line(level+1, v.Name+":")
		for _, row := range volumeTexts(v) {
			d.line(level+2, row[:]...)
		}
	}
}

func volumeTexts(v *corev1.Volume) [][2]string {
	rows := [][2]string{}
	add := func(name string, value any) { rows = append(rows, [2]string{name + ":", fmt.Sprint(value)}) }
	switch src := v.VolumeSource; {
	case src.HostPath != nil:
		add("Type", "HostPath (bare host directory volume)")
		add("Path", src.HostPath.Path)
		kind := ""
		if src.HostPath.Type != nil {
			kind = string(*src.HostPath.Type)
		}
		add("HostPathType", kind)
	case src.EmptyDir != nil:
		add("Type", "EmptyDir (a temporary directory that shares a pod's lifetime)")
		add("Medium", src.EmptyDir.Medium)
		size := "<unset>"
		if s := src.EmptyDir.SizeLimit; s != nil && s.Sign() > 0 {
			size = s.String()
		}
		add("SizeLimit", size)
	case src.Secret != nil:
		add("Type", "Secret (a volume populated by a Secret)")
		add("SecretName", src.Secret.SecretName)
		add("Optional", deref(src.Secret.Optional))
	case src.ConfigMap != nil:
		add("Type", "ConfigMap (a volume populated by a ConfigMap)")
		add("Name", src.ConfigMap.Name)
		add("Optional", deref(src.ConfigMap.Optional))
	case src.PersistentVolumeClaim != nil:
		add("Type", "PersistentVolumeClaim (a reference to a PersistentVolumeClaim in the same namespace)")
		add("ClaimName", src.PersistentVolumeClaim.ClaimName)
		add("ReadOnly", src.PersistentVolumeClaim.ReadOnly)
	case src.Ephemeral != nil:
		add("Type", "EphemeralVolume (an inline specification for a volume that gets created and deleted with the pod)")
		if t := src.Ephemeral.VolumeClaimTemplate; t != nil {
			class := "<default>"
			if t.Spec.StorageClassName != nil {
				class = *t.Spec.StorageClassName
			}
			add("StorageClass", class)
			size := t.Spec.Resources.Requests[corev1.ResourceStorage]
			add("Capacity", size.String())
			add("Access Modes", accessModesText(t.Spec.AccessModes))
		}
	case src.DownwardAPI != nil:
		add("Type", "DownwardAPI (a volume populated by information about the pod)")
		for _, f := range src.DownwardAPI.Items {
			switch {
			case f.FieldRef != nil:
				add("Item", f.FieldRef.FieldPath+" -> "+f.Path)
			case f.ResourceFieldRef != nil:
				add("Item", f.ResourceFieldRef.Resource+" -> "+f.Path)
			}
		}
	case src.Projected != nil:
		add("Type", "Projected (a volume that contains injected data from multiple sources)")
		for _, s := range src.Projected.Sources {
			switch {
			case s.Secret != nil:
				add("SecretName", s.Secret.Name)
				add("Optional", deref(s.Secret.Optional))
			case s.ConfigMap != nil:
				add("ConfigMapName", s.ConfigMap.Name)
				add("Optional", deref(s.ConfigMap.Optional))
			case s.DownwardAPI != nil:
				add("DownwardAPI", true)
			case s.ServiceAccountToken != nil && s.ServiceAccountToken.ExpirationSeconds != nil:
				add("TokenExpirationSeconds", *s.ServiceAccountToken.ExpirationSeconds)
			}
		}
	case src.NFS != nil:
		add("Type", "NFS (an NFS mount that lasts the lifetime of a pod)")
		add("Server", src.NFS.Server)
		add("Path", src.NFS.Path)
		add("ReadOnly", src.NFS.ReadOnly)
	case src.CSI != nil:
		add("Type", "CSI (a Container Storage Interface (CSI) volume source)")
		add("Driver", src.CSI.Driver)
	case src.Image != nil:
		add("Type", "Image (a container image or OCI artifact)")
		add("Reference", src.Image.Reference)
		add("PullPolicy", src.Image.PullPolicy)
	default:
		add("Type", strings.Join(volumeSources(v), ", "))
	}
	return rows
}
