package containerd

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/containers"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// Labels of a container's record. All that List returns and containerd does not
// know is there.
const (
	labelPodUID       = "holdfast.pod.uid"
	labelPodNamespace = "holdfast.pod.namespace"
	labelPodName      = "holdfast.pod.name"
	labelContainer    = "holdfast.container"
	labelAttempt      = "holdfast.attempt"
	labelImage        = "holdfast.image"       // as asked for
	labelImageID      = "holdfast.image.id"    // its digest
	labelSpecHash     = "holdfast.spec-hash"   //
	labelResources    = "holdfast.resources"   // that it has now, JSON; absent in records of older versions
	labelStopSignal   = "holdfast.stop-signal" // the container's or the image's; may be absent
	labelStarted      = "holdfast.started"     // RFC 3339; absent until the container has been started
	labelFinished     = "holdfast.finished"    // RFC 3339; absent until it has ended
	labelExitCode     = "holdfast.exit-code"   // with labelFinished
	labelOOMKilled    = "holdfast.oom-killed"  // "true", with labelFinished
	labelMessage      = "holdfast.message"     // with labelFinished; may be absent
)

// exitLost is the exit code of a container whose own nobody knows: its shim was
// killed, or the machine restarted. containerd uses it too.
const exitLost = 255

// identifier is what pod uids and container names may look like: they become
// parts of paths.
var identifier = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,126}[A-Za-z0-9])?$`)

func checkPodUID(uid string) error {
	if !identifier.MatchString(uid) {
		return fmt.Errorf("pod uid %q is not made of letters, digits, '-', '_' and '.'", uid)
	}
	return nil
}

func checkContainerID(id runtime.ContainerID) error {
	if err := checkPodUID(id.PodUID); err != nil {
		return err
	}
	if !identifier.MatchString(id.Name) || id.Attempt < 0 {
		return fmt.Errorf("container name %q, attempt %d: want letters, digits, '-', '_' and '.', and an attempt of 0 or more", id.Name, id.Attempt)
	}
	return nil
}

// handleOf is containerd's id of a container: found without a search, and short
// enough whatever the names are.
func handleOf(id runtime.ContainerID) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d", id.PodUID, id.Name, id.Attempt))
	return hex.EncodeToString(sum[:16])
}

// cgroupOf is a container's cgroup.
func (r *Runtime) cgroupOf(id runtime.ContainerID) string {
	return fmt.Sprintf("%s/%s-%d", r.podCgroup(id.PodUID), id.Name, id.Attempt)
}

// podFilter selects the containers of a pod. The quotes are containerd's syntax
// for names with dots, and for values.
func podFilter(uid string) string {
	return fmt.Sprintf("labels.%q==%q", labelPodUID, uid)
}

// idOf returns the container that a record is of; not ok for one that is not ours.
func idOf(c containers.Container) (runtime.ContainerID, bool) {
	attempt, err := strconv.Atoi(c.Labels[labelAttempt])
	id := runtime.ContainerID{PodUID: c.Labels[labelPodUID], Name: c.Labels[labelContainer], Attempt: attempt}
	return id, err == nil && id.PodUID != "" && id.Name != ""
}

// half tells whether a record is of a container that was never started: what is
// left when an agent dies between two steps.
func half(c containers.Container) bool {
	return c.Labels[labelStarted] == "" && c.Labels[labelFinished] == ""
}

// stateOf is a record as List returns it, but for State, which is set only
// where the record alone decides it.
func stateOf(c containers.Container) runtime.ContainerState {
	id, _ := idOf(c)
	s := runtime.ContainerState{
		ID:        id,
		Handle:    "containerd://" + c.ID,
		Image:     c.Labels[labelImage],
		ImageID:   c.Labels[labelImageID],
		SpecHash:  c.Labels[labelSpecHash],
		CreatedAt: c.CreatedAt,
		StartedAt: parseTime(c.Labels[labelStarted]),
		State:     runtime.StateUnknown,
	}
	if text := c.Labels[labelResources]; text != "" {
		var resources runtime.Resources
		if json.Unmarshal([]byte(text), &resources) == nil {
			s.Resources = &resources
		}
	}
	if finished := c.Labels[labelFinished]; finished != "" {
		s.State = runtime.StateExited
		s.FinishedAt = parseTime(finished)
		s.ExitCode, _ = strconv.Atoi(c.Labels[labelExitCode])
		s.OOMKilled = c.Labels[labelOOMKilled] == "true"
		s.Message = c.Labels[labelMessage]
	}
	return s
}

// exitLabels is how a container's end is recorded.
func exitLabels(e exitRecord) map[string]string {
	labels := map[string]string{
		labelFinished: formatTime(e.At),
		labelExitCode: strconv.Itoa(e.Code),
	}
	if e.OOMKilled {
		labels[labelOOMKilled] = "true"
	}
	if e.Message != "" {
		labels[labelMessage] = e.Message
	}
	return labels
}

func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func parseTime(s string) time.Time {
	t, _ := time.Parse(time.RFC3339Nano, s) // the zero time for what is absent
	return t
}

// sortStates puts oldest attempts first, and the rest in a fixed order.
func sortStates(states []runtime.ContainerState) {
	slices.SortFunc(states, func(a, b runtime.ContainerState) int {
		return cmp.Or(cmp.Compare(a.ID.Attempt, b.ID.Attempt), a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID.Name, b.ID.Name))
	})
}
