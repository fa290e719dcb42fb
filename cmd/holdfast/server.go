//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/internal/devcluster"
	"github.com/holdfast-io/holdfast/peer"
	"github.com/holdfast-io/holdfast/raftstore"
)

type serverFlags struct {
	config      peer.Config
	contextName string
	log         logFlags
}

func (a *app) serverCommand() *cobra.Command {
	var f serverFlags
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run a peer: the API and the replicated store",
		Long: `Run a peer: the API, the replicated store and, on the leader, scheduler and
controllers. Three or five peers make a cluster that survives the loss of one or
two of them.

The first peer is started with --init. It saves a context for the command line
and prints the commands with which other machines join. Once its data directory
belongs to a cluster, a peer goes on with that: --init, --join and --token may
stay on its command line.

A peer may come back at another address. If all of them do at once, they find each
other again through --join and the new address of one.`,
		Example: `  holdfast server --init
  holdfast server --join 192.0.2.10:7443 --token holdfast1...
  holdfast server --data-dir /srv/holdfast --advertise 192.0.2.11`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runServer(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.config.Init, "init", false, "make a new cluster, of which this is the first peer")
	flags.StringSliceVar(&f.config.Join, "join", nil, "join the cluster of these peers, host:port of their API")
	flags.StringVar(&f.config.Token, "token", "", "what to join with, as 'holdfast token create --role peer' makes it (default: HOLDFAST_TOKEN)")
	flags.BoolVar(&f.config.Learner, "learner", false, "with --join: get no vote by itself, until 'holdfast peer promote' or 'replace'")
	flags.StringVar(&f.config.Name, "name", "", "name of this peer, which it keeps (default: the host's name)")
	flags.StringVar(&f.config.DataDir, "data-dir", "/var/lib/holdfast", "directory of all that the peer keeps")
	flags.StringVar(&f.config.Listen, "listen", fmt.Sprintf(":%d", peer.DefaultPort), "where to listen for API, raft and agents")
	flags.StringVar(&f.config.Gossip, "gossip", fmt.Sprintf(":%d", peer.DefaultGossipPort), "where to listen for gossip, TCP and UDP")
	flags.StringVar(&f.config.EtcdAPI, "etcd-api", "", "where to serve etcd's v3 API for administrators, host:port such as :2379 (default: nowhere)")
	flags.StringVar(&f.config.Advertise, "advertise", "", "IP address at which other machines reach this one (default: the first global one)")
	flags.Var(cidrFlag{&f.config.PodCIDR}, "pod-cidr", "with --init: where pods' addresses come from, a /24 for each node; for good (default: 10.244.0.0/16)")
	flags.Var(cidrFlag{&f.config.ServiceCIDR}, "service-cidr", "with --init: where Services' addresses come from; for good (default: 10.96.0.0/12)")
	flags.StringVar(&f.contextName, "context-name", "", "with --init: the name of the context to save (default: the cluster's)")
	flags.BoolVar(&f.config.FaultSocket, "fault-socket", false, "let tests break this peer through a socket in its data directory")
	_ = flags.MarkHidden("fault-socket") // it exists
	f.log.add(flags)
	return cmd
}

func (a *app) runServer(ctx context.Context, f serverFlags) error {
	log, err := f.log.logger(a.stderr, a.getenv)
	if err != nil {
		return err
	}
	f.config.Logger, f.config.Version = log, version
	if f.config.Token == "" && len(f.config.Join) > 0 {
		f.config.Token = a.getenv("HOLDFAST_TOKEN")
	}
	paceGC()
	return untilDone(ctx, log, func() error { return a.runPeer(ctx, f, log) })
}

// untilDone runs a peer, and again when it finds the cluster in another incarnation,
// in which it begins anew.
func untilDone(ctx context.Context, log *slog.Logger, run func() error) error {
	for {
		err := run()
		if !errors.Is(err, raftstore.ErrRestart) || ctx.Err() != nil {
			return err
		}
		log.Warn("starting this peer again", "why", err)
	}
}

// runPeer runs a peer until ctx ends or it fails.
func (a *app) runPeer(ctx context.Context, f serverFlags, log *slog.Logger) error {
	isNew := !madeBefore(f.config.DataDir)
	p, err := peer.Prepare(ctx, f.config)
	if err != nil {
		return err
	}
	if f.config.Init {
		if err := a.introduce(p, f.contextName, isNew); err != nil {
			p.Close()
			return err
		}
	}
	ready := make(chan struct{})
	life, end := context.WithCancel(ctx)
	defer end()
	go func() {
		defer close(ready)
		select {
		case <-life.Done():
			return
		case <-p.Ready():
		}
		if err := devcluster.NotifyReady(); err != nil {
			log.Warn("whoever started this peer does not hear that it is ready", "err", err)
		}
		if f.config.Init && isNew {
			a.printJoinCommands(life, p)
		}
	}()
	err = p.Run(ctx)
	if ctx.Err() == nil && err == nil {
		err = errors.New("the peer ended by itself")
	}
	end()
	<-ready
	return err
}

// madeBefore tells whether a data directory holds a peer.
func madeBefore(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "peer.json"))
	return !errors.Is(err, fs.ErrNotExist)
}

// introduce saves a context for the command line. The administrator's
// certificate in it is new each time, so that restarting the first peer also
// mends one that has expired.
func (a *app) introduce(p *peer.Peer, name string, isNew bool) error {
	c, err := p.AdminContext()
	if err != nil {
		return err
	}
	if name != "" {
		c.Name = name
	}
	path, err := saveContext(c)
	if err != nil {
		return fmt.Errorf("save a context for the command line: %w", err)
	}
	if isNew {
		fmt.Fprintf(a.stdout, "Cluster %s: this is peer %s at %s.\nContext %q is in %s.\n", p.ClusterID(), p.ID(), p.Address(), c.Name, path)
	}
	return nil
}

// saveContext adds c to the configuration of whoever runs this, and with sudo of
// whoever ran that. It keeps peers that a context of the same cluster knew
// already. It returns the path that the invoking person reads.
func saveContext(c client.Context) (string, error) {
	path, err := client.DefaultConfigPath()
	if err != nil {
		return "", err
	}
	if err := saveContextTo(path, c); err != nil {
		return "", err
	}
	uid, errUID := strconv.Atoi(os.Getenv("SUDO_UID"))
	gid, errGID := strconv.Atoi(os.Getenv("SUDO_GID"))
	if errUID != nil || errGID != nil || uid == 0 || os.Getenv(client.EnvConfig) != "" {
		return path, nil
	}
	invoker, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return path, nil //nolint:nilerr // root has it, which is enough to go on
	}
	theirs := filepath.Join(invoker.HomeDir, ".config", "holdfast", "config.yaml")
	if theirs == path {
		return path, nil
	}
	if err := saveContextTo(theirs, c); err != nil {
		return "", err
	}
	dir := filepath.Dir(theirs)
	for _, made := range []string{filepath.Dir(dir), dir, theirs, theirs + ".lock"} {
		if info, err := os.Lstat(made); err == nil && info.Mode()&fs.ModeSymlink == 0 {
			if err := os.Lchown(made, uid, gid); err != nil {
				return "", err
			}
		}
	}
	return theirs, nil
}

func saveContextTo(path string, c client.Context) error {
	return client.UpdateConfig(path, func(config *client.ConfigFile) error {
		for _, old := range config.Contexts {
			if old.Name == c.Name && old.Cluster == c.Cluster {
				for _, peer := range old.Peers {
					if !slices.Contains(c.Peers, peer) {
						c.Peers = append(c.Peers, peer)
					}
				}
			}
		}
		config.Set(c)
		return nil
	})
}

// printJoinCommands prints what to run on other machines.
func (a *app) printJoinCommands(ctx context.Context, p *peer.Peer) {
	c, err := p.AdminContext()
	if err != nil {
		a.note("No join commands: %v", err)
		return
	}
	r, err := remoteOf(c, nil, nil)
	if err != nil {
		a.note("No join commands: %v", err)
		return
	}
	defer r.close()
	const ttl = time.Hour
	var tokens []string
	for _, role := range []string{"peer", "node"} {
		token, err := a.createToken(ctx, r, role, ttl, 0)
		if err != nil {
			a.note("No join commands yet (%v): `holdfast token create` makes tokens.", err)
			return
		}
		tokens = append(tokens, token.GetToken())
	}
	fmt.Fprintf(a.stdout, `Ready. Try:
  holdfast cluster status
To add a peer, run on another machine within an hour:
  holdfast server --join %[1]s --token %[2]s
To add a node, where containers run, on this or another machine:
  holdfast agent --join %[1]s --token %[3]s
Then, something to run:
  holdfast create deployment web --image nginx:1.29 --port 80
`, p.Address(), tokens[0], tokens[1])
}
