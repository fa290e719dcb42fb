package object

import (
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Of the sources the table has those that a plain Linux machine can mount by
// itself and CSI, by which everybody else's drivers come. The clouds' and
// vendors' own plugins have left Kubernetes too, or are about to.
var kindPersistentVolume = define(Resource{Version: "v1", Kind: "PersistentVolume", Plural: "persistentvolumes", Singular: "persistentvolume", ShortNames: []string{"pv"}, Status: true},
	func() *corev1.PersistentVolume { return new(corev1.PersistentVolume) },
	rules[*corev1.PersistentVolume]{
		supported: `
			spec.capacity
			spec.accessModes
			spec.claimRef
			spec.persistentVolumeReclaimPolicy
			spec.storageClassName
			spec.mountOptions
			spec.volumeMode
			spec.nodeAffinity
			spec.hostPath
			spec.local
			spec.nfs
			spec.csi
			status
		`,
		defaults: func(pv *corev1.PersistentVolume) {
			setIfZero(&pv.Status.Phase, corev1.VolumePending)
			setIfZero(&pv.Spec.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
			setIfNil(&pv.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
			if p := pv.Spec.HostPath; p != nil {
				setIfNil(&p.Type, corev1.HostPathUnset)
			}
		},
		validate:       validatePersistentVolume,
		validateUpdate: validatePersistentVolumeUpdate,
		selectable:     func(pv *corev1.PersistentVolume, set fields.Set) { set["name"] = pv.Name }, // as in Kubernetes
		columns:        columns("NAME", "CAPACITY", "ACCESS MODES", "RECLAIM POLICY", "STATUS", "CLAIM", "STORAGECLASS", "VOLUMEATTRIBUTESCLASS", "REASON", "AGE", "|", "VOLUMEMODE"),
		row: func(pv *corev1.PersistentVolume, now time.Time) []string {
			capacity := pv.Spec.Capacity[corev1.ResourceStorage]
			return []string{
				pv.Name, capacity.String(), accessModesText(pv.Spec.AccessModes), string(pv.Spec.PersistentVolumeReclaimPolicy), volumeStatus(pv, string(pv.Status.Phase)),
				claimText(pv), pv.Spec.StorageClassName, orUnset(deref(pv.Spec.VolumeAttributesClassName)), pv.Status.Reason, ageOf(pv, now), orUnset(string(deref(pv.Spec.VolumeMode))),
			}
		},
		describe: func(d *describer, pv *corev1.PersistentVolume, _ []Object) { d.persistentVolume(pv) },
	})

var (
	accessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadWriteOncePod}
	volumeModes = []corev1.PersistentVolumeMode{corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem}
	hostPaths   = []corev1.HostPathType{corev1.HostPathUnset, corev1.HostPathBlockDev, corev1.HostPathCharDev, corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathFileOrCreate, corev1.HostPathSocket}
)

func validatePersistentVolume(pv *corev1.PersistentVolume) field.ErrorList {
	spec, at := &pv.Spec, field.NewPath("spec")
	errs := validateAccessModes(spec.AccessModes, at.Child("accessModes"))
	capacity, ok := spec.Capacity[corev1.ResourceStorage]
	switch at := at.Child("capacity").Key(string(corev1.ResourceStorage)); {
	case !ok:
		errs = append(errs, field.Required(at, "say how large the volume is"))
	case capacity.Sign() <= 0:
		errs = append(errs, field.Invalid(at, capacity.String(), "must be greater than zero"))
	}
	for _, name := range sortedNames(spec.Capacity) {
		if name != corev1.ResourceStorage {
			errs = append(errs, field.NotSupported(at.Child("capacity").Key(string(name)), name, []corev1.ResourceName{corev1.ResourceStorage}))
		}
	}
	policies := []corev1.PersistentVolumeReclaimPolicy{corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain}
	errs = append(errs, oneOf(spec.PersistentVolumeReclaimPolicy, policies, at.Child("persistentVolumeReclaimPolicy"))...)
	errs = append(errs, oneOf(deref(spec.VolumeMode), volumeModes, at.Child("volumeMode"))...)
	if spec.StorageClassName != "" {
		errs = append(errs, dnsSubdomain(spec.StorageClassName, at.Child("storageClassName"))...)
	}
	if spec.NodeAffinity != nil {
		if spec.NodeAffinity.Required == nil {
			errs = append(errs, field.Required(at.Child("nodeAffinity", "required"), "must specify required node constraints"))
		} else {
			errs = append(errs, validateNodeSelector(spec.NodeAffinity.Required, at.Child("nodeAffinity", "required"))...)
		}
	}
	return append(errs, validateVolumeSource(pv, at)...)
}

// validateVolumeSource checks that there is one source among those of the
// table; another is refused as not supported.
func validateVolumeSource(pv *corev1.PersistentVolume, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	spec := &pv.Spec
	sources := differences(reflect.ValueOf(spec.PersistentVolumeSource), reflect.ValueOf(corev1.PersistentVolumeSource{}), "")
	if sameValue(spec.PersistentVolumeSource, corev1.PersistentVolumeSource{}) {
		errs = append(errs, field.Required(at, "must specify a volume type: csi, hostPath, local or nfs"))
	}
	for _, name := range sources[min(1, len(sources)):] {
		errs = append(errs, field.Forbidden(at.Child(name), "may not specify more than 1 volume type"))
	}
	if p := spec.HostPath; p != nil {
		errs = append(errs, hostDirectory(p.Path, at.Child("hostPath", "path"))...)
		if t := deref(p.Type); !slices.Contains(hostPaths, t) {
			errs = append(errs, field.NotSupported(at.Child("hostPath", "type"), t, hostPaths))
		}
		if path.Clean(p.Path) == "/" && spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
			errs = append(errs, field.Forbidden(at.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'"))
		}
	}
	if p := spec.Local; p != nil {
		errs = append(errs, hostDirectory(p.Path, at.Child("local", "path"))...)
		if spec.NodeAffinity == nil {
			errs = append(errs, field.Required(at.Child("nodeAffinity"), "Local volume requires node affinity: say on which node it is"))
		}
	}
	if n := spec.NFS; n != nil {
		if n.Server == "" {
			errs = append(errs, field.Required(at.Child("nfs", "server"), "name the server"))
		}
		if n.Path == "" {
			errs = append(errs, field.Required(at.Child("nfs", "path"), "say what the server exports"))
		} else if !path.IsAbs(n.Path) {
			errs = append(errs, field.Invalid(at.Child("nfs", "path"), n.Path, "must be an absolute path"))
		}
	}
	if c := spec.CSI; c != nil {
		errs = append(errs, validateCSI(c, at.Child("csi"))...)
	}
	return errs
}

func hostDirectory(dir string, at *field.Path) field.ErrorList {
	switch {
	case dir == "":
		return field.ErrorList{field.Required(at, "say which path on the node")}
	case slices.Contains(strings.Split(dir, "/"), ".."):
		return field.ErrorList{field.Invalid(at, dir, "must not contain '..'")}
	}
	return nil
}

func validateCSI(c *corev1.CSIPersistentVolumeSource, at *field.Path) field.ErrorList {
	const longest = 63
	var errs field.ErrorList
	switch at := at.Child("driver"); {
	case c.Driver == "":
		errs = append(errs, field.Required(at, "name the driver"))
	case len(c.Driver) > longest:
		errs = append(errs, field.TooLong(at, c.Driver, longest))
	default:
		errs = append(errs, invalid(at, c.Driver, validation.IsDNS1123Subdomain(strings.ToLower(c.Driver)))...)
	}
	if c.VolumeHandle == "" {
		errs = append(errs, field.Required(at.Child("volumeHandle"), "say by which name the driver knows the volume"))
	}
	for _, ref := range []struct {
		name string
		ref  *corev1.SecretReference
	}{
		{"controllerPublishSecretRef", c.ControllerPublishSecretRef},
		{"nodeStageSecretRef", c.NodeStageSecretRef},
		{"nodePublishSecretRef", c.NodePublishSecretRef},
		{"controllerExpandSecretRef", c.ControllerExpandSecretRef},
		{"nodeExpandSecretRef", c.NodeExpandSecretRef},
	} {
		if ref.ref == nil {
			continue
		}
		errs = append(errs, requiredSubdomain(ref.ref.Name, "name the Secret", at.Child(ref.name, "name"))...)
		if ns := ref.ref.Namespace; ns == "" {
			errs = append(errs, field.Required(at.Child(ref.name, "namespace"), "say in which namespace the Secret is"))
		} else {
			errs = append(errs, invalid(at.Child(ref.name, "namespace"), ns, validation.IsDNS1123Label(ns))...)
		}
	}
	return errs
}

func validateAccessModes(modes []corev1.PersistentVolumeAccessMode, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(modes) == 0 {
		errs = append(errs, field.Required(at, "at least 1 access mode is required"))
	}
	for i, mode := range modes {
		errs = append(errs, oneOf(mode, accessModes, at.Index(i))...)
	}
	if len(modes) > 1 && slices.Contains(modes, corev1.ReadWriteOncePod) {
		errs = append(errs, field.Forbidden(at, "may not use ReadWriteOncePod with other access modes"))
	}
	return errs
}

func validatePersistentVolumeUpdate(pv, old *corev1.PersistentVolume) field.ErrorList {
	var errs field.ErrorList
	now, at := pv.Spec.PersistentVolumeSource.DeepCopy(), field.NewPath("spec")
	if was := old.Spec.CSI; was != nil && was.ControllerExpandSecretRef == nil && now.CSI != nil {
		now.CSI.ControllerExpandSecretRef = nil // may be set once
	}
	errs = append(errs, fixedFields(*now, old.Spec.PersistentVolumeSource, "spec", "the source of a PersistentVolume is immutable after creation: make another volume")...)
	if !sameValue(pv.Spec.VolumeMode, old.Spec.VolumeMode) {
		errs = append(errs, immutable(at.Child("volumeMode"), deref(pv.Spec.VolumeMode)))
	}
	if old.Spec.NodeAffinity != nil && !sameValue(pv.Spec.NodeAffinity, old.Spec.NodeAffinity) {
		errs = append(errs, immutable(at.Child("nodeAffinity"), field.OmitValueType{}))
	}
	return errs
}

// accessModesText writes access modes short: "RWO,ROX".
func accessModesText(modes []corev1.PersistentVolumeAccessMode) string {
	var words []string
	for _, m := range []struct {
		mode corev1.PersistentVolumeAccessMode
		word string
	}{{corev1.ReadWriteOnce, "RWO"}, {corev1.ReadOnlyMany, "ROX"}, {corev1.ReadWriteMany, "RWX"}, {corev1.ReadWriteOncePod, "RWOP"}} {
		if slices.Contains(modes, m.mode) {
			words = append(words, m.word)
		}
	}
	return strings.Join(words, ",")
}

func volumeStatus(obj Object, phase string) string {
	if Deleting(obj) {
		return "Terminating"
	}
	return phase
}

func claimText(pv *corev1.PersistentVolume) string {
	if ref := pv.Spec.ClaimRef; ref != nil {
		return ref.Namespace + "/" + ref.Name
	}
	return ""
}

// statusLine writes a volume's or claim's phase, and since when it is going.
func (d *describer) statusLine(obj Object, phase string) {
	if t := obj.GetDeletionTimestamp(); t != nil {
		phase = fmt.Sprintf("Terminating (lasts %s)", since(t.Time, d.now))
	}
	d.line(0, "Status:", phase)
}

func (d *describer) persistentVolume(pv *corev1.PersistentVolume) {
	d.meta(pv)
	spec := &pv.Spec
	d.line(0, "StorageClass:", spec.StorageClassName)
	d.statusLine(pv, string(pv.Status.Phase))
	d.line(0, "Claim:", claimText(pv))
	d.line(0, "Reclaim Policy:", string(spec.PersistentVolumeReclaimPolicy))
	d.line(0, "Access Modes:", accessModesText(spec.AccessModes))
	d.line(0, "VolumeMode:", string(deref(spec.VolumeMode)))
	capacity := spec.Capacity[corev1.ResourceStorage]
	d.line(0, "Capacity:", capacity.String())
	d.volumeNodes(spec.NodeAffinity)
	d.line(0, "Message:", pv.Status.Message)
	d.line(0, "Source:")
	fields := func(pairs ...string) {
		for i := 0; i < len(pairs); i += 2 {
			d.line(1, pairs[i], pairs[i+1])
		}
	}
	switch {
	case spec.HostPath != nil:
		fields("Type:", "HostPath (bare host directory volume)", "Path:", spec.HostPath.Path, "HostPathType:", string(deref(spec.HostPath.Type)))
	case spec.Local != nil:
		fields("Type:", "LocalVolume (a persistent volume backed by local storage on a node)", "Path:", spec.Local.Path)
	case spec.NFS != nil:
		fields("Type:", "NFS (an NFS mount that lasts the lifetime of a pod)", "Server:", spec.NFS.Server, "Path:", spec.NFS.Path, "ReadOnly:", fmt.Sprint(spec.NFS.ReadOnly))
	case spec.CSI != nil:
		fields("Type:", "CSI (a Container Storage Interface (CSI) volume source)", "Driver:", spec.CSI.Driver, "FSType:", spec.CSI.FSType, "VolumeHandle:", spec.CSI.VolumeHandle, "ReadOnly:", fmt.Sprint(spec.CSI.ReadOnly))
		var attributes []string
		for _, key := range sortedNames(spec.CSI.VolumeAttributes) {
			attributes = append(attributes, key+"="+spec.CSI.VolumeAttributes[key])
		}
		d.list(1, "VolumeAttributes:", attributes)
	default:
		d.line(1, "<unknown>")
	}
}

func (d *describer) volumeNodes(affinity *corev1.VolumeNodeAffinity) {
	if affinity == nil || affinity.Required == nil {
		d.line(0, "Node Affinity:", "<none>")
		return
	}
	d.line(0, "Node Affinity:")
	d.line(1, "Required Terms:")
	for i, term := range affinity.Required.NodeSelectorTerms {
		var parts []string
		for _, req := range append(slices.Clone(term.MatchExpressions), term.MatchFields...) {
			text := req.Key + " " + strings.ToLower(string(req.Operator))
			if len(req.Values) > 0 {
				text += " [" + strings.Join(req.Values, ", ") + "]"
			}
			parts = append(parts, text)
		}
		d.list(2, fmt.Sprintf("Term %d:", i), parts)
	}
}
