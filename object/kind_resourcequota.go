package object

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindResourceQuota = define(Resource{Version: "v1", Kind: "ResourceQuota", Plural: "resourcequotas", Singular: "resourcequota", ShortNames: []string{"quota"}, Namespaced: true, Status: true},
	func() *corev1.ResourceQuota { return new(corev1.ResourceQuota) },
	rules[*corev1.ResourceQuota]{
		supported: `
			spec
			status
		`,
		validate: validateResourceQuota,
		validateUpdate: func(q, old *corev1.ResourceQuota) field.ErrorList {
			if slices.Equal(slices.Sorted(slices.Values(q.Spec.Scopes)), slices.Sorted(slices.Values(old.Spec.Scopes))) {
				return nil
			}
			return field.ErrorList{immutable(field.NewPath("spec", "scopes"), fmt.Sprint(q.Spec.Scopes))}
		},
		columns: columns("NAME", "REQUEST", "LIMIT", "AGE"),
		row: func(q *corev1.ResourceQuota, now time.Time) []string {
			var requests, limits []string
			for _, r := range quotaRows(q) {
				text := fmt.Sprintf("%s: %s/%s", r.name, r.used, r.hard)
				if strings.HasPrefix(r.name, "limits") {
					limits = append(limits, text)
				} else {
					requests = append(requests, text)
				}
			}
			return []string{q.Name, strings.Join(requests, ", "), strings.Join(limits, ", "), ageOf(q, now)}
		},
		describe: func(d *describer, q *corev1.ResourceQuota, _ []Object) {
			d.meta(q)
			d.quota(0, q)
		},
	})

// The resources that a quota can name without a prefix, and those of them that
// pods take.
var (
	podComputeQuotas = []corev1.ResourceName{
		corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage,
		corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage,
	}
	otherQuotas = []corev1.ResourceName{
		corev1.ResourceRequestsStorage, corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers,
		corev1.ResourceSecrets, corev1.ResourcePersistentVolumeClaims, corev1.ResourceConfigMaps, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers,
	}
	quotaScopes = []corev1.ResourceQuotaScope{
		corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeCrossNamespacePodAffinity, corev1.ResourceQuotaScopeNotBestEffort,
		corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeTerminating,
	}
)

func isStandardQuota(name corev1.ResourceName) bool {
	return slices.Contains(podComputeQuotas, name) || slices.Contains(otherQuotas, name) ||
		strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) || strings.HasPrefix(string(name), corev1.ResourceRequestsHugePagesPrefix)
}

func validateResourceQuota(q *corev1.ResourceQuota) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("spec")
	for _, name := range sortedNames(q.Spec.Hard) {
		value, at := q.Spec.Hard[name], path.Child("hard").Key(string(name))
		wrong := invalid(at, name, validation.IsQualifiedName(string(name)))
		if len(wrong) == 0 && !strings.Contains(string(name), "/") && !isStandardQuota(name) {
			wrong = field.ErrorList{field.Invalid(at, name, "must be a standard resource for quota, or count/<resource>.<group>")}
		}
		errs = append(errs, wrong...)
		if value.Sign() < 0 {
			errs = append(errs, field.Invalid(at, value.String(), apivalidation.IsNegativeErrorMsg))
		} else if isCount(name) && value.MilliValue()%1000 != 0 {
			errs = append(errs, field.Invalid(at, value.String(), "must be an integer"))
		}
	}
	at := path.Child("scopes")
	for i, scope := range q.Spec.Scopes {
		errs = append(errs, validateScope(q, scope, at.Index(i))...)
	}
	errs = append(errs, contradictoryScopes(q.Spec.Scopes, at)...)
	if q.Spec.ScopeSelector == nil {
		return errs
	}
	at = path.Child("scopeSelector", "matchExpressions")
	var scopes []corev1.ResourceQuotaScope
	for i, req := range q.Spec.ScopeSelector.MatchExpressions {
		at := at.Index(i)
		scopes = append(scopes, req.ScopeName)
		errs = append(errs, validateScope(q, req.ScopeName, at.Child("scopeName"))...)
		if req.ScopeName != corev1.ResourceQuotaScopePriorityClass && req.Operator != corev1.ScopeSelectorOpExists {
			errs = append(errs, field.Invalid(at.Child("operator"), req.Operator, "must be 'Exists' for every scope but PriorityClass"))
		}
		switch req.Operator {
		case corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn:
			if len(req.Values) == 0 {
				errs = append(errs, field.Required(at.Child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"))
			}
		case corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist:
			if len(req.Values) > 0 {
				errs = append(errs, field.Invalid(at.Child("values"), strings.Join(req.Values, ", "), "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector"))
			}
		default:
			errs = append(errs, field.Invalid(at.Child("operator"), req.Operator, "not a valid selector operator"))
		}
	}
	return append(errs, contradictoryScopes(scopes, at)...)
}

// isCount reports whether a quota's resource is counted in whole objects.
func isCount(name corev1.ResourceName) bool {
	if strings.HasPrefix(string(name), "count/") || strings.HasSuffix(string(name), classSuffix+string(corev1.ResourcePersistentVolumeClaims)) {
		return true
	}
	return slices.Contains(otherQuotas, name) && name != corev1.ResourceRequestsStorage
}

func validateScope(q *corev1.ResourceQuota, scope corev1.ResourceQuotaScope, at *field.Path) field.ErrorList {
	errs := oneOf(scope, quotaScopes, at)
	if len(errs) > 0 {
		return errs
	}
	for _, name := range sortedNames(q.Spec.Hard) {
		fine := name == corev1.ResourcePods || slices.Contains(podComputeQuotas, name) && scope != corev1.ResourceQuotaScopeBestEffort
		if isStandardQuota(name) && !fine {
			errs = append(errs, field.Invalid(at, scope, fmt.Sprintf("unsupported scope applied to resource: it says nothing about %s", name)))
		}
	}
	return errs
}

func contradictoryScopes(scopes []corev1.ResourceQuotaScope, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, pair := range [][2]corev1.ResourceQuotaScope{
		{corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort},
		{corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating},
	} {
		if slices.Contains(scopes, pair[0]) && slices.Contains(scopes, pair[1]) {
			errs = append(errs, field.Invalid(at, fmt.Sprintf("%s, %s", pair[0], pair[1]), "conflicting scopes"))
		}
	}
	return errs
}

type quotaRow struct{ name, used, hard string }

// quotaRows returns what a quota allows and what of it is used, "?" where nobody
// has counted yet.
func quotaRows(q *corev1.ResourceQuota) []quotaRow {
	hard := q.Status.Hard
	if len(hard) == 0 {
		hard = q.Spec.Hard
	}
	var rows []quotaRow
	for _, name := range sortedNames(hard) {
		limit, used := hard[name], "?"
		if u, ok := q.Status.Used[name]; ok {
			used = u.String()
		}
		rows = append(rows, quotaRow{string(name), used, limit.String()})
	}
	return rows
}

var scopeHelp = map[corev1.ResourceQuotaScope]string{
	corev1.ResourceQuotaScopeTerminating:    "Matches all pods that have an active deadline: they end by themselves.",
	corev1.ResourceQuotaScopeNotTerminating: "Matches all pods that do not have an active deadline: most of them run for long.",
	corev1.ResourceQuotaScopeBestEffort:     "Matches all pods that have neither requests nor limits: their quality of service is best effort.",
	corev1.ResourceQuotaScopeNotBestEffort:  "Matches all pods that have a request or a limit: their quality of service is burstable or guaranteed.",
}

func (d *describer) quota(level int, q *corev1.ResourceQuota) {
	if len(q.Spec.Scopes) > 0 {
		var words []string
		for _, scope := range slices.Sorted(slices.Values(q.Spec.Scopes)) {
			words = append(words, string(scope))
		}
		d.line(level, "Scopes:", strings.Join(words, ", "))
		for _, word := range words {
			if help := scopeHelp[corev1.ResourceQuotaScope(word)]; help != "" {
				d.line(level, " * "+help)
			}
		}
	}
	d.line(level, "Resource", "Used", "Hard")
	d.line(level, "--------", "----", "----")
	for _, r := range quotaRows(q) {
		d.line(level, r.name, r.used, r.hard)
	}
}
