package openapi

import (
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// pathItem is what can be done under a path, by method.
type pathItem map[string]any

type operation struct {
	Description string              `json:"description"`
	ID          string              `json:"operationId"`
	Parameters  []parameter         `json:"parameters,omitempty"`
	Body        *body               `json:"requestBody,omitempty"`
	Responses   map[string]response `json:"responses"`
	Action      string              `json:"x-kubernetes-action"`
	Kind        map[string]string   `json:"x-kubernetes-group-version-kind"`
}

type parameter struct {
	Name        string            `json:"name"`
	In          string            `json:"in"`
	Description string            `json:"description"`
	Required    bool              `json:"required,omitempty"`
	Schema      map[string]string `json:"schema"`
}

type body struct {
	Content  map[string]media `json:"content"`
	Required bool             `json:"required,omitempty"`
}

type response struct {
	Description string           `json:"description"`
	Content     map[string]media `json:"content,omitempty"`
}

type media struct {
	Schema map[string]string `json:"schema"`
}

func text(name, description string) parameter {
	return parameter{Name: name, In: "query", Description: description, Schema: map[string]string{"type": "string"}}
}

func integer(name, description string) parameter {
	return parameter{Name: name, In: "query", Description: description, Schema: map[string]string{"type": "integer"}}
}

func boolean(name, description string) parameter {
	return parameter{Name: name, In: "query", Description: description, Schema: map[string]string{"type": "boolean"}}
}

func inPath(name, description string) parameter {
	return parameter{Name: name, In: "path", Required: true, Description: description, Schema: map[string]string{"type": "string"}}
}

var (
	dryRun   = text("dryRun", `"All": everything is checked and answered as if it were done, and nothing is stored.`)
	selector = []parameter{
		text("labelSelector", "Only objects with such labels: app=web,tier!=cache."),
		text("fieldSelector", "Only objects with such fields: metadata.name=web."),
	}
	listing = append(selector[:2:2],
		integer("limit", "At most so many objects; the answer's metadata.continue goes on."),
		text("continue", "Goes on where a list with a limit ended, at the same revision."),
		text("resourceVersion", "The revision to read at, as resourceVersionMatch says, or to watch from."),
		text("resourceVersionMatch", "NotOlderThan or Exact."),
		boolean("watch", "Answer with a stream of changes."),
		boolean("allowWatchBookmarks", "The stream of changes may have bookmarks."),
		boolean("sendInitialEvents", "The stream begins with the objects that there are, and a bookmark."),
		integer("timeoutSeconds", "The longest that a stream may last."),
	)
	writing = []parameter{
		dryRun,
		text("fieldManager", "The name under which the fields that are set are owned."),
		text("fieldValidation", "What unknown fields and keys given twice are: Strict, errors; Warn, warnings; Ignore, nothing."),
	}
	patching = append(writing[:3:3], boolean("force", "Apply takes over fields that other managers own."))
	deleting = []parameter{
		dryRun,
		integer("gracePeriodSeconds", "Time to stop in. 0: at once."),
		text("propagationPolicy", "What becomes of what the object owns: Background, Foreground or Orphan."),
	}
)

// patchTypes are the media types of patches. Strategic merge patches are not for
// custom kinds.
var patchTypes = []string{
	"application/apply-patch+yaml",
	"application/json-patch+json",
	"application/merge-patch+json",
	"application/strategic-merge-patch+json",
}

// paths returns what is served of kinds, which are of one group and version.
func paths(kinds []kind) map[string]pathItem {
	all := map[string]pathItem{}
	for _, k := range kinds {
		base := "/apis/" + k.Group + "/" + k.Version
		if k.Group == "" {
			base = "/api/" + k.Version
		}
		scope := base
		var scopeParameters []parameter
		if k.Namespaced {
			scope = base + "/namespaces/{namespace}"
			scopeParameters = []parameter{inPath("namespace", "The namespace of the object.")}
			if k.can("list") {
				all[base+"/"+k.Plural] = pathItem{"get": k.operation("list", "ForAllNamespaces", k.model+"List", listing)}
			}
		}
		nameParameters := append(scopeParameters[:len(scopeParameters):len(scopeParameters)], inPath("name", "The name of the "+k.Kind+"."))
		add := func(path string, parameters []parameter, item pathItem) {
			if len(item) > 0 {
				if len(parameters) > 0 {
					item["parameters"] = parameters
				}
				all[path] = item
			}
		}
		add(scope+"/"+k.Plural, scopeParameters, k.collection())
		one := scope + "/" + k.Plural + "/{name}"
		add(one, nameParameters, k.one())
		if k.Status {
			add(one+"/status", nameParameters, k.part("Status", k.gv().WithKind(k.Kind), k.model))
		}
		if k.Scale {
			add(one+"/scale", nameParameters, k.part("Scale", scale.gvk, scale.model))
		}
		for _, sub := range k.subresources {
			op := operationOn(sub.gvk, sub.action, "create"+k.Kind+title(sub.name), sub.model, writing[:2])
			op.Body = bodyOf(sub.model)
			add(one+"/"+sub.name, nameParameters, pathItem{sub.action: op})
		}
	}
	return all
}

// collection is what can be done with all objects of the kind.
func (k kind) collection() pathItem {
	item := pathItem{}
	if k.can("list") {
		item["get"] = k.operation("list", "", k.model+"List", listing)
	}
	if k.can("create") {
		op := k.operation("post", "", k.model, writing)
		op.Body = bodyOf(k.model)
		item["post"] = op
	}
	if k.can("delete") {
		op := k.operation("deletecollection", "", modelStatus, append(listing[:5:5], deleting...))
		op.Body = bodyOf(modelDeleteOptions)
		op.Body.Required = false
		item["delete"] = op
	}
	return item
}

// one is what can be done with an object.
func (k kind) one() pathItem {
	item := pathItem{}
	if k.can("get") {
		item["get"] = k.operation("get", "", k.model, nil)
	}
	if k.can("update") {
		op := k.operation("put", "", k.model, writing)
		op.Body = bodyOf(k.model)
		item["put"] = op
		op = k.operation("patch", "", k.model, patching)
		op.Body = k.patchBody()
		item["patch"] = op
	}
	if k.can("delete") {
		op := k.operation("delete", "", modelStatus, deleting)
		op.Body = bodyOf(modelDeleteOptions)
		op.Body.Required = false
		item["delete"] = op
	}
	return item
}

// part is what can be done with an object's status or scale.
func (k kind) part(name string, gvk schema.GroupVersionKind, model string) pathItem {
	get := operationOn(gvk, "get", "read"+k.Kind+name, model, nil)
	put := operationOn(gvk, "put", "replace"+k.Kind+name, model, writing)
	put.Body = bodyOf(model)
	patch := operationOn(gvk, "patch", "patch"+k.Kind+name, model, patching)
	patch.Body = k.patchBody()
	return pathItem{"get": get, "put": put, "patch": patch}
}

// verbs are the words for actions in operations' ids.
var verbs = map[string]string{
	"deletecollection": "deleteCollection", "get": "read", "post": "create", "put": "replace",
}

func (k kind) operation(action, suffix, model string, parameters []parameter) operation {
	verb := verbs[action]
	if verb == "" {
		verb = action
	}
	return operationOn(k.gv().WithKind(k.Kind), action, verb+k.Kind+suffix, model, parameters)
}

func operationOn(gvk schema.GroupVersionKind, action, id, answer string, parameters []parameter) operation {
	return operation{
		Description: action + " " + gvk.Kind,
		ID:          id,
		Parameters:  parameters,
		Responses:   map[string]response{"200": {"OK", map[string]media{"application/json": refTo(answer)}}},
		Action:      action,
		Kind:        map[string]string{"group": gvk.Group, "kind": gvk.Kind, "version": gvk.Version},
	}
}

func bodyOf(model string) *body {
	return &body{Required: true, Content: map[string]media{"application/json": refTo(model), "application/yaml": refTo(model)}}
}

func (k kind) patchBody() *body {
	b := &body{Required: true, Content: map[string]media{}}
	for _, t := range patchTypes {
		if !k.Custom || !strings.Contains(t, "strategic") {
			b.Content[t] = refTo(modelPatch)
		}
	}
	return b
}

func refTo(model string) media {
	return media{map[string]string{"$ref": refPrefix + model}}
}

func title(word string) string { return strings.ToUpper(word[:1]) + word[1:] }
