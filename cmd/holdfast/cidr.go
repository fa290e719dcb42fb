package main

import "net/netip"

// cidrFlag is a flag with a range of addresses, such as 10.244.0.0/16.
type cidrFlag struct{ to *netip.Prefix }

func (f cidrFlag) String() string {
	if f.to == nil || !f.to.IsValid() {
		return ""
	}
	return f.to.String()
}

func (f cidrFlag) Set(text string) error {
	p, err := netip.ParsePrefix(text)
	if err == nil {
		*f.to = p
	}
	return err
}

func (f cidrFlag) Type() string { return "range" }
