package controllers

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

const (
	// claimProtection keeps a claim while pods use it.
	claimProtection = "kubernetes.io/pvc-protection"
	// selectedNode on a claim is the node that the scheduler has chosen for the
	// first pod that uses it; see package scheduler.
	selectedNode = "volume.kubernetes.io/selected-node"
	// provisionedBy on a volume says what made it.
	provisionedBy = "pv.kubernetes.io/provisioned-by"
)

var (
	pvcResource   = object.ResourceOf(&corev1.PersistentVolumeClaim{})
	pvResource    = object.ResourceOf(&corev1.PersistentVolume{})
	classResource = object.ResourceOf(&storagev1.StorageClass{})
)

// claimInput is all that a decision about a claim depends on.
type claimInput struct {
	claim   *corev1.PersistentVolumeClaim // changed by the plan
	used    bool                          // by a pod that has not finished
	classes []*storagev1.StorageClass
	// volumes are those that may be bound to the claim: that which it names, or all
	// if it names none.
	volumes []*corev1.PersistentVolume
	node    *corev1.Node // the selected one, if it exists
}

// claimPlan is what to do about a claim.
type claimPlan struct {
	changed bool                     // the claim
	gone    bool                     // nothing keeps the claim any more
	create  *corev1.PersistentVolume // for the claim
	update  *corev1.PersistentVolume // bound to the claim now
	warning bool
	reason  string // of an event
	message string
}

// planClaim decides the next step for a claim. It is pure: testdata/volume states
// its whole behavior.
//
// A claim is bound to the smallest free volume that does, or to a new local one if
// its class has such, on the node that the scheduler has selected.
func planClaim(in claimInput) (p claimPlan) {
	claim := in.claim
	if object.Deleting(claim) {
		if !in.used {
			p.changed = dropFinalizer(claim, claimProtection)
			p.gone = p.changed && len(claim.Finalizers) == 0
		}
		return p
	}
	if !slices.Contains(claim.Finalizers, claimProtection) {
		claim.Finalizers = append(claim.Finalizers, claimProtection)
		p.changed = true
	}
	if claim.Spec.VolumeName != "" {
		p.named(in)
		return p
	}
	p.find(in)
	return p
}

func (p *claimPlan) warn(reason, format string, args ...any) {
	p.warning, p.reason, p.message = true, reason, fmt.Sprintf(format, args...)
}

// named binds a claim to the volume that it names.
func (p *claimPlan) named(in claimInput) {
	claim := in.claim
	if len(in.volumes) == 0 {
		if claim.Status.Phase == corev1.ClaimBound {
			claim.Status.Phase, p.changed = corev1.ClaimLost, true
			p.warn("ClaimLost", "its volume %s is gone, with all data: delete the claim and make another", claim.Spec.VolumeName)
		}
		return
	}
	pv := in.volumes[0]
	switch ref := pv.Spec.ClaimRef; {
	case ref != nil && (ref.Namespace != claim.Namespace || ref.Name != claim.Name || ref.UID != "" && ref.UID != claim.UID):
		p.warn("FailedBinding", "volume %s is bound to claim %s/%s already", pv.Name, ref.Namespace, ref.Name)
		return
	case ref == nil && !object.VolumeServes(pv, claim):
		p.warn("VolumeMismatch", "volume %s is not what the claim asks for: compare size, access modes, class and mode", pv.Name)
		return
	}
	p.bind(claim, pv)
}

// find binds a claim that names no volume.
func (p *claimPlan) find(in claimInput) {
	claim := in.claim
	if claim.Spec.StorageClassName == nil {
		if class := defaultClass(in.classes); class != nil {
			claim.Spec.StorageClassName, p.changed = &class.Name, true
		}
	}
	var class *storagev1.StorageClass
	if name := claim.Spec.StorageClassName; name != nil && *name != "" {
		at := slices.IndexFunc(in.classes, func(c *storagev1.StorageClass) bool { return c.Name == *name })
		if at < 0 {
			p.warn("ProvisioningFailed", "storage class %s does not exist", *name)
			return
		}
		class = in.classes[at]
	}
	selected := claim.Annotations[selectedNode]
	late := class != nil && class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
	if late && selected == "" {
		p.reason, p.message = "WaitForFirstConsumer", "waiting for first consumer to be created before binding"
		return
	}
	if late && in.node == nil {
		// Nothing was made there yet: another node may be selected.
		delete(claim.Annotations, selectedNode)
		p.changed = true
		p.warn("ProvisioningFailed", "node %s, which was selected, is gone", selected)
		return
	}
	if pv := smallest(in, late); pv != nil {
		p.bind(claim, pv)
		return
	}
	switch {
	case class == nil:
		p.reason, p.message = "FailedBinding", "no persistent volumes available for this claim and no storage class is set"
	case class.Provisioner != object.LocalProvisioner:
		p.reason, p.message = "ExternalProvisioning", fmt.Sprintf("waiting for a volume that %s, or a person, makes", class.Provisioner)
	case !late:
		p.warn("ProvisioningFailed", "volumes of class %s are made on the node of the first pod that uses them: set its volumeBindingMode to WaitForFirstConsumer", class.Name)
	case claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock:
		p.warn("ProvisioningFailed", "local volumes are directories, not block devices: set volumeMode to Filesystem")
	default:
		p.provision(claim, class, in.node)
	}
}

// provision makes a volume for claim on the node.
func (p *claimPlan) provision(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, node *corev1.Node) {
	enforce := cmp.Or(class.Parameters[object.LocalVolumeEnforceKey], object.EnforceNone)
	if enforce != object.EnforceNone && enforce != object.EnforceEvict && enforce != object.EnforceLoop {
		p.warn("ProvisioningFailed", "class %s says %s: %q, want %s, %s or %s", class.Name, object.LocalVolumeEnforceKey, enforce, object.EnforceNone, object.EnforceEvict, object.EnforceLoop)
		return
	}
	for _, key := range slices.Sorted(maps.Keys(class.Parameters)) {
		if key != object.LocalVolumeEnforceKey {
			p.warn("ProvisioningFailed", "class %s has the parameter %s, which local volumes do not know", class.Name, key)
			return
		}
	}
	name := "pvc-" + string(claim.UID)
	pv := &corev1.PersistentVolume{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"},
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Annotations: map[string]string{provisionedBy: object.LocalProvisioner},
			Finalizers: []string{object.LocalVolumeFinalizer},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes:                   slices.Clone(claim.Spec.AccessModes),
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			StorageClassName:              class.Name,
			VolumeMode:                    new(corev1.PersistentVolumeFilesystem),
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{cmp.Or(node.Labels[corev1.LabelHostname], node.Name)}}},
			}}}},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: object.LocalProvisioner, VolumeHandle: name,
				VolumeAttributes: map[string]string{object.LocalVolumeNodeKey: node.Name, object.LocalVolumeEnforceKey: enforce},
			}},
		},
	}
	if class.ReclaimPolicy != nil {
		pv.Spec.PersistentVolumeReclaimPolicy = *class.ReclaimPolicy
	}
	p.bind(claim, pv)
	p.create, p.update = pv, nil
	p.reason, p.message = "ProvisioningSucceeded", fmt.Sprintf("volume %s is on node %s", name, node.Name)
}

// bind notes in both that they belong together.
func (p *claimPlan) bind(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
	if ref := pv.Spec.ClaimRef; ref == nil || ref.UID == "" || pv.Status.Phase != corev1.VolumeBound {
		pv.Spec.ClaimRef = &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID}
		pv.Status.Phase = corev1.VolumeBound
		p.update = pv
	}
	status := corev1.PersistentVolumeClaimStatus{
		Phase: corev1.ClaimBound, AccessModes: pv.Spec.AccessModes, Capacity: pv.Spec.Capacity, Conditions: claim.Status.Conditions,
	}
	have := claim.Status.Capacity[corev1.ResourceStorage]
	if claim.Spec.VolumeName != pv.Name || claim.Status.Phase != corev1.ClaimBound || have.Cmp(pv.Spec.Capacity[corev1.ResourceStorage]) != 0 {
		claim.Spec.VolumeName, claim.Status = pv.Name, status
		p.changed = true
	}
}

// smallest returns the volume to bind: one that names the claim, or else the
// smallest free one, the first by name of equals.
func smallest(in claimInput, onNode bool) *corev1.PersistentVolume {
	var best *corev1.PersistentVolume
	for _, pv := range in.volumes {
		if !object.VolumeServes(pv, in.claim) || onNode && !object.VolumeOnNode(pv, in.node) {
			continue
		}
		if pv.Spec.ClaimRef != nil {
			return pv
		}
		size := pv.Spec.Capacity[corev1.ResourceStorage]
		if best == nil || size.Cmp(best.Spec.Capacity[corev1.ResourceStorage]) < 0 {
			best = pv
		}
	}
	return best
}

// defaultClass returns the class of claims that name none: the newest of those
// that are marked, as in Kubernetes.
func defaultClass(classes []*storagev1.StorageClass) *storagev1.StorageClass {
	var found *storagev1.StorageClass
	for _, c := range classes {
		if object.IsDefaultClass(c) && (found == nil || c.CreationTimestamp.After(found.CreationTimestamp.Time)) {
			found = c
		}
	}
	return found
}

func dropFinalizer(obj object.Object, name string) bool {
	kept := slices.DeleteFunc(slices.Clone(obj.GetFinalizers()), func(f string) bool { return f == name })
	if len(kept) == len(obj.GetFinalizers()) {
		return false
	}
	if len(kept) == 0 {
		kept = nil
	}
	obj.SetFinalizers(kept)
	return true
}

// volumePlan is what to do about a volume.
type volumePlan struct {
	changed bool
	remove  bool // delete it: what its finalizer stands for has its turn
	gone    bool
	reason  string
	message string
}

// planVolume decides the next step for a volume; claim is the one that it names,
// if it exists. It is pure but for pv, which it changes: testdata/volume states
// its whole behavior.
//
// The data of a local volume goes only in this order: the claim is gone, the
// volume is Released, its policy is Delete, it is being deleted. Its node acts on
// that alone (object.LocalVolumeToRemove).
func planVolume(pv *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim, nodeExists bool) (p volumePlan) {
	phase, message := corev1.VolumeAvailable, ""
	ref := pv.Spec.ClaimRef
	switch {
	case ref == nil || ref.UID == "":
	case claim != nil && claim.UID == ref.UID:
		phase = corev1.VolumeBound
	default:
		phase = corev1.VolumeReleased
		if pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete && object.LocalVolumeNode(pv) == "" && pv.Annotations[provisionedBy] == "" {
			phase, message = corev1.VolumeFailed, "nobody here can delete the data of such a volume: delete it and the volume by hand"
		}
	}
	if pv.Status.Phase != phase || pv.Status.Message != message {
		pv.Status.Phase, pv.Status.Message, p.changed = phase, message, true
	}
	local, policy := object.LocalVolumeNode(pv), pv.Spec.PersistentVolumeReclaimPolicy
	switch {
	case local == "":
	case !object.Deleting(pv):
		p.remove = phase == corev1.VolumeReleased && policy == corev1.PersistentVolumeReclaimDelete
	case phase == corev1.VolumeBound:
	case policy != corev1.PersistentVolumeReclaimDelete:
		p.drop(pv, "its data stays on node %s: remove it there by hand", local)
	case !nodeExists:
		p.drop(pv, "its node %s is gone, and the data with it", local)
	}
	return p
}

func (p *volumePlan) drop(pv *corev1.PersistentVolume, format string, args ...any) {
	if dropFinalizer(pv, object.LocalVolumeFinalizer) {
		p.changed, p.gone = true, len(pv.Finalizers) == 0
		p.reason, p.message = "VolumeForgotten", fmt.Sprintf(format, args...)
	}
}

// newVolumes returns the controller that binds claims to volumes, has local ones
// made and removed, and keeps claims while pods use them.
func newVolumes(newUID func() string) *controller {
	told := map[object.Key]string{} // so that what lasts is said once
	return &controller{
		name: "volume",
		all: func(s state) []object.Key {
			var keys []object.Key
			for key, e := range s.entries {
				if isKind(e.resource, pvcResource) || isKind(e.resource, pvResource) {
					keys = append(keys, key)
				}
			}
			return keys
		},
		affected: func(x *index, c change) []object.Key {
			var keys []object.Key
			for _, e := range []entry{c.before, c.now} {
				keys = append(keys, e.volumes...) // of a pod: its claims; of a claim: its volume; of a volume: its claim
				switch {
				case isKind(e.resource, pvcResource):
					keys = append(keys, c.key)
				case isKind(e.resource, pvResource), isKind(e.resource, classResource):
					keys = append(keys, slices.Collect(maps.Keys(x.unbound))...)
					if isKind(e.resource, pvResource) {
						keys = append(keys, c.key)
					}
				}
			}
			if isKind(c.before.resource, nodeResource) && c.after == nil {
				for key, e := range x.entries {
					if isKind(e.resource, pvResource) || isKind(e.resource, pvcResource) {
						keys = append(keys, key)
					}
				}
			}
			return keys
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			var o outcome
			var about object.Object
			var warning bool
			var reason, message string
			if strings.HasPrefix(string(key), pvcResource.Prefix("")) {
				claim, ok := object.Get[*corev1.PersistentVolumeClaim](s, key)
				if !ok {
					delete(told, key)
					return outcome{}
				}
				p := planClaim(claimInputOf(s, key, claim))
				o = p.outcome(claim, newUID, now)
				about, warning, reason, message = claim, p.warning, p.reason, p.message
			} else {
				pv, ok := object.Get[*corev1.PersistentVolume](s, key)
				if !ok {
					delete(told, key)
					return outcome{}
				}
				var claim *corev1.PersistentVolumeClaim
				if ref := pv.Spec.ClaimRef; ref != nil {
					claim, _ = object.Get[*corev1.PersistentVolumeClaim](s, pvcResource.Key(ref.Namespace, ref.Name))
				}
				_, exists := s.nodes[object.LocalVolumeNode(pv)]
				p := planVolume(pv, claim, exists)
				o = p.outcome(pv, now)
				about, reason, message = pv, p.reason, p.message
			}
			switch {
			case told[key] == reason+message || reason == "":
			case warning:
				o.warn(about, reason, "%s", message)
			default:
				o.tell(about, reason, "%s", message)
			}
			told[key] = reason + message
			return o
		},
	}
}

// claimInputOf reads what a decision about a claim needs.
func claimInputOf(s state, key object.Key, claim *corev1.PersistentVolumeClaim) claimInput {
	in := claimInput{claim: claim, used: len(s.claimUsers[key]) > 0}
	if claim.Spec.VolumeName != "" {
		if pv, ok := object.Get[*corev1.PersistentVolume](s, pvResource.Key("", claim.Spec.VolumeName)); ok {
			in.volumes = append(in.volumes, pv)
		}
		return in
	}
	in.classes = object.List[*storagev1.StorageClass](s, "")
	in.volumes = object.List[*corev1.PersistentVolume](s, "")
	if name := claim.Annotations[selectedNode]; name != "" {
		in.node, _ = object.Get[*corev1.Node](s, nodeResource.Key("", name))
	}
	return in
}

// outcome turns the plan into writes.
func (p claimPlan) outcome(claim *corev1.PersistentVolumeClaim, newUID func() string, now time.Time) outcome {
	var o outcome
	o.txn.Reason = "claim " + claim.Namespace + "/" + claim.Name
	if p.message != "" {
		o.txn.Reason += ": " + p.message
	}
	switch {
	case p.gone:
		o.delete(claim)
		return o
	case p.changed:
		o.update(claim)
	}
	switch {
	case p.create != nil:
		p.create.UID, p.create.Generation = types.UID(newUID()), 1
		p.create.CreationTimestamp = metav1.NewTime(now.Truncate(time.Second))
		object.Default(p.create)
		o.create(p.create)
	case p.update != nil:
		o.update(p.update)
	}
	return o
}

// outcome turns the plan into writes.
func (p volumePlan) outcome(pv *corev1.PersistentVolume, now time.Time) outcome {
	var o outcome
	o.txn.Reason = "volume " + pv.Name
	switch {
	case p.gone:
		o.delete(pv)
	case p.remove:
		o.remove(pv, now)
	case p.changed:
		o.update(pv)
	}
	return o
}
