package object

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// What quotas count, and when they are exceeded, at admission.

// ErrQuota is what the errors of [ExceedsQuota] and [QuotaNeeds] wrap: a quota
// forbids the object.
var ErrQuota = errors.New("quota")

// classSuffix stands between the name of a storage class and what a quota limits
// of its claims.
const classSuffix = ".storageclass.storage.k8s.io/"

// QuotaUsage returns what objs, all of quota's namespace, take of what quota
// limits: nothing of objects that are not in its scopes. Resources that quota
// limits and nobody takes are there with 0. For a change of an object, the
// difference between the usages of the new and the old one is what is added.
func QuotaUsage(quota *corev1.ResourceQuota, objs ...Object) corev1.ResourceList {
	used := corev1.ResourceList{}
	for name, hard := range quota.Spec.Hard {
		used[name] = *resource.NewQuantity(0, hard.Format)
	}
	for _, obj := range objs {
		if !inScopes(quota, obj) {
			continue
		}
		for name, amount := range usageOf(obj) {
			if sum, ok := used[name]; ok {
				sum.Add(amount)
				used[name] = sum
			}
		}
	}
	return used
}

// ExceedsQuota returns an error that wraps [ErrQuota] if added, more than 0 of
// something, goes beyond quota when it comes on top of used.
func ExceedsQuota(quota *corev1.ResourceQuota, used, added corev1.ResourceList) error {
	var requested, have, limited []string
	for _, name := range sortedNames(quota.Spec.Hard) {
		hard, more, sum := quota.Spec.Hard[name], added[name], used[name].DeepCopy()
		sum.Add(more)
		if more.Sign() <= 0 || sum.Cmp(hard) <= 0 {
			continue
		}
		was := used[name]
		requested = append(requested, fmt.Sprintf("%s=%s", name, more.String()))
		have = append(have, fmt.Sprintf("%s=%s", name, was.String()))
		limited = append(limited, fmt.Sprintf("%s=%s", name, hard.String()))
	}
	if len(requested) == 0 {
		return nil
	}
	return fmt.Errorf("exceeded %w: %s, requested: %s, used: %s, limited: %s", ErrQuota, quota.Name,
		strings.Join(requested, ","), strings.Join(have, ","), strings.Join(limited, ","))
}

// QuotaNeeds returns an error that wraps [ErrQuota] if obj is a pod in the scopes
// of quota of which a container does not say how much it takes of something that
// quota limits: then nobody could count it.
func QuotaNeeds(quota *corev1.ResourceQuota, obj Object) error {
	pod, ok := obj.(*corev1.Pod)
	if !ok || !inScopes(quota, obj) {
		return nil
	}
	var missing []string
	for _, name := range podComputeQuotas {
		if _, limited := quota.Spec.Hard[name]; !limited {
			continue
		}
		var silent []string
		for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			if _, says := computeUsage(c.Resources.Requests, c.Resources.Limits)[name]; !says {
				silent = append(silent, c.Name)
			}
		}
		if len(silent) > 0 {
			missing = append(missing, fmt.Sprintf("%s for: %s", name, strings.Join(silent, ",")))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("failed %w: %s: must specify %s", ErrQuota, quota.Name, strings.Join(missing, "; "))
}

// usageOf returns what obj takes of everything that a quota can limit.
func usageOf(obj Object) corev1.ResourceList {
	one := *resource.NewQuantity(1, resource.DecimalSI)
	usage := corev1.ResourceList{corev1.ResourceName("count/" + ResourceOf(obj).String()): one}
	switch obj := obj.(type) {
	case *corev1.Pod:
		if PodPhaseFinal(obj) {
			break // it takes nothing any more
		}
		for name, amount := range computeUsage(PodResourcesTaken(obj), podLimitsTaken(obj)) {
			usage[name] = amount
		}
		usage[corev1.ResourcePods] = one
	case *corev1.Service:
		usage[corev1.ResourceServices] = one
		ports := 0
		for _, p := range obj.Spec.Ports {
			if p.NodePort != 0 || needsNodePort(obj) { // given or about to be
				ports++
			}
		}
		usage[corev1.ResourceServicesNodePorts] = *resource.NewQuantity(int64(ports), resource.DecimalSI)
		if obj.Spec.Type == corev1.ServiceTypeLoadBalancer {
			usage[corev1.ResourceServicesLoadBalancers] = one
		}
	case *corev1.PersistentVolumeClaim:
		size := obj.Spec.Resources.Requests[corev1.ResourceStorage]
		if given := obj.Status.AllocatedResources[corev1.ResourceStorage]; given.Cmp(size) > 0 {
			size = given // it shrinks only once that is known
		}
		usage[corev1.ResourcePersistentVolumeClaims] = one
		usage[corev1.ResourceRequestsStorage] = size
		if class := deref(obj.Spec.StorageClassName); class != "" {
			usage[corev1.ResourceName(class+classSuffix+string(corev1.ResourcePersistentVolumeClaims))] = one
			usage[corev1.ResourceName(class+classSuffix+string(corev1.ResourceRequestsStorage))] = size
		}
	case *corev1.ReplicationController:
		usage[corev1.ResourceReplicationControllers] = one
	case *corev1.ResourceQuota:
		usage[corev1.ResourceQuotas] = one
	case *corev1.Secret:
		usage[corev1.ResourceSecrets] = one
	case *corev1.ConfigMap:
		usage[corev1.ResourceConfigMaps] = one
	}
	return usage
}

// computeUsage gives requests and limits the names that they have in quotas: "cpu"
// and "requests.cpu" for a request, "limits.cpu" for a limit.
func computeUsage(requests, limits corev1.ResourceList) corev1.ResourceList {
	usage := corev1.ResourceList{}
	for name, amount := range requests {
		plain := name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage || strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
		if plain {
			usage[name] = amount
		}
		usage[corev1.DefaultResourceRequestsPrefix+name] = amount
	}
	for name, amount := range limits {
		if name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage {
			usage["limits."+name] = amount
		}
	}
	return usage
}

// inScopes reports whether quota is about obj: it has no scopes, or all of them
// match.
func inScopes(quota *corev1.ResourceQuota, obj Object) bool {
	var wanted []corev1.ScopedResourceSelectorRequirement
	for _, scope := range quota.Spec.Scopes {
		wanted = append(wanted, corev1.ScopedResourceSelectorRequirement{ScopeName: scope, Operator: corev1.ScopeSelectorOpExists})
	}
	if s := quota.Spec.ScopeSelector; s != nil {
		wanted = append(wanted, s.MatchExpressions...)
	}
	if len(wanted) == 0 {
		return true
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return false // all scopes are about pods
	}
	for _, req := range wanted {
		if !inScope(pod, req) {
			return false
		}
	}
	return true
}

func inScope(pod *corev1.Pod, req corev1.ScopedResourceSelectorRequirement) bool {
	deadline := pod.Spec.ActiveDeadlineSeconds != nil
	switch req.ScopeName {
	case corev1.ResourceQuotaScopeTerminating:
		return deadline
	case corev1.ResourceQuotaScopeNotTerminating:
		return !deadline
	case corev1.ResourceQuotaScopeBestEffort:
		return QOSClass(pod) == corev1.PodQOSBestEffort
	case corev1.ResourceQuotaScopeNotBestEffort:
		return QOSClass(pod) != corev1.PodQOSBestEffort
	case corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		return reachesNamespaces(pod.Spec.Affinity)
	case corev1.ResourceQuotaScopePriorityClass:
		class := pod.Spec.PriorityClassName
		switch req.Operator {
		case corev1.ScopeSelectorOpIn:
			return slices.Contains(req.Values, class)
		case corev1.ScopeSelectorOpNotIn:
			return !slices.Contains(req.Values, class)
		case corev1.ScopeSelectorOpExists:
			return class != ""
		case corev1.ScopeSelectorOpDoesNotExist:
			return class == ""
		}
	}
	return false
}

// reachesNamespaces reports whether affinity is about pods of other namespaces.
func reachesNamespaces(affinity *corev1.Affinity) bool {
	if affinity == nil {
		return false
	}
	var terms []corev1.PodAffinityTerm
	if a := affinity.PodAffinity; a != nil {
		terms = append(terms, a.RequiredDuringSchedulingIgnoredDuringExecution...)
		for _, w := range a.PreferredDuringSchedulingIgnoredDuringExecution {
			terms = append(terms, w.PodAffinityTerm)
		}
	}
	if a := affinity.PodAntiAffinity; a != nil {
		terms = append(terms, a.RequiredDuringSchedulingIgnoredDuringExecution...)
		for _, w := range a.PreferredDuringSchedulingIgnoredDuringExecution {
			terms = append(terms, w.PodAffinityTerm)
		}
	}
	return slices.ContainsFunc(terms, func(t corev1.PodAffinityTerm) bool { return len(t.Namespaces) > 0 || t.NamespaceSelector != nil })
}
