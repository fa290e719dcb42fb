package kube

import (
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// pathKind says what a path leads to.
type pathKind int

const (
	pathCore    pathKind = iota // /api
	pathGroups                  // /apis
	pathGroup                   // /apis/apps
	pathVersion                 // /api/v1, /apis/apps/v1
	pathOpenAPI                 // /openapi/…
	pathObjects                 // /api/v1/pods, …
)

// path is a request's path, taken apart. An empty part is not there.
type path struct {
	kind              pathKind
	group, version    string
	namespace         string
	plural            string
	name, subresource string
	rest              string // /openapi/rest
}

// ofNamespace are the subresources of a namespace. Any other word in their place is
// a kind of objects in it.
var ofNamespace = map[string]bool{"status": true, "finalize": true}

// parsePath takes a path apart. It is false for what no path of Kubernetes' API
// looks like. A slash at the end is allowed, as Kubernetes' server does.
func parsePath(p string) (path, bool) {
	rest, ok := strings.CutPrefix(p, "/")
	if !ok {
		return path{}, false
	}
	parts := strings.Split(strings.TrimSuffix(rest, "/"), "/")
	for _, part := range parts {
		if part == "" || part == "." || part == ".." {
			return path{}, false
		}
	}
	var at path
	switch {
	case parts[0] == "openapi" && len(parts) > 1:
		return path{kind: pathOpenAPI, rest: strings.Join(parts[1:], "/")}, true
	case parts[0] == "api" && len(parts) == 1:
		return path{kind: pathCore}, true
	case parts[0] == "api":
		at.version, parts = parts[1], parts[2:]
	case parts[0] == "apis" && len(parts) == 1:
		return path{kind: pathGroups}, true
	case parts[0] == "apis" && len(parts) == 2:
		return path{kind: pathGroup, group: parts[1]}, true
	case parts[0] == "apis":
		at.group, at.version, parts = parts[1], parts[2], parts[3:]
	default:
		return path{}, false
	}
	if len(parts) == 0 {
		at.kind = pathVersion
		return at, true
	}
	at.kind = pathObjects
	if parts[0] == "namespaces" && len(parts) > 2 && !(at.group == "" && len(parts) == 3 && ofNamespace[parts[2]]) {
		at.namespace, parts = parts[1], parts[2:]
	}
	if len(parts) > 3 {
		return path{}, false
	}
	for i, part := range []*string{&at.plural, &at.name, &at.subresource} {
		if i < len(parts) {
			*part = parts[i]
		}
	}
	return at, true
}

func groupResource(group, resource string) schema.GroupResource {
	return schema.GroupResource{Group: group, Resource: resource}
}

func (c *call) groupResource() schema.GroupResource { return groupResource(c.at.group, c.at.plural) }
