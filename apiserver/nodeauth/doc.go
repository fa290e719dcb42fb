// Package nodeauth decides what a node may see and write: what is its own, and
// nothing else. It is Kubernetes' node authorizer and NodeRestriction as pure
// functions of one state, so that a request is judged by the very snapshot that it
// is answered from, or written on.
//
// # What is a node's
//
// A [Graph] leads from a node to its pods, and from these to what they name:
// Secrets, ConfigMaps, claims and the volumes behind these, and the service accounts
// that they run as. Its Node object, its Lease in namespace kube-node-lease, and the
// local volumes that lie on it are its own as well. Of all that it may read single
// objects; of pods it may list and watch those that are bound to it; it may not list
// anything else.
//
// # What it may write
//
// The status of its Node and of its pods, its Lease, and the labels and annotations
// of its Node that are not other people's: [Graph.MayWrite]. It may delete its pods, and
// make none but mirrors of those that it runs by itself, which refer to nothing, and these
// through its agent alone.
//
// # Out of scope
//
// The agents' own protocol gives a node what it needs by construction (package
// apiserver, desired.go), and asks here for the labels that a node says it has.
package nodeauth
