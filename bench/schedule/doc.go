// Command schedule measures scheduling over the whole path: pods are created at the
// leader of three peers, each a process of its own on this machine, scheduled, and bound
// through their log; a watch at another peer says when. The nodes are pretended: their
// objects are made, and their heartbeats come as another peer relays those of its
// agents, so what a leader does for so many nodes is done.
//
// The decisions alone are measured by BenchmarkShapes of package scheduler.
// See bench/README.md for how to read the results.
package main
