package peer

import (
	"net/netip"
	"strings"
	"testing"
)

func TestCheckRanges(t *testing.T) {
	for _, c := range []struct{ pods, services, want string }{
		{"", "", ""},
		{"172.20.0.0/16", "172.21.0.0/20", ""},
		{"10.100.0.0/16", "", "overlap: say another"},
		{"10.244.3.0/16", "", "did you mean 10.244.0.0/16"},
		{"10.244.0.0/25", "", "8 to 24 bits"},
		{"", "10.96.0.0/29", "8 to 28 bits"},
		{"fd00::/56", "", "IPv6 is not supported yet"},
	} {
		parse := func(text string) (p netip.Prefix) {
			if text != "" {
				p = netip.MustParsePrefix(text)
			}
			return p
		}
		err := checkRanges(parse(c.pods), parse(c.services))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("pods %q, services %q: %v, want %q", c.pods, c.services, err, c.want)
		}
	}
}

// TestSetRanges: what the cluster was made with stays, whatever a later start says.
func TestSetRanges(t *testing.T) {
	p := &Peer{rec: record{PodCIDR: "172.20.0.0/16"}}
	if err := p.setRanges(); err != nil || p.cfg.PodCIDR.String() != "172.20.0.0/16" || p.cfg.ServiceCIDR.String() != "10.96.0.0/12" {
		t.Errorf("pods %s, services %s, error %v", p.cfg.PodCIDR, p.cfg.ServiceCIDR, err)
	}
	p = &Peer{rec: record{PodCIDR: "172.20.0.0/16"}, cfg: Config{PodCIDR: netip.MustParsePrefix("172.22.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/12")}}
	if err := p.setRanges(); err == nil || !strings.Contains(err.Error(), "--pod-cidr 172.22.0.0/16: the cluster was made with 172.20.0.0/16") || strings.Contains(err.Error(), "service") {
		t.Errorf("another range: %v", err)
	}
}
