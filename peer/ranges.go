package peer

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"

	"github.com/holdfast-io/holdfast/object"
)

// DefaultPodCIDR is where pods' addresses come from unless a cluster is made with
// another range.
var DefaultPodCIDR = netip.MustParsePrefix("10.244.0.0/16")

// checkRanges returns what is wrong with ranges that a cluster is to be made with.
// Those that are not valid are defaults.
func checkRanges(pods, services netip.Prefix) error {
	var faults []error
	check := func(flag string, p netip.Prefix, longest int) {
		switch {
		case !p.IsValid():
		case !p.Addr().Is4():
			faults = append(faults, fmt.Errorf("%s %s: want a range of IPv4; IPv6 is not supported yet", flag, p))
		case p != p.Masked():
			faults = append(faults, fmt.Errorf("%s %s has bits set beyond its prefix: did you mean %s?", flag, p, p.Masked()))
		case p.Bits() > longest || p.Bits() < 8:
			faults = append(faults, fmt.Errorf("%s %s: want a prefix of 8 to %d bits", flag, p, longest))
		}
	}
	check("--pod-cidr", pods, 24) // each node takes that much of it
	check("--service-cidr", services, 28)
	pods, services = orDefault(pods, DefaultPodCIDR), orDefault(services, object.DefaultServiceCIDR)
	if len(faults) == 0 && pods.Overlaps(services) {
		faults = append(faults, fmt.Errorf("pods' addresses, %s, and Services', %s, overlap: say another --pod-cidr or --service-cidr", pods, services))
	}
	return errors.Join(faults...)
}

func orDefault(p, otherwise netip.Prefix) netip.Prefix {
	if p.IsValid() {
		return p
	}
	return otherwise
}

// setRanges settles where addresses come from: what the cluster was made with. Other
// flags than those are refused, since nodes and Services have their addresses.
func (p *Peer) setRanges() error {
	var faults []error
	take := func(flag string, asked *netip.Prefix, recorded string, otherwise netip.Prefix) {
		made, err := netip.ParsePrefix(cmp.Or(recorded, otherwise.String()))
		switch {
		case err != nil:
			faults = append(faults, fmt.Errorf("%s: %w", recordPath(p.cfg.DataDir), err))
		case asked.IsValid() && *asked != made:
			faults = append(faults, fmt.Errorf("%s %s: the cluster was made with %s, and keeps it; leave the flag out", flag, asked, made))
		}
		*asked = made
	}
	take("--pod-cidr", &p.cfg.PodCIDR, p.rec.PodCIDR, DefaultPodCIDR)
	take("--service-cidr", &p.cfg.ServiceCIDR, p.rec.ServiceCIDR, object.DefaultServiceCIDR)
	return errors.Join(faults...)
}

// rangeText is a range for the record: "" for the default.
func rangeText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}
