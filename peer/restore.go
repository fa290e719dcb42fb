package peer

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/holdfast-io/holdfast/apiserver"
	"github.com/holdfast-io/holdfast/internal/datadir"
	"github.com/holdfast-io/holdfast/pki"
	"github.com/holdfast-io/holdfast/raftstore"
)

// RestoreConfig says what Restore makes of a backup.
type RestoreConfig struct {
	// DataDir becomes the first peer's. Required; it must hold no peer.
	DataDir string
	// Name and Advertise are as in Config. Port is the API's. Optional all.
	Name, Advertise string
	Port            int
	// PKI is a data directory of a peer of the old cluster, or a copy of the "ca"
	// and "gossip.key" in it: the machines of the cluster then go on with the
	// certificates that they have. Required, unless NewCluster.
	PKI string
	// NewCluster makes another cluster with the same contents, with an id, a CA and
	// a gossip key of its own, which every machine must join.
	NewCluster bool
	// SecretKeys are the keys that values of Secrets in the backup are sealed with, as
	// they came with it. Optional: needed with NewCluster alone, which cannot open these
	// values without.
	SecretKeys []byte
	// PodCIDR and ServiceCIDR are those that the old cluster was made with. Optional; the
	// defaults.
	PodCIDR, ServiceCIDR netip.Prefix
	Logger               *slog.Logger // optional; discards
}

// Restore makes the data directory of a new cluster's first peer out of a backup.
// Run that peer, and let the others join it. The backup is checked whole before it
// is used. Its errors are for people.
func Restore(backup io.ReadSeeker, cfg RestoreConfig) (_ raftstore.Restored, err error) {
	conf := Config{DataDir: cfg.DataDir, Name: cfg.Name, Logger: cfg.Logger, PodCIDR: cfg.PodCIDR, ServiceCIDR: cfg.ServiceCIDR}
	if err := conf.complete(); err != nil {
		return raftstore.Restored{}, err
	}
	if cfg.NewCluster == (cfg.PKI != "") {
		return raftstore.Restored{}, errors.New("a backup has no keys in it: say --pki with a data directory of the old cluster's peers, so that its machines are admitted as before, or --new-cluster, which makes new keys and has every machine join anew")
	}
	info, err := raftstore.ReadBackupHeader(backup)
	if err != nil {
		return raftstore.Restored{}, err
	}
	if _, err := backup.Seek(0, io.SeekStart); err != nil {
		return raftstore.Restored{}, err
	}
	p := &Peer{cfg: conf, log: conf.Logger}
	if p.lock, err = datadir.Lock(conf.DataDir); err != nil {
		return raftstore.Restored{}, err
	}
	defer p.Close()
	for _, name := range []string{"peer.json", "raft"} {
		if _, err := os.Lstat(filepath.Join(conf.DataDir, name)); !errors.Is(err, fs.ErrNotExist) {
			return raftstore.Restored{}, fmt.Errorf("%s is in use already, it has a %s: restore into an empty directory, and keep the old one until you have seen that all is well", conf.DataDir, name)
		}
	}
	ca, gossipKey, err := restoreKeys(cfg, info)
	if err != nil {
		return raftstore.Restored{}, err
	}
	secrets, err := restoredSecrets(cfg, ca)
	if err != nil {
		return raftstore.Restored{}, err
	}
	address := net.JoinHostPort(cmp.Or(cfg.Advertise, datadir.HostAddress()), fmt.Sprint(cmp.Or(cfg.Port, DefaultPort)))
	creds, err := ca.Issue(pki.Identity{Cluster: ca.Cluster(), Role: pki.RolePeer, Name: conf.Name})
	if err != nil {
		return raftstore.Restored{}, err
	}
	if err := p.keep(creds, ca, gossipKey); err != nil {
		return raftstore.Restored{}, err
	}
	made, err := raftstore.Restore(backup, raftstore.RestoreOptions{
		Dir: filepath.Join(conf.DataDir, "raft"), ID: conf.Name, ClusterID: ca.Cluster(), Address: address, Logger: conf.Logger,
	})
	if err != nil {
		return raftstore.Restored{}, err
	}
	if secrets != nil {
		if err := datadir.WriteFile(filepath.Join(conf.DataDir, secretsImport), secrets); err != nil {
			return raftstore.Restored{}, err
		}
	}
	// The record makes it a peer's directory: last, when all of it is there.
	return made, writeRecord(conf.DataDir, record{ClusterID: ca.Cluster(), ID: conf.Name, Address: address, Member: true, PodCIDR: rangeText(cfg.PodCIDR), ServiceCIDR: rangeText(cfg.ServiceCIDR)})
}

// secretsImport is the file with the keys of Secrets of a restored backup, wrapped for
// the new cluster. The leader takes them over if it cannot open the cluster's own.
const secretsImport = "secrets.import"

// restoredSecrets returns the content of secretsImport, nil if none is needed.
func restoredSecrets(cfg RestoreConfig, ca *pki.CA) ([]byte, error) {
	if !cfg.NewCluster || len(cfg.SecretKeys) == 0 {
		return nil, nil
	}
	return apiserver.RewrapSecrets(cfg.SecretKeys, ca)
}

// restoreKeys returns the CA and the gossip key of the cluster to be.
func restoreKeys(cfg RestoreConfig, info raftstore.BackupInfo) (*pki.CA, []byte, error) {
	if cfg.NewCluster {
		var id [8]byte
		rand.Read(id[:])
		key := make([]byte, 32)
		rand.Read(key)
		ca, err := pki.NewCA(hex.EncodeToString(id[:]))
		return ca, key, err
	}
	ca, err := pki.LoadCADir(filepath.Join(cfg.PKI, "ca"))
	if err != nil {
		return nil, nil, fmt.Errorf("--pki %s: %w", cfg.PKI, err)
	}
	if ca.Cluster() != info.ClusterID {
		return nil, nil, fmt.Errorf("--pki %s has the CA of cluster %s, and the backup is of cluster %s", cfg.PKI, ca.Cluster(), info.ClusterID)
	}
	key, err := os.ReadFile(filepath.Join(cfg.PKI, "gossip.key"))
	if err != nil {
		return nil, nil, fmt.Errorf("--pki %s: %w", cfg.PKI, err)
	}
	return ca, key, nil
}
