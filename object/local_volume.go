package object

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Local volumes: directories of a node that claims get. Their volumes are of
// source csi with this driver; the handle names the directory.
const (
	// LocalProvisioner is the provisioner of StorageClasses whose volumes nodes make
	// on their own disks, and the driver of those volumes.
	LocalProvisioner = "local.holdfast.dev"
	// LocalVolumeFinalizer keeps a local volume until its node has removed the data.
	LocalVolumeFinalizer = "holdfast.dev/local-volume"
	// LocalVolumeNodeKey is the volume attribute that names the node.
	LocalVolumeNodeKey = "node"
	// LocalVolumeEnforceKey is a parameter of the class, and an attribute of its
	// volumes: how the size is enforced. EnforceNone (the default), EnforceEvict or EnforceLoop.
	LocalVolumeEnforceKey = "enforce"

	EnforceNone = "none" // a directory: the size is not enforced
	// EnforceEvict: a directory; a pod that has filled it beyond its size is evicted, within
	// a minute or so.
	EnforceEvict = "evict"
	EnforceLoop  = "loop" // a file system of that size in a file
)

// LocalVolumeNode returns the node that a local volume is on, "" for any other
// volume.
func LocalVolumeNode(pv *corev1.PersistentVolume) string {
	if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != LocalProvisioner {
		return ""
	}
	return pv.Spec.CSI.VolumeAttributes[LocalVolumeNodeKey]
}

// LocalVolumeToRemove reports whether the node of a local volume is to remove its
// data: it was released, is to be deleted with its claim, and has been.
func LocalVolumeToRemove(pv *corev1.PersistentVolume) bool {
	return LocalVolumeNode(pv) != "" && Deleting(pv) && slices.Contains(pv.Finalizers, LocalVolumeFinalizer) && pv.Status.Phase == corev1.VolumeReleased &&
		pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
}
