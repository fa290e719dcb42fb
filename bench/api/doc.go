// Command api measures Holdfast's API: three peers, each a process of its own on this
// machine, the product with all that it does to a request: TLS with client
// certificates, authorization, fair queues, decoding, defaults, validation, admission,
// raft. kube-apiserver is not built here; its figures, which the results are compared
// with, were measured once on such a machine and are in kube.go.
//
// See bench/README.md for what is measured and how to read it.
package main
