package agent

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/agent/dns"
	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/object"
)

// TestExpandRefs has the cases of Kubernetes' documentation of $(NAME), and what
// lies around them.
func TestExpandRefs(t *testing.T) {
	values := map[string]string{"A": "1", "EMPTY": "", "REF": "$(A)"}
	for _, test := range []struct{ name, in, want string }{
		{"no reference", "plain text", "plain text"},
		{"a reference", "x-$(A)-y", "x-1-y"},
		{"two references", "$(A)$(A)", "11"},
		{"an empty value", "[$(EMPTY)]", "[]"},
		{"an unknown name stays", "$(NOPE) $(A)", "$(NOPE) 1"},
		{"values are not expanded again", "$(REF)", "$(A)"},
		{"an escaped reference", "$$(A)", "$(A)"},
		{"an escaped dollar before a reference", "$$$(A)", "$1"},
		{"two escaped dollars", "$$$$(A)", "$$(A)"},
		{"no end", "$(A", "$(A"},
		{"no end, then a reference later", "$(A $(A)", "$(A $(A)"},
		{"a lone dollar", "cost: 5$", "cost: 5$"},
		{"a shell's variable", "$A ${A}", "$A ${A}"},
		{"empty name", "$()", "$()"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := expandRefs(test.in, func(n string) (string, bool) { v, ok := values[n]; return v, ok })
			if got != test.want {
				t.Errorf("expandRefs(%q) = %q, want %q", test.in, got, test.want)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: "web", Namespace: "prod", UID: "u", Labels: map[string]string{"app": "a"}, Annotations: map[string]string{"x.y/z": "note"},
	}}
	pod.Spec.ServiceAccountName = "robot"
	at := podEnv{
		hostname: "web", nodeName: "n1", hostIP: netip.MustParseAddr("192.0.2.1"),
		podIPs: []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("fd00::5")},
	}
	for path, want := range map[string]string{
		"metadata.name": "web", "metadata.namespace": "prod", "metadata.uid": "u",
		"metadata.labels['app']": "a", "metadata.labels['none']": "", "metadata.annotations['x.y/z']": "note",
		"spec.nodeName": "n1", "spec.serviceAccountName": "robot",
		"status.hostIP": "192.0.2.1", "status.podIP": "10.0.0.5", "status.podIPs": "10.0.0.5,fd00::5",
	} {
		spec := &corev1.Container{Env: []corev1.EnvVar{
			{Name: "V", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}},
		}}
		env, err := environment(pod, spec, at)
		if err != nil || env.values["V"] != want {
			t.Errorf("field %s is %q (%v), want %q", path, env.values["V"], err, want)
		}
	}
	env, err := environment(pod, &corev1.Container{Env: []corev1.EnvVar{
		{Name: "B", Value: "$(A)"}, {Name: "A", Value: "1"}, {Name: "C", Value: "$(A)$(HOSTNAME)"}, {Name: "HOSTNAME", Value: "mine"},
	}}, at)
	if got, want := strings.Join(env.list(), " "), "HOSTNAME=mine B=$(A) A=1 C=1web"; err != nil || got != want {
		t.Errorf("environment is %q (%v), want %q: only what was defined before is expanded", got, err, want)
	}
	for name, from := range map[string]*corev1.EnvVarSource{
		"unknown field": {FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nope"}},
		"a secret":      {SecretKeyRef: &corev1.SecretKeySelector{Key: "k"}},
	} {
		spec := &corev1.Container{Env: []corev1.EnvVar{{Name: "V", ValueFrom: from}}}
		if _, err := environment(pod, spec, at); !errors.Is(err, errConfig) || !strings.Contains(err.Error(), "env V") {
			t.Errorf("%s: error is %v, want errConfig with the variable's name", name, err)
		}
	}
}

func TestResources(t *testing.T) {
	list := func(cpu, memory string) corev1.ResourceList {
		l := corev1.ResourceList{}
		if cpu != "" {
			l[corev1.ResourceCPU] = resource.MustParse(cpu)
		}
		if memory != "" {
			l[corev1.ResourceMemory] = resource.MustParse(memory)
		}
		return l
	}
	for _, test := range []struct {
		name string
		in   corev1.ResourceRequirements
		want runtime.Resources
		qos  corev1.PodQOSClass
	}{
		{"nothing", corev1.ResourceRequirements{}, runtime.Resources{CPUShares: 2}, corev1.PodQOSBestEffort},
		{
			"request only",
			corev1.ResourceRequirements{Requests: list("500m", "64Mi")},
			runtime.Resources{CPUShares: 512},
			corev1.PodQOSBurstable,
		},
		{
			"a limit is a request too",
			corev1.ResourceRequirements{Limits: list("2", "1Gi")},
			runtime.Resources{CPUMillis: 2000, CPUShares: 2048, MemoryBytes: 1 << 30},
			corev1.PodQOSGuaranteed,
		},
		{
			"request below limit",
			corev1.ResourceRequirements{Limits: list("2", "1Gi"), Requests: list("100m", "")},
			runtime.Resources{CPUMillis: 2000, CPUShares: 102, MemoryBytes: 1 << 30},
			corev1.PodQOSBurstable,
		},
		{
			"memory only",
			corev1.ResourceRequirements{Limits: list("", "1Gi")},
			runtime.Resources{CPUShares: 2, MemoryBytes: 1 << 30},
			corev1.PodQOSBurstable,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := limits(test.in.Requests, test.in.Limits); got != test.want {
				t.Errorf("resources are %+v, want %+v", got, test.want)
			}
			pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Resources: test.in}}}}
			if got := object.QOSClass(pod); got != test.qos {
				t.Errorf("QoS class is %s, want %s", got, test.qos)
			}
		})
	}
}

func TestResolvFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("# the node's\nsearch corp.test\nnameserver 192.0.2.53\noptions ndots:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := &corev1.PodDNSConfig{
		Nameservers: []string{"10.0.0.53"}, Searches: []string{"my.test"},
		Options: []corev1.PodDNSConfigOption{{Name: "timeout", Value: new("2")}, {Name: "rotate"}},
	}
	cluster := dns.Cluster{Servers: []netip.Addr{netip.MustParseAddr("169.254.20.10")}, Domain: "cluster.local"}
	const ofCluster = "nameserver 169.254.20.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local corp.test\noptions ndots:5\n"
	for _, test := range []struct {
		name    string
		spec    corev1.PodSpec
		cluster dns.Cluster
		want    string
	}{
		{"the node's", corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst}, dns.Cluster{}, "nameserver 192.0.2.53\nsearch corp.test\noptions ndots:1\n"},
		{
			"merged",
			corev1.PodSpec{DNSPolicy: corev1.DNSDefault, DNSConfig: config},
			cluster,
			"nameserver 192.0.2.53\nnameserver 10.0.0.53\nsearch corp.test my.test\noptions ndots:1 timeout:2 rotate\n",
		},
		{"the pod's alone", corev1.PodSpec{DNSPolicy: corev1.DNSNone, DNSConfig: config}, cluster, "nameserver 10.0.0.53\nsearch my.test\noptions timeout:2 rotate\n"},
		{"in the node's network", corev1.PodSpec{HostNetwork: true, DNSPolicy: corev1.DNSClusterFirst}, cluster, ""},
		{"the cluster's", corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst}, cluster, ofCluster},
		{"the cluster's, in the node's network", corev1.PodSpec{HostNetwork: true, DNSPolicy: corev1.DNSClusterFirstWithHostNet}, cluster, ofCluster},
		{"in the node's network, without a cluster DNS", corev1.PodSpec{HostNetwork: true, DNSPolicy: corev1.DNSClusterFirstWithHostNet}, dns.Cluster{}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := resolvFile(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}, Spec: test.spec}, file, test.cluster)
			if err != nil || string(got) != test.want {
				t.Errorf("resolv.conf is %q (%v), want %q", got, err, test.want)
			}
		})
	}
	if got, err := resolvFile(&corev1.Pod{}, file+".none", dns.Cluster{}); err != nil || len(got) != 0 {
		t.Errorf("without a file on the node resolv.conf is %q (%v), want empty", got, err)
	}
}

func TestHostname(t *testing.T) {
	long := strings.Repeat("a", 62) + "-b"
	for _, test := range []struct{ name, hostname, want string }{
		{"web-1", "", "web-1"}, {"web-1", "chosen", "chosen"}, {long, "", strings.Repeat("a", 62)},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: test.name}, Spec: corev1.PodSpec{Hostname: test.hostname}}
		if got := hostname(pod); got != test.want {
			t.Errorf("hostname of pod %q with %q is %q, want %q", test.name, test.hostname, got, test.want)
		}
	}
}

func TestMachineFiles(t *testing.T) {
	if got := osImage("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"); got != "Debian GNU/Linux 12 (bookworm)" {
		t.Errorf("osImage is %q", got)
	}
	if got, err := memoryLine("MemTotal:       24576000 kB\nMemFree: 1 kB\n", "MemTotal:"); err != nil || got != 24576000*1024 {
		t.Errorf("MemTotal is %d (%v)", got, err)
	}
	if _, err := memoryLine("MemFree: 1 kB\n", "MemTotal:"); err == nil {
		t.Error("memoryLine found a total that is not there")
	}
}

// TestLineWriter: what goes out is whole lines, however it came in.
func TestLineWriter(t *testing.T) {
	var sent [][]byte
	w := &lineWriter{send: func(p []byte) error { sent = append(sent, bytes.Clone(p)); return nil }}
	all := ""
	for _, in := range []string{"one\ntw", "o\nth", "ree", "\nfour\nfive\nlast"} {
		if n, err := w.Write([]byte(in)); n != len(in) || err != nil {
			t.Fatalf("Write(%q) = %d, %v", in, n, err)
		}
		all += in
	}
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	if got, want := string(bytes.Join(sent, nil)), all+"\n"; got != want {
		t.Errorf("sent %q, want %q", got, want)
	}
	for _, p := range sent {
		if !bytes.HasSuffix(p, []byte("\n")) {
			t.Errorf("sent %q, which is not whole lines", p)
		}
	}
	sent = nil
	if _, err := w.Write(bytes.Repeat([]byte("x"), maxLogLine+1)); err != nil || len(sent) != 1 {
		t.Errorf("a line without end was sent in %d pieces (%v), want it broken up", len(sent), err)
	}
}
