package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

// Files in a store's directory, beside raft's "snapshots".
const (
	identityFile = "identity.json"
	logFile      = "raft.db"
)

// identity binds a directory to a peer: under another id or cluster its votes and
// entries would be lies.
type identity struct {
	Cluster string `json:"cluster"`
	Peer    string `json:"peer"`
}

// openStorage opens dir for a peer, and makes what is missing. The files stay
// locked until closed.
func openStorage(cfg Config) (*Storage, func() error, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, nil, err
	}
	logPath := filepath.Join(cfg.Dir, logFile)
	if err := checkIdentity(cfg, logPath); err != nil {
		return nil, nil, err
	}
	bolt, err := raftboltdb.New(raftboltdb.Options{
		Path: logPath,
		BoltOptions: &bbolt.Options{
			Timeout: time.Second, // for the lock
			// The list of free pages grows large after a burst; writing all of it
			// with each commit is what made others' logs slow (bbolt#401). It is
			// rebuilt at start.
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
		},
	})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return nil, nil, fmt.Errorf("%s is in use by another process: is holdfast running already?", logPath)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", logPath, err)
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(cfg.Dir, 2, newRaftLogger(cfg.Logger))
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open snapshots in %s: %w", cfg.Dir, err), bolt.Close())
	}
	return &Storage{Logs: bolt, Stable: bolt, Snapshots: snapshots}, bolt.Close, nil
}

func checkIdentity(cfg Config, logPath string) error {
	path := filepath.Join(cfg.Dir, identityFile)
	want := identity{Cluster: cfg.ClusterID, Peer: cfg.ID}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(logPath); err == nil {
			return fmt.Errorf("%s holds a log, but not %s, which says whose it is: restore that file, or begin with an empty directory and join as a new peer", cfg.Dir, identityFile)
		}
		data, err := json.Marshal(want)
		if err != nil {
			return err
		}
		return writeFile(path, append(data, '\n'))
	}
	if err != nil {
		return err
	}
	var have identity
	if err := json.Unmarshal(data, &have); err != nil {
		return fmt.Errorf("%s is damaged: %w", path, err)
	}
	if have != want {
		return fmt.Errorf("%s belongs to peer %q of cluster %q, not to peer %q of cluster %q: use another data directory, or remove this one if its contents are no longer needed",
			cfg.Dir, have.Peer, have.Cluster, want.Peer, want.Cluster)
	}
	return nil
}

// writeFile makes a file that exists whole or not at all, power loss included.
func writeFile(path string, data []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	if _, err := tmp.Write(data); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
