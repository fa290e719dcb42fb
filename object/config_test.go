package object

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/internal/golden"
)

func service(name, spec string) *corev1.Service {
	svc := mustParse[*corev1.Service](fmt.Sprintf(`{apiVersion: v1, kind: Service, metadata: {name: %s, namespace: default}, spec: %s}`, name, spec))
	Default(svc)
	return svc
}

func mustParse[T Object](text string) T {
	docs, err := ParseManifests("", []byte(text))
	if err != nil {
		panic(err)
	}
	return docs[0].Object.(T)
}

// TestServiceAddresses: who gets which address and node port, and what is said
// to whom asks for one that is taken.
func TestServiceAddresses(t *testing.T) {
	var claims ServiceClaims
	claims.Add(service("taken", `{type: NodePort, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]}`))
	v4 := []netip.Prefix{DefaultServiceCIDR}
	both := append(v4, netip.MustParsePrefix("fd00::/108"))
	for _, c := range []struct {
		name, spec string
		cidrs      []netip.Prefix
		want       string
	}{
		{"its name gives one", `{ports: [{port: 80}]}`, v4, "10.102.53.187 [IPv4]"},
		{"the one asked for", `{clusterIP: 10.96.0.11, ports: [{port: 80}]}`, v4, "10.96.0.11 [IPv4]"},
		{"the API server's, asked for", `{clusterIP: 10.96.0.1, ports: [{port: 80}]}`, v4, "10.96.0.1 [IPv4]"},
		{
			"taken", `{clusterIP: 10.96.0.10, ports: [{port: 80}]}`, v4,
			`Service default/web: spec.clusterIPs[0]: Invalid value: "10.96.0.10": provided IP is already allocated, to Service default/taken: leave it out to get another`,
		},
		{
			"outside", `{clusterIP: 10.95.0.10, ports: [{port: 80}]}`, v4,
			`Service default/web: spec.clusterIPs[0]: Invalid value: "10.95.0.10": the provided IP is not in the network of Services, 10.96.0.0/12: leave it out to get one`,
		},
		{
			"the network's own", `{clusterIP: 10.96.0.0, ports: [{port: 80}]}`, v4,
			`Service default/web: spec.clusterIPs[0]: Invalid value: "10.96.0.0": the provided IP is not in the network of Services, 10.96.0.0/12: leave it out to get one`,
		},
		{
			"the broadcast address", `{clusterIP: 10.111.255.255, ports: [{port: 80}]}`, v4,
			`Service default/web: spec.clusterIPs[0]: Invalid value: "10.111.255.255": the provided IP is not in the network of Services, 10.96.0.0/12: leave it out to get one`,
		},
		{"headless", `{clusterIP: None, selector: {a: b}}`, v4, "None [IPv4]"},
		{"alias", `{type: ExternalName, externalName: a.b}`, v4, " []"},
		{
			"a family that is not here", `{ipFamilies: [IPv6], ports: [{port: 80}]}`, v4,
			`Service default/web: spec.ipFamilies[0]: Invalid value: "IPv6": this cluster has no IPv6 network for Services, only 10.96.0.0/12`,
		},
		{
			"both, where there is one", `{ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}`, v4,
			`Service default/web: spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services: its Services have addresses of 10.96.0.0/12`,
		},
		{"both, if possible, where there is one", `{ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}`, v4, "10.102.53.187 [IPv4]"},
		{"both, if possible", `{ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}`, both, "10.102.53.187,fd00::6:35bb [IPv4 IPv6]"},
		{"both", `{ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6], ports: [{port: 80}]}`, both, "fd00::6:35bb,10.102.53.187 [IPv6 IPv4]"},
		{"both, one of them asked for", `{ipFamilyPolicy: RequireDualStack, clusterIP: "fd00::5", ports: [{port: 80}]}`, both, "fd00::5,10.102.53.187 [IPv6 IPv4]"},
		{"one of two families", `{ports: [{port: 80}]}`, both, "10.102.53.187 [IPv4]"},
	} {
		svc := service("web", c.spec)
		before := svc.DeepCopy()
		err := AllocateServiceIPs(svc, claims.AddressOwner, c.cidrs)
		got := fmt.Sprintf("%s %v", strings.Join(svc.Spec.ClusterIPs, ","), svc.Spec.IPFamilies)
		if err != nil {
			got = err.Error()
			if diff := cmp.Diff(before, svc); diff != "" {
				t.Errorf("%s: a refused Service is changed:\n%s", c.name, diff)
			}
		} else if len(svc.Spec.ClusterIPs) > 0 && svc.Spec.ClusterIP != svc.Spec.ClusterIPs[0] {
			t.Errorf("%s: clusterIP is %s, the first of clusterIPs %s", c.name, svc.Spec.ClusterIP, svc.Spec.ClusterIPs[0])
		}
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

func TestNodePorts(t *testing.T) {
	var claims ServiceClaims
	claims.Add(service("taken", `{type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30081, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]}`))
	for _, c := range []struct{ name, spec, want string }{
		{"inside a cluster nobody needs one", `{ports: [{port: 80}]}`, "80:0/TCP health 0"},
		{"its name gives one", `{type: NodePort, ports: [{port: 80}]}`, "80:32682/TCP health 0"},
		{"each port has its own", `{type: NodePort, ports: [{name: a, port: 80}, {name: b, port: 81}]}`, "80:32682/TCP 81:30099/TCP health 0"},
		{"but for the protocols of one", `{type: NodePort, ports: [{name: a, port: 53, protocol: UDP}, {name: b, port: 53}]}`, "53:31758/UDP 53:31758/TCP health 0"},
		{"also if one of them is asked for", `{type: NodePort, ports: [{name: a, port: 53, protocol: UDP}, {name: b, port: 53, nodePort: 30053}]}`, "53:30053/UDP 53:30053/TCP health 0"},
		{"the one asked for", `{type: NodePort, ports: [{port: 80, nodePort: 32767}]}`, "80:32767/TCP health 0"},
		{
			"taken, both kinds", `{type: NodePort, ports: [{name: a, port: 80, nodePort: 30080}, {name: b, port: 81, nodePort: 30081}]}`,
			"Service default/web: spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated, to Service default/taken: leave it out to get another\n" +
				"Service default/web: spec.ports[1].nodePort: Invalid value: 30081: provided port is already allocated, to Service default/taken: leave it out to get another",
		},
		{
			"out of range", `{type: NodePort, ports: [{port: 80, nodePort: 80}]}`,
			"Service default/web: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
		},
		{"a load balancer that does without", `{type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 80}]}`, "80:0/TCP health 0"},
		{"a load balancer that asks the nodes", `{type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80}]}`, "80:32682/TCP health 31648"},
	} {
		svc := service("web", c.spec)
		before := svc.DeepCopy()
		err := AllocateNodePorts(svc, claims.PortOwner)
		var parts []string
		for _, p := range svc.Spec.Ports {
			parts = append(parts, fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol))
		}
		got := fmt.Sprintf("%s health %d", strings.Join(parts, " "), svc.Spec.HealthCheckNodePort)
		if err != nil {
			got = err.Error()
			if diff := cmp.Diff(before, svc); diff != "" {
				t.Errorf("%s: a refused Service is changed:\n%s", c.name, diff)
			}
		}
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

// TestAllocationExhausts: every address and port is given once, those that people
// like to ask for last, and then no more. What goes comes back.
func TestAllocationExhausts(t *testing.T) {
	var claims ServiceClaims
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/26")}
	var given []*corev1.Service
	for i := range 61 { // 64, without the network's, the broadcast's and the API server's
		svc := service(fmt.Sprintf("s%d", i), `{ports: [{port: 80}]}`)
		if err := AllocateServiceIPs(svc, claims.AddressOwner, cidrs); err != nil {
			t.Fatal(err)
		}
		ip := netip.MustParseAddr(svc.Spec.ClusterIP)
		if last := ip.As4()[3]; claims.AddressOwner(ip) != "" || last < 2 || last > 62 || i < 47 && last < 16 {
			t.Fatalf("number %d gets %s", i, ip)
		}
		claims.Add(svc)
		given = append(given, svc)
	}
	late := service("late", `{ports: [{port: 80}]}`)
	err := AllocateServiceIPs(late, claims.AddressOwner, cidrs)
	if !errors.Is(err, ErrExhausted) || err.Error() != "address for Service default/late in 10.0.0.0/26: none is left" {
		t.Errorf("with all addresses taken: %v", err)
	}
	claims.Remove(given[7])
	if err := AllocateServiceIPs(late, claims.AddressOwner, cidrs); err != nil || late.Spec.ClusterIP != given[7].Spec.ClusterIP {
		t.Errorf("with one address free, %s: %s, %v", given[7].Spec.ClusterIP, late.Spec.ClusterIP, err)
	}

	full := service("late", `{type: NodePort, ports: [{port: 80}]}`)
	err = AllocateNodePorts(full, func(int32) string { return "default/all" })
	if !errors.Is(err, ErrExhausted) || full.Spec.Ports[0].NodePort != 0 {
		t.Errorf("with all ports taken: %v, %d", err, full.Spec.Ports[0].NodePort)
	}
}

// TestAllocationIsStable: a plan that is made again comes out the same, whoever
// else is there, as long as nobody sits on the place.
func TestAllocationIsStable(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		svc := service(fmt.Sprintf("s%d", rnd.IntN(1000)), `{type: NodePort, ports: [{name: a, port: 80}, {name: b, port: 81}]}`)
		taken := map[netip.Addr]bool{}
		owner := func(ip netip.Addr) string {
			if taken[ip] {
				return "default/other"
			}
			return ""
		}
		if err := AllocateServiceIPs(svc, owner, []netip.Prefix{DefaultServiceCIDR}); err != nil {
			t.Fatal(err)
		}
		again := svc.DeepCopy()
		again.Spec.ClusterIP, again.Spec.ClusterIPs = "", nil
		for range 100 {
			if ip := nthAddress(DefaultServiceCIDR, rnd.Uint64N(1<<20)); ip.String() != svc.Spec.ClusterIP {
				taken[ip] = true
			}
		}
		if err := AllocateServiceIPs(again, owner, []netip.Prefix{DefaultServiceCIDR}); err != nil || again.Spec.ClusterIP != svc.Spec.ClusterIP {
			t.Fatalf("%s got %s, then %s (%v)", svc.Name, svc.Spec.ClusterIP, again.Spec.ClusterIP, err)
		}
		// What it has, it keeps: its own claim is no conflict.
		var claims ServiceClaims
		claims.Add(svc)
		if err := AllocateServiceIPs(svc.DeepCopy(), claims.AddressOwner, []netip.Prefix{DefaultServiceCIDR}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKeepServiceClaims runs testdata/keep/*.txtar: what "new" becomes as the
// successor of "old".
func TestKeepServiceClaims(t *testing.T) {
	golden.Run(t, "testdata/keep/*.txtar", func(t *testing.T, in golden.Input) string {
		var out strings.Builder
		old := only[*corev1.Service](parseObjects(t, in.File("old")))
		for i, svc := range only[*corev1.Service](parseObjects(t, in.File("new"))) {
			Default(old[i])
			KeepServiceClaims(svc, old[i])
			Default(svc)
			fmt.Fprintf(&out, "%s: %s %v", svc.Name, svc.Spec.Type, svc.Spec.ClusterIPs)
			for _, p := range svc.Spec.Ports {
				fmt.Fprintf(&out, " %d:%d/%s", p.Port, p.NodePort, p.Protocol)
			}
			fmt.Fprintf(&out, " health %d, %v %s\n", svc.Spec.HealthCheckNodePort, svc.Spec.IPFamilies, deref(svc.Spec.IPFamilyPolicy))
			for _, f := range append(Validate(svc), ValidateUpdate(svc, old[i])...) {
				fmt.Fprintln(&out, "  "+f.String())
			}
		}
		return out.String()
	})
}

func TestAllows(t *testing.T) {
	role := func(rules string) []rbacv1.PolicyRule {
		return mustParse[*rbacv1.ClusterRole]("{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: a}, rules: [" + rules + "]}").Rules
	}
	type a = AccessAttributes
	for _, c := range []struct {
		rules string
		attrs a
		want  bool
	}{
		{``, a{Verb: "get", Resource: "pods"}, false},
		{`{apiGroups: [""], resources: [pods], verbs: [get]}`, a{Verb: "get", Resource: "pods", Name: "x"}, true},
		{`{apiGroups: [""], resources: [pods], verbs: [get]}`, a{Verb: "list", Resource: "pods"}, false},
		{`{apiGroups: [""], resources: [pods], verbs: [get]}`, a{Verb: "get", Group: "apps", Resource: "pods"}, false},
		{`{apiGroups: [""], resources: [pods], verbs: [get]}`, a{Verb: "get", Resource: "pods", Subresource: "log"}, false},
		{`{apiGroups: [""], resources: [pods/log], verbs: [get]}`, a{Verb: "get", Resource: "pods", Subresource: "log"}, true},
		{`{apiGroups: [""], resources: [pods/log], verbs: [get]}`, a{Verb: "get", Resource: "pods"}, false},
		{`{apiGroups: [""], resources: ["*/log"], verbs: [get]}`, a{Verb: "get", Resource: "pods", Subresource: "log"}, true},
		{`{apiGroups: [""], resources: ["*/log"], verbs: [get]}`, a{Verb: "get", Resource: "pods", Subresource: "exec"}, false},
		{`{apiGroups: [""], resources: ["*/"], verbs: [get]}`, a{Verb: "get", Resource: "pods"}, false},
		{`{apiGroups: ["*"], resources: ["*"], verbs: ["*"]}`, a{Verb: "get", Group: "apps", Resource: "deployments", Subresource: "scale"}, true},
		{`{apiGroups: ["*"], resources: ["*"], verbs: ["*"]}`, a{Verb: "get", Path: "/version"}, false},
		{`{apiGroups: [""], resources: [pods], resourceNames: [x], verbs: [get, list]}`, a{Verb: "get", Resource: "pods", Name: "x"}, true},
		{`{apiGroups: [""], resources: [pods], resourceNames: [x], verbs: [get, list]}`, a{Verb: "get", Resource: "pods", Name: "y"}, false},
		{`{apiGroups: [""], resources: [pods], resourceNames: [x], verbs: [get, list]}`, a{Verb: "list", Resource: "pods"}, false},
		{`{nonResourceURLs: [/version, /metrics*], verbs: [get]}`, a{Verb: "get", Path: "/version"}, true},
		{`{nonResourceURLs: [/version, /metrics*], verbs: [get]}`, a{Verb: "get", Path: "/version/x"}, false},
		{`{nonResourceURLs: [/version, /metrics*], verbs: [get]}`, a{Verb: "get", Path: "/metrics/slis"}, true},
		{`{nonResourceURLs: [/version, /metrics*], verbs: [get]}`, a{Verb: "post", Path: "/version"}, false},
		{`{nonResourceURLs: ["*"], verbs: ["*"]}`, a{Verb: "post", Path: "/x"}, true},
		{`{nonResourceURLs: ["*"], verbs: ["*"]}`, a{Verb: "get", Resource: "pods"}, false},
		{`{apiGroups: [""], resources: [nodes], verbs: [get]}, {apiGroups: [""], resources: [pods], verbs: [get]}`, a{Verb: "get", Resource: "pods"}, true},
	} {
		if got := Allows(role(c.rules), c.attrs); got != c.want {
			t.Errorf("%s allows %+v: %v, want %v", c.rules, c.attrs, got, c.want)
		}
	}
}

func TestAggregateRules(t *testing.T) {
	rule := func(resource string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{resource}, Verbs: []string{"get"}}
	}
	role := func(name, label string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"to": label}}, Rules: rules}
	}
	sum := role("sum", "a", rule("old"))
	sum.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{
		{MatchLabels: map[string]string{"to": "a"}}, {MatchLabels: map[string]string{"to": "b"}},
	}}
	all := []*rbacv1.ClusterRole{role("z", "a", rule("pods"), rule("nodes")), sum, role("c", "b", rule("nodes"), rule("events")), role("other", "x", rule("secrets"))}
	got := AggregateRules(sum, all)
	if want := []rbacv1.PolicyRule{rule("nodes"), rule("events"), rule("pods")}; !sameValue(got, want) {
		t.Errorf("got %v, want those of c, then those of z that are new", got)
	}
	got[0].Verbs[0] = "changed"
	if all[2].Rules[0].Verbs[0] != "get" {
		t.Error("the result shares memory with the roles")
	}
	plain := role("plain", "a", rule("pods"))
	if got := AggregateRules(plain, all); !sameValue(got, plain.Rules) {
		t.Errorf("a role without aggregation has its own rules, not %v", got)
	}
}

// TestLimitRanges runs testdata/limits/*.txtar: the resources of the last object
// after the limit ranges before it have been applied, or why it is refused.
func TestLimitRanges(t *testing.T) {
	golden.Run(t, "testdata/limits/*.txtar", func(t *testing.T, in golden.Input) string {
		var out strings.Builder
		ranges := only[*corev1.LimitRange](parseObjects(t, in.File("ranges")))
		for _, r := range ranges {
			Default(r)
		}
		for _, obj := range parseObjects(t, in.File("objects")) {
			Default(obj)
			faults := ApplyLimitRanges(obj, ranges)
			fmt.Fprintf(&out, "%s:\n", Title(obj))
			if pod, ok := obj.(*corev1.Pod); ok {
				for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
					fmt.Fprintf(&out, "  %s requests %s limits %s\n", c.Name, listText(c.Resources.Requests), listText(c.Resources.Limits))
				}
				if note := pod.Annotations[limitRangerAnnotation]; note != "" {
					fmt.Fprintln(&out, "  "+note)
				}
			}
			for _, f := range faults {
				fmt.Fprintf(&out, "  %s: %s\n", f.Field, f.Message)
			}
			before := obj.DeepCopyObject()
			ApplyLimitRanges(obj, ranges)
			if pod, ok := before.(*corev1.Pod); ok && !sameValue(pod.Spec, obj.(*corev1.Pod).Spec) {
				t.Errorf("%s: a second time changes the pod", Title(obj))
			}
		}
		return out.String()
	})
}

func listText(list corev1.ResourceList) string {
	var parts []string
	for _, name := range sortedNames(list) {
		q := list[name]
		parts = append(parts, fmt.Sprintf("%s=%s", name, q.String()))
	}
	return orNone(strings.Join(parts, ","))
}

// TestQuotas runs testdata/quota/*.txtar: what "objects" take of each of "quotas",
// and for each of "added" what the quotas say to it.
func TestQuotas(t *testing.T) {
	golden.Run(t, "testdata/quota/*.txtar", func(t *testing.T, in golden.Input) string {
		var out strings.Builder
		objs := parseObjects(t, in.File("objects"))
		for _, obj := range objs {
			Default(obj)
		}
		for _, q := range only[*corev1.ResourceQuota](parseObjects(t, in.File("quotas"))) {
			used := QuotaUsage(q, objs...)
			fmt.Fprintf(&out, "%s: %s\n", q.Name, listText(used))
			added, ok := in.Lookup("added")
			if !ok {
				continue
			}
			for _, obj := range parseObjects(t, added) {
				Default(obj)
				verdict := "fine"
				if err := errors.Join(QuotaNeeds(q, obj), ExceedsQuota(q, used, QuotaUsage(q, obj))); err != nil {
					verdict = strings.ReplaceAll(err.Error(), "\n", "\n    ")
					if !errors.Is(err, ErrQuota) {
						t.Errorf("%v does not wrap ErrQuota", err)
					}
				}
				fmt.Fprintf(&out, "  %s: %s\n", obj.GetName(), verdict)
			}
		}
		return out.String()
	})
}

// TestQuotaShrinks: what gets less is never refused, however full the quota.
func TestQuotaShrinks(t *testing.T) {
	quota := &corev1.ResourceQuota{Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"pods": resource.MustParse("1")}}}
	full := corev1.ResourceList{"pods": resource.MustParse("5")}
	for added, fine := range map[string]bool{"-1": true, "0": true, "1": false} {
		if err := ExceedsQuota(quota, full, corev1.ResourceList{"pods": resource.MustParse(added)}); (err == nil) != fine {
			t.Errorf("adding %s to 5 of 1: %v", added, err)
		}
	}
}

// TestSecretsStaySecret: a value is in nothing that is written about a Secret.
func TestSecretsStaySecret(t *testing.T) {
	const value = "hunter2-correct-horse"
	for _, kind := range []corev1.SecretType{
		corev1.SecretTypeOpaque, corev1.SecretTypeServiceAccountToken, corev1.SecretTypeDockercfg, corev1.SecretTypeDockerConfigJson,
		corev1.SecretTypeBasicAuth, corev1.SecretTypeSSHAuth, corev1.SecretTypeTLS, corev1.SecretTypeBootstrapToken,
	} {
		secret := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default", Annotations: map[string]string{corev1.LastAppliedConfigAnnotation: value}},
			Type:       kind,
			Data:       map[string][]byte{"bad/key": []byte(value)},
			StringData: map[string]string{"more": value},
		}
		for _, key := range []string{".dockercfg", ".dockerconfigjson", "token", "username", "password", "ssh-privatekey", "tls.crt", "tls.key"} {
			secret.Data[key] = []byte(value)
		}
		Default(secret)
		frozen := secret.DeepCopy()
		yes := true
		frozen.Immutable, frozen.Data = &yes, map[string][]byte{"a": []byte(value)}
		texts := []string{
			Validate(secret).Error(), fmt.Sprintf("%+v", Validate(secret)), fmt.Sprintf("%+v", ValidateUpdate(secret, frozen)),
			Describe(secret, nil, nil, now), fmt.Sprint(Print([]Object{secret}, now)),
		}
		for _, text := range texts {
			if strings.Contains(text, value) || strings.Contains(text, "hunter2") {
				t.Errorf("%s: the value is in %s", kind, text)
			}
		}
	}
}

// TestConfigSizes: what has a bound is refused beyond it, and said once.
func TestConfigSizes(t *testing.T) {
	secret := func(size int) Object {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default"}, Data: map[string][]byte{"a": make([]byte, size)}}
	}
	slice := func(change func(*discoveryv1.EndpointSlice)) Object {
		s := mustParse[*discoveryv1.EndpointSlice](`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s, namespace: default}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}]}`)
		change(s)
		return s
	}
	class := func(parameters int, size int) Object {
		sc := mustParse[*storagev1.StorageClass](`{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: s}, provisioner: a.b/c, parameters: {}}`)
		for i := range parameters {
			sc.Parameters[fmt.Sprintf("%03d", i)] = strings.Repeat("x", size)
		}
		return sc
	}
	for _, c := range []struct {
		name string
		obj  Object
		want string // field and message
	}{
		{"a Secret of 1 MiB", secret(1 << 20), ""},
		{"and a byte", secret(1<<20 + 1), "data: Too long: values have 1048577 bytes, may have 1048576: split the Secret"},
		{"endpoints", slice(func(s *discoveryv1.EndpointSlice) { s.Endpoints = make([]discoveryv1.Endpoint, 1001) }), "endpoints: Too many: 1001: must have at most 1000 items"},
		{"ports", slice(func(s *discoveryv1.EndpointSlice) { s.Ports = make([]discoveryv1.EndpointPort, 20001) }), "ports: Too many: 20001: must have at most 20000 items"},
		{"addresses", slice(func(s *discoveryv1.EndpointSlice) {
			s.Endpoints[0].Addresses = slices.Repeat([]string{"10.0.0.1"}, 101)
		}), "endpoints[0].addresses: Too many: 101: must have at most 100 items"},
		{"zones", slice(func(s *discoveryv1.EndpointSlice) {
			s.Endpoints[0].Hints = &discoveryv1.EndpointHints{}
			for i := range 9 {
				s.Endpoints[0].Hints.ForZones = append(s.Endpoints[0].Hints.ForZones, discoveryv1.ForZone{Name: fmt.Sprint(i)})
			}
		}), "endpoints[0].hints.forZones: Too many: 9: must have at most 8 items"},
		{"nodes", slice(func(s *discoveryv1.EndpointSlice) {
			s.Endpoints[0].Hints = &discoveryv1.EndpointHints{}
			for i := range 9 {
				s.Endpoints[0].Hints.ForNodes = append(s.Endpoints[0].Hints.ForNodes, discoveryv1.ForNode{Name: fmt.Sprint(i)})
			}
		}), "endpoints[0].hints.forNodes: Too many: 9: must have at most 8 items"},
		{"parameters", class(512, 100), ""},
		{"one more", class(513, 1), "parameters: Too many: 513: must have at most 512 items"},
		{"large ones", class(512, 510), "parameters: Too long: may not be more than 262144 bytes"},
		{
			"a controller's name", mustParse[Object](`{apiVersion: networking.k8s.io/v1, kind: IngressClass, metadata: {name: a}, spec: {controller: a.b/` + strings.Repeat("x", 250) + `}}`),
			"spec.controller: Too long: may not be more than 250 bytes",
		},
	} {
		Default(c.obj)
		got := ""
		if faults := Validate(c.obj); len(faults) > 0 {
			got = strings.TrimPrefix(faults.Error(), faults[0].Object+": ")
		}
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

func TestConfigFieldSelectors(t *testing.T) {
	for _, c := range []struct{ object, selector, want string }{
		{`{apiVersion: v1, kind: Secret, metadata: {name: a}, type: kubernetes.io/tls}`, "type=kubernetes.io/tls", "true"},
		{`{apiVersion: v1, kind: Secret, metadata: {name: a}, type: kubernetes.io/tls}`, "type!=kubernetes.io/tls", "false"},
		{`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: None, type: ClusterIP}}`, "spec.clusterIP=None,spec.type=ClusterIP", "true"},
		{`{apiVersion: v1, kind: Namespace, metadata: {name: a}, status: {phase: Active}}`, "status.phase=Active,name=a", "true"},
		{`{apiVersion: v1, kind: PersistentVolume, metadata: {name: a}}`, "name=a", "true"},
		{`{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: a}}`, "name=b", "false"},
		{`{apiVersion: v1, kind: ServiceAccount, metadata: {name: a}}`, "type=x", `field selector "type=x": serviceaccounts cannot be selected by type: possible are metadata.name, metadata.namespace`},
	} {
		obj := mustParse[Object](c.object)
		selector, err := FieldSelector(ResourceOf(obj), c.selector)
		got := fmt.Sprint(err)
		if err == nil {
			got = fmt.Sprint(MatchesFields(obj, selector))
		}
		if got != c.want {
			t.Errorf("%s by %q: %s, want %s", Title(obj), c.selector, got, c.want)
		}
	}
}

// TestConfigDefaultsOnce: a second Default changes nothing, of whatever the
// manifests of these kinds hold, good or bad.
func TestConfigDefaultsOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range []string{"service", "service_invalid", "endpointslice", "ingress", "networkpolicy", "secret", "access", "storage", "limits"} {
		archive, err := txtar.ParseFile("testdata/manifest/" + name + ".txtar")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range archive.Files {
			if file.Name == "want" {
				continue
			}
			docs, _ := Builtin().parse(file.Name, file.Data)
			for _, d := range docs {
				seen[ResourceOf(d.Object).Kind] = true
				Default(d.Object)
				once := d.Object.DeepCopyObject()
				Default(d.Object)
				if diff := cmp.Diff(once, d.Object); diff != "" {
					t.Errorf("%s: a second Default changes %s:\n%s", name, Title(d.Object), diff)
				}
			}
		}
	}
	if len(seen) < 18 {
		t.Errorf("only these kinds were looked at: %v", seen)
	}
}

// TestInertConfig: who writes one of these is told that nothing comes of it, and
// who writes what is for reading and writing is not.
func TestInertConfig(t *testing.T) {
	want := map[string]string{
		"Service": "", "EndpointSlice": "", "ServiceAccount": "", "Ingress": "", "IngressClass": "",
		"NetworkPolicy": "",
		"Role":          "", "RoleBinding": "", "ClusterRole": "", "ClusterRoleBinding": "",
		"PersistentVolume": "", "PersistentVolumeClaim": "", "StorageClass": "",
		"ResourceQuota": "", "LimitRange": "", "ConfigMap": "", "Secret": "", "Lease": "", "Event": "", "Namespace": "", "Node": "",
	}
	for _, r := range Resources() {
		text, ok := want[r.Kind]
		if !ok {
			continue
		}
		obj := New(r)
		obj.SetName("x")
		if r.Namespaced {
			obj.SetNamespace("default")
		}
		if got := Inert(obj); got != text {
			t.Errorf("%s: %q, want %q", r.Kind, got, text)
		}
		delete(want, r.Kind)
	}
	for kind := range want {
		t.Errorf("%s is not served", kind)
	}
}
