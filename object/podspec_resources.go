package object

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// resourceClass is how a resource may be asked for.
type resourceClass int

const (
	notForContainers resourceClass = iota
	ordinary                       // cpu, memory, ephemeral-storage
	hugePages                      // limits and requests are equal
	extended                       // a device's, by its vendor's name: whole numbers, limits and requests are equal
)

// ExtendedResource reports whether name is a resource that people say nodes have, such
// as "example.com/gpu".
func ExtendedResource(name corev1.ResourceName) bool { return classOf(name) == extended }

func classOf(name corev1.ResourceName) resourceClass {
	switch {
	case name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage:
		return ordinary
	case strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
		return hugePages
	case strings.Contains(string(name), "/") && !strings.HasPrefix(string(name), corev1.ResourceDefaultNamespacePrefix) &&
		!strings.HasPrefix(string(name), "requests.") && len(validation.IsQualifiedName("requests."+string(name))) == 0:
		return extended
	default:
		return notForContainers
	}
}

func (s *podScope) validateResources(res *corev1.ResourceRequirements, at *field.Path) field.ErrorList {
	errs := validateQuantities(res.Limits, at.Child("limits"))
	errs = append(errs, validateQuantities(ownRequests(res), at.Child("requests"))...)
	errs = append(errs, validateRequests(res, at)...)
	taken := map[string]bool{}
	for i, claim := range res.Claims {
		at := at.Child("claims").Index(i)
		switch {
		case claim.Name == "":
			errs = append(errs, field.Required(at.Child("name"), "name one of the pod's resourceClaims"))
		case !slices.ContainsFunc(s.spec.ResourceClaims, func(c corev1.PodResourceClaim) bool { return c.Name == claim.Name }):
			errs = append(errs, field.NotFound(at.Child("name"), claim.Name))
		case taken[claim.Name+"/"+claim.Request]:
			errs = append(errs, field.Duplicate(at, claim.Name))
		}
		taken[claim.Name+"/"+claim.Request] = true
	}
	return errs
}

// ownRequests returns the requests that differ from the limits: those that do not
// mostly come from them, and so do their faults.
func ownRequests(res *corev1.ResourceRequirements) corev1.ResourceList {
	own := corev1.ResourceList{}
	for name, request := range res.Requests {
		if limit, ok := res.Limits[name]; !ok || limit.Cmp(request) != 0 {
			own[name] = request
		}
	}
	return own
}

// validateRequests compares requests with limits.
func validateRequests(res *corev1.ResourceRequirements, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	huge, room := false, false
	for _, list := range []corev1.ResourceList{res.Limits, res.Requests} {
		for name := range list {
			huge = huge || classOf(name) == hugePages
			room = room || name == corev1.ResourceCPU || name == corev1.ResourceMemory
		}
	}
	for _, name := range sortedNames(res.Requests) {
		request, at := res.Requests[name], at.Child("requests").Key(string(name))
		limit, limited := res.Limits[name]
		equal := classOf(name) != ordinary
		switch {
		case !limited && equal && classOf(name) != notForContainers:
			errs = append(errs, field.Required(at, "Limit must be set for non overcommitable resources"))
		case limited && equal && request.Cmp(limit) != 0:
			errs = append(errs, field.Invalid(at, request.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String())))
		case limited && request.Cmp(limit) > 0:
			errs = append(errs, field.Invalid(at, request.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String())))
		}
	}
	if huge && !room {
		errs = append(errs, field.Forbidden(at, "HugePages require cpu or memory"))
	}
	return errs
}

func validateQuantities(list corev1.ResourceList, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, name := range sortedNames(list) {
		q, at := list[name], at.Key(string(name))
		class := classOf(name)
		if class == notForContainers {
			msg := "must be a standard resource for containers (cpu, memory, ephemeral-storage, hugepages-<size>) or an extended one (example.com/name)"
			if guess, ok := nearest(string(name), []string{"cpu", "memory", "ephemeral-storage"}); ok {
				msg = "is not a resource of containers: did you mean " + guess + "?"
			}
			errs = append(errs, field.Invalid(at, string(name), msg))
		}
		if q.Sign() < 0 {
			errs = append(errs, field.Invalid(at, q.String(), apivalidation.IsNegativeErrorMsg))
			continue
		}
		whole := q.Cmp(*resource.NewQuantity(q.Value(), q.Format)) == 0
		switch {
		// Kubernetes takes half a byte with a warning. It is always the unit that is
		// wrong: m is a thousandth, M a million.
		case !whole && (name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage):
			errs = append(errs, field.Invalid(at, q.String(), "must be a whole number of bytes: use units such as M or Mi (m means a thousandth)"))
		case !whole && (class == extended || class == hugePages):
			errs = append(errs, field.Invalid(at, q.String(), "must be an integer"))
		case class == hugePages:
			errs = append(errs, validateHugePages(name, q, at)...)
		}
	}
	return errs
}

func validateHugePages(name corev1.ResourceName, q resource.Quantity, at *field.Path) field.ErrorList {
	size, err := resource.ParseQuantity(strings.TrimPrefix(string(name), corev1.ResourceHugePagesPrefix))
	switch {
	case err != nil || size.Sign() <= 0:
		return field.ErrorList{field.Invalid(at, string(name), "must name the size of a page, for example hugepages-2Mi")}
	case q.Value()%size.Value() != 0:
		return field.ErrorList{field.Invalid(at, q.String(), fmt.Sprintf("must be an integer multiple of the page size (%s)", size.String()))}
	}
	return nil
}

// validatePodResources checks the resources of the pod as a whole against those
// of its containers.
func (s *podScope) validatePodResources(spec *field.Path) field.ErrorList {
	var errs field.ErrorList
	taken := map[string]bool{}
	for i, claim := range s.spec.ResourceClaims {
		at := spec.Child("resourceClaims").Index(i)
		switch {
		case claim.Name == "":
			errs = append(errs, field.Required(at.Child("name"), "give the claim a name"))
		case taken[claim.Name]:
			errs = append(errs, field.Duplicate(at.Child("name"), claim.Name))
		default:
			errs = append(errs, invalid(at.Child("name"), claim.Name, validation.IsDNS1123Label(claim.Name))...)
		}
		taken[claim.Name] = true
		if (claim.ResourceClaimName == nil) == (claim.ResourceClaimTemplateName == nil) {
			errs = append(errs, field.Invalid(at, field.OmitValueType{}, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"))
		}
	}
	res, at := s.spec.Resources, spec.Child("resources")
	if res == nil {
		return errs
	}
	if len(res.Claims) > 0 {
		errs = append(errs, field.Forbidden(at.Child("claims"), "claims cannot be set for Resources at pod-level"))
	}
	for _, list := range []struct {
		name string
		of   corev1.ResourceList
	}{{"limits", res.Limits}, {"requests", ownRequests(res)}} {
		at := at.Child(list.name)
		errs = append(errs, validateQuantities(list.of, at)...)
		for _, name := range sortedNames(list.of) {
			if c := classOf(name); c == extended || name == corev1.ResourceEphemeralStorage {
				errs = append(errs, field.NotSupported(at.Key(string(name)), name, []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, "hugepages-<size>"}))
			}
		}
	}
	errs = append(errs, validateRequests(res, at)...)
	sum := podSum(&corev1.Pod{Spec: *s.spec}, func(c *corev1.Container) corev1.ResourceList { return c.Resources.Requests })
	for _, name := range sortedNames(res.Requests) {
		request, total := res.Requests[name], sum[name]
		if total.Cmp(request) > 0 {
			errs = append(errs, field.Invalid(at.Child("requests").Key(string(name)), request.String(),
				fmt.Sprintf("must be greater than or equal to aggregate container requests of %s", total.String())))
		}
	}
	eachContainer(s.spec, func(c *corev1.Container, kind containerKind, i int) {
		for _, name := range sortedNames(c.Resources.Limits) {
			limit, all := c.Resources.Limits[name], res.Limits[name]
			if _, ok := res.Limits[name]; ok && limit.Cmp(all) > 0 {
				at := spec.Child(string(kind)).Index(i).Child("resources", "limits")
				errs = append(errs, field.Invalid(at.Key(string(name)), limit.String(), fmt.Sprintf("must be less than or equal to pod limits of %s", all.String())))
			}
		}
	})
	return errs
}

func (s *podScope) validateResizePolicy(policies []corev1.ContainerResizePolicy, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	taken := map[corev1.ResourceName]bool{}
	for i, p := range policies {
		at := at.Index(i)
		if taken[p.ResourceName] {
			errs = append(errs, field.Duplicate(at.Child("resourceName"), p.ResourceName))
		}
		taken[p.ResourceName] = true
		errs = append(errs, oneOf(p.ResourceName, []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory}, at.Child("resourceName"))...)
		errs = append(errs, oneOf(p.RestartPolicy, []corev1.ResourceResizeRestartPolicy{corev1.NotRequired, corev1.RestartContainer}, at.Child("restartPolicy"))...)
		if s.spec.RestartPolicy == corev1.RestartPolicyNever && p.RestartPolicy == corev1.RestartContainer {
			errs = append(errs, field.Invalid(at.Child("restartPolicy"), p.RestartPolicy, "must be 'NotRequired' when `restartPolicy` is 'Never'"))
		}
	}
	return errs
}
