package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
)

// namedObject is an object that pods name, as received and decoded. It is not changed.
type namedObject struct {
	message *agentv1.Input
	object  object.Object
}

// decodeInput checks what a peer sends: an agent that mixed up two objects would
// show one's secrets to the other's pods.
func decodeInput(msg *agentv1.Input) (namedObject, error) {
	obj, err := object.Decode(msg.GetObject(), msg.GetRevision())
	if err != nil {
		return namedObject{}, fmt.Errorf("%s: %w", msg.GetKey(), err)
	}
	switch obj.(type) {
	case *corev1.ConfigMap, *corev1.Secret, *corev1.PersistentVolumeClaim, *corev1.PersistentVolume:
	default:
		return namedObject{}, fmt.Errorf("%s is a %T, which no pod names", msg.GetKey(), obj)
	}
	if key := object.KeyOf(obj); string(key) != msg.GetKey() {
		return namedObject{}, fmt.Errorf("%s holds %s", msg.GetKey(), key)
	}
	return namedObject{message: msg, object: obj}, nil
}

// podInputs holds what one pod names, as far as it exists, by key. It is not
// changed: a pod whose inputs change gets another.
type podInputs map[object.Key]object.Object

// inputsOf picks out what pod names.
func inputsOf(pod *corev1.Pod, all map[object.Key]namedObject) podInputs {
	found := podInputs{}
	for _, key := range object.PodInputs(pod) {
		in, ok := all[key]
		if !ok {
			continue
		}
		found[key] = in.object
		if claim, ok := in.object.(*corev1.PersistentVolumeClaim); ok && claim.Spec.VolumeName != "" {
			volume := keyOf[corev1.PersistentVolume]("", claim.Spec.VolumeName)
			if in, ok := all[volume]; ok {
				found[volume] = in.object
			}
		}
	}
	return found
}

// same says that nothing a pod names has changed.
func (in podInputs) same(other podInputs) bool { return maps.Equal(in, other) }

// keyOf returns the key of the object of type T of that name.
func keyOf[T any, P interface {
	*T
	object.Object
}](namespace, name string) object.Key {
	return object.ResourceOf(P(new(T))).Key(namespace, name)
}

// lookInput returns the object of type T of that name, nil if there is none.
func lookInput[T any, P interface {
	*T
	object.Object
}](in podInputs, namespace, name string) P {
	obj, _ := in[keyOf[T, P](namespace, name)].(P)
	return obj
}

// optional says whether a reference may lead nowhere.
func optional(flag *bool) bool { return flag != nil && *flag }

// envFrom sets the variables of a container's envFrom sources, those of one
// source in the order of their names. Values that are binary are left out, as in
// Kubernetes.
func envFrom(pod *corev1.Pod, spec *corev1.Container, at podEnv, v *variables) error {
	for _, from := range spec.EnvFrom {
		values := map[string]string{}
		switch {
		case from.ConfigMapRef != nil:
			cm := lookInput[corev1.ConfigMap](at.inputs, pod.Namespace, from.ConfigMapRef.Name)
			if cm == nil {
				if optional(from.ConfigMapRef.Optional) {
					continue
				}
				return fmt.Errorf("%w: envFrom: configmap %q not found", errConfig, from.ConfigMapRef.Name)
			}
			values = cm.Data
		case from.SecretRef != nil:
			secret := lookInput[corev1.Secret](at.inputs, pod.Namespace, from.SecretRef.Name)
			if secret == nil {
				if optional(from.SecretRef.Optional) {
					continue
				}
				return fmt.Errorf("%w: envFrom: secret %q not found", errConfig, from.SecretRef.Name)
			}
			for key, value := range secret.Data {
				values[key] = string(value)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(values)) {
			v.set(from.Prefix+key, values[key])
		}
	}
	return nil
}

// envValue returns what a variable's valueFrom leads to. found is false when it
// leads nowhere and need not.
func envValue(pod *corev1.Pod, spec *corev1.Container, from *corev1.EnvVarSource, at podEnv) (value string, found bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = fieldValue(pod, from.FieldRef.FieldPath, at)
	case from.ResourceFieldRef != nil:
		value, err = resourceValue(pod, spec, from.ResourceFieldRef, at.allocatable)
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		cm := lookInput[corev1.ConfigMap](at.inputs, pod.Namespace, ref.Name)
		if cm == nil {
			return missing(ref.Optional, fmt.Errorf("configmap %q not found", ref.Name))
		}
		var ok bool
		if value, ok = cm.Data[ref.Key]; !ok {
			return missing(ref.Optional, fmt.Errorf("configmap %q has no key %q", ref.Name, ref.Key))
		}
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		secret := lookInput[corev1.Secret](at.inputs, pod.Namespace, ref.Name)
		if secret == nil {
			return missing(ref.Optional, fmt.Errorf("secret %q not found", ref.Name))
		}
		data, ok := secret.Data[ref.Key]
		if !ok {
			return missing(ref.Optional, fmt.Errorf("secret %q has no key %q", ref.Name, ref.Key))
		}
		value = string(data)
	default:
		err = errors.New("its source is not supported")
	}
	return value, err == nil, err
}

func missing(flag *bool, err error) (string, bool, error) {
	if optional(flag) {
		err = nil
	}
	return "", false, err
}

// resourceValue is what a container may use, or has asked for, in units of the
// divisor, rounded up. A limit that is not set is what the node has to give.
func resourceValue(pod *corev1.Pod, spec *corev1.Container, ref *corev1.ResourceFieldSelector, allocatable corev1.ResourceList) (string, error) {
	if ref.ContainerName != "" && (spec == nil || ref.ContainerName != spec.Name) {
		if spec = anyContainer(pod, ref.ContainerName); spec == nil {
			return "", fmt.Errorf("container %q not found", ref.ContainerName)
		}
	}
	if spec == nil {
		return "", errors.New("it does not say which container's")
	}
	kind, name, ok := strings.Cut(ref.Resource, ".")
	resourceName := corev1.ResourceName(name)
	var q resource.Quantity
	switch {
	case ok && kind == "limits":
		if q, ok = spec.Resources.Limits[resourceName]; !ok {
			q = allocatable[resourceName]
		}
	case ok && kind == "requests":
		q = spec.Resources.Requests[resourceName]
	default:
		return "", fmt.Errorf("resource %q is not supported", ref.Resource)
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	amount, unit := q.Value(), divisor.Value()
	if resourceName == corev1.ResourceCPU {
		amount, unit = q.MilliValue(), divisor.MilliValue()
	}
	if unit <= 0 {
		return "", fmt.Errorf("divisor %s is not supported", divisor.String())
	}
	return strconv.FormatInt((amount+unit-1)/unit, 10), nil
}

// anyContainer returns a container of the pod by its name, whatever its sort.
func anyContainer(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// inputsChanged lets what failed for the pod's configuration or its volumes be
// tried again at once: what was missing may be there now. With other pull secrets, images
// are too.
func inputsChanged(m *podMemory, secrets bool) {
	m.Volumes.At = time.Time{}
	if m.Network.Reason == reasonMount {
		m.Network.At = time.Time{}
	}
	for _, c := range m.Containers {
		if c.Start.Reason == reasonConfigError {
			c.Start.At = time.Time{}
		}
		if secrets {
			c.Pull.At = time.Time{}
		}
	}
}
