package object

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindNetworkPolicy = define(Resource{Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy", Plural: "networkpolicies", Singular: "networkpolicy", ShortNames: []string{"netpol"}, Namespaced: true},
	func() *networkingv1.NetworkPolicy { return new(networkingv1.NetworkPolicy) },
	rules[*networkingv1.NetworkPolicy]{
		supported: `
			spec
		`,
		defaults: defaultNetworkPolicy,
		validate: validateNetworkPolicy,
		columns:  columns("NAME", "POD-SELECTOR", "AGE"),
		row: func(np *networkingv1.NetworkPolicy, now time.Time) []string {
			return []string{np.Name, metav1.FormatLabelSelector(&np.Spec.PodSelector), ageOf(np, now)}
		},
		describe: func(d *describer, np *networkingv1.NetworkPolicy, _ []Object) { d.networkPolicy(np) },
	})

func defaultNetworkPolicy(np *networkingv1.NetworkPolicy) {
	spec := &np.Spec
	if len(spec.PolicyTypes) == 0 {
		spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(spec.Egress) > 0 {
			spec.PolicyTypes = append(spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	for i := range spec.Ingress {
		defaultPolicyPorts(spec.Ingress[i].Ports)
	}
	for i := range spec.Egress {
		defaultPolicyPorts(spec.Egress[i].Ports)
	}
}

func defaultPolicyPorts(ports []networkingv1.NetworkPolicyPort) {
	for i := range ports {
		setIfNil(&ports[i].Protocol, corev1.ProtocolTCP)
	}
}

func validateNetworkPolicy(np *networkingv1.NetworkPolicy) field.ErrorList {
	spec, path := &np.Spec, field.NewPath("spec")
	errs := validateSelector(&spec.PodSelector, path.Child("podSelector"))
	for i, rule := range spec.Ingress {
		at := path.Child("ingress").Index(i)
		errs = append(errs, validatePolicyRule(rule.Ports, rule.From, at.Child("ports"), at.Child("from"))...)
	}
	for i, rule := range spec.Egress {
		at := path.Child("egress").Index(i)
		errs = append(errs, validatePolicyRule(rule.Ports, rule.To, at.Child("ports"), at.Child("to"))...)
	}
	at := path.Child("policyTypes")
	if len(spec.PolicyTypes) > 2 {
		return append(errs, field.Invalid(at, field.OmitValueType{}, "may not specify more than two policyTypes"))
	}
	for i, t := range spec.PolicyTypes {
		errs = append(errs, oneOf(t, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}, at.Index(i))...)
	}
	return errs
}

func validatePolicyRule(ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer, portsAt, peersAt *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, p := range ports {
		at := portsAt.Index(i)
		if p.Protocol != nil {
			errs = append(errs, oneOf(*p.Protocol, protocols, at.Child("protocol"))...)
		}
		switch {
		case p.Port == nil && p.EndPort != nil:
			errs = append(errs, field.Invalid(at.Child("endPort"), *p.EndPort, "may not be specified when `port` is not specified"))
		case p.Port == nil:
		case p.Port.Type == intstr.String:
			if p.EndPort != nil {
				errs = append(errs, field.Invalid(at.Child("endPort"), *p.EndPort, "may not be specified when `port` is non-numeric"))
			}
			errs = append(errs, invalid(at.Child("port"), p.Port.StrVal, validation.IsValidPortName(p.Port.StrVal))...)
		default:
			errs = append(errs, portNumber(p.Port.IntVal, at.Child("port"))...)
			if p.EndPort == nil {
				break
			}
			if *p.EndPort < p.Port.IntVal {
				errs = append(errs, field.Invalid(at.Child("endPort"), *p.EndPort, "must be greater than or equal to `port`"))
			}
			errs = append(errs, portNumber(*p.EndPort, at.Child("endPort"))...)
		}
	}
	for i, peer := range peers {
		errs = append(errs, validatePolicyPeer(peer, peersAt.Index(i))...)
	}
	return errs
}

func validatePolicyPeer(peer networkingv1.NetworkPolicyPeer, at *field.Path) field.ErrorList {
	errs := validateSelector(peer.PodSelector, at.Child("podSelector"))
	errs = append(errs, validateSelector(peer.NamespaceSelector, at.Child("namespaceSelector"))...)
	selects := peer.PodSelector != nil || peer.NamespaceSelector != nil
	if peer.IPBlock == nil {
		if !selects {
			errs = append(errs, field.Required(at, "must specify a peer: podSelector, namespaceSelector or ipBlock"))
		}
		return errs
	}
	if selects {
		errs = append(errs, field.Forbidden(at, "may not specify both ipBlock and another peer: make two of it"))
	}
	at = at.Child("ipBlock")
	if peer.IPBlock.CIDR == "" {
		return append(errs, field.Required(at.Child("cidr"), "give a network such as 10.9.8.0/24"))
	}
	block, wrong := validateCIDR(peer.IPBlock.CIDR, at.Child("cidr"))
	errs = append(errs, wrong...)
	for i, text := range peer.IPBlock.Except {
		except, wrongToo := validateCIDR(text, at.Child("except").Index(i))
		errs = append(errs, wrongToo...)
		if len(wrong)+len(wrongToo) == 0 && (except.Bits() <= block.Bits() || !block.Contains(except.Addr())) {
			errs = append(errs, field.Invalid(at.Child("except").Index(i), text, "must be a strict subset of `cidr`"))
		}
	}
	return errs
}

func (d *describer) networkPolicy(np *networkingv1.NetworkPolicy) {
	d.line(0, "Name:", np.Name)
	d.line(0, "Namespace:", np.Namespace)
	d.line(0, "Created on:", d.time(np.CreationTimestamp))
	d.labels(np)
	spec := &np.Spec
	d.line(0, "Spec:")
	selector := "<none> (Allowing the specific traffic to all pods in this namespace)"
	if len(spec.PodSelector.MatchLabels)+len(spec.PodSelector.MatchExpressions) > 0 {
		selector = metav1.FormatLabelSelector(&spec.PodSelector)
	}
	d.line(1, "PodSelector: "+selector)
	if slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeIngress) {
		d.line(1, "Allowing ingress traffic:")
		if len(spec.Ingress) == 0 {
			d.line(2, "<none> (Selected pods are isolated for ingress connectivity)")
		}
		for i, rule := range spec.Ingress {
			d.policyRule(i, rule.Ports, rule.From, "From:", "source")
		}
	} else {
		d.line(1, "Not affecting ingress traffic")
	}
	if slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeEgress) {
		d.line(1, "Allowing egress traffic:")
		if len(spec.Egress) == 0 {
			d.line(2, "<none> (Selected pods are isolated for egress connectivity)")
		}
		for i, rule := range spec.Egress {
			d.policyRule(i, rule.Ports, rule.To, "To:", "destination")
		}
	} else {
		d.line(1, "Not affecting egress traffic")
	}
	var types []string
	for _, t := range spec.PolicyTypes {
		types = append(types, string(t))
	}
	d.line(1, "Policy Types: "+strings.Join(types, ", "))
}

func (d *describer) policyRule(i int, ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer, direction, end string) {
	if i > 0 {
		d.line(2, "----------")
	}
	if len(ports) == 0 {
		d.line(2, "To Port: <any> (traffic allowed to all ports)")
	}
	for _, p := range ports {
		protocol := corev1.ProtocolTCP
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		switch {
		case p.Port == nil:
			d.line(2, fmt.Sprintf("To Port: <any>/%s", protocol))
		case p.EndPort == nil:
			d.line(2, fmt.Sprintf("To Port: %s/%s", p.Port.String(), protocol))
		default:
			d.line(2, fmt.Sprintf("To Port Range: %s-%d/%s", p.Port.String(), *p.EndPort, protocol))
		}
	}
	if len(peers) == 0 {
		d.line(2, fmt.Sprintf("%s <any> (traffic not restricted by %s)", direction, end))
	}
	for _, peer := range peers {
		d.line(2, direction)
		if peer.NamespaceSelector != nil {
			d.line(3, "NamespaceSelector: "+metav1.FormatLabelSelector(peer.NamespaceSelector))
		}
		if peer.PodSelector != nil {
			d.line(3, "PodSelector: "+metav1.FormatLabelSelector(peer.PodSelector))
		}
		if block := peer.IPBlock; block != nil {
			d.line(3, "IPBlock:")
			d.line(4, "CIDR: "+block.CIDR)
			d.line(4, "Except: "+strings.Join(block.Except, ", "))
		}
	}
}
