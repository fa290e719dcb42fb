package object

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// validateContainers checks the three lists of containers. path is that of the
// pod's spec.
func (s *podScope) validateContainers(path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(s.spec.Containers) == 0 {
		errs = append(errs, field.Required(path.Child("containers"), "give the pod at least one container"))
	}
	taken := map[string]bool{} // names and, of those that run at the same time, host ports
	check := func(c *corev1.Container, kind containerKind, i int) {
		at := path.Child(string(kind)).Index(i)
		if taken[c.Name] && c.Name != "" {
			errs = append(errs, field.Duplicate(at.Child("name"), c.Name))
		}
		taken[c.Name] = true
		errs = append(errs, s.validateContainer(c, kind, at)...)
		ports := taken
		if kind == initContainer && !isSidecar(c) {
			ports = map[string]bool{} // it runs alone
		}
		for j, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			key := fmt.Sprintf("%s/%s/%d", port.Protocol, port.HostIP, port.HostPort)
			if ports[key] {
				errs = append(errs, field.Duplicate(at.Child("ports").Index(j).Child("hostPort"), key))
			}
			ports[key] = true
		}
	}
	// Of two containers with the same name, the one that starts later is at fault
	// for Kubernetes, unless that is a main one.
	for i := range s.spec.Containers {
		check(&s.spec.Containers[i], mainContainer, i)
	}
	eachContainer(s.spec, func(c *corev1.Container, kind containerKind, i int) {
		if kind != mainContainer {
			check(c, kind, i)
		}
	})
	for i := range s.spec.EphemeralContainers {
		target := s.spec.EphemeralContainers[i].TargetContainerName
		named := func(c corev1.Container) bool { return c.Name == target }
		if target != "" && !slices.ContainsFunc(s.spec.Containers, named) && !slices.ContainsFunc(s.spec.InitContainers, named) {
			errs = append(errs, field.NotFound(path.Child("ephemeralContainers").Index(i).Child("targetContainerName"), target))
		}
	}
	return errs
}

func (s *podScope) validateContainer(c *corev1.Container, kind containerKind, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if c.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), "give the container a name"))
	} else {
		errs = append(errs, invalid(path.Child("name"), c.Name, validation.IsDNS1123Label(c.Name))...)
	}
	errs = append(errs, validateImage(c.Image, path.Child("image"))...)
	errs = append(errs, oneOf(c.ImagePullPolicy, pullPolicies, path.Child("imagePullPolicy"))...)
	errs = append(errs, oneOf(c.TerminationMessagePolicy, []corev1.TerminationMessagePolicy{corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError}, path.Child("terminationMessagePolicy"))...)
	errs = append(errs, validatePorts(c.Ports, path.Child("ports"))...)
	errs = append(errs, s.validateEnv(c, path.Child("env"))...)
	errs = append(errs, validateEnvFrom(c.EnvFrom, path.Child("envFrom"))...)
	errs = append(errs, s.validateMounts(c, kind, path)...)
	errs = append(errs, s.validateResources(&c.Resources, path.Child("resources"))...)
	errs = append(errs, s.validateResizePolicy(c.ResizePolicy, path.Child("resizePolicy"))...)
	errs = append(errs, s.validateSecurityContext(c.SecurityContext, path.Child("securityContext"))...)
	errs = append(errs, validateContainerRestart(c, path)...)

	if kind == ephemeralContainer {
		return append(errs, forbidFields(c, "cannot be set for an Ephemeral Container", path, true)...)
	}
	if kind == initContainer && !isSidecar(c) {
		return append(errs, forbidFields(c, "may not be set for init containers without restartPolicy=Always", path, false)...)
	}
	errs = append(errs, validateProbe(c.LivenessProbe, onceIsEnough, path.Child("livenessProbe"))...)
	errs = append(errs, validateProbe(c.ReadinessProbe, noGracePeriod, path.Child("readinessProbe"))...)
	errs = append(errs, validateProbe(c.StartupProbe, onceIsEnough, path.Child("startupProbe"))...)
	if c.Lifecycle != nil {
		errs = append(errs, s.validateLifecycle(c.Lifecycle, path.Child("lifecycle"))...)
	}
	return errs
}

var pullPolicies = []corev1.PullPolicy{corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever}

func validateImage(ref string, path *field.Path) field.ErrorList {
	switch {
	case ref == "":
		return field.ErrorList{field.Required(path, `name the image to run, for example "nginx:1.29"`)}
	case strings.ContainsAny(ref, " \t\r\n"):
		return field.ErrorList{field.Invalid(path, ref, "must not have spaces in it")}
	}
	return nil
}

// forbidFields refuses what a container that is not kept running cannot have.
// all: what belongs to a service of the pod's, too.
func forbidFields(c *corev1.Container, why string, path *field.Path, all bool) field.ErrorList {
	var errs field.ErrorList
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"lifecycle", c.Lifecycle != nil},
		{"livenessProbe", c.LivenessProbe != nil},
		{"readinessProbe", c.ReadinessProbe != nil},
		{"startupProbe", c.StartupProbe != nil},
		{"ports", all && len(c.Ports) > 0},
		{"resources", all && isSet(reflect.ValueOf(c.Resources))},
		{"resizePolicy", all && len(c.ResizePolicy) > 0},
		{"restartPolicy", all && c.RestartPolicy != nil},
		{"restartPolicyRules", all && len(c.RestartPolicyRules) > 0},
	} {
		if f.set {
			errs = append(errs, field.Forbidden(path.Child(f.name), why))
		}
	}
	return errs
}

// validateContainerRestart checks a container's own restart policy, which goes
// before its pod's.
func validateContainerRestart(c *corev1.Container, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	at := path.Child("restartPolicy")
	if p := c.RestartPolicy; p != nil {
		errs = append(errs, oneOf(*p, []corev1.ContainerRestartPolicy{corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyOnFailure, corev1.ContainerRestartPolicyNever}, at)...)
	} else if len(c.RestartPolicyRules) > 0 {
		errs = append(errs, field.Required(at, "must specify restartPolicy when restart rules are used"))
	}
	const maxRules, maxCodes = 20, 255
	rules := path.Child("restartPolicyRules")
	if n := len(c.RestartPolicyRules); n > maxRules {
		errs = append(errs, field.TooMany(rules, n, maxRules))
	}
	for i, rule := range c.RestartPolicyRules {
		at := rules.Index(i)
		errs = append(errs, oneOf(rule.Action, []corev1.ContainerRestartRuleAction{corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleActionRestartAllContainers}, at.Child("action"))...)
		if rule.ExitCodes == nil {
			errs = append(errs, field.Required(at.Child("exitCodes"), "say for which exit codes"))
			continue
		}
		errs = append(errs, oneOf(rule.ExitCodes.Operator, []corev1.ContainerRestartRuleOnExitCodesOperator{corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn}, at.Child("exitCodes", "operator"))...)
		if n := len(rule.ExitCodes.Values); n > maxCodes {
			errs = append(errs, field.TooMany(at.Child("exitCodes", "values"), n, maxCodes))
		}
	}
	return errs
}

// Ports

func validatePorts(ports []corev1.ContainerPort, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	names := map[string]bool{}
	for i, port := range ports {
		at := path.Index(i)
		if port.Name != "" {
			msgs := validation.IsValidPortName(port.Name)
			errs = append(errs, invalid(at.Child("name"), port.Name, msgs)...)
			if len(msgs) == 0 && names[port.Name] {
				errs = append(errs, field.Duplicate(at.Child("name"), port.Name))
			}
			names[port.Name] = true
		}
		if port.ContainerPort == 0 {
			errs = append(errs, field.Required(at.Child("containerPort"), "say which port the container listens on, 1 to 65535"))
		} else {
			errs = append(errs, invalid(at.Child("containerPort"), port.ContainerPort, validation.IsValidPortNum(int(port.ContainerPort)))...)
		}
		if port.HostPort != 0 {
			errs = append(errs, invalid(at.Child("hostPort"), port.HostPort, validation.IsValidPortNum(int(port.HostPort)))...)
		}
		if port.HostIP != "" {
			errs = append(errs, validation.IsValidIP(at.Child("hostIP"), port.HostIP)...)
		}
		errs = append(errs, oneOf(port.Protocol, []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}, at.Child("protocol"))...)
	}
	return errs
}

// validatePortRef checks a port that is named by number or name.
func validatePortRef(port intstr.IntOrString, path *field.Path) field.ErrorList {
	if port.Type == intstr.String {
		return invalid(path, port.StrVal, validation.IsValidPortName(port.StrVal))
	}
	return invalid(path, port.IntVal, validation.IsValidPortNum(int(port.IntVal)))
}

// Environment

// Fields that a container can be told about its pod. Those with keys are
// written metadata.labels['app'].
var (
	envFields    = []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}
	volumeFields = []string{"metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations"}
	keyedFields  = []string{"metadata.labels", "metadata.annotations"}
)

// splitKeyed takes "metadata.labels['app']" apart.
func splitKeyed(path string) (name, key string, ok bool) {
	name, rest, ok := strings.Cut(path, "['")
	key, closed := strings.CutSuffix(rest, "']")
	return name, key, ok && closed
}

func validateFieldRef(ref *corev1.ObjectFieldSelector, allowed []string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if ref.APIVersion != "v1" {
		errs = append(errs, field.Invalid(path.Child("apiVersion"), ref.APIVersion, "must be v1"))
	}
	at := path.Child("fieldPath")
	if ref.FieldPath == "" {
		return append(errs, field.Required(at, `say which field of the pod, for example "metadata.name"`))
	}
	name, key, keyed := splitKeyed(ref.FieldPath)
	switch {
	case !keyed && !slices.Contains(allowed, ref.FieldPath):
		return append(errs, field.NotSupported(at, ref.FieldPath, append(slices.Clone(allowed), "metadata.labels['<KEY>']", "metadata.annotations['<KEY>']")))
	case !keyed:
		return errs
	case !slices.Contains(keyedFields, name):
		return append(errs, field.Invalid(at, ref.FieldPath, name+" does not support subscript"))
	case name == "metadata.annotations":
		key = strings.ToLower(key)
	}
	return append(errs, invalid(at, ref.FieldPath, validation.IsQualifiedName(key))...)
}

// Resources that a container can be told about itself, and in which units.
var (
	resourceFields = []string{"limits.cpu", "limits.memory", "limits.ephemeral-storage", "requests.cpu", "requests.memory", "requests.ephemeral-storage"}
	cpuDivisors    = []string{"1m", "1"}
	sizeDivisors   = []string{"1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"}
)

func (s *podScope) validateResourceFieldRef(ref *corev1.ResourceFieldSelector, inVolume bool, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch name := ref.ContainerName; {
	case name == "" && inVolume:
		errs = append(errs, field.Required(path.Child("containerName"), "a volume belongs to no container: say whose resource"))
	case name != "":
		found := false
		eachContainer(s.spec, func(c *corev1.Container, _ containerKind, _ int) { found = found || c.Name == name })
		if !found {
			errs = append(errs, field.NotFound(path.Child("containerName"), name))
		}
	}
	huge := strings.HasPrefix(ref.Resource, "limits.hugepages-") || strings.HasPrefix(ref.Resource, "requests.hugepages-")
	switch {
	case ref.Resource == "":
		return append(errs, field.Required(path.Child("resource"), `say which, for example "limits.memory"`))
	case !huge && !slices.Contains(resourceFields, ref.Resource):
		return append(errs, field.NotSupported(path.Child("resource"), ref.Resource, resourceFields))
	}
	divisors := sizeDivisors
	if strings.HasSuffix(ref.Resource, ".cpu") {
		divisors = cpuDivisors
	}
	if d := ref.Divisor.DeepCopy(); !d.IsZero() && !slices.Contains(divisors, d.String()) {
		errs = append(errs, field.NotSupported(path.Child("divisor"), d.String(), divisors))
	}
	return errs
}

func (s *podScope) validateEnv(c *corev1.Container, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, e := range c.Env {
		at := path.Index(i)
		if e.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), "give the variable a name"))
		} else {
			errs = append(errs, invalid(at.Child("name"), e.Name, validation.IsRelaxedEnvVarName(e.Name))...)
		}
		if e.ValueFrom != nil {
			errs = append(errs, s.validateEnvSource(&e, at.Child("valueFrom"))...)
		}
	}
	return errs
}

func (s *podScope) validateEnvSource(e *corev1.EnvVar, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	from := e.ValueFrom
	if e.Value != "" {
		errs = append(errs, field.Invalid(at, field.OmitValueType{}, "may not be specified when `value` is not empty"))
	}
	switch n := countSet(from.FieldRef != nil, from.ResourceFieldRef != nil, from.ConfigMapKeyRef != nil, from.SecretKeyRef != nil, from.FileKeyRef != nil); {
	case n == 0:
		errs = append(errs, field.Required(at, "say where the value comes from: one of `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"))
	case n > 1:
		errs = append(errs, field.Invalid(at, field.OmitValueType{}, "may not have more than one field specified at a time"))
	}
	if ref := from.FieldRef; ref != nil {
		errs = append(errs, validateFieldRef(ref, envFields, at.Child("fieldRef"))...)
	}
	if ref := from.ResourceFieldRef; ref != nil {
		errs = append(errs, s.validateResourceFieldRef(ref, false, at.Child("resourceFieldRef"))...)
	}
	if ref := from.ConfigMapKeyRef; ref != nil {
		errs = append(errs, validateKeyRef(ref.Name, ref.Key, "config map", at.Child("configMapKeyRef"))...)
	}
	if ref := from.SecretKeyRef; ref != nil {
		errs = append(errs, validateKeyRef(ref.Name, ref.Key, "secret", at.Child("secretKeyRef"))...)
	}
	if ref := from.FileKeyRef; ref != nil {
		at := at.Child("fileKeyRef")
		if v := s.volumes[ref.VolumeName]; ref.VolumeName == "" {
			errs = append(errs, field.Required(at.Child("volumeName"), "name the volume that has the file"))
		} else if v == nil {
			errs = append(errs, field.NotFound(at.Child("volumeName"), ref.VolumeName))
		} else if v.EmptyDir == nil {
			errs = append(errs, field.Invalid(at.Child("volumeName"), ref.VolumeName, "must be an emptyDir volume"))
		}
		if ref.Path == "" {
			errs = append(errs, field.Required(at.Child("path"), "say which file of the volume"))
		}
		errs = append(errs, localPath(ref.Path, at.Child("path"))...)
		if ref.Key == "" {
			errs = append(errs, field.Required(at.Child("key"), "say which variable of the file"))
		} else {
			errs = append(errs, invalid(at.Child("key"), ref.Key, validation.IsRelaxedEnvVarName(ref.Key))...)
		}
	}
	return errs
}

// countSet counts how many of the alternatives are given.
func countSet(given ...bool) int {
	n := 0
	for _, g := range given {
		if g {
			n++
		}
	}
	return n
}

// validateKeyRef checks a reference to a key of a config map or a secret.
func validateKeyRef(name, key, of string, path *field.Path) field.ErrorList {
	errs := requiredSubdomain(name, "name the "+of, path.Child("name"))
	if key == "" {
		return append(errs, field.Required(path.Child("key"), "say which key of the "+of))
	}
	return append(errs, invalid(path.Child("key"), key, validation.IsConfigMapKey(key))...)
}

func validateEnvFrom(sources []corev1.EnvFromSource, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, from := range sources {
		at := path.Index(i)
		if from.Prefix != "" {
			errs = append(errs, invalid(at.Child("prefix"), from.Prefix, validation.IsRelaxedEnvVarName(from.Prefix))...)
		}
		switch {
		case from.ConfigMapRef == nil && from.SecretRef == nil:
			errs = append(errs, field.Required(at, "must specify one of: `configMapRef` or `secretRef`"))
		case from.ConfigMapRef != nil && from.SecretRef != nil:
			errs = append(errs, field.Invalid(at, field.OmitValueType{}, "may not have more than one field specified at a time"))
		}
		if ref := from.ConfigMapRef; ref != nil {
			errs = append(errs, requiredSubdomain(ref.Name, "name the config map", at.Child("configMapRef", "name"))...)
		}
		if ref := from.SecretRef; ref != nil {
			errs = append(errs, requiredSubdomain(ref.Name, "name the secret", at.Child("secretRef", "name"))...)
		}
	}
	return errs
}

// Probes and hooks

// probeRule is what sets one of the three probes apart.
type probeRule int

const (
	onceIsEnough  probeRule = iota // one success counts: there is nothing to come back from
	noGracePeriod                  // a failure kills nothing
)

func validateProbe(p *corev1.Probe, rule probeRule, path *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	errs := validateHandler(handler{exec: p.Exec, http: p.HTTPGet, tcp: p.TCPSocket, grpc: p.GRPC}, "exec, httpGet, tcpSocket or grpc", path)
	for _, n := range []struct {
		name  string
		value int32
	}{
		{"initialDelaySeconds", p.InitialDelaySeconds},
		{"timeoutSeconds", p.TimeoutSeconds},
		{"periodSeconds", p.PeriodSeconds},
		{"successThreshold", p.SuccessThreshold},
		{"failureThreshold", p.FailureThreshold},
	} {
		errs = append(errs, notNegative(&n.value, path.Child(n.name))...)
	}
	grace := p.TerminationGracePeriodSeconds
	switch {
	case rule == onceIsEnough && p.SuccessThreshold != 1 && p.SuccessThreshold >= 0:
		errs = append(errs, field.Invalid(path.Child("successThreshold"), p.SuccessThreshold, "must be 1"))
	case rule == noGracePeriod && grace != nil:
		errs = append(errs, field.Invalid(path.Child("terminationGracePeriodSeconds"), *grace, "must not be set for readinessProbes: a pod that is not ready is not stopped"))
	}
	if rule != noGracePeriod && grace != nil && *grace <= 0 {
		errs = append(errs, field.Invalid(path.Child("terminationGracePeriodSeconds"), *grace, "must be greater than 0"))
	}
	return errs
}

func (s *podScope) validateLifecycle(l *corev1.Lifecycle, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, hook := range []struct {
		name string
		*corev1.LifecycleHandler
	}{{"postStart", l.PostStart}, {"preStop", l.PreStop}} {
		if hook.LifecycleHandler == nil {
			continue
		}
		at := path.Child(hook.name)
		errs = append(errs, validateHandler(handler{exec: hook.Exec, http: hook.HTTPGet, tcp: hook.TCPSocket, sleep: hook.Sleep}, "exec, httpGet or sleep", at)...)
		if sleep, grace := hook.Sleep, s.spec.TerminationGracePeriodSeconds; sleep != nil && grace != nil && (sleep.Seconds < 0 || sleep.Seconds > *grace) {
			errs = append(errs, field.Invalid(at.Child("sleep", "seconds"), sleep.Seconds, fmt.Sprintf("must be non-negative and not more than terminationGracePeriodSeconds (%d)", *grace)))
		}
	}
	if signal := l.StopSignal; signal != nil {
		at := path.Child("stopSignal")
		if s.spec.OS == nil || s.spec.OS.Name == "" {
			errs = append(errs, field.Forbidden(at, "may not be set for containers with empty `spec.os.name`: signals differ between systems"))
		}
		if !stopSignals[*signal] {
			hint := "must be a signal's name such as SIGTERM or SIGRTMIN+3"
			if guess, ok := nearest(string(*signal), signalNames); ok {
				hint = "did you mean " + guess + "?"
			}
			errs = append(errs, field.Invalid(at, *signal, hint))
		}
	}
	return errs
}

var signalNames = func() []string {
	names := strings.Fields("SIGABRT SIGALRM SIGBUS SIGCHLD SIGCLD SIGCONT SIGFPE SIGHUP SIGILL SIGINT SIGIO SIGIOT SIGKILL SIGPIPE SIGPOLL SIGPROF SIGPWR SIGQUIT " +
		"SIGSEGV SIGSTKFLT SIGSTOP SIGSYS SIGTERM SIGTRAP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGUSR1 SIGUSR2 SIGVTALRM SIGWINCH SIGXCPU SIGXFSZ SIGRTMIN SIGRTMAX")
	for i := 1; i <= 15; i++ {
		names = append(names, fmt.Sprintf("SIGRTMIN+%d", i))
	}
	for i := 1; i <= 14; i++ {
		names = append(names, fmt.Sprintf("SIGRTMAX-%d", i))
	}
	return names
}()

var stopSignals = func() map[corev1.Signal]bool {
	set := map[corev1.Signal]bool{}
	for _, name := range signalNames {
		set[corev1.Signal(name)] = true
	}
	return set
}()

// handler is what a probe and a hook do.
type handler struct {
	exec  *corev1.ExecAction
	http  *corev1.HTTPGetAction
	tcp   *corev1.TCPSocketAction
	grpc  *corev1.GRPCAction
	sleep *corev1.SleepAction
}

// validateHandler checks that exactly one thing is to be done, and what. kinds
// lists the possible ones for people.
func validateHandler(h handler, kinds string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch n := countSet(h.exec != nil, h.http != nil, h.tcp != nil, h.grpc != nil, h.sleep != nil); {
	case n == 0:
		errs = append(errs, field.Required(path, "must specify a handler type: "+kinds))
	case n > 1:
		errs = append(errs, field.Forbidden(path, "may not specify more than 1 handler type"))
	}
	if h.exec != nil && len(h.exec.Command) == 0 {
		errs = append(errs, field.Required(path.Child("exec", "command"), "give the command to run in the container"))
	}
	if get := h.http; get != nil {
		at := path.Child("httpGet")
		errs = append(errs, validatePortRef(get.Port, at.Child("port"))...)
		errs = append(errs, oneOf(get.Scheme, []corev1.URIScheme{corev1.URISchemeHTTP, corev1.URISchemeHTTPS}, at.Child("scheme"))...)
		for i, header := range get.HTTPHeaders {
			errs = append(errs, invalid(at.Child("httpHeaders").Index(i).Child("name"), header.Name, validation.IsHTTPHeaderName(header.Name))...)
		}
	}
	if h.tcp != nil {
		errs = append(errs, validatePortRef(h.tcp.Port, path.Child("tcpSocket", "port"))...)
	}
	if h.grpc != nil {
		errs = append(errs, invalid(path.Child("grpc", "port"), h.grpc.Port, validation.IsValidPortNum(int(h.grpc.Port)))...)
	}
	return errs
}
