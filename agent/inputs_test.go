package agent

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/object"
)

// TestEnvironmentFromObjects: variables from ConfigMaps, Secrets and resources.
func TestEnvironmentFromObjects(t *testing.T) {
	inputs := podInputs{}
	for _, obj := range []object.Object{
		&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "cm"},
			Data:       map[string]string{"b": "2", "a": "1", "ref": "$(a)"}, BinaryData: map[string][]byte{"bin": {0xff}},
		},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"}, Data: map[string][]byte{"password": []byte("hunter2")}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "foreign"}, Data: map[string][]byte{"password": []byte("x")}},
	} {
		inputs[object.KeyOf(obj)] = obj
	}
	for _, c := range []struct{ name, container, want, err string }{
		{"envFrom, in the order of keys, env over it", `
envFrom:
- configMapRef: {name: cm}
- secretRef: {name: s}
  prefix: DB_
- configMapRef: {name: none, optional: true}
- secretRef: {name: none, optional: true}
env:
- {name: b, value: "$(a)+$(DB_password)"}
- {name: c, value: "$(ref)"}
`, "HOSTNAME=web a=1 b=1+hunter2 ref=$(a) DB_password=hunter2 c=$(a)", ""},
		{"keys", `
env:
- {name: A, valueFrom: {configMapKeyRef: {name: cm, key: a}}}
- {name: P, valueFrom: {secretKeyRef: {name: s, key: password}}}
- {name: N1, valueFrom: {configMapKeyRef: {name: cm, key: none, optional: true}}}
- {name: N2, valueFrom: {secretKeyRef: {name: none, key: none, optional: true}}}
- {name: ALL, value: "$(A)$(P)$(N1)"}
`, "HOSTNAME=web A=1 P=hunter2 ALL=1hunter2$(N1)", ""},
		{"no such config map", "env: [{name: A, valueFrom: {configMapKeyRef: {name: none, key: a}}}]", "", `env A: configmap "none" not found`},
		{"no such key", "env: [{name: A, valueFrom: {configMapKeyRef: {name: cm, key: z}}}]", "", `configmap "cm" has no key "z"`},
		{"a binary value is no variable", "env: [{name: A, valueFrom: {configMapKeyRef: {name: cm, key: bin}}}]", "", `has no key "bin"`},
		{"no such secret", "env: [{name: A, valueFrom: {secretKeyRef: {name: none, key: a}}}]", "", `secret "none" not found`},
		{"a secret of another namespace", "env: [{name: A, valueFrom: {secretKeyRef: {name: foreign, key: password}}}]", "", `secret "foreign" not found`},
		{"envFrom needs what it names", "envFrom: [{configMapRef: {name: none}}]", "", `envFrom: configmap "none" not found`},
		{"resources", `
name: main
resources: {limits: {cpu: 1500m}, requests: {cpu: 250m, memory: 64Mi}}
env:
- {name: CPUS, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
- {name: MILLIS, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
- {name: ASKED, valueFrom: {resourceFieldRef: {resource: requests.cpu}}}
- {name: MEM, valueFrom: {resourceFieldRef: {resource: requests.memory, divisor: 1Mi}}}
- {name: MAX, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Gi}}}
- {name: OTHER, valueFrom: {resourceFieldRef: {containerName: side, resource: limits.memory, divisor: 1M}}}
- {name: NONE, valueFrom: {resourceFieldRef: {containerName: side, resource: requests.cpu}}}
`, "HOSTNAME=web CPUS=2 MILLIS=1500 ASKED=1 MEM=64 MAX=8 OTHER=11 NONE=0", ""},
		{"resources of nobody", "env: [{name: A, valueFrom: {resourceFieldRef: {containerName: none, resource: limits.cpu}}}]", "", `container "none" not found`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var spec corev1.Container
			if err := yaml.UnmarshalStrict([]byte(c.container), &spec); err != nil {
				t.Fatal(err)
			}
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}}
			side := corev1.Container{Name: "side"}
			side.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("10Mi")}
			pod.Spec.Containers = []corev1.Container{spec, side}
			env, err := environment(pod, &spec, podEnv{
				hostname: "web", inputs: inputs, allocatable: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("8Gi")},
			})
			if c.err != "" {
				if !errors.Is(err, errConfig) || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error is %v, want errConfig: %s", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(env.list(), " "); got != c.want {
				t.Errorf("environment is\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}
