// Package kube answers Kubernetes' REST dialect, so that kubectl, Helm and
// client-go's programs work on any peer as they are.
//
// It is a translator: a path, a query and a body become a call of the handlers
// that Connect's clients use too ([Objects]), and what these answer becomes what
// Kubernetes' clients expect. It has no state but caches of documents, touches
// no store, and decides nothing about objects.
//
//   - handler.go has [Handler] and the way of a request; paths.go and query.go
//     read where it goes and what it asks for, negotiate.go in which form the
//     answer is wanted, body.go what comes with it.
//   - get.go, write.go, delete.go and watch.go are the verbs; subresources.go,
//     logs.go and reviews.go what hangs below objects and beside them.
//   - discovery.go, openapi.go and health.go describe the server.
//   - render.go, list.go and table.go write answers; status.go writes errors.
//
// Bytes of objects are passed on without decoding wherever the answer's form
// allows it: JSON as the handlers give it, protobuf as it is stored, with the
// resourceVersion added behind it.
package kube
