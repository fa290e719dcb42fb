package netstate

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Name is an object's namespace and name.
type Name = types.NamespacedName

// State is what a node knows of the cluster's network at a revision. Nothing that
// it leads to may be changed: use [State.With].
type State struct {
	// Revision is the store's, at which all of this was true.
	Revision int64
	// Hash is of the keys and revisions of all objects that peers tell every node: the
	// same on all nodes at a revision.
	Hash uint64
	// Node is this node. Zone is its label topology.kubernetes.io/zone, "" without.
	// Ingress says that it is one of the nodes that serve Ingresses.
	Node, Zone string
	Ingress    bool
	// Config is the same on all nodes.
	Config Config

	Services map[Name]*corev1.Service
	// Slices are the endpoint slices by the service they belong to, each list
	// ordered by name. A service may be missing.
	Slices map[Name][]*discoveryv1.EndpointSlice

	Ingresses      map[Name]*networkingv1.Ingress
	IngressClasses map[string]*networkingv1.IngressClass
	// Secrets are those that the Ingresses' tls sections name. Empty on a node that
	// does not serve Ingresses.
	Secrets map[Name]*corev1.Secret

	Policies map[Name]*networkingv1.NetworkPolicy
	// Namespaces and Pods are what policies select by. Pods are those of all nodes that
	// policies of this node's pods ask about.
	Namespaces map[string]*corev1.Namespace
	Pods       map[Name]*Pod
	// Local are this node's own pods by uid, as the agent knows them: before any peer
	// does, and without addresses, which the node gives.
	Local map[string]*Pod
}

// Config is what the cluster was made with.
type Config struct {
	Domain       string // of names, such as "cluster.local"
	PodCIDRs     []netip.Prefix
	ServiceCIDRs []netip.Prefix // the first is that of services' first addresses
}

// Pod is what policies ask about a pod. It is on some node, runs or may run, and
// has addresses of its own.
type Pod struct {
	Name   Name
	Labels map[string]string
	Node   string
	IPs    []netip.Addr
	Ports  []corev1.ContainerPort // only those with a name
}

// Empty is the state of a node that has been told nothing.
func Empty(node string) *State { return &State{Node: node} }

// WithNode returns s with what other says of this node, of pods, and of the cluster's
// configuration.
func (s *State) WithNode(other *State) *State {
	next := *s
	next.Node, next.Zone, next.Ingress, next.Config, next.Secrets = other.Node, other.Zone, other.Ingress, other.Config, other.Secrets
	next.Pods, next.Local = other.Pods, other.Local
	return &next
}

// WithLocal returns s with other pods of the node's own.
func (s *State) WithLocal(pods map[string]*Pod) *State {
	next := *s
	next.Local = pods
	return &next
}

// Change is one object that is new, has changed, or with Removed is gone; then
// only the name counts, and for a slice the label that names its service. Object
// is a *corev1.Service, *discoveryv1.EndpointSlice, *networkingv1.Ingress,
// *networkingv1.IngressClass, *networkingv1.NetworkPolicy, *corev1.Namespace,
// *corev1.Secret or *[Pod]. Others are passed over.
type Change struct {
	Object  any
	Removed bool
}

// With returns the state after changes, at revision. The receiver stays as it was,
// and shares with the result what has not changed.
func (s *State) With(revision int64, changes ...Change) *State {
	next := *s
	next.Revision = revision
	w := writer{}
	for _, c := range changes {
		switch o := c.Object.(type) {
		case *corev1.Service:
			set(&w, 0, &next.Services, Name{Namespace: o.Namespace, Name: o.Name}, o, c.Removed)
		case *discoveryv1.EndpointSlice:
			next.setSlice(&w, o, c.Removed)
		case *networkingv1.Ingress:
			set(&w, 2, &next.Ingresses, Name{Namespace: o.Namespace, Name: o.Name}, o, c.Removed)
		case *networkingv1.IngressClass:
			set(&w, 3, &next.IngressClasses, o.Name, o, c.Removed)
		case *corev1.Secret:
			set(&w, 4, &next.Secrets, Name{Namespace: o.Namespace, Name: o.Name}, o, c.Removed)
		case *networkingv1.NetworkPolicy:
			set(&w, 5, &next.Policies, Name{Namespace: o.Namespace, Name: o.Name}, o, c.Removed)
		case *corev1.Namespace:
			set(&w, 6, &next.Namespaces, o.Name, o, c.Removed)
		case *Pod:
			set(&w, 7, &next.Pods, o.Name, o, c.Removed)
		}
	}
	return &next
}

// writer notes which maps were copied for the new state already.
type writer [8]bool

func set[K comparable, V any](w *writer, nth int, m *map[K]V, key K, value V, removed bool) {
	if !w[nth] {
		if *m = maps.Clone(*m); *m == nil {
			*m = map[K]V{}
		}
		w[nth] = true
	}
	if removed {
		delete(*m, key)
		return
	}
	(*m)[key] = value
}

func (s *State) setSlice(w *writer, slice *discoveryv1.EndpointSlice, removed bool) {
	service := Name{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
	list := slices.DeleteFunc(slices.Clone(s.Slices[service]), func(have *discoveryv1.EndpointSlice) bool { return have.Name == slice.Name })
	if !removed {
		list = append(list, slice)
		slices.SortFunc(list, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	}
	set(w, 1, &s.Slices, service, list, len(list) == 0)
}

// Headless says that a service has no address of its own: its name leads to its
// endpoints.
func Headless(svc *corev1.Service) bool { return svc.Spec.ClusterIP == corev1.ClusterIPNone }

// ClusterIPs are a service's own addresses: none if it is headless, has none yet,
// or is an ExternalName.
func ClusterIPs(svc *corev1.Service) []netip.Addr {
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	all := svc.Spec.ClusterIPs
	if len(all) == 0 {
		all = []string{svc.Spec.ClusterIP}
	}
	var ips []netip.Addr
	for _, text := range all {
		if ip, err := netip.ParseAddr(text); err == nil { // "None" and "" are none
			ips = append(ips, ip)
		}
	}
	return ips
}
