package apiserver

import (
	"context"
	"errors"
	"slices"
	"sync"

	"connectrpc.com/connect/v2"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// maxParallelReports bounds how many pods of one report are written at once.
const maxParallelReports = 32

// errNotYours is returned by a report for a pod that is gone or not the node's.
var errNotYours = errors.New("not a pod of this node")

// ReportStatus records the status of pods, each in a transaction of its own, and
// answers when all are committed. A status that is recorded already is not
// written again, so a repetition after a lost answer costs nothing.
//
// Fails with Aborted when another report of the same node got in between: the
// agent reports again what it knows then. Some of the pods may be recorded
// whenever it fails.
func (s agentService) ReportStatus(ctx context.Context, req *agentv1.ReportStatusRequest) (*agentv1.ReportStatusResponse, error) {
	node, err := nodeName(ctx)
	if err != nil {
		return nil, err
	}
	statuses := make([]*corev1.PodStatus, len(req.GetPods()))
	for i, report := range req.GetPods() {
		statuses[i] = new(corev1.PodStatus)
		if err := statuses[i].Unmarshal(report.GetStatus()); err != nil {
			return nil, badRequest("pods", "status of pod %s: %v", joinName(report.GetNamespace(), report.GetName()), err)
		}
		if report.GetUid() == "" {
			return nil, badRequest("pods", "report for pod %s has no uid", joinName(report.GetNamespace(), report.GetName()))
		}
	}
	var (
		mu   sync.Mutex
		resp = &agentv1.ReportStatusResponse{}
	)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(maxParallelReports)
	for i, report := range req.GetPods() {
		group.Go(func() error {
			pod, revision, err := s.reportPod(groupCtx, node, report, statuses[i])
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, errNotYours) {
				resp.Unknown = append(resp.Unknown, report.GetUid())
				s.metrics.dropped.Inc()
				return nil
			}
			if err != nil {
				return err
			}
			resp.Revision = max(resp.Revision, revision)
			recorder := s.cfg.Events.Recorder("agent", node)
			for _, e := range report.GetEvents() {
				recorder.Record(pod, e.GetType(), e.GetReason(), e.GetMessage())
			}
			return nil
		})
	}
	for _, v := range req.GetRemovedVolumes() {
		group.Go(func() error { return s.volumeRemoved(groupCtx, node, v) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	slices.Sort(resp.Unknown)
	return resp, nil
}

// reportPod records one report and returns the pod and the revision at which it
// is recorded. The first look is at the local state; only what that cannot
// settle (a pod that is not there, a conflict) needs a quorum's view.
func (s agentService) reportPod(ctx context.Context, node string, report *agentv1.PodStatusReport, status *corev1.PodStatus) (*corev1.Pod, int64, error) {
	key := object.ResourceOf(&corev1.Pod{}).Key(report.GetNamespace(), report.GetName())
	var base *corev1.PodStatus // the agent's part as first read
	view := s.store.View()
	for attempt := range maxAttempts {
		if attempt > 0 {
			var err error
			if view, err = s.sync(ctx); err != nil {
				return nil, 0, err
			}
		}
		pod, ok := object.Get[*corev1.Pod](view, key)
		if !ok || string(pod.UID) != report.GetUid() || pod.Spec.NodeName != node {
			if attempt == 0 {
				continue // this peer may lag behind the one that the agent has the pod from
			}
			return nil, 0, errNotYours
		}
		agents := agentPart(pod.Status)
		if base == nil {
			base = &agents
		} else if !equality.Semantic.DeepEqual(*base, agents) {
			// Whatever the agent meant, it has said something else since, through
			// another peer: writing this over it would turn back time.
			return nil, 0, connect.Errorf(connect.CodeAborted, "the status of %s was reported through another peer meanwhile; report it again", object.Title(pod))
		}
		c, err := planReport(pod, report.GetRemoved(), status)
		if err != nil {
			return nil, 0, err
		}
		if len(c.ops) == 0 {
			return pod, revisionOf(pod), nil
		}
		result, err := s.store.Txn(ctx, raftstore.Txn{If: c.conditions, Then: c.ops, Actor: actor(ctx), Reason: "status"})
		if err == nil {
			return pod, result.Revision, nil
		}
		if !errors.Is(err, raftstore.ErrConflict) {
			return nil, 0, storeError("record the status of "+object.Title(pod), err)
		}
	}
	return nil, 0, connect.Errorf(connect.CodeAborted, "pod %s changed %d times while its status was recorded; report it again",
		joinName(report.GetNamespace(), report.GetName()), maxAttempts)
}

// volumeRemoved lets go of a local volume of which the node has removed the data.
// A volume that is gone, another's, or not to be removed, is left alone: the
// report is late, or is repeated.
func (s agentService) volumeRemoved(ctx context.Context, node string, v *agentv1.RemovedVolume) error {
	key := volumeResource.Key("", v.GetName())
	_, err := s.transact(ctx, "let go of volume "+v.GetName(), "removed", false, func(view raftstore.View) (change, error) {
		var c change
		pv, ok := object.Get[*corev1.PersistentVolume](view, key)
		if !ok || string(pv.UID) != v.GetUid() || !object.LocalVolumeToRemove(pv) || object.LocalVolumeNode(pv) != node {
			return c, nil
		}
		revision := revisionOf(pv)
		pv.Finalizers = slices.DeleteFunc(pv.Finalizers, func(f string) bool { return f == object.LocalVolumeFinalizer })
		if len(pv.Finalizers) == 0 {
			c.remove(string(key), revision)
			return c, nil
		}
		_, err := c.put(pv, revision)
		return c, err
	})
	return err
}

// planReport decides what a report changes. A terminating pod of which nothing is
// left goes away; with finalizers it stays, marked, until they are gone.
// Conditions of other writers (the scheduler's, an eviction's, those that readiness
// gates wait for) survive every report.
func planReport(pod *corev1.Pod, removed bool, status *corev1.PodStatus) (change, error) {
	var c change
	revision := revisionOf(pod)
	if removed && object.Deleting(pod) && len(pod.Finalizers) == 0 {
		c.remove(string(object.KeyOf(pod)), revision)
		return c, nil
	}
	next := pod.DeepCopy()
	next.Status = *status.DeepCopy()
	next.Status.Conditions = slices.DeleteFunc(next.Status.Conditions, ofOthers)
	for i, c := range pod.Status.Conditions {
		taken := slices.ContainsFunc(next.Status.Conditions, func(other corev1.PodCondition) bool { return other.Type == c.Type })
		if ofOthers(c) && !taken {
			at := min(i, len(next.Status.Conditions)) // where it was: its place is no change
			next.Status.Conditions = slices.Insert(next.Status.Conditions, at, c)
		}
	}
	if removed && object.Deleting(pod) {
		if next.Annotations == nil {
			next.Annotations = make(map[string]string)
		}
		next.Annotations[object.RemovedAnnotation] = "true"
	}
	if sameObject(next, pod) {
		return c, nil
	}
	_, err := c.put(next, revision)
	return c, err
}

// agentPart returns what of a status the agent writes.
func agentPart(status corev1.PodStatus) corev1.PodStatus {
	part := *status.DeepCopy()
	part.Conditions = slices.DeleteFunc(part.Conditions, ofOthers)
	return part
}

// ofOthers says whether a condition is not the agent's.
func ofOthers(c corev1.PodCondition) bool {
	switch c.Type {
	case corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady, corev1.PodResizePending, corev1.PodResizeInProgress,
		corev1.AllContainersRestarting:
		return false
	case corev1.DisruptionTarget: // of several writers; an eviction by the node is the agent's
		return c.Reason != corev1.PodReasonTerminationByKubelet
	default:
		return true
	}
}
