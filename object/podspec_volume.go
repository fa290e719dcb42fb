package object

import (
	"path"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// neverVolumes are sources of volumes that Holdfast will not have, with what to
// use in their place. Kubernetes has given most of them up for CSI drivers.
var neverVolumes = func() map[string]string {
	const (
		claim = "use persistentVolumeClaim"
		clone = "use emptyDir and an init container that clones the repository"
	)
	never := map[string]string{"gitRepo": clone}
	for _, name := range strings.Fields("awsElasticBlockStore azureDisk azureFile cephfs cinder fc flexVolume flocker gcePersistentDisk " +
		"glusterfs photonPersistentDisk portworxVolume quobyte rbd scaleIO storageos vsphereVolume") {
		never[name] = claim
	}
	return never
}()

// validateVolumes checks the pod's volumes and remembers them for the mounts.
func (s *podScope) validateVolumes(at *field.Path) field.ErrorList {
	var errs field.ErrorList
	s.volumes = map[string]*corev1.Volume{}
	for i := range s.spec.Volumes {
		v, at := &s.spec.Volumes[i], at.Index(i)
		switch {
		case v.Name == "":
			errs = append(errs, field.Required(at.Child("name"), "give the volume a name"))
		case s.volumes[v.Name] != nil:
			errs = append(errs, field.Duplicate(at.Child("name"), v.Name))
		default:
			errs = append(errs, invalid(at.Child("name"), v.Name, validation.IsDNS1123Label(v.Name))...)
			s.volumes[v.Name] = v // also with a wrong name, or every mount would be wrong too
		}
		errs = append(errs, s.validateVolume(v, at)...)
	}
	return errs
}

// volumeSources returns the names of the sources that v has, in the order of
// the API.
func volumeSources(v *corev1.Volume) []string {
	var names []string
	value := reflect.ValueOf(v.VolumeSource)
	info := infoOf(value.Type())
	for _, name := range info.names {
		if !value.FieldByIndex(info.fields[name]).IsNil() {
			names = append(names, name)
		}
	}
	return names
}

func (s *podScope) validateVolume(v *corev1.Volume, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch sources := volumeSources(v); len(sources) {
	case 0:
		return field.ErrorList{field.Required(at, "must specify a volume type, for example emptyDir")}
	case 1:
		if use, never := neverVolumes[sources[0]]; never {
			return field.ErrorList{field.Forbidden(at.Child(sources[0]), "Holdfast has no volumes of this type: "+use)}
		}
	default:
		for _, extra := range sources[1:] {
			errs = append(errs, field.Forbidden(at.Child(extra), "may not specify more than 1 volume type: it is "+sources[0]+" already"))
		}
	}
	required := func(value, child, what string, at *field.Path) {
		if value == "" {
			errs = append(errs, field.Required(at.Child(child), what))
		}
	}
	switch at, src := at, v.VolumeSource; {
	case src.EmptyDir != nil:
		at := at.Child("emptyDir")
		if limit := src.EmptyDir.SizeLimit; limit != nil && limit.Sign() < 0 {
			errs = append(errs, field.Invalid(at.Child("sizeLimit"), limit.String(), apivalidation.IsNegativeErrorMsg))
		}
		if m := src.EmptyDir.Medium; m != "" && m != corev1.StorageMediumMemory && m != corev1.StorageMediumHugePages && !strings.HasPrefix(string(m), string(corev1.StorageMediumHugePagesPrefix)) {
			errs = append(errs, field.NotSupported(at.Child("medium"), m, []corev1.StorageMedium{"", corev1.StorageMediumMemory, corev1.StorageMediumHugePages}))
		}
		if mode := src.EmptyDir.Mode; mode != nil && (*mode < 0 || *mode > 0o1777) {
			errs = append(errs, field.Invalid(at.Child("mode"), *mode, "must be a number between 0 and 01777 (octal), both inclusive"))
		}
	case src.HostPath != nil:
		at := at.Child("hostPath")
		required(src.HostPath.Path, "path", "say which path of the node", at)
		errs = append(errs, noBacksteps(src.HostPath.Path, at.Child("path"))...)
		if t := src.HostPath.Type; t != nil {
			kinds := []corev1.HostPathType{
				corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory, corev1.HostPathFileOrCreate,
				corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev,
			}
			if !slices.Contains(kinds, *t) {
				errs = append(errs, field.NotSupported(at.Child("type"), *t, kinds[1:]))
			}
		}
	case src.Secret != nil:
		at := at.Child("secret")
		required(src.Secret.SecretName, "secretName", "name the secret", at)
		errs = append(errs, fileMode(src.Secret.DefaultMode, at.Child("defaultMode"))...)
		errs = append(errs, validateItems(src.Secret.Items, at.Child("items"))...)
	case src.ConfigMap != nil:
		at := at.Child("configMap")
		required(src.ConfigMap.Name, "name", "name the config map", at)
		errs = append(errs, fileMode(src.ConfigMap.DefaultMode, at.Child("defaultMode"))...)
		errs = append(errs, validateItems(src.ConfigMap.Items, at.Child("items"))...)
	case src.DownwardAPI != nil:
		at := at.Child("downwardAPI")
		errs = append(errs, fileMode(src.DownwardAPI.DefaultMode, at.Child("defaultMode"))...)
		errs = append(errs, s.validateDownwardFiles(src.DownwardAPI.Items, at.Child("items"))...)
	case src.Projected != nil:
		errs = append(errs, s.validateProjected(src.Projected, at.Child("projected"))...)
	case src.PersistentVolumeClaim != nil:
		required(src.PersistentVolumeClaim.ClaimName, "claimName", "name the claim", at.Child("persistentVolumeClaim"))
	case src.Ephemeral != nil:
		errs = append(errs, s.validateEphemeralVolume(v, at)...)
	case src.NFS != nil:
		at := at.Child("nfs")
		required(src.NFS.Server, "server", "name the server", at)
		required(src.NFS.Path, "path", "say which path the server exports", at)
		if src.NFS.Path != "" && !path.IsAbs(src.NFS.Path) {
			errs = append(errs, field.Invalid(at.Child("path"), src.NFS.Path, "must be an absolute path"))
		}
	case src.ISCSI != nil:
		at := at.Child("iscsi")
		required(src.ISCSI.TargetPortal, "targetPortal", "name the target's address", at)
		required(src.ISCSI.IQN, "iqn", "name the target", at)
		if iqn := src.ISCSI.IQN; iqn != "" && !strings.HasPrefix(iqn, "iqn.") && !strings.HasPrefix(iqn, "eui.") && !strings.HasPrefix(iqn, "naa.") {
			errs = append(errs, field.Invalid(at.Child("iqn"), iqn, "must be valid format starting with iqn, eui, or naa"))
		}
		if lun := src.ISCSI.Lun; lun < 0 || lun > 255 {
			errs = append(errs, field.Invalid(at.Child("lun"), lun, validation.InclusiveRangeError(0, 255)))
		}
		if (src.ISCSI.DiscoveryCHAPAuth || src.ISCSI.SessionCHAPAuth) && src.ISCSI.SecretRef == nil {
			errs = append(errs, field.Required(at.Child("secretRef"), "name the secret with the CHAP credentials"))
		}
	case src.CSI != nil:
		at := at.Child("csi")
		if src.CSI.Driver == "" {
			required("", "driver", "name the driver", at)
		} else {
			errs = append(errs, invalid(at.Child("driver"), src.CSI.Driver, validation.IsDNS1123Subdomain(strings.ToLower(src.CSI.Driver)))...)
		}
		if ref := src.CSI.NodePublishSecretRef; ref != nil {
			required(ref.Name, "name", "name the secret", at.Child("nodePublishSecretRef"))
		}
	case src.Image != nil:
		at := at.Child("image")
		errs = append(errs, validateImage(src.Image.Reference, at.Child("reference"))...)
		errs = append(errs, oneOf(src.Image.PullPolicy, pullPolicies, at.Child("pullPolicy"))...)
	}
	return errs
}

// validateEphemeralVolume checks a volume whose claim comes and goes with the
// pod, and is named after both.
func (s *podScope) validateEphemeralVolume(v *corev1.Volume, at *field.Path) field.ErrorList {
	at = at.Child("ephemeral", "volumeClaimTemplate")
	t := v.Ephemeral.VolumeClaimTemplate
	if t == nil {
		return field.ErrorList{field.Required(at, "describe the claim to make")}
	}
	errs := validateLabels(t.Labels, at.Child("metadata", "labels"))
	errs = append(errs, validateAnnotations(t.Annotations, at.Child("metadata", "annotations"))...)
	errs = append(errs, validateClaimSpec(&t.Spec, at.Child("spec"))...)
	if s.pod != nil && s.pod.Name != "" && v.Name != "" {
		name := s.pod.Name + "-" + v.Name
		for _, msg := range apivalidation.NameIsDNSSubdomain(name, false) {
			errs = append(errs, field.Invalid(at, name, "the name of its claim: "+msg))
		}
	}
	return errs
}

func (s *podScope) validateProjected(p *corev1.ProjectedVolumeSource, at *field.Path) field.ErrorList {
	errs := fileMode(p.DefaultMode, at.Child("defaultMode"))
	taken := map[string]bool{}
	file := func(name string, at *field.Path) {
		if taken[name] && name != "" {
			errs = append(errs, field.Invalid(at, name, "conflicting duplicate paths"))
		}
		taken[name] = true
	}
	for i := range p.Sources {
		src, at := &p.Sources[i], at.Child("sources").Index(i)
		switch n := countSet(src.Secret != nil, src.ConfigMap != nil, src.DownwardAPI != nil, src.ServiceAccountToken != nil, src.ClusterTrustBundle != nil, src.PodCertificate != nil); {
		case n == 0:
			errs = append(errs, field.Required(at, "say what to project: secret, configMap, downwardAPI or serviceAccountToken"))
		case n > 1:
			errs = append(errs, field.Forbidden(at, "may not specify more than 1 volume type per source"))
		}
		items := func(name, what string, list []corev1.KeyToPath, at *field.Path) {
			if name == "" {
				errs = append(errs, field.Required(at.Child("name"), "name the "+what))
			}
			errs = append(errs, validateItems(list, at.Child("items"))...)
			for i := range list {
				file(list[i].Path, at.Child("items").Index(i).Child("path"))
			}
		}
		if src.Secret != nil {
			items(src.Secret.Name, "secret", src.Secret.Items, at.Child("secret"))
		}
		if src.ConfigMap != nil {
			items(src.ConfigMap.Name, "config map", src.ConfigMap.Items, at.Child("configMap"))
		}
		if src.DownwardAPI != nil {
			at := at.Child("downwardAPI", "items")
			errs = append(errs, s.validateDownwardFiles(src.DownwardAPI.Items, at)...)
			for i := range src.DownwardAPI.Items {
				file(src.DownwardAPI.Items[i].Path, at.Index(i).Child("path"))
			}
		}
		if token := src.ServiceAccountToken; token != nil {
			at := at.Child("serviceAccountToken")
			if s.pod != nil && s.spec.ServiceAccountName == "" {
				errs = append(errs, field.Forbidden(at, "must not be specified when serviceAccountName is not set"))
			}
			if e := token.ExpirationSeconds; e != nil && *e < 600 {
				errs = append(errs, field.Invalid(at.Child("expirationSeconds"), *e, "may not specify a duration less than 10 minutes"))
			} else if e != nil && *e > 1<<32 {
				errs = append(errs, field.Invalid(at.Child("expirationSeconds"), *e, "may not specify a duration larger than 2^32 seconds"))
			}
			if token.Path == "" {
				errs = append(errs, field.Required(at.Child("path"), "say how the token's file is called"))
			}
			errs = append(errs, localPath(token.Path, at.Child("path"))...)
			file(token.Path, at.Child("path"))
		}
	}
	return errs
}

func (s *podScope) validateDownwardFiles(files []corev1.DownwardAPIVolumeFile, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range files {
		f, at := &files[i], at.Index(i)
		if f.Path == "" {
			errs = append(errs, field.Required(at.Child("path"), "say how the file is called"))
		}
		errs = append(errs, localPath(f.Path, at.Child("path"))...)
		switch {
		case f.FieldRef == nil && f.ResourceFieldRef == nil:
			errs = append(errs, field.Required(at, "one of fieldRef and resourceFieldRef is required"))
		case f.FieldRef != nil && f.ResourceFieldRef != nil:
			errs = append(errs, field.Invalid(at, field.OmitValueType{}, "fieldRef and resourceFieldRef can not be specified simultaneously"))
		}
		if f.FieldRef != nil {
			errs = append(errs, validateFieldRef(f.FieldRef, volumeFields, at.Child("fieldRef"))...)
		}
		if f.ResourceFieldRef != nil {
			errs = append(errs, s.validateResourceFieldRef(f.ResourceFieldRef, true, at.Child("resourceFieldRef"))...)
		}
		errs = append(errs, fileMode(f.Mode, at.Child("mode"))...)
	}
	return errs
}

func validateItems(items []corev1.KeyToPath, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, item := range items {
		at := at.Index(i)
		if item.Key == "" {
			errs = append(errs, field.Required(at.Child("key"), "say which key"))
		}
		if item.Path == "" {
			errs = append(errs, field.Required(at.Child("path"), "say how the key's file is called"))
		}
		errs = append(errs, localPath(item.Path, at.Child("path"))...)
		errs = append(errs, fileMode(item.Mode, at.Child("mode"))...)
	}
	return errs
}

func fileMode(mode *int32, at *field.Path) field.ErrorList {
	if mode == nil || *mode >= 0 && *mode <= 0o777 {
		return nil
	}
	return field.ErrorList{field.Invalid(at, *mode, "must be a number between 0 and 0777 (octal), both inclusive")}
}

// localPath checks a path inside a volume whose files Holdfast writes: names
// that begin with two dots are its own.
func localPath(name string, at *field.Path) field.ErrorList {
	errs := descendingPath(name, at)
	if len(errs) == 0 && strings.HasPrefix(name, "..") {
		errs = append(errs, field.Invalid(at, name, "must not start with '..'"))
	}
	return errs
}

// descendingPath checks a path that must stay inside of something.
func descendingPath(name string, at *field.Path) field.ErrorList {
	if path.IsAbs(name) {
		return field.ErrorList{field.Invalid(at, name, "must be a relative path")}
	}
	return noBacksteps(name, at)
}

func noBacksteps(name string, at *field.Path) field.ErrorList {
	if slices.Contains(strings.Split(name, "/"), "..") {
		return field.ErrorList{field.Invalid(at, name, "must not contain '..'")}
	}
	return nil
}

// validateMounts checks what a container mounts, as files and as devices.
func (s *podScope) validateMounts(c *corev1.Container, kind containerKind, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	where, devices := map[string]string{}, map[string]bool{} // path -> what stands there; names
	take := func(target, what string, at *field.Path) {
		switch before, taken := where[target]; {
		case target == "":
			errs = append(errs, field.Required(at, "say where in the container"))
		case taken && before == what:
			errs = append(errs, field.Invalid(at, target, "must be unique"))
		case taken:
			errs = append(errs, field.Invalid(at, target, "must not already exist as a path in "+before))
		default:
			where[target] = what
		}
	}
	volume := func(name string, at *field.Path) *corev1.Volume {
		v := s.volumes[name]
		switch {
		case name == "":
			errs = append(errs, field.Required(at, "name one of the pod's volumes"))
		case v == nil:
			err := field.NotFound(at, name)
			err.Detail = "the pod has no volume of that name"
			errs = append(errs, err)
		}
		return v
	}
	for i, d := range c.VolumeDevices {
		at := at.Child("volumeDevices").Index(i)
		if v := volume(d.Name, at.Child("name")); v != nil && v.PersistentVolumeClaim == nil && v.Ephemeral == nil {
			errs = append(errs, field.Invalid(at.Child("name"), d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"))
		}
		if devices[d.Name] {
			errs = append(errs, field.Invalid(at.Child("name"), d.Name, "must be unique"))
		}
		devices[d.Name] = true
		take(d.DevicePath, "volumeDevices", at.Child("devicePath"))
		errs = append(errs, noBacksteps(d.DevicePath, at.Child("devicePath"))...)
	}
	for i := range c.VolumeMounts {
		m, at := &c.VolumeMounts[i], at.Child("volumeMounts").Index(i)
		v := volume(m.Name, at.Child("name"))
		if devices[m.Name] {
			errs = append(errs, field.Invalid(at.Child("name"), m.Name, "must not already exist in volumeDevices"))
		}
		take(m.MountPath, "volumeMounts", at.Child("mountPath"))
		errs = append(errs, validateSubPath(m, v, kind, at)...)
		errs = append(errs, validatePropagation(m, c, at)...)
	}
	return errs
}

func validateSubPath(m *corev1.VolumeMount, v *corev1.Volume, kind containerKind, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, sub := range []struct{ name, path string }{{"subPath", m.SubPath}, {"subPathExpr", m.SubPathExpr}} {
		if sub.path == "" {
			continue
		}
		at := at.Child(sub.name)
		errs = append(errs, descendingPath(sub.path, at)...)
		if kind == ephemeralContainer {
			errs = append(errs, field.Forbidden(at, "cannot be set for an Ephemeral Container"))
		}
		if v != nil && v.Image != nil && sub.name == "subPathExpr" {
			errs = append(errs, field.Invalid(at, sub.path, "not allowed in image volume sources"))
		}
	}
	if m.SubPath != "" && m.SubPathExpr != "" {
		errs = append(errs, field.Invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive"))
	}
	return errs
}

func validatePropagation(m *corev1.VolumeMount, c *corev1.Container, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if p := m.MountPropagation; p != nil {
		at := at.Child("mountPropagation")
		errs = append(errs, oneOf(*p, []corev1.MountPropagationMode{corev1.MountPropagationNone, corev1.MountPropagationHostToContainer, corev1.MountPropagationBidirectional}, at)...)
		if *p == corev1.MountPropagationBidirectional && !isPrivileged(c) {
			errs = append(errs, field.Forbidden(at, "Bidirectional mount propagation is available only to privileged containers"))
		}
	}
	if r := m.RecursiveReadOnly; r != nil {
		at := at.Child("recursiveReadOnly")
		errs = append(errs, oneOf(*r, []corev1.RecursiveReadOnlyMode{corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyIfPossible, corev1.RecursiveReadOnlyEnabled}, at)...)
		if *r != corev1.RecursiveReadOnlyDisabled {
			if !m.ReadOnly {
				errs = append(errs, field.Forbidden(at, "may only be specified when readOnly is true"))
			}
			if p := m.MountPropagation; p != nil && *p != corev1.MountPropagationNone {
				errs = append(errs, field.Forbidden(at, "may only be specified when mountPropagation is None or not specified"))
			}
		}
	}
	return errs
}

func isPrivileged(c *corev1.Container) bool {
	return c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
}
