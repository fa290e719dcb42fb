package probe

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// Kind is which of a container's probes.
type Kind string

// The three probes. A container is not asked for the others before its startup
// probe has succeeded.
const (
	Startup   Kind = "startup"
	Readiness Kind = "readiness"
	Liveness  Kind = "liveness"
)

// Result is what is known of a container by one of its probes, or what one answer
// says.
type Result int

const (
	// Unknown: not enough answers yet, or one that says nothing.
	Unknown Result = iota
	Success
	Failure
)

func (r Result) String() string { return [...]string{"unknown", "success", "failure"}[r] }

// Key names a probe of one run of a container.
type Key struct {
	Run  runtime.ContainerID
	Kind Kind
}

// Target is a probe to be carried out.
type Target struct {
	Key
	Spec *corev1.Probe
	// Since is when the container was started: the initial delay counts from there.
	Since time.Time
	// Initial is what is known already, from an earlier life of the agent.
	Initial Result
}

// first returns when the target is probed first.
func (t Target) first(now time.Time) time.Time {
	if at := t.Since.Add(seconds(t.Spec.InitialDelaySeconds, 0)); at.After(now) {
		return at
	}
	return now
}

// period, timeout and the thresholds are as the specification says; what is not
// set is as Kubernetes' defaults.
func (t Target) period() time.Duration  { return seconds(t.Spec.PeriodSeconds, 10) }
func (t Target) timeout() time.Duration { return seconds(t.Spec.TimeoutSeconds, 1) }

func seconds(n, otherwise int32) time.Duration {
	if n <= 0 {
		n = otherwise
	}
	return time.Duration(n) * time.Second
}

// State is what the answers of a probe so far amount to.
type State struct {
	Result Result
	row    int    // answers like the last one, in a row
	last   Result // the last answer
}

// Take takes in an answer and reports whether the result has changed.
func (s *State) Take(t Target, answer Result) (changed bool) {
	if answer == Unknown {
		return false // as if it had not been asked
	}
	if answer != s.last {
		s.last, s.row = answer, 0
	}
	s.row++
	need := max(t.Spec.SuccessThreshold, 1)
	if answer == Failure {
		need = t.Spec.FailureThreshold
		if need <= 0 {
			need = 3
		}
	}
	if s.row < int(need) || s.Result == answer {
		return false
	}
	s.Result = answer
	return true
}

// Settled reports whether no further answer is of use: a run that has started has
// started for good, and one that has failed is to be stopped.
func (s *State) Settled(kind Kind) bool {
	switch kind {
	case Startup:
		return s.Result != Unknown
	case Liveness:
		return s.Result == Failure
	default:
		return false
	}
}
