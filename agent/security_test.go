package agent

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

func TestSecurityOf(t *testing.T) {
	const profiles = "/profiles"
	for _, c := range []struct{ name, pod, want string }{
		{"nothing is asked for", `{containers: [{name: a}]}`, ""},
		{
			"the pod's counts where the container says nothing",
			`{securityContext: {runAsUser: 1, runAsGroup: 2, runAsNonRoot: true, fsGroup: 3, supplementalGroups: [4, 5], seccompProfile: {type: Unconfined}}, containers: [{name: a}]}`,
			"user=1 group=2 nonroot groups=[4 5 3] seccomp=unconfined",
		},
		{
			"the container's goes before the pod's",
			`{securityContext: {runAsUser: 1, runAsNonRoot: true, seccompProfile: {type: Unconfined}},
			  containers: [{name: a, securityContext: {runAsUser: 0, runAsNonRoot: false, seccompProfile: {type: Localhost, localhostProfile: a/b.json}}}]}`,
			"user=0 seccomp=/profiles/a/b.json",
		},
		{
			"the runtime's filter instead of the pod's none",
			`{securityContext: {seccompProfile: {type: Unconfined}}, containers: [{name: a, securityContext: {seccompProfile: {type: RuntimeDefault}}}]}`, "",
		},
		{
			"privileges",
			`{containers: [{name: a, securityContext: {privileged: true, readOnlyRootFilesystem: true, capabilities: {add: [CAP_NET_ADMIN, sys_time], drop: [ALL]}}}]}`,
			"privileged readonly add=[NET_ADMIN SYS_TIME] drop=[ALL]",
		},
		{"no new privileges", `{containers: [{name: a, securityContext: {allowPrivilegeEscalation: false}}]}`, "locked"},
		{"only the groups that are named", `{securityContext: {supplementalGroupsPolicy: Strict}, containers: [{name: a}]}`, "strict"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var pod corev1.Pod
			if err := yaml.Unmarshal([]byte(c.pod), &pod.Spec); err != nil {
				t.Fatal(err)
			}
			if got := securityText(securityOf(&pod, &pod.Spec.Containers[0], profiles)); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func securityText(s runtime.Security) string {
	var words []string
	add := func(when bool, format string, args ...any) {
		if when {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	if s.User != nil {
		add(true, "user=%d", *s.User)
	}
	if s.Group != nil {
		add(true, "group=%d", *s.Group)
	}
	add(s.NonRoot, "nonroot")
	add(len(s.Groups) > 0, "groups=%v", s.Groups)
	add(s.StrictGroups, "strict")
	add(s.Privileged, "privileged")
	add(s.ReadOnlyRoot, "readonly")
	add(s.NoNewPrivileges, "locked")
	add(len(s.AddCapabilities) > 0, "add=%v", s.AddCapabilities)
	add(len(s.DropCapabilities) > 0, "drop=%v", s.DropCapabilities)
	add(s.Seccomp != "", "seccomp=%s", s.Seccomp)
	return strings.Join(words, " ")
}

func TestRuntimePod(t *testing.T) {
	var pod corev1.Pod
	if err := yaml.Unmarshal([]byte(`{metadata: {name: p, uid: u}, spec: {hostPID: true, hostIPC: true, shareProcessNamespace: false, securityContext: {sysctls: [{name: net/ipv4/tcp_syncookies, value: "0"}]}}}`), &pod); err != nil {
		t.Fatal(err)
	}
	p := runtimePod(&pod)
	if !p.HostPID || !p.HostIPC || p.SharePID || fmt.Sprint(p.Sysctls) != "map[net.ipv4.tcp_syncookies:0]" {
		t.Errorf("the pod is %+v", p)
	}
}
