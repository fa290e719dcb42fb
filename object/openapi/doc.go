// Package openapi holds the OpenAPI v3 documents of everything that is served:
// what "kubectl explain" prints, what kubectl checks a manifest and makes a patch
// with, and by what server-side apply merges (package patch).
//
// The schemas of Kubernetes' API types lie embedded, made by
// internal/openapigen from k8s.io/api ("make generate"). A document is made of
// them when it is first asked for: those of its group and version that package
// object serves, with what object's table of supported fields says of each
// field, and the paths under which they are served. So the table can change
// without anything to generate. Documents of custom kinds are made of their
// CustomResourceDefinitions ([DocumentOf]).
//
// All functions are pure and safe for concurrent use.
package openapi

//go:generate go run github.com/holdfast-io/holdfast/internal/openapigen -out schemas.gz
