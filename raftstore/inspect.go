package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/hashicorp/raft"
)

// DirInfo is what is in a store's directory.
type DirInfo struct {
	ClusterID, Peer string
	Incarnation     uint64
	// Term is the newest that the peer has voted in, or followed.
	Term uint64
	// The log, from its first to its last entry; 0 when it is empty.
	FirstIndex, LastIndex, LastTerm uint64
	// The state with all of the log applied, committed or not.
	Revision Revision
	Keys     int64
	Hash     [16]byte
	// Voters and Learners are as the newest snapshot and the log have them.
	Voters, Learners []string
	Snapshots        []SnapshotInfo // newest first
	Size             int64          // bytes, of all files
	// Damage is what is wrong with it, for people. Empty when all of it could be
	// read, and its sums and hashes are right.
	Damage []string
}

// SnapshotInfo is a snapshot in a store's directory.
type SnapshotInfo struct {
	ID          string
	Index, Term uint64
	Size        int64
}

// InspectDir reads the store in dir, of a peer that does not run, and checks all of
// it. It writes nothing there: it works on a copy below tmp ("" is the system's
// directory for that), which takes as much room as the directory. The error is for
// what is no store, or cannot be opened; damage in one that can be is in the result.
func InspectDir(dir, tmp string) (info DirInfo, err error) {
	data, err := os.ReadFile(filepath.Join(dir, identityFile))
	if err != nil {
		return info, fmt.Errorf("%s is no peer's store: %w", dir, err)
	}
	var whose identity
	if err := json.Unmarshal(data, &whose); err != nil {
		return info, fmt.Errorf("%s is damaged: %w", filepath.Join(dir, identityFile), err)
	}
	info.ClusterID, info.Peer = whose.Cluster, whose.Peer
	if err := notInUse(filepath.Join(dir, logFile)); err != nil {
		return info, err
	}
	work, err := os.MkdirTemp(tmp, "holdfast-inspect-*")
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if info.Size, err = copyTree(work, dir); err != nil {
		return info, err
	}
	defer func() {
		// The log's library panics on pages that make no sense.
		if p := recover(); p != nil {
			info.Damage = append(info.Damage, fmt.Sprintf("log: %v", p))
		}
	}()
	storage, closeFiles, err := openStorage(Config{ID: whose.Peer, ClusterID: whose.Cluster, Dir: work, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, closeFiles()) }()
	info.read(storage)
	return info, nil
}

// read fills in what storage has.
func (info *DirInfo) read(storage *Storage) {
	damaged := func(what string, err error) {
		if err != nil {
			info.Damage = append(info.Damage, what+": "+err.Error())
		}
	}
	var err error
	info.Incarnation, err = readStable(storage.Stable, keyIncarnation)
	damaged("incarnation", err)
	info.Term, err = readStable(storage.Stable, keyRaftTerm)
	damaged("term", err)
	info.FirstIndex, err = storage.Logs.FirstIndex()
	damaged("log", err)
	info.LastIndex, err = storage.Logs.LastIndex()
	damaged("log", err)

	list, err := storage.Snapshots.List()
	damaged("snapshots", err)
	var members raft.Configuration
	for _, meta := range list {
		info.Snapshots = append(info.Snapshots, SnapshotInfo{meta.ID, meta.Index, meta.Term, meta.Size})
		if _, err := readRaftSnapshot(storage.Snapshots, meta.ID); err != nil {
			damaged("snapshot "+meta.ID, err)
		}
	}
	if len(list) > 0 {
		members = list[0].Configuration
	}
	for i := max(info.FirstIndex, 1); i <= info.LastIndex; i++ {
		var entry raft.Log
		if err := storage.Logs.GetLog(i, &entry); err != nil {
			damaged("entry "+strconv.FormatUint(i, 10)+" of the log", err)
			break
		}
		if entry.Type == raft.LogConfiguration {
			members = raft.DecodeConfiguration(entry.Data)
		}
	}
	for _, server := range members.Servers {
		if server.Suffrage == raft.Voter {
			info.Voters = append(info.Voters, string(server.ID))
		} else {
			info.Learners = append(info.Learners, string(server.ID))
		}
	}
	if info.LastIndex == 0 && len(list) == 0 {
		return // nothing yet
	}
	state, index, term, err := replay(storage)
	if err != nil {
		damaged("state", err)
		return
	}
	root := state.Root()
	info.Revision, info.Keys, info.Hash = root.Revision(), root.Keys(), root.Hash()
	info.LastIndex, info.LastTerm = index, term
}

// notInUse returns an error while another process has the log open.
func notInUse(path string) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("%s is in use: stop the peer first, or ask it (holdfast cluster status, holdfast backup)", path)
	}
	return nil
}

// copyTree copies the files below from, and returns their size.
func copyTree(to, from string) (size int64, err error) {
	err = filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o700)
		case !d.Type().IsRegular():
			return nil
		}
		n, err := copyFile(target, path)
		size += n
		return err
	})
	return size, err
}

func copyFile(to, from string) (int64, error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(out, in)
	return n, errors.Join(err, out.Close())
}
