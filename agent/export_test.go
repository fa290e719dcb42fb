package agent

import (
	"maps"
	"slices"

	"github.com/holdfast-io/holdfast/agent/netstate"
)

// SavedPods are the uids of the pods that a node has on its disk.
func SavedPods(dir string) ([]string, error) {
	d, err := loadDesired(dir)
	return slices.Sorted(maps.Keys(d.pods)), err
}

// NetworkState is what the node knows of the cluster's network.
func (a *Agent) NetworkState() *netstate.Holder { return a.network.holder }
