package object

import (
	"fmt"
	"slices"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// EstablishCRD brings crd's status up to date at now: which of its names are
// accepted, because no kind of its group among others, the other definitions,
// nor a built-in one has them; whether it is established, hence served; and in
// which versions its objects may be stored. It also gives crd the finalizer that
// holds it until its objects are gone. It reports whether that changed anything.
//
// It is to be called in the transaction that writes crd, and for the other
// definitions of its group when one goes: a name may have become free.
func EstablishCRD(crd *apiextensionsv1.CustomResourceDefinition, others []*apiextensionsv1.CustomResourceDefinition, now time.Time) (changed bool) {
	before := crd.DeepCopy()
	if !Deleting(crd) && !slices.Contains(crd.Finalizers, apiextensionsv1.CustomResourceCleanupFinalizer) {
		crd.Finalizers = append(crd.Finalizers, apiextensionsv1.CustomResourceCleanupFinalizer)
	}
	if v := storageVersion(crd); v != "" && !slices.Contains(crd.Status.StoredVersions, v) {
		crd.Status.StoredVersions = append(crd.Status.StoredVersions, v)
	}
	if Deleting(crd) {
		return !sameValue(crd, before) // its names stay until it is gone
	}

	taken := takenNames(crd, others)
	reason, conflicts := acceptNames(&crd.Status.AcceptedNames, crd.Spec.Names, taken)
	accepted := apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.NamesAccepted, Status: apiextensionsv1.ConditionTrue, Reason: "NoConflicts", Message: "no conflicts found"}
	established := apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue, Reason: "InitialNamesAccepted", Message: "the initial names have been accepted"}
	if len(conflicts) > 0 {
		accepted.Status, accepted.Reason, accepted.Message = apiextensionsv1.ConditionFalse, reason, strings.Join(conflicts, ", ")
		if !Established(crd) {
			established.Status, established.Reason, established.Message = apiextensionsv1.ConditionFalse, "NotAccepted", "not all names are accepted"
		}
	}
	if Established(crd) {
		established = *crdCondition(crd, apiextensionsv1.Established) // once established, always established
	}
	setCRDCondition(crd, accepted, now)
	setCRDCondition(crd, established, now)
	return !sameValue(crd, before)
}

// Established reports whether crd's objects are served.
func Established(crd *apiextensionsv1.CustomResourceDefinition) bool {
	c := crdCondition(crd, apiextensionsv1.Established)
	return c != nil && c.Status == apiextensionsv1.ConditionTrue
}

// NamesAccepted reports whether crd has all the names that it asks for.
func NamesAccepted(crd *apiextensionsv1.CustomResourceDefinition) bool {
	c := crdCondition(crd, apiextensionsv1.NamesAccepted)
	return c != nil && c.Status == apiextensionsv1.ConditionTrue
}

// groupNames are names that kinds of a group have: one set of words for resources, one for
// kinds.
type groupNames struct{ resources, kinds map[string]bool }

func takenNames(crd *apiextensionsv1.CustomResourceDefinition, others []*apiextensionsv1.CustomResourceDefinition) groupNames {
	taken := groupNames{map[string]bool{}, map[string]bool{}}
	add := func(resources, kinds []string) {
		for _, name := range resources {
			taken.resources[name] = true
		}
		for _, name := range kinds {
			taken.kinds[name] = true
		}
	}
	for _, k := range builtin.kinds {
		if r := k.resource; r.Group == crd.Spec.Group {
			add(append([]string{r.Plural, r.Singular}, r.ShortNames...), []string{r.Kind, r.Kind + "List"})
		}
	}
	for _, other := range others {
		if other.Spec.Group == crd.Spec.Group && other.Name != crd.Name {
			n := other.Status.AcceptedNames
			add(append([]string{n.Plural, n.Singular}, n.ShortNames...), []string{n.Kind, n.ListKind})
		}
	}
	return taken
}

// acceptNames copies the names that are free, and returns the conflicts, with a
// word for the last of them.
func acceptNames(accepted *apiextensionsv1.CustomResourceDefinitionNames, want apiextensionsv1.CustomResourceDefinitionNames, taken groupNames) (reason string, conflicts []string) {
	accept := func(to *string, name string, in map[string]bool, why string) {
		if name != *to && in[name] {
			reason, conflicts = why, append(conflicts, fmt.Sprintf("%q is already in use", name))
			return
		}
		*to = name
	}
	accept(&accepted.Plural, want.Plural, taken.resources, "PluralConflict")
	accept(&accepted.Singular, want.Singular, taken.resources, "SingularConflict")
	free := true
	for _, name := range want.ShortNames {
		if taken.resources[name] && !slices.Contains(accepted.ShortNames, name) {
			free = false
			reason, conflicts = "ShortNamesConflict", append(conflicts, fmt.Sprintf("%q is already in use", name))
		}
	}
	if free {
		accepted.ShortNames = slices.Clone(want.ShortNames)
	}
	accept(&accepted.Kind, want.Kind, taken.kinds, "KindConflict")
	accept(&accepted.ListKind, want.ListKind, taken.kinds, "ListKindConflict")
	accepted.Categories = slices.Clone(want.Categories)
	return reason, conflicts
}

func crdCondition(crd *apiextensionsv1.CustomResourceDefinition, t apiextensionsv1.CustomResourceDefinitionConditionType) *apiextensionsv1.CustomResourceDefinitionCondition {
	for i := range crd.Status.Conditions {
		if c := &crd.Status.Conditions[i]; c.Type == t {
			return c
		}
	}
	return nil
}

// setCRDCondition puts c among crd's conditions; its time changes with its status
// only.
func setCRDCondition(crd *apiextensionsv1.CustomResourceDefinition, c apiextensionsv1.CustomResourceDefinitionCondition, now time.Time) {
	old := crdCondition(crd, c.Type)
	if old == nil {
		c.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
		crd.Status.Conditions = append(crd.Status.Conditions, c)
		return
	}
	if old.Status != c.Status {
		old.Status, old.LastTransitionTime = c.Status, metav1.NewTime(now.Truncate(time.Second))
	}
	old.Reason, old.Message = c.Reason, c.Message
}

// CRDPrefix returns what the keys of all objects of crd's kind begin with. While
// one is left, crd's finalizer stays.
func CRDPrefix(crd *apiextensionsv1.CustomResourceDefinition) string {
	return Resource{Group: crd.Spec.Group, Plural: crd.Spec.Names.Plural}.Prefix("")
}

// DropCRDFinalizer removes the finalizer that EstablishCRD added, when no object
// is left, and reports whether it was there.
func DropCRDFinalizer(crd *apiextensionsv1.CustomResourceDefinition) bool {
	n := len(crd.Finalizers)
	crd.Finalizers = slices.DeleteFunc(crd.Finalizers, func(f string) bool { return f == apiextensionsv1.CustomResourceCleanupFinalizer })
	return len(crd.Finalizers) < n
}
