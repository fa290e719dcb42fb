package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/dns"
	"github.com/holdfast-io/holdfast/agent/runtime"
)

// errConfig marks a container that cannot be made from its spec.
var errConfig = runtime.ErrConfig

// podEnv is what a container's environment may refer to beside its own spec.
type podEnv struct {
	hostname string
	nodeName string
	hostIP   netip.Addr
	podIPs   []netip.Addr
	// inputs are the objects that the pod names.
	inputs podInputs
	// allocatable is what the node has to give.
	allocatable corev1.ResourceList
	// seccompDir has the profiles that pods name (seccompProfile.localhostProfile).
	seccompDir string
	// memoryBytes is what the node has.
	memoryBytes int64
}

// runtimeContainer builds what the runtime is asked to run. Its errors match
// errConfig.
func runtimeContainer(pod *corev1.Pod, spec *corev1.Container, attempt int, image runtime.Image, at podEnv, mounts []runtime.Mount) (runtime.Container, error) {
	env, err := environment(pod, spec, at)
	if err != nil {
		return runtime.Container{}, err
	}
	expand := func(in []string) []string {
		var out []string
		for _, s := range in {
			out = append(out, expandRefs(s, env.lookup))
		}
		return out
	}
	return runtime.Container{
		ID:         runtime.ContainerID{PodUID: string(pod.UID), Name: spec.Name, Attempt: attempt},
		Image:      image.Ref,
		Command:    expand(spec.Command),
		Args:       expand(spec.Args),
		WorkingDir: spec.WorkingDir,
		Env:        env.list(),
		Mounts:     mounts,
		Resources:  resources(pod, spec, at.memoryBytes),
		Security:   securityOf(pod, spec, at.seccompDir),
		SpecHash:   specHash(spec),
		TTY:        spec.TTY,
		Stdin:      spec.Stdin,
		StdinOnce:  spec.StdinOnce,
		StopSignal: stopSignal(spec),
	}, nil
}

// stopSignal is the signal that a container's specification names, or "".
func stopSignal(spec *corev1.Container) string {
	if l := spec.Lifecycle; l != nil && l.StopSignal != nil {
		return string(*l.StopSignal)
	}
	return ""
}

// specHash identifies the part of a container's definition that may change in
// place, so that an upgraded agent with other defaults does not restart what it
// adopts. Only the image may change.
func specHash(spec *corev1.Container) string {
	sum := sha256.Sum256([]byte(spec.Name + "\x00" + spec.Image))
	return hex.EncodeToString(sum[:8])
}

// variables is an environment in the order of definition.
type variables struct {
	names  []string
	values map[string]string
}

func (v *variables) set(name, value string) {
	if _, ok := v.values[name]; !ok {
		v.names = append(v.names, name)
	}
	v.values[name] = value
}

func (v *variables) lookup(name string) (string, bool) {
	value, ok := v.values[name]
	return value, ok
}

func (v *variables) list() []string {
	out := make([]string, 0, len(v.names))
	for _, n := range v.names {
		out = append(out, n+"="+v.values[n])
	}
	return out
}

// environment computes a container's variables: those of envFrom, then those of
// env over them. $(NAME) in a literal refers to a variable defined before it. Its
// errors match errConfig, and tell no value.
func environment(pod *corev1.Pod, spec *corev1.Container, at podEnv) (*variables, error) {
	v := &variables{values: map[string]string{}}
	v.set("HOSTNAME", at.hostname)
	if err := envFrom(pod, spec, at, v); err != nil {
		return nil, err
	}
	for _, e := range spec.Env {
		if e.ValueFrom == nil {
			v.set(e.Name, expandRefs(e.Value, v.lookup))
			continue
		}
		value, found, err := envValue(pod, spec, e.ValueFrom, at)
		if err != nil {
			return nil, fmt.Errorf("%w: env %s: %w", errConfig, e.Name, err)
		}
		if found {
			v.set(e.Name, value)
		}
	}
	return v, nil
}

// fieldValue is the value of a fieldRef's path.
func fieldValue(pod *corev1.Pod, path string, at podEnv) (string, error) {
	if name, key, ok := strings.Cut(path, "['"); ok && strings.HasSuffix(key, "']") {
		key = strings.TrimSuffix(key, "']")
		switch name {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
	}
	join := func(ips []netip.Addr) string {
		var s []string
		for _, ip := range ips {
			s = append(s, ip.String())
		}
		return strings.Join(s, ",")
	}
	podIPs := at.podIPs
	if pod.Spec.HostNetwork {
		podIPs = []netip.Addr{at.hostIP}
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "spec.nodeName":
		return at.nodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		return at.hostIP.String(), nil
	case "status.podIP":
		if len(podIPs) == 0 {
			return "", errors.New("the pod has no address yet")
		}
		return podIPs[0].String(), nil
	case "status.podIPs":
		return join(podIPs), nil
	default:
		return "", fmt.Errorf("field %q is not supported", path)
	}
}

// expandRefs replaces $(NAME) by what lookup finds, as Kubernetes does: what is
// not found stays as it is, and $$ is a dollar sign that begins no reference.
func expandRefs(s string, lookup func(string) (string, bool)) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i == len(s)-1 {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		rest := s[i+1:]
		switch rest[0] {
		case '$':
			b.WriteByte('$')
			s = rest[1:]
		case '(':
			end := strings.IndexByte(rest, ')')
			if end < 0 {
				b.WriteString("$(")
				s = rest[1:]
				continue
			}
			if value, ok := lookup(rest[1:end]); ok {
				b.WriteString(value)
			} else {
				b.WriteString("$" + rest[:end+1])
			}
			s = rest[end+1:]
		default:
			b.WriteByte('$')
			b.WriteByte(rest[0])
			s = rest[1:]
		}
	}
}

// hostname is what a pod's containers are told.
func hostname(pod *corev1.Pod) string {
	if pod.Spec.HostNetwork {
		if h, err := os.Hostname(); err == nil {
			return h
		}
	}
	name := pod.Spec.Hostname
	if name == "" {
		name = pod.Name
	}
	if len(name) > 63 { // a label of DNS
		name = strings.TrimRight(name[:63], "-.")
	}
	return name
}

// hostsFile is the content of /etc/hosts. Nil: the node's own.
func hostsFile(pod *corev1.Pod, ips []netip.Addr) []byte {
	if pod.Spec.HostNetwork && len(pod.Spec.HostAliases) == 0 {
		return nil
	}
	var b strings.Builder
	if pod.Spec.HostNetwork {
		// The node's, as far as it can be read, with the pod's aliases below.
		own, _ := os.ReadFile("/etc/hosts")
		b.Write(own)
		if len(own) > 0 && own[len(own)-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("# Written by Holdfast for this pod.\n" +
			"127.0.0.1\tlocalhost\n" +
			"::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::\tip6-localnet\n" +
			"ff02::1\tip6-allnodes\n" +
			"ff02::2\tip6-allrouters\n")
		for _, ip := range ips {
			fmt.Fprintf(&b, "%s\t%s\n", ip, hostname(pod))
		}
	}
	for _, alias := range pod.Spec.HostAliases {
		fmt.Fprintf(&b, "%s\t%s\n", alias.IP, strings.Join(alias.Hostnames, "\t"))
	}
	return []byte(b.String())
}

const defaultResolvConf = "/etc/resolv.conf"

// resolvFile is the content of /etc/resolv.conf by the pod's dnsPolicy and dnsConfig.
// Nil: the node's own.
func resolvFile(pod *corev1.Pod, nodeFile string, cluster dns.Cluster) ([]byte, error) {
	read := dns.NodeResolvConf
	if pod.Spec.HostNetwork {
		if pod.Spec.DNSConfig == nil && pod.Spec.DNSPolicy != corev1.DNSNone && (pod.Spec.DNSPolicy != corev1.DNSClusterFirstWithHostNet || len(cluster.Servers) == 0) {
			return nil, nil
		}
		read = dns.ReadResolvConf // it can reach a stub on the node's loopback
	}
	node, err := read(nodeFile)
	if err != nil {
		return nil, err
	}
	return []byte(dns.PodResolvConf(pod, node, cluster).String()), nil
}

// maxTerminationMessage is the most of a container's last words that is kept,
// maxTerminationMessages that of all containers of a pod, which share it equally.
const (
	maxTerminationMessage  = 4 << 10
	maxTerminationMessages = 12 << 10
)

// terminationMount makes the file that a run may write its last words to, and
// returns how it is mounted. None is asked for when the path is empty.
func terminationMount(podDir string, spec *corev1.Container, attempt int) ([]runtime.Mount, error) {
	if spec.TerminationMessagePath == "" {
		return nil, nil
	}
	path := terminationFile(podDir, spec.Name, attempt)
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("make termination log: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o666)
	if err != nil {
		return nil, fmt.Errorf("make termination log: %w", err)
	}
	defer f.Close()
	// Past the umask: the container's user need not be root.
	if err := f.Chmod(0o666); err != nil {
		return nil, fmt.Errorf("make termination log: %w", err)
	}
	return []runtime.Mount{{HostPath: path, ContainerPath: spec.TerminationMessagePath}}, nil
}

func terminationFile(podDir, container string, attempt int) string {
	return filepath.Join(podDir, "termination", container+"-"+strconv.Itoa(attempt))
}
