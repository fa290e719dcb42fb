package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

type backupFlags struct {
	local, force bool
	output       string
	seal         backupSeal
}

func (a *app) backupCommand() *cobra.Command {
	var f backupFlags
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write the whole state of the cluster to a file",
		Long: `Write the whole state of the cluster, at one revision, to a file, or with - to
standard output. Any peer serves it, beside its other work. The backup holds all
that was acknowledged before the command began.

The file appears under its name once it is complete, on disk and has been read
again as it was written: every byte, and the state hash. That takes as much
memory as the state itself. It does not hold the keys of the cluster's CA and
gossip. Keep "ca" and "gossip.key" of any peer's data directory, once, in a safe
place: ` + "`holdfast restore`" + ` wants them.

With --passphrase-file or --recipient the backup is sealed, as an age file, and
holds the keys of Secrets as well. Without, it is readable by its owner alone, and
the values of Secrets in it are sealed with keys that the CA's opens: restored as
another cluster, they are lost.`,
		Example: `  holdfast backup /srv/backup/holdfast-$(date +%F).backup
  holdfast backup --passphrase-file /root/backup.passphrase holdfast.backup.age
  holdfast backup --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kudq9wxsqx3r8aq - > holdfast.backup.age
  holdfast backup --local --peer 192.0.2.10:7443 last-resort.backup`,
		Args: exactArgs(1, "the FILE to write, or - for standard output"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runBackup(cmd.Context(), args[0], f) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.local, "local", false, "what the peer has, without asking a majority: for a peer that is cut off; what was acknowledged elsewhere may be missing")
	flags.BoolVar(&f.force, "force", false, "replace FILE if it exists")
	flags.StringVar(&f.seal.passphraseFile, "passphrase-file", "", "seal the backup with the passphrase in the first line of this file")
	flags.StringArrayVar(&f.seal.recipients, "recipient", nil, "seal the backup for the owner of this age key; can be repeated")
	flags.StringVarP(&f.output, "output", "o", "text", "text, json or yaml: how to say what was written")
	return cmd
}

func (a *app) runBackup(ctx context.Context, path string, f backupFlags) (err error) {
	if err := checkOutput(f.output, "text", "json", "yaml"); err != nil {
		return err
	}
	to, err := f.seal.to()
	if err != nil {
		return err
	}
	report := a.stdout
	var out io.Writer = a.stdout
	var file *os.File
	if path == "-" {
		report = a.stderr
	} else {
		if _, err := os.Lstat(path); !f.force && !errors.Is(err, fs.ErrNotExist) {
			return failf(exitRefused, "%s exists: say --force to replace it", path)
		}
		if file, err = os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*"); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, file.Close(), os.Remove(file.Name()))
			}
		}()
		out = file
	}
	info, err := a.fetchBackup(ctx, out, f.local, to)
	if err != nil {
		return err
	}
	if file != nil {
		if err := keepFile(file, path, f.force); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	if f.output == "text" {
		fmt.Fprintf(report, "backup of cluster %s at revision %d: %d keys, %s, state hash %x; checked\n", info.ClusterID, info.Revision, info.Keys, size(info.Size), info.Hash)
		return nil
	}
	return writeBackupInfo(report, f.output, info)
}

// fetchBackup copies a backup to out, sealed if it is to be, and reads it at the same
// time.
func (a *app) fetchBackup(ctx context.Context, out io.Writer, local bool, to []age.Recipient) (raftstore.BackupInfo, error) {
	var none raftstore.BackupInfo
	r, err := a.dial()
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithCancel(ctx) // no time limit: it takes what it takes
	defer cancel()
	stream, err := r.ops.Backup(ctx, &holdfastv1.BackupRequest{Local: local, WithSecretKeys: len(to) > 0})
	if err != nil {
		return none, a.explain(ctx, r, "backup", err)
	}
	defer stream.Close()

	type verdict struct {
		info raftstore.BackupInfo
		err  error
	}
	pipe, checked := io.Pipe()
	read := make(chan verdict, 1)
	go func() {
		info, err := raftstore.ReadBackup(pipe)
		pipe.CloseWithError(err) // what comes after an error is not waited for
		read <- verdict{info, err}
	}()
	live := a.newLiveLine(a.stderr)
	defer live.clear()
	var got, keys int64
	var sealed io.WriteCloser
	begin, shown := a.now(), time.Time{}
	for {
		message, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			checked.CloseWithError(err)
			<-read
			return none, a.explain(ctx, r, "backup", err)
		}
		if info := message.GetInfo(); info != nil {
			keys = info.GetKeys()
			if len(to) > 0 {
				if sealed, err = sealBackup(out, to, message.GetSecretKeys()); err != nil {
					checked.CloseWithError(err)
					<-read
					return none, fmt.Errorf("seal the backup: %w", err)
				}
				out = sealed
			}
		}
		if _, err := out.Write(message.GetData()); err != nil {
			checked.CloseWithError(err)
			<-read
			return none, fmt.Errorf("backup: %w", err)
		}
		_, _ = checked.Write(message.GetData()) // its error is in the verdict
		got += int64(len(message.GetData()))
		if now := a.now(); now.Sub(shown) > 200*time.Millisecond {
			shown = now
			live.show(fmt.Sprintf("%d keys: %s in %v", keys, size(got), now.Sub(begin).Round(100*time.Millisecond)))
		}
	}
	checked.Close()
	v := <-read
	if v.err != nil {
		return none, fmt.Errorf("the backup arrived damaged: %w", v.err)
	}
	if sealed != nil {
		if err := sealed.Close(); err != nil {
			return none, fmt.Errorf("seal the backup: %w", err)
		}
	}
	return v.info, nil
}

// keepFile gives a complete file its name.
func keepFile(file *os.File, path string, force bool) error {
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		return err
	}
	if force {
		if err := os.Rename(file.Name(), path); err != nil {
			return err
		}
	} else {
		// A link fails if the name was taken meanwhile.
		if err := os.Link(file.Name(), path); err != nil {
			return err
		}
		if err := os.Remove(file.Name()); err != nil {
			return err
		}
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// size is a number of bytes for people.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

func writeBackupInfo(w io.Writer, output string, info raftstore.BackupInfo) error {
	data, err := json.Marshal(map[string]any{
		"kind": "Backup", "clusterID": info.ClusterID, "incarnation": info.Incarnation, "peer": info.Peer, "takenAt": info.TakenAt,
		"revision": info.Revision, "keys": info.Keys, "hash": fmt.Sprintf("%x", info.Hash),
		"term": info.Term, "index": info.Index, "size": info.Size,
	})
	if err != nil {
		return err
	}
	return writeJSON(w, output, data)
}
