package object

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// DrainAnnotation on a node asks the cluster to empty it. Its value is a [Drain] as
// JSON. Whoever asks sets it together with spec.unschedulable; the leader goes on with
// it whatever becomes of who asked, and takes it away at the end.
const DrainAnnotation = "holdfast.dev/drain"

// NodeDrained is the condition of a node that is being emptied, or was: True once it is
// empty; else its reason says how far it is. It goes when the node takes pods again.
const NodeDrained corev1.NodeConditionType = "Drained"

// Reasons of the condition [NodeDrained].
const (
	DrainGoesOn   = "Draining"         // the request is being carried out
	DrainDone     = "Drained"          // nothing is left that was to go
	DrainTimedOut = "DeadlineExceeded" // its time is up; the message says what was in the way
	DrainRefused  = "Refused"          // something would be lost that the request does not give up
)

// Drain is a request to empty a node. The names are those of kubectl drain's flags.
type Drain struct {
	// ID tells this request from others, for who follows it.
	ID string `json:"id,omitempty"`
	// Timeout is for how long to try, "" for ever. Began and Deadline are set by the
	// leader, by its clock, when it takes the request on.
	Timeout  string     `json:"timeout,omitempty"`
	Began    *time.Time `json:"began,omitempty"`
	Deadline *time.Time `json:"deadline,omitempty"`

	IgnoreDaemonSets   bool `json:"ignoreDaemonSets,omitempty"`
	DeleteEmptyDirData bool `json:"deleteEmptyDirData,omitempty"`
	Force              bool `json:"force,omitempty"`
	// ReplaceFirst starts another pod before the only one of a ReplicaSet that serves goes.
	ReplaceFirst       bool   `json:"replaceFirst,omitempty"`
	GracePeriodSeconds *int64 `json:"gracePeriodSeconds,omitempty"`
}

// DrainOf returns what is asked of node. ok is false if nothing is; an error says what
// is wrong with the request.
func DrainOf(node *corev1.Node) (d Drain, ok bool, err error) {
	text, ok := node.Annotations[DrainAnnotation]
	if !ok {
		return d, false, nil
	}
	strict := json.NewDecoder(bytes.NewReader([]byte(text)))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&d); err != nil {
		return d, true, err
	}
	if _, err := strict.Token(); !errors.Is(err, io.EOF) {
		return d, true, errors.New("must be one JSON object")
	}
	if _, err := d.timeout(); err != nil {
		return d, true, err
	}
	if d.GracePeriodSeconds != nil && *d.GracePeriodSeconds < 0 {
		return d, true, errors.New("gracePeriodSeconds: must not be negative")
	}
	return d, true, nil
}

func (d Drain) timeout() (time.Duration, error) {
	if d.Timeout == "" {
		return 0, nil
	}
	timeout, err := time.ParseDuration(d.Timeout)
	if err == nil && timeout <= 0 {
		err = errors.New("must be more than nothing")
	}
	if err != nil {
		return 0, fmt.Errorf("timeout: %w", err)
	}
	return timeout, nil
}

// Begun returns d as it is from now on: with its begin and, if it has a timeout, its
// deadline.
func (d Drain) Begun(now time.Time) Drain {
	now = now.UTC()
	d.Began = &now
	if timeout, err := d.timeout(); err == nil && timeout > 0 {
		deadline := now.Add(timeout)
		d.Deadline = &deadline
	}
	return d
}

// String returns the annotation's value.
func (d Drain) String() string {
	data, err := json.Marshal(d)
	if err != nil {
		panic(err) // a Drain can be encoded
	}
	return string(data)
}

// Sort sorts the pods of a node into those that are to go and those that stay, and says
// what forbids the drain: what would be lost without somebody's word.
func (d Drain) Sort(pods []*corev1.Pod) (leave, stay []*corev1.Pod, forbid []string) {
	for _, pod := range pods {
		owner := ControllerOf(pod)
		name := DrainName(pod)
		hasData := slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.EmptyDir != nil })
		_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
		switch {
		case mirror:
			stay = append(stay, pod) // the node runs it from a file, whatever becomes of the object
		case PodPhaseFinal(pod):
			leave = append(leave, pod)
		case owner != nil && owner.Kind == "DaemonSet" && d.IgnoreDaemonSets:
			stay = append(stay, pod)
		case Deleting(pod):
			leave = append(leave, pod) // somebody else has decided
		case owner != nil && owner.Kind == "DaemonSet":
			forbid = append(forbid, name+" belongs to a DaemonSet: --ignore-daemonsets leaves it there")
		case owner == nil && !d.Force:
			forbid = append(forbid, name+" belongs to nothing that would bring it back: --force evicts it for good")
		case hasData && !d.DeleteEmptyDirData:
			forbid = append(forbid, name+" has data in an emptyDir volume: --delete-emptydir-data loses it")
		default:
			leave = append(leave, pod)
		}
	}
	return leave, stay, forbid
}

// DrainName is what a drain calls a pod.
func DrainName(pod *corev1.Pod) string { return "pod/" + pod.Name + " (" + pod.Namespace + ")" }
