// Package object holds Kubernetes' kinds as Holdfast uses them: what they are
// called, where they are kept, how they are read and written, what their
// defaults are, when they are wrong, and how a person sees them.
//
// The kinds are Kubernetes' own Go structs (k8s.io/api, k8s.io/apimachinery),
// so a manifest for Kubernetes is a manifest for Holdfast.
//
// # The way of an object
//
//   - [ParseManifests] reads what people write: YAML or JSON, several documents,
//     strictly, and reports every fault of every document with its line.
//   - [Default] fills in what Kubernetes documents as defaults, [Validate] and
//     [ValidateUpdate] find what is wrong. A field that has no behavior in
//     Holdfast yet is refused by name: one table, in supported.go, says which
//     have.
//   - [Catalog] knows the kinds: the built-in ones, and custom ones by their
//     CustomResourceDefinitions. [Convert] leads from one version to another.
//   - [Encode] gives the form that is stored and sent: Kubernetes' protobuf
//     envelope, without the resourceVersion, which is the store's revision.
//     [Decode] reads it back.
//   - [Get] and [List] read typed objects out of anything that holds encoded
//     ones by key, such as a view of the store.
//   - [Print] and [Describe] write tables and texts for people.
//
// # Purity
//
// Every function here is pure: no I/O, no clock, no randomness; whoever needs
// the time passes it. All of them are safe for concurrent use as long as nobody
// changes an object that another goroutine reads. Only [Default], [MarkDeleted]
// and the Set functions change the object they are given.
package object
