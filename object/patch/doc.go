// Package patch computes what a patch makes of an object, and who owns its
// fields.
//
//   - [JSON], [Merge] and [Strategic] apply the three kinds of patch that change
//     an object from outside, and read the result as strictly as a manifest.
//   - [Apply] is server-side apply: the object as one of its managers wants it is
//     merged with what there is. Fields that the manager wanted before and wants
//     no more go; those that others own make conflicts.
//   - [Track] keeps metadata.managedFields for all other writes.
//
// The merging is structured-merge-diff's, by apimachinery's managedfields, along
// the schemas of package openapi: which lists are merged by key, which are
// atomic. The words of conflicts are Kubernetes', so kubectl prints what its
// users know.
//
// All functions are pure: time comes as an argument, the objects given are not
// changed (but for Track's), the work is bounded. They are safe for concurrent
// use.
package patch
