package network

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/agent/netstate"
	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// parsePolicies returns a state of node n1 with the policies of manifests, and with
// pods and namespaces that have a line each:
//
//	namespace default team=a
//	pod default/web n1 10.8.1.2 app=web http:8080/TCP
//
// Pods of n1 are local, and their names are their uids.
func parsePolicies(t testing.TB, lines, manifests []byte) (*netstate.State, []judged) {
	t.Helper()
	s := netstate.Empty("n1").WithLocal(map[string]*netstate.Pod{})
	ips := map[string][]netip.Addr{}
	var changes []netstate.Change
	for line := range strings.Lines(string(lines)) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		labels := map[string]string{}
		for _, w := range words {
			if k, v, ok := strings.Cut(w, "="); ok {
				labels[k] = v
			}
		}
		switch words[0] {
		case "namespace":
			ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: words[1], Labels: labels}}
			object.Default(ns)
			changes = append(changes, netstate.Change{Object: ns})
		case "pod":
			namespace, name, _ := strings.Cut(words[1], "/")
			pod := &netstate.Pod{Name: netstate.Name{Namespace: namespace, Name: name}, Labels: labels, Node: words[2]}
			for _, w := range words[3:] {
				if ip, err := netip.ParseAddr(w); err == nil {
					pod.IPs = append(pod.IPs, ip)
				} else if port, number, ok := strings.Cut(w, ":"); ok {
					var n int32
					var protocol string
					if _, err := fmt.Sscanf(number, "%d/%s", &n, &protocol); err != nil {
						t.Fatalf("port %q: %v", w, err)
					}
					pod.Ports = append(pod.Ports, corev1.ContainerPort{Name: port, ContainerPort: n, Protocol: corev1.Protocol(protocol)})
				}
			}
			if words[2] == "n1" {
				s.Local[name] = pod
				ips[name] = pod.IPs
			} else {
				changes = append(changes, netstate.Change{Object: pod})
			}
		default:
			t.Fatalf("unknown object %q", words[0])
		}
	}
	for _, doc := range bytes.Split(manifests, []byte("\n---\n")) {
		if len(bytes.TrimSpace(doc)) == 0 {
			continue
		}
		np := &networkingv1.NetworkPolicy{}
		if err := yaml.UnmarshalStrict(doc, np); err != nil {
			t.Fatalf("manifest: %v\n%s", err, doc)
		}
		if np.Namespace == "" {
			np.Namespace = "default"
		}
		object.Default(np)
		if errs := object.Validate(np); len(errs) > 0 {
			t.Fatalf("policy %s: %v", np.Name, errs)
		}
		changes = append(changes, netstate.Change{Object: np})
	}
	s = s.With(1, changes...)
	return s, judgedPods(s, ips)
}

// TestPolicyTables runs testdata/policies/*.txtar: what there is, what the tables of
// node n1 hold of it, and what they say of some packets.
func TestPolicyTables(t *testing.T) {
	golden.Run(t, "testdata/policies/*.txtar", func(t *testing.T, in golden.Input) string {
		policies, _ := in.Lookup("policies")
		s, pods := parsePolicies(t, in.File("pods"), policies)
		var out strings.Builder
		tables := [2]*policyTables{policyTablesOf(s, pods, false), policyTablesOf(s, pods, true)}
		for i, name := range []string{"IPv4", "IPv6"} {
			if text := tables[i].text(); text != "" {
				fmt.Fprintf(&out, "# %s\n%s", name, text)
			}
		}
		if out.Len() == 0 {
			out.WriteString("nothing\n")
		}
		packets, _ := in.Lookup("packets")
		for line := range strings.Lines(string(packets)) {
			p := parsePacket(t, line)
			of := tables[0]
			if p.to.Is6() {
				of = tables[1]
			}
			allowed, by := of.allows(p)
			fmt.Fprintf(&out, "%s: %t by %q\n", strings.TrimSpace(line), allowed, by)
		}
		return out.String()
	})
}

// parsePacket reads "10.8.1.2 -> 10.8.1.3 TCP 80".
func parsePacket(t testing.TB, line string) packet {
	t.Helper()
	var from, to, protocol string
	var p packet
	if _, err := fmt.Sscanf(line, "%s -> %s %s %d", &from, &to, &protocol, &p.port); err != nil {
		t.Fatalf("packet %q: %v", line, err)
	}
	p.from, p.to, p.protocol = netip.MustParseAddr(from), netip.MustParseAddr(to), protocolNumbers[corev1.Protocol(protocol)]
	return p
}

// TestPolicyKernel: what is written is what the kernel says it has, in both families,
// for every case of the goldens one after the other; what somebody else changed is
// found and made good.
func TestPolicyKernel(t *testing.T) {
	ns := newNamespace(t)
	var have [2]*kernelTable
	paths, err := filepath.Glob("testdata/policies/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatal("no cases", err)
	}
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files := map[string][]byte{}
		for _, f := range archive.Files {
			files[f.Name] = f.Data
		}
		s, pods := parsePolicies(t, files["pods"], files["policies"])
		in(t, ns, func() error {
			for i, f := range policyFamilies {
				tables := policyTablesOf(s, pods, f.v6)
				check := func(what string) error {
					found, err := readTable(f.table)
					if err != nil {
						return err
					}
					if diff := tableDiff(found, have[i]); diff != "" {
						t.Errorf("%s: table of family %d, %s, is not as it was written:\n%s", path, i, what, diff)
					}
					return nil
				}
				if err := f.bring(&have[i], tables, s.Revision); err != nil {
					return fmt.Errorf("%s: %w", path, err)
				}
				if err := check("brought forward"); err != nil {
					return err
				}
				var none *kernelTable
				if err := f.bring(&none, tables, s.Revision); err != nil {
					return fmt.Errorf("%s: anew: %w", path, err)
				}
				if err := check("made anew in one transaction"); err != nil {
					return err
				}
			}
			return nil
		})
	}
	in(t, ns, func() error {
		var p policyPlane
		return p.remove()
	})
}

// tableDiff names what is different between two tables.
func tableDiff(got, want *kernelTable) string {
	if got == nil {
		return "there is none"
	}
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(want.chains)) {
		if !slices.Equal(got.chains[name], want.chains[name]) {
			lines = append(lines, fmt.Sprintf("chain %s:\n  got  %q\n  want %q", name, got.chains[name], want.chains[name]))
		}
	}
	for name := range got.chains {
		if _, ok := want.chains[name]; !ok {
			lines = append(lines, "chain "+name+" is too much")
		}
	}
	if !maps.Equal(got.sets, want.sets) {
		lines = append(lines, fmt.Sprintf("sets %v, want %v", got.sets, want.sets))
	}
	for at, value := range want.elements {
		if have, ok := got.elements[at]; !ok || have != value {
			lines = append(lines, fmt.Sprintf("element %q of %s is %q, want %q", at.key, at.table, have, value))
		}
	}
	for at := range got.elements {
		if _, ok := want.elements[at]; !ok {
			lines = append(lines, fmt.Sprintf("element %q of %s is too much", at.key, at.table))
		}
	}
	if got.about != want.about {
		lines = append(lines, fmt.Sprintf("about %q, want %q", got.about, want.about))
	}
	return strings.Join(lines, "\n")
}
