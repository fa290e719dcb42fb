// Package kubecompat proves that Kubernetes' own programs work on Holdfast as they
// are: kubectl of several versions, Helm, and an informer of client-go. Its tests start a
// cluster of three peers and run them, with transcripts of what kubectl prints in
// testdata, and again while the leader dies. It is a module of its own, so that what they need is no part
// of the product; each version of kubectl is built from a go.mod of its own, in
// kubectl/, and Helm from that in helm/. Run it with `make test-kube`.
package kubecompat
