package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-io/holdfast/raftstore"
)

func (a *app) inspectCommand() *cobra.Command {
	var output, tmp string
	cmd := &cobra.Command{
		Use:   "inspect FILE|DIRECTORY",
		Short: "Show and check what is in a backup or in a stopped peer's data directory",
		Long: `Show what is in a backup, or in the data directory of a peer that does not run, and
check all of it: sums, hashes, every entry of the log. Nothing is changed. A
directory is read from a copy, for which there must be room (see --tmp).
Exit code 1 means that something is damaged.`,
		Example: `  holdfast inspect holdfast.backup
  holdfast inspect /var/lib/holdfast -o json`,
		Args: exactArgs(1, "a backup's FILE, or a peer's data DIRECTORY"),
		RunE: func(_ *cobra.Command, args []string) error { return a.runInspect(args[0], tmp, output) },
	}
	cmd.Flags().StringVar(&tmp, "tmp", "", "where to copy a directory to (default: the system's directory for temporary files)")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, json or yaml")
	return cmd
}

func (a *app) runInspect(path, tmp, output string) error {
	if err := checkOutput(output, "text", "json", "yaml"); err != nil {
		return err
	}
	stat, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return failf(exitNotFound, "%s does not exist", path)
	case err != nil:
		return err
	case stat.IsDir():
		return a.inspectDir(path, tmp, output)
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := raftstore.ReadBackup(file)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if output != "text" {
		return writeBackupInfo(a.stdout, output, info)
	}
	fmt.Fprintf(a.stdout, `Backup of   cluster %s, incarnation %d
Taken       %s by peer %s
Revision    %d
Keys        %d
State hash  %x
Raft        term %d, index %d
Size        %s
All of it is whole: sums, contents and state hash were checked.
`, info.ClusterID, info.Incarnation, info.TakenAt.Format(time.RFC3339), info.Peer, info.Revision, info.Keys, info.Hash, info.Term, info.Index, size(info.Size))
	return nil
}

func (a *app) inspectDir(dir, tmp, output string) error {
	if sub := filepath.Join(dir, "raft"); isDir(sub) {
		dir = sub // a peer's directory holds more than its store
	}
	info, err := raftstore.InspectDir(dir, tmp)
	if err != nil {
		return err
	}
	if output != "text" {
		snapshots := make([]map[string]any, 0, len(info.Snapshots))
		for _, s := range info.Snapshots {
			snapshots = append(snapshots, map[string]any{"id": s.ID, "index": s.Index, "term": s.Term, "size": s.Size})
		}
		data, err := json.Marshal(map[string]any{
			"kind": "Store", "clusterID": info.ClusterID, "peer": info.Peer, "incarnation": info.Incarnation, "term": info.Term,
			"firstIndex": info.FirstIndex, "lastIndex": info.LastIndex, "lastTerm": info.LastTerm,
			"revision": info.Revision, "keys": info.Keys, "hash": fmt.Sprintf("%x", info.Hash),
			"voters": info.Voters, "learners": info.Learners, "snapshots": snapshots, "size": info.Size, "damage": info.Damage,
		})
		if err != nil {
			return err
		}
		if err := writeJSON(a.stdout, output, data); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.stdout, `Store of    peer %s of cluster %s, incarnation %d
Voters      %s
Log         entries %d to %d, the last of term %d; term %d
Revision    %d (with all of the log, committed or not)
Keys        %d
State hash  %x
Size        %s
`, info.Peer, info.ClusterID, info.Incarnation, strings.Join(info.Voters, ", "), info.FirstIndex, info.LastIndex, info.LastTerm, info.Term,
			info.Revision, info.Keys, info.Hash, size(info.Size))
		for _, s := range info.Snapshots {
			fmt.Fprintf(a.stdout, "Snapshot    at entry %d of term %d, %s\n", s.Index, s.Term, size(s.Size))
		}
		if len(info.Damage) == 0 {
			fmt.Fprintln(a.stdout, "All of it is whole: every entry, sums and state hashes were checked.")
		}
	}
	if len(info.Damage) > 0 {
		return failf(exitError, "%s is damaged: %s\nThe other peers have what it held: remove this peer from the cluster (holdfast peer remove %s), and join with an empty directory.",
			dir, strings.Join(info.Damage, "; "), info.Peer)
	}
	return nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
