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

// set notes a pod, or that it is gone (record without a tier), and returns the
// weights that tiers have now.
func (t *tiers) set(uid string, record podRecord) map[string]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shares == nil {
		t.shares = map[string]map[string]int64{tierBurstable: {}, tierBestEffort: {}}
	}
	for tier, pods := range t.shares {
		delete(pods, uid)
		if tier == record.Tier {
			pods[uid] = record.Resources.CPUShares
		}
	}
	weights := map[string]int64{tierBestEffort: 0} // the least there is
	for _, shares := range t.shares[tierBurstable] {
		weights[tierBurstable] += shares
	}
	return weights
}

// weigh gives the tiers their weights after a pod came (or, without a tier, went). A
// tier that has no pod yet is left alone.
func (r *Runtime) weigh(uid string, record podRecord) error {
	for tier, shares := range r.tiers.set(uid, record) {
		if tier != record.Tier && shares == 0 {
			continue
		}
		if err := setCgroup(r.cgroup+"/"+tier, runtime.Resources{CPUShares: shares}); err != nil {
			return err
		}
	}
	return nil
}
