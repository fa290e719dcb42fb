// Package systemtest tests the binary from outside, as its users run it: whole
// clusters in network namespaces, real containers, real kills.
package systemtest
