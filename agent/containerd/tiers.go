package containerd

import (
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// Cgroups in which pods of a class are together, so that all of them weigh as much
// as they have asked for, however many they are. Guaranteed pods are beside them.
const (
	tierBurstable  = "burstable"
	tierBestEffort = "besteffort"
)

func tierOf(class corev1.PodQOSClass) string {
	switch class {
	case corev1.PodQOSBurstable:
		return tierBurstable
	case corev1.PodQOSBestEffort:
		return tierBestEffort
	case corev1.PodQOSGuaranteed:
	}
	return ""
}

// podCgroup is a pod's cgroup, in which those of its containers are. Its class is in
// its record, which goes last when a pod is removed.
func (r *Runtime) podCgroup(uid string) string {
	record, err := r.readPod(uid)
	if err != nil || record.Tier == "" {
		return r.cgroup + "/" + uid
	}
	return r.cgroup + "/" + record.Tier + "/" + uid
}

// tiers knows what pods have asked for, by class.
type tiers struct {
	mu     sync.Mutex
	shares map[string]map[string]int64 // by tier, then by pod's uid
}

// note takes down a pod that is there already.
func (t *tiers) note(uid string, record podRecord) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.set(uid, record)
}

// set notes a pod, or that it is gone (record without a tier), and returns the
// weights that tiers have now, -1 for one without pods. t.mu is held.
func (t *tiers) set(uid string, record podRecord) map[string]int64 {
	if t.shares == nil {
		t.shares = map[string]map[string]int64{tierBurstable: {}, tierBestEffort: {}}
	}
	weights := make(map[string]int64, len(t.shares))
	for tier, pods := range t.shares {
		delete(pods, uid)
		if tier == record.Tier {
			pods[uid] = record.Resources.CPUShares
		}
		weights[tier] = -1
		if len(pods) > 0 {
			weights[tier] = 0 // the least there is: what best effort is worth
		}
	}
	for _, shares := range t.shares[tierBurstable] {
		weights[tierBurstable] += shares
	}
	return weights
}

// weigh gives the tiers their weights before a pod comes, or (without a tier) after it
// has gone. A tier without pods has no cgroup. The lock is held all the while, so that
// none is removed from under a pod that comes.
func (r *Runtime) weigh(uid string, record podRecord) error {
	r.tiers.mu.Lock()
	defer r.tiers.mu.Unlock()
	for tier, shares := range r.tiers.set(uid, record) {
		cgroup := r.cgroup + "/" + tier
		if shares < 0 {
			removeEmptyCgroup(cgroup)
			continue
		}
		if err := setCgroup(cgroup, runtime.Resources{CPUShares: shares}); err != nil {
			return err
		}
	}
	return nil
}
