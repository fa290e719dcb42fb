package ingress

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/holdfast-io/holdfast/agent/netstate"
	"github.com/holdfast-io/holdfast/object"
)

const (
	// Annotations of an Ingress. Redirect "true" sends plain HTTP to HTTPS. MaxBody is
	// the most bytes of a request's body, such as "8Mi". Timeout is how long an
	// endpoint may take until its answer begins, such as "5m"; "0" is without end.
	RedirectAnnotation = "ingress.holdfast.dev/ssl-redirect"
	MaxBodyAnnotation  = "ingress.holdfast.dev/max-body-size"
	TimeoutAnnotation  = "ingress.holdfast.dev/response-timeout"
)

// Table is what a state says. It is immutable, apart from what it counts of
// endpoints, which it shares with the table before. Safe for concurrent use.
type Table struct {
	Revision int64
	// Faults are what cannot be done of what the Ingresses say, by Ingress. Requests
	// that are concerned are answered with an error.
	Faults map[netstate.Name][]string
	// Served are the Ingresses that are carried out here.
	Served map[netstate.Name]bool

	hosts     map[string]*rules // by host; "" is every host without rules of its own
	wildcards map[string]*rules // by what follows the star: ".example.com"
	fallback  *Target           // where what no rule matches goes; nil: nowhere

	certs      map[string]*tls.Certificate // as hosts
	wildCerts  map[string]*tls.Certificate
	secrets    map[*corev1.Secret]*tls.Certificate // what was read, for the next table
	endpoints  map[netip.AddrPort]*endpoint
	forAllCert *tls.Certificate // where no other fits; nil: none
}

// rules are those of one host.
type rules struct {
	exact    map[string]*Target
	prefix   map[string]*Target // without the slash at the end: "" is every path
	fallback *Target            // of an Ingress that names the host
}

// Target is where a matching request goes.
type Target struct {
	Ingress netstate.Name
	Service netstate.Name
	Port    string // of the service, by number or name
	// Protocol is what endpoints speak.
	Protocol Protocol
	// Fault says why requests cannot be passed on; "" if they can.
	Fault string

	Redirect bool          // plain HTTP is sent to HTTPS
	MaxBody  int64         // bytes; 0: any
	Timeout  time.Duration // until the answer begins; 0: any

	endpoints []*endpoint
}

// Protocol is what endpoints speak.
type Protocol int

// The protocols, as a service port's appProtocol chooses them.
const (
	HTTP  Protocol = iota // HTTP/1.1, WebSocket
	H2C                   // kubernetes.io/h2c: HTTP/2 without TLS, gRPC
	HTTPS                 // https, kubernetes.io/wss: with TLS, the certificate not verified
)

// Defaults are what an Ingress does not say.
type Defaults struct {
	MaxBody int64         // bytes of a request's body; 0: any
	Timeout time.Duration // until an endpoint's answer begins; 0: any
}

// NewTable returns the table of a state. What previous has read and counted is kept,
// as far as it is still there; it may be nil.
func NewTable(state *netstate.State, defaults Defaults, previous *Table) *Table {
	if previous == nil {
		previous = &Table{}
	}
	t := &Table{
		Revision: state.Revision, Faults: map[netstate.Name][]string{}, Served: map[netstate.Name]bool{},
		hosts: map[string]*rules{}, wildcards: map[string]*rules{},
		certs: map[string]*tls.Certificate{}, wildCerts: map[string]*tls.Certificate{},
		secrets: map[*corev1.Secret]*tls.Certificate{}, endpoints: map[netip.AddrPort]*endpoint{},
	}
	all := slices.DeleteFunc(slices.Collect(maps.Values(state.Ingresses)), func(ing *networkingv1.Ingress) bool {
		return !object.ServesIngress(ing, maps.Values(state.IngressClasses))
	})
	// The oldest has what several want, so that nobody takes it from those who have it.
	slices.SortFunc(all, func(a, b *networkingv1.Ingress) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	for _, ing := range all {
		b := tableBuilder{Table: t, state: state, previous: previous, ing: ing, name: netstate.Name{Namespace: ing.Namespace, Name: ing.Name}}
		t.Served[b.name] = true
		b.options(defaults)
		b.add()
		b.certificates()
	}
	// Where nobody wants all the rest, a default backend that stands beside rules has it.
	for _, ing := range all {
		if t.fallback == nil && ing.Spec.DefaultBackend != nil {
			b := tableBuilder{Table: t, state: state, previous: previous, ing: ing, name: netstate.Name{Namespace: ing.Namespace, Name: ing.Name}, again: true}
			b.options(defaults)
			t.fallback = b.target(ing.Spec.DefaultBackend)
		}
	}
	return t
}

// tableBuilder adds one Ingress to a table.
type tableBuilder struct {
	*Table
	state    *netstate.State
	previous *Table
	ing      *networkingv1.Ingress
	name     netstate.Name
	again    bool // the Ingress was added before: its faults are known

	redirect bool
	maxBody  int64
	timeout  time.Duration
}

func (b *tableBuilder) fault(format string, args ...any) string {
	text := fmt.Sprintf(format, args...)
	if !b.again && !slices.Contains(b.Faults[b.name], text) {
		b.Faults[b.name] = append(b.Faults[b.name], text)
	}
	return text
}

// options reads the annotations.
func (b *tableBuilder) options(defaults Defaults) {
	b.maxBody, b.timeout = defaults.MaxBody, defaults.Timeout
	if text, ok := b.ing.Annotations[RedirectAnnotation]; ok {
		redirect, err := strconv.ParseBool(text)
		if err != nil {
			b.fault("annotation %s: %q is not true or false", RedirectAnnotation, text)
		}
		b.redirect = redirect
	}
	if text, ok := b.ing.Annotations[MaxBodyAnnotation]; ok {
		if q, err := resource.ParseQuantity(text); err != nil || q.Sign() < 0 {
			b.fault("annotation %s: %q is not a size such as 8Mi", MaxBodyAnnotation, text)
		} else {
			b.maxBody = q.Value()
		}
	}
	if text, ok := b.ing.Annotations[TimeoutAnnotation]; ok {
		if d, err := time.ParseDuration(text); err != nil || d < 0 {
			b.fault("annotation %s: %q is not a duration such as 90s", TimeoutAnnotation, text)
		} else {
			b.timeout = d
		}
	}
}

// add adds the rules.
func (b *tableBuilder) add() {
	spec := &b.ing.Spec
	var fallback *Target
	if spec.DefaultBackend != nil {
		fallback = b.target(spec.DefaultBackend)
		if len(spec.Rules) == 0 && b.fallback == nil {
			b.fallback = fallback
		}
	}
	for _, rule := range spec.Rules {
		r := b.rulesOf(rule.Host)
		if r.fallback == nil {
			r.fallback = fallback
		}
		if rule.HTTP == nil {
			continue // all of the host goes to the default backend
		}
		for i := range rule.HTTP.Paths {
			p := &rule.HTTP.Paths[i]
			to, key := r.prefix, strings.TrimRight(p.Path, "/")
			if p.PathType != nil && *p.PathType == networkingv1.PathTypeExact {
				to, key = r.exact, p.Path
			}
			if taken, ok := to[key]; ok {
				b.fault("path %s of host %q is that of Ingress %s already", p.Path, rule.Host, taken.Ingress)
				continue
			}
			to[key] = b.target(&p.Backend)
		}
	}
}

// rulesOf returns the rules of a host, which may begin with "*.".
func (b *tableBuilder) rulesOf(host string) *rules {
	host = strings.ToLower(host)
	in := b.hosts
	if wild, ok := strings.CutPrefix(host, "*"); ok {
		in, host = b.wildcards, wild
	}
	if in[host] == nil {
		in[host] = &rules{exact: map[string]*Target{}, prefix: map[string]*Target{}}
	}
	return in[host]
}

// target finds the endpoints of a backend.
func (b *tableBuilder) target(backend *networkingv1.IngressBackend) *Target {
	t := &Target{Ingress: b.name, Redirect: b.redirect, MaxBody: b.maxBody, Timeout: b.timeout}
	if backend.Service == nil {
		t.Fault = b.fault("a backend is not a Service")
		return t
	}
	port := backend.Service.Port
	t.Service = netstate.Name{Namespace: b.ing.Namespace, Name: backend.Service.Name}
	t.Port = cmp.Or(port.Name, strconv.Itoa(int(port.Number)))
	svc, ok := b.state.Services[t.Service]
	if !ok {
		t.Fault = b.fault("there is no Service %s", t.Service)
		return t
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		t.Fault = b.fault("Service %s is an ExternalName: only endpoints in the cluster are served", t.Service)
		return t
	}
	at := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool {
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			return false
		}
		return port.Name != "" && p.Name == port.Name || port.Name == "" && p.Port == port.Number
	})
	if at < 0 {
		t.Fault = b.fault("Service %s has no TCP port %s", t.Service, t.Port)
		return t
	}
	if app := svc.Spec.Ports[at].AppProtocol; app != nil {
		switch strings.ToLower(*app) {
		case "kubernetes.io/h2c", "grpc":
			t.Protocol = H2C
		case "https", "kubernetes.io/wss":
			t.Protocol = HTTPS
		}
	}
	for _, e := range b.state.Route(t.Service, &svc.Spec.Ports[at], false).To {
		t.endpoints = append(t.endpoints, b.endpoint(e.AddrPort()))
	}
	if len(t.endpoints) == 0 {
		t.Fault = fmt.Sprintf("Service %s has no ready endpoint", t.Service) // which comes and goes: no fault of the Ingress
	}
	return t
}

// endpoint returns what is counted of an endpoint, whichever Ingress it serves.
func (b *tableBuilder) endpoint(at netip.AddrPort) *endpoint {
	if b.endpoints[at] == nil {
		if b.endpoints[at] = b.previous.endpoints[at]; b.endpoints[at] == nil {
			b.endpoints[at] = &endpoint{address: at.String()}
		}
	}
	return b.endpoints[at]
}

// Route returns where a request goes: nil, if no Ingress says so. host may have a
// port. It is pure.
//
// The host decides first: rules for it, else for its wildcard, else for all hosts.
// Among those the longest path wins, an exact one over a prefix. What matches none
// goes to a default backend: that of an Ingress with rules for the host, else one for
// all.
func (t *Table) Route(host, urlPath string) *Target {
	host = hostName(host)
	r := t.hosts[host]
	if r == nil {
		if _, parent, ok := strings.Cut(host, "."); ok {
			r = t.wildcards["."+parent]
		}
	}
	if r == nil {
		r = t.hosts[""]
	}
	if r == nil {
		return t.fallback
	}
	urlPath = cleanPath(urlPath)
	if to := r.exact[urlPath]; to != nil {
		return to
	}
	for at := strings.TrimRight(urlPath, "/"); ; at = at[:strings.LastIndexByte(at, '/')] {
		if to := r.prefix[at]; to != nil {
			return to
		}
		if at == "" {
			break
		}
	}
	if r.fallback != nil {
		return r.fallback
	}
	return t.fallback
}

// hostName is a request's host without port, in lower case.
func hostName(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// cleanPath resolves "." and ".." and empty elements, as those do that the request may
// go to: /public/../admin is none of /public's. A slash at the end stays.
func cleanPath(p string) string {
	if p == "" || p[0] != '/' {
		p = "/" + p
	}
	if !strings.Contains(p, "//") && !strings.Contains(p, "/.") {
		return p
	}
	clean := path.Clean(p)
	if strings.HasSuffix(p, "/") && clean != "/" {
		clean += "/"
	}
	return clean
}
