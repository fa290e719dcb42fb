package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"

	"github.com/holdfast-io/holdfast/agent"
)

// TestAudit: what is programmed is found as it is to be; whatever somebody else changes
// of it is found, named and repaired.
func TestAudit(t *testing.T) {
	h := newHosts(t, 1, 1500)[0]
	at := h.attach("db")
	lines := fmt.Sprintf("pod default/db n1 %s app=db\npod default/far n2 10.8.2.2 app=far\n", at.IPs[0])
	policy := "metadata: {name: db}\nspec:\n  podSelector: {matchLabels: {app: db}}\n  ingress: [{from: [{podSelector: {matchLabels: {app: far}}}, {ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 80}, {port: 90, endPort: 95}]}]\n"
	services := fmt.Sprintf("service db ip=10.96.0.1 ports=:80,:80/UDP node-ports=30001,30002\nendpoint db %s :8080 :8080/UDP node=n1\nservice same ip=10.96.0.5 ports=:80 node-ports=30005 affinity=100\nendpoint same %[1]s :8080 node=n1\n", at.IPs[0])
	s := policyState(t, "n1", lines, policy, services)
	h.program(s)
	audit := func() (all []agent.TableAudit) {
		t.Helper()
		h.in(func() (err error) {
			all, err = h.net.Audit(context.Background())
			return err
		})
		return all
	}
	clean := func(what string) {
		t.Helper()
		all := audit()
		var names []string
		for _, a := range all {
			names = append(names, a.Name)
			if len(a.Faults) > 0 || a.Hash != a.Wanted || a.Repaired {
				t.Errorf("%s: %+v", what, a)
			}
		}
		if want := []string{"ip holdfast-services", "ip holdfast-policy"}; !slices.Equal(names, want) {
			t.Errorf("%s: tables %q, want %q", what, names, want)
		}
	}
	clean("as programmed")
	h.net = h.newNetwork()
	h.in(func() error { return h.net.Configure(context.Background(), []netip.Prefix{h.cidr}, nil) })
	h.program(s)
	clean("after a restart of the agent")

	policyTable := policyFamilies[0].table
	var policyChain string
	h.in(func() error {
		k, err := readTable(policyTable)
		if err == nil {
			for name := range k.chains {
				if strings.HasPrefix(name, "in-default/db-") {
					policyChain = name
				}
			}
		}
		return err
	})
	for _, c := range []struct {
		name, table, fault string
		do                 func(*nftables.Conn) error
	}{
		{"a policy's rules are gone", "ip holdfast-policy", "chain " + policyChain + " has 0 rules, not 2", func(conn *nftables.Conn) error {
			conn.FlushChain(&nftables.Chain{Table: policyTable, Name: policyChain})
			return nil
		}},
		{"a rule before all others", "ip holdfast-policy", "chain forward-ingress: rule 1 is another", func(conn *nftables.Conn) error {
			conn.InsertRule(&nftables.Rule{Table: policyTable, Chain: &nftables.Chain{Name: ingressChain}, Exprs: policyFamilies[0].compile(policyRule{verdict: "accept"}, false)})
			return nil
		}},
		{"a pod is let out", "ip holdfast-policy", "set ingress: 1 elements are missing", func(conn *nftables.Conn) error {
			conn.FlushSet(policyFamilies[0].set(ingressMap, ""))
			return nil
		}},
		{"an address more", "ip holdfast-policy", "set isolated: 1 elements are somebody else's", func(conn *nftables.Conn) error {
			return conn.SetAddElements(policyFamilies[0].set(isolatedSet, ""), []nftables.SetElement{{Key: []byte{1, 2, 3, 4}}})
		}},
		{"a chain more", "ip holdfast-policy", "chain mine is somebody else's", func(conn *nftables.Conn) error {
			conn.AddChain(&nftables.Chain{Table: policyTable, Name: "mine"})
			return nil
		}},
		{"the table of policies is gone", "ip holdfast-policy", "the table is gone", func(conn *nftables.Conn) error {
			conn.DelTable(policyTable)
			return nil
		}},
		{"services' rules are gone", "ip holdfast-services", "chain prerouting has 0 rules, not 2", func(conn *nftables.Conn) error {
			conn.FlushChain(&nftables.Chain{Table: table, Name: "prerouting"})
			return nil
		}},
		{"a drawing chain is gone", "ip holdfast-services", "chain any-of-1 has 0 rules, not 1", func(conn *nftables.Conn) error {
			conn.FlushChain(&nftables.Chain{Table: table, Name: "any-of-1"})
			return nil
		}},
		{"endpoints are gone", "ip holdfast-services", "set endpoints: 3 elements are missing", func(conn *nftables.Conn) error {
			conn.FlushSet(&nftables.Set{Table: table, Name: endpointsMap})
			return nil
		}},
		{"ranges are gone", "ip holdfast-services", "set service-ranges: 2 elements are missing", func(conn *nftables.Conn) error {
			conn.FlushSet(&nftables.Set{Table: table, Name: serviceRangesSet})
			return nil
		}},
		{"the table of services is gone", "ip holdfast-services", "the table is gone", func(conn *nftables.Conn) error {
			conn.DelTable(table)
			return nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.in(func() error {
				conn, err := nftables.New()
				if err != nil {
					return err
				}
				if err := c.do(conn); err != nil {
					return err
				}
				return conn.Flush()
			})
			for _, a := range audit() {
				if a.Name != c.table {
					if len(a.Faults) > 0 {
						t.Errorf("%s has faults %q", a.Name, a.Faults)
					}
					continue
				}
				if !slices.Contains(a.Faults, c.fault) || !a.Repaired || a.Hash == a.Wanted {
					t.Errorf("found %+v, want the fault %q, repaired", a, c.fault)
				}
			}
			clean("repaired")
		})
	}
}
