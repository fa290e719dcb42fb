package object

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// PodInputs returns the keys of all ConfigMaps, Secrets and
// PersistentVolumeClaims that pod names, sorted, each once, whether they exist or
// not: what a node must know to run it.
func PodInputs(pod *corev1.Pod) []Key {
	var keys []Key
	name := func(r Resource, name string) {
		if name != "" {
			keys = append(keys, r.Key(pod.Namespace, name))
		}
	}
	configMap := func(n string) { name(kindConfigMap.resource, n) }
	secret := func(n string) { name(kindSecret.resource, n) }
	for _, ref := range pod.Spec.ImagePullSecrets {
		secret(ref.Name)
	}
	eachContainer(&pod.Spec, func(c *corev1.Container, _ containerKind, _ int) {
		for _, from := range c.EnvFrom {
			if from.ConfigMapRef != nil {
				configMap(from.ConfigMapRef.Name)
			}
			if from.SecretRef != nil {
				secret(from.SecretRef.Name)
			}
		}
		for _, e := range c.Env {
			switch {
			case e.ValueFrom == nil:
			case e.ValueFrom.ConfigMapKeyRef != nil:
				configMap(e.ValueFrom.ConfigMapKeyRef.Name)
			case e.ValueFrom.SecretKeyRef != nil:
				secret(e.ValueFrom.SecretKeyRef.Name)
			}
		}
	})
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.ConfigMap != nil:
			configMap(v.ConfigMap.Name)
		case v.Secret != nil:
			secret(v.Secret.SecretName)
		case v.Projected != nil:
			for _, src := range v.Projected.Sources {
				if src.ConfigMap != nil {
					configMap(src.ConfigMap.Name)
				}
				if src.Secret != nil {
					secret(src.Secret.Name)
				}
			}
		default:
			name(kindPersistentVolumeClaim.resource, ClaimName(pod, v))
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// ClaimName returns the name of the claim behind a volume of pod, "" if it is
// another kind of volume. An ephemeral volume's claim is named after both.
func ClaimName(pod *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return pod.Name + "-" + v.Name
	default:
		return ""
	}
}
