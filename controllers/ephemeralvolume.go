package controllers

import (
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

// planOwnClaims returns the claims that a pod's ephemeral volumes are to have and that are
// missing, and what is wrong with those that are there. It is pure.
func planOwnClaims(pod *corev1.Pod, claim func(name string) *corev1.PersistentVolumeClaim) (missing []*corev1.PersistentVolumeClaim, faults []string) {
	if object.Deleting(pod) || object.PodPhaseFinal(pod) {
		return nil, nil
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Ephemeral == nil {
			continue
		}
		switch have := claim(object.ClaimName(pod, v)); {
		case have == nil:
			missing = append(missing, object.OwnClaim(pod, v))
		case object.ClaimFault(pod, v, have) != "":
			faults = append(faults, fmt.Sprintf("ephemeral volume %s: %s", v.Name, object.ClaimFault(pod, v, have)))
		}
	}
	return missing, faults
}

// newOwnClaims returns the controller that makes the claims of pods' ephemeral volumes. They go
// with their pods, which own them.
func newOwnClaims(newUID func() string) *controller {
	return &controller{
		name: "ephemeral-volume",
		all: func(s state) []object.Key {
			var keys []object.Key
			for key, e := range s.entries {
				if isKind(e.resource, podResource) && len(e.volumes) > 0 {
					keys = append(keys, key)
				}
			}
			return keys
		},
		affected: func(x *index, c change) []object.Key {
			switch {
			case isKind(c.now.resource, podResource) && len(c.now.volumes) > 0 && !isKind(c.before.resource, podResource):
				return []object.Key{c.key} // it is new
			case isKind(c.before.resource, pvcResource) && c.after == nil: // another of the name may have been in the way
				var users []object.Key
				for key := range x.claimUsers[c.key] {
					users = append(users, key)
				}
				slices.Sort(users)
				return users
			}
			return nil
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			var o outcome
			pod, ok := object.Get[*corev1.Pod](s, key)
			if !ok {
				return o
			}
			missing, faults := planOwnClaims(pod, func(name string) *corev1.PersistentVolumeClaim {
				claim, _ := object.Get[*corev1.PersistentVolumeClaim](s, pvcResource.Key(pod.Namespace, name))
				return claim
			})
			limits := s.admission(pod.Namespace)
			for _, claim := range missing {
				claim.UID, claim.CreationTimestamp = types.UID(newUID()), metav1.NewTime(now.Truncate(time.Second))
				object.Stamp(claim)
				if err := limits.admit(claim); errors.Is(err, errNamespaceEnds) {
					return outcome{}
				} else if err != nil {
					faults = append(faults, fmt.Sprintf("claim %s is not created: %v", claim.Name, err))
					continue
				}
				o.create(claim)
				o.txn.Reason = "claim of an ephemeral volume of pod " + pod.Namespace + "/" + pod.Name
			}
			if len(o.txn.Then) > 0 {
				limits.write(&o)
				o.unchanged(pod)
			}
			for _, fault := range faults {
				o.warn(pod, "FailedBinding", "%s", fault)
			}
			return o
		},
	}
}
