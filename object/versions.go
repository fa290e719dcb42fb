package object

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Convert returns obj in the version to of its kind: obj itself if that is its
// version, else a copy. It fails if obj is of another kind, or says something
// that the other version cannot be read from.
func Convert(obj Object, to Resource) (Object, error) {
	from, target := kindOfObject(obj), to.kind()
	if from.resource.Version == target.resource.Version && from.resource.String() == target.resource.String() {
		return obj, nil
	}
	if from.resource.String() != target.resource.String() {
		return nil, fmt.Errorf("convert %s: %s is another kind", Title(obj), to)
	}
	obj, err := from.stored(obj)
	if err != nil {
		return nil, fmt.Errorf("convert %s: %w", Title(obj), err)
	}
	if target.fromStored == nil { // it is the stored version
		return obj, nil
	}
	return target.fromStored(obj), nil
}

// notYet lists kinds that Kubernetes has and Holdfast does not serve yet, by
// group: they are refused as what they are, not as unknown words.
var notYet = map[string][]string{
	"":                             {"Binding", "ComponentStatus", "Endpoints", "PodTemplate"},
	"storage.k8s.io":               {"CSIDriver", "CSINode", "CSIStorageCapacity", "VolumeAttachment", "VolumeAttributesClass"},
	"node.k8s.io":                  {"RuntimeClass"},
	"networking.k8s.io":            {"IPAddress", "ServiceCIDR"},
	"apiregistration.k8s.io":       {"APIService"},
	"admissionregistration.k8s.io": {"MutatingWebhookConfiguration", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "ValidatingWebhookConfiguration"},
	"certificates.k8s.io":          {"CertificateSigningRequest", "ClusterTrustBundle"},
	"flowcontrol.apiserver.k8s.io": {"FlowSchema", "PriorityLevelConfiguration"},
	"resource.k8s.io":              {"DeviceClass", "ResourceClaim", "ResourceClaimTemplate", "ResourceSlice"},
}

// notYetShort are the short names of kinds in notYet that people type most.
var notYetShort = map[string]string{"ep": "Endpoints", "csr": "CertificateSigningRequest"}

// seeKinds ends an error about a kind that nobody can guess.
const seeKinds = `see "holdfast api-resources"`

// gone are kinds that Kubernetes has dropped without a successor, and what to do
// instead.
var gone = map[string]string{
	"PodSecurityPolicy":  "label namespaces with pod-security.kubernetes.io/enforce instead",
	"PodPreset":          "write its fields into the pod templates",
	"ThirdPartyResource": "use CustomResourceDefinition (apiextensions.k8s.io/v1)",
	"AuditSink":          "remove it",
}

// dropped lists API versions that Kubernetes itself has stopped serving, with
// the one that took their place.
var dropped = func() map[schema.GroupVersionKind]string {
	all := map[schema.GroupVersionKind]string{}
	drop := func(now, group, versions, kinds string) {
		for version := range strings.FieldsSeq(versions) {
			for kind := range strings.FieldsSeq(kinds) {
				all[schema.GroupVersionKind{Group: group, Version: version, Kind: kind}] = now
			}
		}
	}
	drop("v1", "", "v1beta1 v1beta2 v1beta3", "Pod ReplicationController Service Node Namespace Secret Event Endpoints PersistentVolume PersistentVolumeClaim ServiceAccount LimitRange ResourceQuota")
	drop("apps/v1", "extensions", "v1beta1", "Deployment ReplicaSet DaemonSet")
	drop("networking.k8s.io/v1", "extensions", "v1beta1", "Ingress NetworkPolicy")
	drop("batch/v1", "extensions", "v1beta1", "Job")
	drop("autoscaling/v2", "extensions", "v1beta1", "HorizontalPodAutoscaler")
	drop("apps/v1", "apps", "v1beta1", "Deployment StatefulSet ControllerRevision")
	drop("apps/v1", "apps", "v1beta2", "Deployment ReplicaSet DaemonSet StatefulSet ControllerRevision")
	drop("batch/v1", "batch", "v1beta1 v2alpha1", "CronJob Job")
	drop("policy/v1", "policy", "v1beta1", "PodDisruptionBudget Eviction")
	drop("networking.k8s.io/v1", "networking.k8s.io", "v1beta1", "Ingress IngressClass")
	drop("autoscaling/v2", "autoscaling", "v2alpha1 v2beta1 v2beta2", "HorizontalPodAutoscaler")
	drop("rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io", "v1alpha1 v1beta1", "Role RoleBinding ClusterRole ClusterRoleBinding")
	drop("storage.k8s.io/v1", "storage.k8s.io", "v1alpha1 v1beta1", "StorageClass CSIDriver CSINode CSIStorageCapacity VolumeAttachment")
	drop("scheduling.k8s.io/v1", "scheduling.k8s.io", "v1alpha1 v1beta1", "PriorityClass")
	drop("coordination.k8s.io/v1", "coordination.k8s.io", "v1beta1", "Lease")
	drop("discovery.k8s.io/v1", "discovery.k8s.io", "v1alpha1 v1beta1", "EndpointSlice")
	drop("v1", "events.k8s.io", "v1beta1", "Event") // events.k8s.io/v1 is not served
	drop("node.k8s.io/v1", "node.k8s.io", "v1alpha1 v1beta1", "RuntimeClass")
	drop("apiextensions.k8s.io/v1", "apiextensions.k8s.io", "v1beta1", "CustomResourceDefinition")
	drop("apiregistration.k8s.io/v1", "apiregistration.k8s.io", "v1beta1", "APIService")
	drop("admissionregistration.k8s.io/v1", "admissionregistration.k8s.io", "v1beta1", "MutatingWebhookConfiguration ValidatingWebhookConfiguration")
	drop("certificates.k8s.io/v1", "certificates.k8s.io", "v1beta1", "CertificateSigningRequest")
	drop("flowcontrol.apiserver.k8s.io/v1", "flowcontrol.apiserver.k8s.io", "v1alpha1 v1beta1 v1beta2 v1beta3", "FlowSchema PriorityLevelConfiguration")
	return all
}()

func isNotYet(kindName string) bool {
	for _, names := range notYet {
		if slices.Contains(names, kindName) {
			return true
		}
	}
	return false
}

// plural forms the plural that Kubernetes uses of a lower-case kind.
func plural(lower string) string {
	switch {
	case lower == "endpoints":
		return lower
	case strings.HasSuffix(lower, "y"):
		return strings.TrimSuffix(lower, "y") + "ies"
	case strings.HasSuffix(lower, "s"):
		return lower + "es"
	default:
		return lower + "s"
	}
}
