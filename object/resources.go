package object

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Resource is a kind and its names.
type Resource struct {
	Group, Version, Kind string   // "apps", "v1", "Deployment"; Group is empty for the core group
	Plural, Singular     string   // "deployments", "deployment"
	ShortNames           []string // "deploy"
	Namespaced           bool
	Categories           []string // "all": part of "get all"
	Status, Scale        bool     // has the subresource of that name
}

// inAll is the category of what "get all" shows.
var inAll = []string{"all"}

// notYet lists kinds that Kubernetes has and Holdfast does not serve yet, by
// group: they are refused as what they are, not as unknown words.
var notYet = map[string][]string{
	"":                             {"Binding", "ComponentStatus", "Endpoints", "PodTemplate"},
	"storage.k8s.io":               {"CSIDriver", "CSINode", "CSIStorageCapacity", "VolumeAttachment", "VolumeAttributesClass"},
	"node.k8s.io":                  {"RuntimeClass"},
	"apiextensions.k8s.io":         {"CustomResourceDefinition"},
	"apiregistration.k8s.io":       {"APIService"},
	"admissionregistration.k8s.io": {"MutatingWebhookConfiguration", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "ValidatingWebhookConfiguration"},
	"certificates.k8s.io":          {"CertificateSigningRequest"},
	"flowcontrol.apiserver.k8s.io": {"FlowSchema", "PriorityLevelConfiguration"},
	"resource.k8s.io":              {"DeviceClass", "ResourceClaim", "ResourceClaimTemplate", "ResourceSlice"},
}

// notYetShort are the short names of kinds in notYet that people type most.
var notYetShort = map[string]string{
	"ep": "Endpoints", "crd": "CustomResourceDefinition", "csr": "CertificateSigningRequest",
}

// seeKinds ends an error about a kind that nobody can guess.
const seeKinds = `see "holdfast api-resources"`

// dropped lists API versions that Kubernetes itself has stopped serving, with
// the one that took their place.
var dropped = droppedVersions()

func droppedVersions() map[schema.GroupVersionKind]string {
	dropped := map[schema.GroupVersionKind]string{}
	drop := func(now, group, version string, kinds ...string) {
		for _, k := range kinds {
			dropped[schema.GroupVersionKind{Group: group, Version: version, Kind: k}] = now
		}
	}
	drop("apps/v1", "extensions", "v1beta1", "Deployment", "ReplicaSet", "DaemonSet")
	drop("networking.k8s.io/v1", "extensions", "v1beta1", "Ingress", "NetworkPolicy")
	drop("apps/v1", "apps", "v1beta1", "Deployment", "StatefulSet", "ControllerRevision")
	drop("apps/v1", "apps", "v1beta2", "Deployment", "ReplicaSet", "DaemonSet", "StatefulSet", "ControllerRevision")
	drop("batch/v1", "batch", "v1beta1", "CronJob", "Job")
	drop("batch/v1", "batch", "v2alpha1", "CronJob")
	drop("policy/v1", "policy", "v1beta1", "PodDisruptionBudget")
	drop("networking.k8s.io/v1", "networking.k8s.io", "v1beta1", "Ingress", "IngressClass")
	drop("autoscaling/v2", "autoscaling", "v2beta1", "HorizontalPodAutoscaler")
	drop("autoscaling/v2", "autoscaling", "v2beta2", "HorizontalPodAutoscaler")
	drop("rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io", "v1beta1", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
	drop("rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io", "v1alpha1", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
	drop("storage.k8s.io/v1", "storage.k8s.io", "v1beta1", "StorageClass", "CSIDriver", "CSINode", "VolumeAttachment")
	drop("scheduling.k8s.io/v1", "scheduling.k8s.io", "v1beta1", "PriorityClass")
	drop("apiextensions.k8s.io/v1", "apiextensions.k8s.io", "v1beta1", "CustomResourceDefinition")
	drop("discovery.k8s.io/v1", "discovery.k8s.io", "v1beta1", "EndpointSlice")
	return dropped
}

// Resources returns the kinds that are served. The caller may change the slice.
func Resources() []Resource {
	all := make([]Resource, len(kinds))
	for i, k := range kinds {
		all[i] = k.resource
	}
	return all
}

// ResourceForKind returns the resource of an apiVersion's group and version and
// a kind. For what is not served, the error says why and what to do: an API
// version that Kubernetes has dropped names its successor, a kind that Holdfast
// does not have yet is named as such, a misspelled one gets a suggestion.
func ResourceForKind(group, version, kindName string) (Resource, error) {
	gv := schema.GroupVersion{Group: group, Version: version}.String()
	for _, k := range kinds {
		r := k.resource
		if r.Group == group && r.Version == version && r.Kind == kindName {
			return r, nil
		}
	}
	if now, ok := dropped[schema.GroupVersionKind{Group: group, Version: version, Kind: kindName}]; ok {
		err := fmt.Errorf("apiVersion %s of %s was dropped by Kubernetes: use %s", gv, kindName, now)
		if isNotYet(kindName) {
			err = fmt.Errorf("%w (%s itself is not supported yet)", err, kindName)
		}
		return Resource{}, err
	}
	for _, k := range kinds { // the kind is right, the apiVersion is not
		if k.resource.Kind == kindName {
			return Resource{}, fmt.Errorf("kind %s is not served as apiVersion %s: use %s", kindName, gv, k.resource.APIVersion())
		}
	}
	if slices.Contains(notYet[group], kindName) {
		return Resource{}, fmt.Errorf("kind %s (%s) is not supported yet", kindName, gv)
	}
	for _, k := range kinds { // "deployment", "deployments"
		if strings.EqualFold(k.resource.Kind, kindName) || strings.EqualFold(k.resource.Plural, kindName) {
			return Resource{}, fmt.Errorf("kind %q is unknown: did you mean %s (%s)?", kindName, k.resource.Kind, k.resource.APIVersion())
		}
	}
	if isNotYet(kindName) { // by a version that we do not know
		return Resource{}, fmt.Errorf("kind %s (%s) is not supported yet", kindName, gv)
	}
	if guess, ok := nearest(kindName, servedNames()); ok {
		return Resource{}, fmt.Errorf("kind %q is unknown: did you mean %s?", kindName, guess)
	}
	return Resource{}, fmt.Errorf("kind %q (%s) is unknown: %s", kindName, gv, seeKinds)
}

// ResourceFor returns the resource that a person means by name: a kind, its
// plural, singular or short name, in any case, with or without its group:
// "po", "pods", "Pod", "deploy", "deployments.apps", "deployments.v1.apps".
// The error names the nearest match, or says where all kinds are listed.
func ResourceFor(name string) (Resource, error) {
	word, group, qualified := strings.Cut(strings.ToLower(name), ".")
	for _, k := range kinds {
		r := k.resource
		if qualified && group != r.Group && group != r.Version+"."+r.Group {
			continue
		}
		if word == r.Plural || word == r.Singular || word == strings.ToLower(r.Kind) || slices.Contains(r.ShortNames, word) {
			return r, nil
		}
	}
	if full, ok := notYetShort[word]; ok {
		word = strings.ToLower(full)
	}
	if name == "" {
		return Resource{}, errors.New("no resource type given: " + seeKinds)
	}
	for _, group := range notYet {
		for _, kindName := range group {
			lower := strings.ToLower(kindName)
			if word == lower || word == plural(lower) {
				return Resource{}, fmt.Errorf("resource type %q (%s) is not supported yet: %s", name, kindName, seeKinds)
			}
		}
	}
	var words []string
	for _, k := range kinds {
		words = append(words, k.resource.Plural, k.resource.Singular)
		words = append(words, k.resource.ShortNames...)
	}
	if guess, ok := nearest(word, words); ok {
		return Resource{}, fmt.Errorf("resource type %q is unknown: did you mean %s?", name, guess)
	}
	return Resource{}, fmt.Errorf("resource type %q is unknown: %s", name, seeKinds)
}

// ResourceOf returns the resource of obj's Go type. It panics if that is not
// one of the served kinds.
func ResourceOf(obj Object) Resource { return kindOfObject(obj).resource }

// APIVersion returns the apiVersion as manifests write it: "v1", "apps/v1".
func (r Resource) APIVersion() string {
	return schema.GroupVersion{Group: r.Group, Version: r.Version}.String()
}

// String returns the plural name with its group: "pods", "deployments.apps".
func (r Resource) String() string {
	if r.Group == "" {
		return r.Plural
	}
	return r.Plural + "." + r.Group
}

// Key returns the key of the object of that name. namespace is ignored for
// kinds that live outside namespaces.
func (r Resource) Key(namespace, name string) Key {
	if !r.Namespaced {
		return Key(r.String() + "/" + name)
	}
	return Key(r.String() + "/" + namespace + "/" + name)
}

// Prefix returns what the keys of all objects of r in namespace begin with; an
// empty namespace means all of them.
func (r Resource) Prefix(namespace string) string {
	if !r.Namespaced || namespace == "" {
		return r.String() + "/"
	}
	return r.String() + "/" + namespace + "/"
}

// SplitKey takes a key apart. ok is false if it is not the key of an object of
// a served kind.
func SplitKey(key Key) (r Resource, namespace, name string, ok bool) {
	first, rest, ok := strings.Cut(string(key), "/")
	if !ok {
		return Resource{}, "", "", false
	}
	for _, k := range kinds {
		if k.resource.String() != first {
			continue
		}
		if !k.resource.Namespaced {
			return k.resource, "", rest, rest != "" && !strings.Contains(rest, "/")
		}
		namespace, name, ok = strings.Cut(rest, "/")
		return k.resource, namespace, name, ok && namespace != "" && name != "" && !strings.Contains(name, "/")
	}
	return Resource{}, "", "", false
}

func (r Resource) groupVersionKind() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
}

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

func servedNames() []string {
	var names []string
	for _, k := range kinds {
		names = append(names, k.resource.Kind)
	}
	return names
}
