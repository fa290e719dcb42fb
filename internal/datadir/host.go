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
// IPv6, or 127.0.0.1 when it has none.
func HostAddress() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "127.0.0.1"
	}
	best := ""
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
	if best == "" {
		best = "127.0.0.1"
	}
	return best
}
