package object

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// deref returns what p points to, the zero value if that is nothing.
func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

func sortedNames[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// createdAt is what kubectl shows for kinds without columns of their own.
func createdAt(obj Object) string {
	t := obj.GetCreationTimestamp()
	if t.IsZero() {
		return "<unknown>"
	}
	return t.UTC().Format(time.RFC3339)
}

// selectorText writes a map of labels: "a=b,c=d".
func selectorText(set map[string]string) string {
	var words []string
	for _, key := range sortedNames(set) {
		words = append(words, key+"="+set[key])
	}
	return orNone(strings.Join(words, ","))
}

func orUnset(s string) string { return cmp.Or(s, "<unset>") }

// annotationsToShow leaves out what "kubectl apply" keeps for itself: the whole
// manifest, which for a Secret has the values in it.
func annotationsToShow(obj metav1.Object) map[string]string {
	shown := maps.Clone(obj.GetAnnotations())
	delete(shown, corev1.LastAppliedConfigAnnotation)
	return shown
}
