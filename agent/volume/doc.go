// Package volume makes the volumes of a node's pods: directories, memory, what
// ConfigMaps, Secrets and the downward API show, paths of the node, and local
// claims.
//
// Everything lies below one directory, a pod's below its uid:
//
//	UID/volumes/NAME        what the volume holds
//	UID/subpaths/CONTAINER/N  the part of a volume that mount N of a container is
//	claims/NAME/            the data of a local PersistentVolume (see claim.go)
//
// [Manager.SetUp] makes what is missing and brings up to date what shows other
// objects. It decides by what it finds, so a repetition, or one after a crash or a
// reboot, does what is left to do. [Manager.TearDown] unmounts all below a pod's
// directory before it removes a single file: removing must never reach through a
// mount.
package volume
