package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	apidiscoveryv2beta1 "k8s.io/api/apidiscovery/v2beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"

	"github.com/holdfast-io/holdfast/object"
)

// Discovery is built from the catalog for each request: some hundred small
// structs, and clients keep it by its ETag.

// serveDiscovery answers /api, /apis, /apis/G, /api/V and /apis/G/V.
func (h *Handler) serveDiscovery(w http.ResponseWriter, r *http.Request, catalog *object.Catalog, at path) error {
	groups := h.discovery(catalog)
	w.Header().Set("Cache-Control", "no-cache, private")
	switch at.kind {
	case pathCore, pathGroups:
		groups = slices.DeleteFunc(groups, func(g apidiscoveryv2.APIGroupDiscovery) bool { return (g.Name == "") != (at.kind == pathCore) })
		w.Header().Add("Vary", "Accept")
		if v := aggregatedVersion(r.Header.Values("Accept")); v != "" {
			return h.serveAggregated(w, r, v, groups)
		}
		if at.kind == pathCore {
			return writeJSON(w, r, typeJSON, metav1.APIVersions{
				TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"},
				ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: r.Host}},
			})
		}
		list := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{}}
		for _, group := range groups {
			list.Groups = append(list.Groups, apiGroup(group))
		}
		return writeJSON(w, r, typeJSON, list)
	case pathGroup:
		for _, group := range groups {
			if group.Name == at.group && at.group != "" {
				out := apiGroup(group)
				out.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
				return writeJSON(w, r, typeJSON, out)
			}
		}
	case pathVersion:
		for _, group := range groups {
			for _, v := range group.Versions {
				if group.Name == at.group && v.Version == at.version {
					return writeJSON(w, r, typeJSON, resourceList(group.Name, v))
				}
			}
		}
	}
	return errNoPath
}

// aggregatedVersion returns which version of aggregated discovery is wanted, ""
// if the client prefers the other form or knows no other.
func aggregatedVersion(accept []string) string {
	for _, o := range parseAccept(accept) {
		switch o.typ {
		case typeJSON, "*/*", "application/*":
			if o.params["g"] == "apidiscovery.k8s.io" && o.params["as"] == "APIGroupDiscoveryList" {
				if v := o.params["v"]; v == "v2" || v == "v2beta1" {
					return v
				}
			} else if o.params["as"] == "" {
				return ""
			}
		}
	}
	return ""
}

func (h *Handler) serveAggregated(w http.ResponseWriter, r *http.Request, v string, groups []apidiscoveryv2.APIGroupDiscovery) error {
	data, err := json.Marshal(apidiscoveryv2.APIGroupDiscoveryList{
		TypeMeta: metav1.TypeMeta{Kind: "APIGroupDiscoveryList", APIVersion: "apidiscovery.k8s.io/" + v}, Items: groups,
	})
	if err != nil {
		return err
	}
	if v == "v2beta1" {
		// The same fields in JSON; through its struct, so that this stays true.
		var list apidiscoveryv2beta1.APIGroupDiscoveryList
		if err := json.Unmarshal(data, &list); err != nil {
			return err
		}
		if data, err = json.Marshal(list); err != nil {
			return err
		}
	}
	w.Header().Set("Cache-Control", "public")
	if notModified(w, r, etagOf(data)) {
		return nil
	}
	w.Header().Set("Content-Type", typeJSON+";g=apidiscovery.k8s.io;v="+v+";as=APIGroupDiscoveryList")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(data)
	}
	return nil
}

func etagOf(data []byte) string {
	sum := sha256.Sum256(data)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// notModified sets the ETag, and answers when the client has what it stands for.
func notModified(w http.ResponseWriter, r *http.Request, etag string) bool {
	quoted := strconv.Quote(etag)
	w.Header().Set("ETag", quoted)
	for _, header := range r.Header.Values("If-None-Match") {
		for have := range strings.SplitSeq(header, ",") {
			if have = strings.TrimPrefix(strings.TrimSpace(have), "W/"); have == quoted || have == "*" {
				w.WriteHeader(http.StatusNotModified)
				return true
			}
		}
	}
	return false
}

func apiGroup(group apidiscoveryv2.APIGroupDiscovery) metav1.APIGroup {
	out := metav1.APIGroup{Name: group.Name}
	for _, v := range group.Versions {
		out.Versions = append(out.Versions, metav1.GroupVersionForDiscovery{GroupVersion: group.Name + "/" + v.Version, Version: v.Version})
	}
	out.PreferredVersion = out.Versions[0]
	return out
}

// resourceList is the older form of a version: subresources are resources there.
func resourceList(group string, v apidiscoveryv2.APIVersionDiscovery) metav1.APIResourceList {
	gv := metav1.GroupVersion{Group: group, Version: v.Version}
	list := metav1.APIResourceList{
		TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: gv.String(), APIResources: []metav1.APIResource{},
	}
	for _, r := range v.Resources {
		namespaced := r.Scope == apidiscoveryv2.ScopeNamespace
		list.APIResources = append(list.APIResources, metav1.APIResource{
			Name: r.Resource, SingularName: r.SingularResource, Namespaced: namespaced, Kind: r.ResponseKind.Kind,
			Verbs: r.Verbs, ShortNames: r.ShortNames, Categories: r.Categories,
		})
		for _, sub := range r.Subresources {
			out := metav1.APIResource{Name: r.Resource + "/" + sub.Subresource, Namespaced: namespaced, Kind: sub.ResponseKind.Kind, Verbs: sub.Verbs}
			// Named only where it is another one: so a client finds that an eviction is
			// of policy/v1.
			if sub.ResponseKind.Group != group || sub.ResponseKind.Version != v.Version {
				out.Group, out.Version = sub.ResponseKind.Group, sub.ResponseKind.Version
			}
			list.APIResources = append(list.APIResources, out)
		}
	}
	return list
}

// What can be done with objects, and with what is below them.
var (
	allVerbs     = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
	readingVerbs = []string{"get", "list", "watch"} // of Events, which the cluster records itself
	subVerbs     = []string{"get", "patch", "update"}
)

// discovery returns all groups in the catalog's order, the versions of each with
// the preferred one first.
func (h *Handler) discovery(catalog *object.Catalog) []apidiscoveryv2.APIGroupDiscovery {
	var groups groupList
	for _, r := range catalog.Versions() {
		out := apidiscoveryv2.APIResourceDiscovery{
			Resource: r.Plural, SingularResource: r.Singular, ShortNames: r.ShortNames, Categories: r.Categories,
			ResponseKind: &metav1.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind},
			Scope:        apidiscoveryv2.ScopeCluster, Verbs: allVerbs, Subresources: h.subresources(r),
		}
		if r.Namespaced {
			out.Scope = apidiscoveryv2.ScopeNamespace
		}
		if r.Kind == eventKind {
			out.Verbs = readingVerbs
		}
		groups.add(r.Group, r.Version, out)
	}
	for _, extra := range h.extras() {
		groups.add(extra.ResponseKind.Group, extra.ResponseKind.Version, extra)
	}
	for i := range groups {
		versions := groups[i].Versions
		slices.SortStableFunc(versions, func(a, b apidiscoveryv2.APIVersionDiscovery) int {
			return -version.CompareKubeAwareVersionStrings(a.Version, b.Version)
		})
		for _, v := range versions {
			slices.SortFunc(v.Resources, func(a, b apidiscoveryv2.APIResourceDiscovery) int { return strings.Compare(a.Resource, b.Resource) })
		}
	}
	return groups
}

type groupList []apidiscoveryv2.APIGroupDiscovery

func (l *groupList) add(group, v string, r apidiscoveryv2.APIResourceDiscovery) {
	i := slices.IndexFunc(*l, func(g apidiscoveryv2.APIGroupDiscovery) bool { return g.Name == group })
	if i < 0 {
		i = len(*l)
		*l = append(*l, apidiscoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: group}})
	}
	versions := &(*l)[i].Versions
	j := slices.IndexFunc(*versions, func(d apidiscoveryv2.APIVersionDiscovery) bool { return d.Version == v })
	if j < 0 {
		j = len(*versions)
		*versions = append(*versions, apidiscoveryv2.APIVersionDiscovery{Version: v, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent})
	}
	(*versions)[j].Resources = append((*versions)[j].Resources, r)
}

// subresources returns what hangs below objects of r, by name.
func (h *Handler) subresources(r object.Resource) []apidiscoveryv2.APISubresourceDiscovery {
	var out []apidiscoveryv2.APISubresourceDiscovery
	add := func(name, group, v, kind string, verbs ...string) {
		gvk := &metav1.GroupVersionKind{Group: group, Version: v, Kind: kind}
		out = append(out, apidiscoveryv2.APISubresourceDiscovery{Subresource: name, ResponseKind: gvk, AcceptedTypes: []metav1.GroupVersionKind{*gvk}, Verbs: verbs})
	}
	if r.Status {
		add("status", r.Group, r.Version, r.Kind, subVerbs...)
	}
	if r.Scale {
		add("scale", "autoscaling", "v1", "Scale", subVerbs...)
	}
	switch {
	case r.Group != "":
	case r.Plural == "pods":
		// With its group: a client that does not find policy/v1 here deletes pods
		// instead, whatever budget they have.
		add("binding", "", "v1", "Binding", "create")
		add("eviction", "policy", "v1", "Eviction", "create")
		add("log", "", "v1", "Pod", "get")
		add("ephemeralcontainers", "", "v1", "Pod", subVerbs...)
		add("resize", "", "v1", "Pod", subVerbs...)
		for name, kind := range map[string]string{"exec": "PodExecOptions", "attach": "PodAttachOptions", "portforward": "PodPortForwardOptions"} {
			if h.streams[name] != nil {
				add(name, "", "v1", kind, "create", "get")
			}
		}
	case r.Plural == "serviceaccounts":
		add("token", "authentication.k8s.io", "v1", "TokenRequest", "create")
	case r.Plural == "namespaces":
		add("finalize", "", "v1", "Namespace", "update")
	}
	slices.SortFunc(out, func(a, b apidiscoveryv2.APISubresourceDiscovery) int {
		return strings.Compare(a.Subresource, b.Subresource)
	})
	return out
}

// extras are the resources that are no kinds of objects: questions.
func (h *Handler) extras() []apidiscoveryv2.APIResourceDiscovery {
	var out []apidiscoveryv2.APIResourceDiscovery
	add := func(group, v, plural, kind string, scope apidiscoveryv2.ResourceScope, verbs ...string) {
		out = append(out, apidiscoveryv2.APIResourceDiscovery{
			Resource: plural, SingularResource: strings.ToLower(kind), Scope: scope, Verbs: verbs,
			ResponseKind: &metav1.GroupVersionKind{Group: group, Version: v, Kind: kind},
		})
	}
	add("", "v1", "bindings", "Binding", apidiscoveryv2.ScopeNamespace, "create")
	add("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", apidiscoveryv2.ScopeCluster, "create")
	add("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", apidiscoveryv2.ScopeCluster, "create")
	add("authorization.k8s.io", "v1", "localsubjectaccessreviews", "LocalSubjectAccessReview", apidiscoveryv2.ScopeNamespace, "create")
	add("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", apidiscoveryv2.ScopeCluster, "create")
	add("authorization.k8s.io", "v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview", apidiscoveryv2.ScopeCluster, "create")
	add("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", apidiscoveryv2.ScopeCluster, "create")
	if h.hasMetrics() {
		add(metricsGroup, metricsVersion, "nodes", "NodeMetrics", apidiscoveryv2.ScopeCluster, "get", "list")
		add(metricsGroup, metricsVersion, "pods", "PodMetrics", apidiscoveryv2.ScopeNamespace, "get", "list")
	}
	return out
}
