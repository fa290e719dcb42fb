package peer

import (
	"fmt"
	"path/filepath"

	"github.com/holdfast-io/holdfast/internal/datadir"
)

// record is peer.json: what this data directory is.
type record struct {
	// Version of the directory's layout: 1.
	Version   int    `json:"version"`
	ClusterID string `json:"clusterID"`
	// ID is this peer's name and its raft id.
	ID string `json:"id"`
	// Member is true once this peer has taken part in raft. From then on its log
	// is part of the cluster's memory and must not be lost.
	Member bool `json:"member"`
	// Address is where this peer last said it can be reached, host:port.
	Address string `json:"address"`
	// Peers are the API addresses of peers that were known when it was written:
	// where to ask after a start.
	Peers []string `json:"peers,omitempty"`
	// Gossip are gossip addresses, likewise.
	Gossip []string `json:"gossip,omitempty"`
	// PodCIDR and ServiceCIDR are where pods and Services have their addresses from, as
	// the cluster was made; empty: the defaults.
	PodCIDR     string `json:"podCIDR,omitempty"`
	ServiceCIDR string `json:"serviceCIDR,omitempty"`
}

const layoutVersion = 1

func recordPath(dir string) string { return filepath.Join(dir, "peer.json") }

// readRecord returns the record of dir, or false when dir holds no peer yet.
func readRecord(dir string) (record, bool, error) {
	var r record
	ok, err := datadir.ReadJSON(recordPath(dir), &r, "this peer must be removed from the cluster and joined anew under another name, with an empty directory")
	if err == nil && ok && r.Version != layoutVersion {
		err = fmt.Errorf("%s has layout version %d and this holdfast knows %d: use the version that wrote it", recordPath(dir), r.Version, layoutVersion)
	}
	return r, ok, err
}

func writeRecord(dir string, r record) error {
	r.Version = layoutVersion
	return datadir.WriteJSON(recordPath(dir), r)
}
