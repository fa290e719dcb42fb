//go:build linux

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/holdfast-io/holdfast/peer"
)

func (a *app) restoreCommand() *cobra.Command {
	var cfg peer.RestoreConfig
	var key backupKey
	cmd := &cobra.Command{
		Use:   "restore FILE --data-dir DIRECTORY",
		Short: "Make a new cluster's first peer out of a backup",
		Long: `Make the data directory of a new cluster's first peer out of a backup, which is
checked whole before. Start that peer with ` + "`holdfast server`" + `; the others join it
as new peers, with empty directories.

With --pki the cluster keeps its id and CA, and its nodes go on with the
certificates that they have. The directory is the data directory of any peer of
the old cluster, or a copy of "ca" and "gossip.key" from it. With --new-cluster
it is another cluster with the same contents, which every machine has to join.

A sealed backup is opened with --passphrase-file or --identity, whichever it was
sealed with. The values of Secrets come with it into another cluster; out of a
backup that is not sealed they do not.

The store's revision goes on far above the old one, and all history counts as
compacted: who watches lists anew. Members of the old cluster that come back are
fenced off.`,
		Example: `  holdfast restore holdfast.backup --data-dir /var/lib/holdfast --pki /root/holdfast-keys
  holdfast restore holdfast.backup --data-dir /srv/copy --new-cluster`,
		Args: exactArgs(1, "the FILE of the backup"),
		RunE: func(_ *cobra.Command, args []string) error { return a.runRestore(args[0], cfg, key) },
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.DataDir, "data-dir", "/var/lib/holdfast", "directory of all that the peer keeps; it must hold no peer yet")
	flags.StringVar(&cfg.PKI, "pki", "", "directory with ca and gossip.key of the old cluster")
	flags.BoolVar(&cfg.NewCluster, "new-cluster", false, "make another cluster, with keys of its own")
	flags.StringVar(&key.passphraseFile, "passphrase-file", "", "open the backup with the passphrase in the first line of this file")
	flags.StringVar(&key.identityFile, "identity", "", "open the backup with the age key in this file")
	flags.Var(cidrFlag{&cfg.PodCIDR}, "pod-cidr", "what the old cluster was made with (default: 10.244.0.0/16)")
	flags.Var(cidrFlag{&cfg.ServiceCIDR}, "service-cidr", "what the old cluster was made with (default: 10.96.0.0/12)")
	flags.StringVar(&cfg.Name, "name", "", "name of the peer (default: the host's name)")
	flags.StringVar(&cfg.Advertise, "advertise", "", "IP address at which other machines reach this one (default: the first global one)")
	return cmd
}

func (a *app) runRestore(path string, cfg peer.RestoreConfig, key backupKey) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	backup, secretKeys, err := openBackup(file, key)
	if err != nil {
		return fmt.Errorf("restore %s: %w", path, err)
	}
	cfg.SecretKeys = secretKeys
	made, err := peer.Restore(backup, cfg)
	if err != nil {
		return fmt.Errorf("restore %s: %w", path, err)
	}
	fmt.Fprintf(a.stdout, `restored %d keys of revision %d; the cluster goes on at revision %d, in incarnation %d
Start its first peer with
  holdfast server --data-dir %s --init
and join the others, with empty data directories: `+"`holdfast token create --role peer`"+` makes tokens.
`, made.Backup.Keys, made.Backup.Revision, made.Revision, made.Incarnation, cfg.DataDir)
	return nil
}
