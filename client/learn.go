package client

import (
	"slices"
	"strings"
)

// peersHeader is where a peer says in each answer which peers there are: the
// addresses of their APIs, separated by commas, in the same order every time.
const peersHeader = "Holdfast-Peers"

// learn takes in what a peer says about the cluster's peers. Addresses that the
// client was configured with stay, behind them: the cluster may know its peers by
// addresses that cannot be reached from here.
func (c *Client) learn(header string) {
	if header == "" {
		return
	}
	c.mu.Lock()
	known := header == c.learned || c.cfg.OnlyThese
	c.learned = header
	c.mu.Unlock()
	if known {
		return
	}
	peers := strings.Split(header, ",")
	all := slices.Clone(peers)
	for _, address := range c.cfg.Peers {
		if !slices.Contains(all, address) {
			all = append(all, address)
		}
	}
	c.setPeers(all)
	if c.cfg.OnPeers != nil {
		c.cfg.OnPeers(peers)
	}
}
