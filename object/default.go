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

// StampNew finishes an object that is about to be stored for the first time, with
// what follows from its name and uid, which are set by then: a Job's selector, a
// Pod's quality of service. Call it after [Default] and before [Validate]. A
// second call changes nothing.
func StampNew(obj Object) {
	kindOfObject(obj).prepare(obj)
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
