// Package netstate is what one node knows of the cluster's network: services and
// their endpoints, policies, ingresses, and the ranges that addresses are from.
//
// # Model
//
// A [State] is the cluster at one revision, seen from one node. It is immutable:
// [State.With] makes the next one, which shares all that has not changed, so that
// whoever derives something from a state (packet rules, names, a proxy's
// configuration) finds what changed by comparing pointers.
//
// # Choice of endpoints
//
// [State.Route] says to which endpoints a port's connections go, by Kubernetes'
// rules: ready ones, near ones if all carry hints; while none is ready, those that
// are ending and still serve. It is the same for the packet rules and the ingress.
//
// The package is pure: no I/O, no clock, no goroutines.
package netstate
