package object

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	// DefaultServiceAccount is the account of pods that name none.
	DefaultServiceAccount = "default"
	// serviceAccountDir is where programs look for their token.
	serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
	// tokenVolumePrefix begins the name of the volume with it.
	tokenVolumePrefix = "kube-api-access-"
	// apiTokenSeconds is how long that token is good: an hour, and seven seconds by
	// which Kubernetes tells it from those that pods ask for themselves.
	apiTokenSeconds = 3607
	// rootCAConfigMap holds the cluster's CA in each namespace.
	rootCAConfigMap = "kube-root-ca.crt"
)

// UseServiceAccount fills in what a new pod has of its service account, as Kubernetes does:
// the account's name, its pull secrets if the pod names none, and, unless pod or account say
// otherwise, a volume with a token for the cluster's API, its CA and the namespace, mounted in
// all containers that mount nothing there. account is the one that the pod names, or the namespace's
// default one; nil if there is none: then a pod that names another is refused, and one that
// names none, or the default one, has no token. Mirror pods are left alone.
//
// The computation is pure, and calling it again changes nothing.
func UseServiceAccount(pod *corev1.Pod, account *corev1.ServiceAccount) Faults {
	spec := &pod.Spec
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return nil
	}
	if account == nil {
		if name := spec.ServiceAccountName; name != "" && name != DefaultServiceAccount {
			return faultsOf(pod, field.ErrorList{field.Invalid(field.NewPath("spec", "serviceAccountName"), name, "no ServiceAccount with this name is in the namespace: create it first")})
		}
		return nil
	}
	spec.ServiceAccountName, spec.DeprecatedServiceAccount = account.Name, account.Name
	if len(spec.ImagePullSecrets) == 0 {
		spec.ImagePullSecrets = slices.Clone(account.ImagePullSecrets)
	}
	automount := account.AutomountServiceAccountToken == nil || *account.AutomountServiceAccountToken
	if own := spec.AutomountServiceAccountToken; own != nil {
		automount = *own
	}
	if !automount {
		return nil
	}
	name := tokenVolumePrefix + cmp.Or(string(account.UID)[:min(5, len(account.UID))], "token")
	mounted := false
	eachContainer(spec, func(c *corev1.Container, _ containerKind, _ int) {
		if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == serviceAccountDir }) {
			return
		}
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: serviceAccountDir, ReadOnly: true})
		mounted = true
	})
	if !mounted || slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == name }) {
		return nil
	}
	spec.Volumes = append(spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		DefaultMode: new(int32(0o644)),
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: new(int64(apiTokenSeconds)), Path: "token"}},
			{ConfigMap: &corev1.ConfigMapProjection{
				LocalObjectReference: corev1.LocalObjectReference{Name: rootCAConfigMap}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
			}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}},
			}}},
		},
	}}})
	return nil
}

// OwnClaim returns the claim that a new pod's ephemeral volume has: owned by the pod, which takes
// it along. It has neither uid nor creation time.
func OwnClaim(pod *corev1.Pod, v *corev1.Volume) *corev1.PersistentVolumeClaim {
	template := v.Ephemeral.VolumeClaimTemplate.DeepCopy()
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	claim.APIVersion, claim.Kind = "v1", "PersistentVolumeClaim"
	claim.Namespace, claim.Name = pod.Namespace, ClaimName(pod, v)
	claim.OwnerReferences = append(claim.OwnerReferences, metav1.OwnerReference{
		APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID, Controller: new(true), BlockOwnerDeletion: new(true),
	})
	Default(claim)
	return claim
}

// ClaimFault says why a claim cannot serve a volume of the pod: an ephemeral volume's must have
// been made for the pod. "": it can.
func ClaimFault(pod *corev1.Pod, v *corev1.Volume, claim *corev1.PersistentVolumeClaim) string {
	if v.Ephemeral == nil {
		return ""
	}
	if owner := ControllerOf(claim); owner == nil || owner.UID != pod.UID {
		return fmt.Sprintf("PVC %s/%s was not created for pod %s/%s (pod is not owner)", claim.Namespace, claim.Name, pod.Namespace, pod.Name)
	}
	return ""
}
