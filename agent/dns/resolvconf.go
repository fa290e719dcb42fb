package dns

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// ResolvConf is the content of a resolv.conf, see resolv.conf(5).
type ResolvConf struct{ Servers, Search, Options []string }

// What the C library reads, and Kubernetes allows.
const (
	maxServers     = 3
	maxSearch      = 32
	maxSearchBytes = 2048
)

// ParseResolvConf reads a resolv.conf. What it does not know, it passes over, as the
// C library does.
func ParseResolvConf(text string) ResolvConf {
	var r ResolvConf
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			r.Servers = append(r.Servers, words[1])
		case "search", "domain": // the last one counts
			r.Search = words[1:]
		case "options":
			r.Options = append(r.Options, words[1:]...)
		}
	}
	return r
}

// LoopbackOnly says that all servers are on the loopback of who reads the file: pods
// cannot reach them.
func (r ResolvConf) LoopbackOnly() bool {
	for _, s := range r.Servers {
		if ip, err := netip.ParseAddr(s); err != nil || !ip.IsLoopback() {
			return false
		}
	}
	return len(r.Servers) > 0
}

// String is the file.
func (r ResolvConf) String() string {
	var b strings.Builder
	for _, s := range r.Servers {
		b.WriteString("nameserver " + s + "\n")
	}
	if len(r.Search) > 0 {
		b.WriteString("search " + strings.Join(r.Search, " ") + "\n")
	}
	if len(r.Options) > 0 {
		b.WriteString("options " + strings.Join(r.Options, " ") + "\n")
	}
	return b.String()
}

// Cluster is the cluster's DNS as pods of a node use it.
type Cluster struct {
	Servers []netip.Addr // none: there is no cluster DNS, and ClusterFirst is as Default
	Domain  string       // such as "cluster.local"
}

// PodResolvConf returns what a pod's resolv.conf says, given that of the node, by the
// pod's dnsPolicy and dnsConfig as Kubernetes documents them. It is pure.
func PodResolvConf(pod *corev1.Pod, node ResolvConf, cluster Cluster) ResolvConf {
	policy := pod.Spec.DNSPolicy
	if policy == corev1.DNSClusterFirst && pod.Spec.HostNetwork {
		policy = corev1.DNSDefault // so that such pods can be what DNS itself needs
	}
	var r ResolvConf
	switch {
	case policy == corev1.DNSNone:
	case policy == corev1.DNSDefault, len(cluster.Servers) == 0:
		r = ResolvConf{Servers: slices.Clone(node.Servers), Search: slices.Clone(node.Search), Options: slices.Clone(node.Options)}
	default:
		for _, ip := range cluster.Servers {
			r.Servers = append(r.Servers, ip.String())
		}
		r.Search = append([]string{pod.Namespace + ".svc." + cluster.Domain, "svc." + cluster.Domain, cluster.Domain}, node.Search...)
		r.Options = []string{"ndots:5"}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		r.Servers = append(r.Servers, c.Nameservers...)
		r.Search = append(r.Search, c.Searches...)
		for _, o := range c.Options {
			text := o.Name
			if o.Value != nil && *o.Value != "" {
				text += ":" + *o.Value
			}
			r.Options = slices.DeleteFunc(r.Options, func(have string) bool {
				name, _, _ := strings.Cut(have, ":")
				return name == o.Name
			})
			r.Options = append(r.Options, text)
		}
	}
	r.Servers, r.Search = unique(r.Servers), unique(r.Search)
	r.Servers = r.Servers[:min(len(r.Servers), maxServers)]
	r.Search = r.Search[:min(len(r.Search), maxSearch)]
	for len(strings.Join(r.Search, " ")) > maxSearchBytes {
		r.Search = r.Search[:len(r.Search)-1]
	}
	return r
}

// unique keeps the first of each.
func unique(all []string) []string {
	var kept []string
	for _, s := range all {
		if !slices.Contains(kept, s) {
			kept = append(kept, s)
		}
	}
	return kept
}
