package object

import (
	corev1 "k8s.io/api/core/v1"
)

// Defaults that others need too.
const (
	// DefaultScheduler is the only scheduler there is.
	DefaultScheduler = corev1.DefaultSchedulerName

	defaultGraceSeconds = corev1.DefaultTerminationGracePeriodSeconds // 30
)

// Default fills in what obj leaves open, with the values that Kubernetes
// documents for its kind. What is set stays. A second call changes nothing.
func Default(obj Object) {
	kindOfObject(obj).defaults(obj)
}

// Stamp writes into obj what follows from its name and uid, which are set by then,
// and from its spec, for ever: a Job's selector and labels, a Pod's quality of
// service. What is there stays, so that a successor whose manifest does not say it
// gets the same again. Call it after [Default]. A second call changes nothing.
func Stamp(obj Object) {
	kindOfObject(obj).stamp(obj)
}

func setIfZero[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func setIfNil[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}
