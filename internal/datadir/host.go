package datadir

import (
	"net"
	"os"
	"strings"
)

// HostName returns the host's name, without domain, in lower case.
func HostName() (string, error) {
	host, err := os.Hostname()
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	return host, err
}

// HostAddress returns the host's first address that others can reach, IPv4 before
// IPv6, or 127.0.0.1 when it has none. Those of links that an agent has made between
// nodes, whose names begin with "hf-", are none.
func HostAddress() string {
	links, err := net.Interfaces()
	if err != nil {
		return "127.0.0.1"
	}
	best := ""
	for _, link := range links {
		if strings.HasPrefix(link.Name, "hf-") {
			continue
		}
		addrs, _ := link.Addrs() // none, if it has just gone
		for _, addr := range addrs {
			prefix, ok := addr.(*net.IPNet)
			if !ok || !prefix.IP.IsGlobalUnicast() {
				continue
			}
			if prefix.IP.To4() != nil {
				return prefix.IP.String()
			}
			if best == "" {
				best = prefix.IP.String()
			}
		}
	}
	if best == "" {
		best = "127.0.0.1"
	}
	return best
}
