package object

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The table leaves out dataSource and dataSourceRef: without snapshots and
// clones a claim that asks for one would get an empty volume; and
// volumeAttributesClassName, whose kind is not served.
var kindPersistentVolumeClaim = define(Resource{Version: "v1", Kind: "PersistentVolumeClaim", Plural: "persistentvolumeclaims", Singular: "persistentvolumeclaim", ShortNames: []string{"pvc"}, Namespaced: true, Status: true},
	func() *corev1.PersistentVolumeClaim { return new(corev1.PersistentVolumeClaim) },
	rules[*corev1.PersistentVolumeClaim]{
		supported: supportedClaimSpec + `
			status
		`,
		defaults: func(pvc *corev1.PersistentVolumeClaim) {
			setIfZero(&pvc.Status.Phase, corev1.ClaimPending)
			defaultClaimSpec(&pvc.Spec)
		},
		validate: func(pvc *corev1.PersistentVolumeClaim) field.ErrorList {
			return validateClaimSpec(&pvc.Spec, field.NewPath("spec"))
		},
		validateUpdate: validateClaimUpdate,
		selectable:     func(pvc *corev1.PersistentVolumeClaim, set fields.Set) { set["name"] = pvc.Name }, // as in Kubernetes
		columns:        columns("NAME", "STATUS", "VOLUME", "CAPACITY", "ACCESS MODES", "STORAGECLASS", "VOLUMEATTRIBUTESCLASS", "AGE", "|", "VOLUMEMODE"),
		row: func(pvc *corev1.PersistentVolumeClaim, now time.Time) []string {
			capacity, modes := boundTo(pvc)
			return []string{
				pvc.Name, volumeStatus(pvc, string(pvc.Status.Phase)), pvc.Spec.VolumeName, capacity, modes, deref(pvc.Spec.StorageClassName),
				orUnset(deref(pvc.Spec.VolumeAttributesClassName)), ageOf(pvc, now), orUnset(string(deref(pvc.Spec.VolumeMode))),
			}
		},
		describe: func(d *describer, pvc *corev1.PersistentVolumeClaim, related []Object) {
			d.claim(pvc, only[*corev1.Pod](related))
		},
	})

const supportedClaimSpec = `
	spec.accessModes
	spec.selector
	spec.resources
	spec.volumeName
	spec.storageClassName
	spec.volumeMode
`

func defaultClaimSpec(spec *corev1.PersistentVolumeClaimSpec) {
	setIfNil(&spec.VolumeMode, corev1.PersistentVolumeFilesystem)
}

// validateClaimSpec checks what a claim asks for, also one in a template.
func validateClaimSpec(spec *corev1.PersistentVolumeClaimSpec, path *field.Path) field.ErrorList {
	errs := validateAccessModes(spec.AccessModes, path.Child("accessModes"))
	errs = append(errs, validateSelector(spec.Selector, path.Child("selector"))...)
	at := path.Child("resources", "requests").Key(string(corev1.ResourceStorage))
	if size, ok := spec.Resources.Requests[corev1.ResourceStorage]; !ok {
		errs = append(errs, field.Required(at, `say how much, for example "10Gi"`))
	} else if size.Sign() <= 0 {
		errs = append(errs, field.Invalid(at, size.String(), "must be greater than zero"))
	}
	if class := deref(spec.StorageClassName); class != "" { // "": no class, on purpose
		errs = append(errs, dnsSubdomain(class, path.Child("storageClassName"))...)
	}
	if spec.VolumeName != "" {
		errs = append(errs, dnsSubdomain(spec.VolumeName, path.Child("volumeName"))...)
	}
	if mode := spec.VolumeMode; mode != nil {
		errs = append(errs, oneOf(*mode, volumeModes, path.Child("volumeMode"))...)
	}
	return errs
}

// validateClaimUpdate lets a claim be bound, get the default class, and, once it
// is bound, grow; or come back from a growth that failed. Otherwise quotas and
// limits could be got round.
func validateClaimUpdate(pvc, old *corev1.PersistentVolumeClaim) field.ErrorList {
	var errs field.ErrorList
	now, was := pvc.Spec.DeepCopy(), old.Spec.DeepCopy()
	if was.VolumeName == "" {
		now.VolumeName = ""
	}
	if was.StorageClassName == nil {
		now.StorageClassName = nil
	}
	size, oldSize := now.Resources.Requests[corev1.ResourceStorage], was.Resources.Requests[corev1.ResourceStorage]
	if old.Status.Phase == corev1.ClaimBound && now.Resources.Requests != nil {
		now.Resources.Requests[corev1.ResourceStorage] = oldSize
		have := old.Status.Capacity[corev1.ResourceStorage]
		if size.Cmp(oldSize) < 0 && size.Cmp(have) <= 0 {
			errs = append(errs, field.Forbidden(field.NewPath("spec", "resources", "requests").Key(string(corev1.ResourceStorage)), "field can not be less than status.capacity, "+have.String()+": a volume cannot shrink"))
		}
	}
	return append(errs, fixedFields(*now, *was, "spec", "spec is immutable after creation except resources.requests for bound claims")...)
}

// boundTo returns the size and the access modes of the volume that pvc has, "" if
// it has none yet.
func boundTo(pvc *corev1.PersistentVolumeClaim) (capacity, modes string) {
	if pvc.Spec.VolumeName == "" {
		return "", ""
	}
	q := pvc.Status.Capacity[corev1.ResourceStorage]
	return q.String(), accessModesText(pvc.Status.AccessModes)
}

func (d *describer) claim(pvc *corev1.PersistentVolumeClaim, pods []*corev1.Pod) {
	d.line(0, "Name:", pvc.Name)
	d.line(0, "Namespace:", pvc.Namespace)
	d.line(0, "StorageClass:", deref(pvc.Spec.StorageClassName))
	d.statusLine(pvc, string(pvc.Status.Phase))
	d.line(0, "Volume:", pvc.Spec.VolumeName)
	d.labels(pvc)
	capacity, modes := boundTo(pvc)
	d.line(0, "Capacity:", capacity)
	d.line(0, "Access Modes:", modes)
	d.line(0, "VolumeMode:", string(deref(pvc.Spec.VolumeMode)))
	var users []string
	for _, pod := range pods {
		if pod.Namespace == pvc.Namespace && slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
			return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == pvc.Name
		}) {
			users = append(users, pod.Name)
		}
	}
	d.list(0, "Used By:", users)
	if len(pvc.Status.Conditions) > 0 {
		d.line(0, "Conditions:")
		d.line(1, "Type", "Status", "LastTransitionTime", "Reason", "Message")
		d.line(1, "----", "------", "------------------", "------", "-------")
		for _, c := range pvc.Status.Conditions {
			d.line(1, string(c.Type), string(c.Status), d.time(c.LastTransitionTime), c.Reason, c.Message)
		}
	}
}
