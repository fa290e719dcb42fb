package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// Who the command line writes as: fields that apply owns are its own, and a
// conflict with what create or one of the other commands set says so.
const (
	fieldManager  = "holdfast-cli"
	createManager = "holdfast-create"
	changeManager = "holdfast-change"
)

// remote is the cluster at the other end.
type remote struct {
	objects holdfastv1connect.ObjectServiceClient
	pods    holdfastv1connect.PodServiceClient
	usage   holdfastv1connect.UsageServiceClient
	cluster holdfastv1connect.ClusterServiceClient
	access  holdfastv1connect.AccessServiceClient
	why     holdfastv1connect.WhyServiceClient
	store   storev1connect.StoreServiceClient
	ops     holdfastv1connect.OperationsServiceClient
	secrets holdfastv1connect.SecretsServiceClient
	audit   holdfastv1connect.AuditServiceClient
	network holdfastv1connect.NetworkServiceClient
	name    string          // of the context
	peer    func() string   // the address in use
	peers   func() []string // all addresses
	close   func()
}

func newRemote(conn *connect.Client) *remote {
	return &remote{
		objects: holdfastv1connect.NewObjectServiceClient(conn),
		pods:    holdfastv1connect.NewPodServiceClient(conn),
		usage:   holdfastv1connect.NewUsageServiceClient(conn),
		cluster: holdfastv1connect.NewClusterServiceClient(conn),
		access:  holdfastv1connect.NewAccessServiceClient(conn),
		why:     holdfastv1connect.NewWhyServiceClient(conn),
		store:   storev1connect.NewStoreServiceClient(conn),
		ops:     holdfastv1connect.NewOperationsServiceClient(conn),
		secrets: holdfastv1connect.NewSecretsServiceClient(conn),
		audit:   holdfastv1connect.NewAuditServiceClient(conn),
		network: holdfastv1connect.NewNetworkServiceClient(conn),
		peer:    func() string { return "" },
		peers:   func() []string { return nil },
		close:   func() {},
	}
}

// dial returns the connection of this run. It is made once and reaches out with
// the first request.
func (a *app) dial() (*remote, error) {
	if a.dialed != nil {
		return a.dialed, nil
	}
	r, err := a.connect()
	if err != nil {
		return nil, err
	}
	a.dialed = r
	return r, nil
}

// loadConfig reads the file of contexts.
func (a *app) loadConfig() (*client.ConfigFile, string, error) {
	path, err := client.DefaultConfigPath()
	if err != nil {
		return nil, "", err
	}
	config, err := client.LoadConfig(path)
	return config, path, err
}

// currentContext returns the context that flags, environment and file choose.
func (a *app) currentContext() (client.Context, error) {
	config, path, err := a.loadConfig()
	if err != nil {
		return client.Context{}, err
	}
	if len(config.Contexts) == 0 {
		return client.Context{}, failf(exitError, "no cluster is known yet (%s has no context): `holdfast dev` starts one on this machine, `holdfast server --init` a real one", path)
	}
	name := a.contextName
	if name == "" {
		name = a.getenv("HOLDFAST_CONTEXT")
	}
	if name == "" && config.Current == "" {
		return client.Context{}, failf(exitUsage, "no context is current: choose one with `holdfast context use NAME`; there are %s", strings.Join(contextNames(config), ", "))
	}
	c, err := config.Context(name)
	if err != nil {
		return client.Context{}, failf(exitUsage, "%w", err)
	}
	return c, nil
}

func (a *app) connectContext() (*remote, error) {
	c, err := a.currentContext()
	if err != nil {
		return nil, err
	}
	as, err := a.as.header()
	if err != nil {
		return nil, err
	}
	if len(a.peers) > 0 {
		c.Peers = a.peers
		return remoteOf(c, as, nil)
	}
	if a.renewOwn(c) {
		if c, err = a.currentContext(); err != nil {
			return nil, err
		}
	}
	return remoteOf(c, as, func(peers []string) {
		// A file that cannot be written stays as it is: the answer counts, not this.
		_ = client.UpdateConfig("", func(config *client.ConfigFile) error {
			for i := range config.Contexts {
				if kept := &config.Contexts[i]; kept.Name == c.Name && kept.Cluster == c.Cluster {
					kept.Peers = peers
				}
			}
			return nil
		})
	})
}

// connectContextPeer connects to one peer of the context's cluster.
func (a *app) connectContextPeer(address string) (*remote, error) {
	c, err := a.currentContext()
	if err != nil {
		return nil, err
	}
	as, err := a.as.header()
	if err != nil {
		return nil, err
	}
	c.Peers = []string{address}
	return remoteOf(c, as, nil)
}

// contextPeers returns the addresses of the peers to begin with.
func (a *app) contextPeers() ([]string, error) {
	if len(a.peers) > 0 {
		return a.peers, nil
	}
	c, err := a.currentContext()
	return c.Peers, err
}

// remoteOf returns the cluster of a context. Nothing is sent yet. keep, unless
// nil, is called at the end with the peers that the cluster turned out to have, if
// they are others than the context's; without it only those are talked to.
func remoteOf(c client.Context, as http.Header, keep func(peers []string)) (*remote, error) {
	creds, err := c.Credentials()
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var learned []string
	cfg := client.Config{Peers: c.Peers, Credentials: creds, OnlyThese: keep == nil, Header: as}
	if keep != nil {
		cfg.OnPeers = func(peers []string) {
			mu.Lock()
			defer mu.Unlock()
			learned = slices.Clone(peers)
		}
	}
	conn := client.New(cfg)
	r := newRemote(conn.Connect())
	r.name, r.peer, r.peers = c.Name, conn.Peer, conn.Peers
	r.close = func() {
		mu.Lock()
		defer mu.Unlock()
		if peers := mergePeers(learned, conn.Peer(), c.Peers); len(learned) > 0 && !sameSet(peers, c.Peers) {
			keep(peers)
		}
		conn.Close()
	}
	return r, nil
}

// maxKept bounds the addresses that a context keeps.
const maxKept = 16

// mergePeers returns the learned addresses and, if they are others, the one that
// works from here, first, and those that were known before, last: the peers may
// know each other by addresses that do not work from here, and one that has just
// begun may not know them all yet.
func mergePeers(learned []string, inUse string, before []string) []string {
	var peers []string
	if inUse != "" && !slices.Contains(learned, inUse) {
		peers = append(peers, inUse)
	}
	peers = append(peers, learned...)
	for _, address := range before {
		if !slices.Contains(peers, address) && len(peers) < maxKept {
			peers = append(peers, address)
		}
	}
	return peers
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// noQuorum is why a request was given up.
type noQuorum struct{ trouble string }

func (e noQuorum) Error() string { return e.trouble }

// quorumPatience is how many times the patience with one request a cluster may
// be without a quorum: long enough for some elections.
const quorumPatience = 4

// watchQuorum asks the cluster from time to time, until ctx ends, whether it can
// work. It tells people when it cannot, and calls giveUp when that lasts.
func (r *remote) watchQuorum(ctx context.Context, patience time.Duration, note func(string, ...any), giveUp context.CancelCauseFunc) {
	bad := 0
	for pause := patience; ; pause = patience / 2 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		trouble, answered := r.trouble(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case trouble == "":
			bad = 0
		case bad >= 2*quorumPatience:
			giveUp(noQuorum{trouble})
			return
		default:
			if bad++; bad == 1 {
				why := "no quorum"
				if !answered {
					why = "no peer of context " + r.name + " can be reached"
				}
				note("No answer yet, and %s; waiting up to %v more.", why, quorumPatience*patience)
			}
		}
	}
}

// whyUnavailable asks any peer what it knows, for the message about a request
// that got no good answer. It returns "" when there is nothing to add.
func (r *remote) whyUnavailable(ctx context.Context) string {
	trouble, _ := r.trouble(context.WithoutCancel(ctx))
	return trouble
}

// trouble says why the cluster cannot work, or "", and whether a peer said so.
func (r *remote) trouble(ctx context.Context) (why string, answered bool) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	status, err := r.cluster.Status(ctx, &holdfastv1.StatusRequest{})
	if err != nil {
		if peers := r.peers(); len(peers) > 0 {
			return fmt.Sprintf("no peer of context %s can be reached: tried %s. Are they up, and is this machine on their network?", r.name, strings.Join(peers, ", ")), false
		}
		return "", false
	}
	return quorumTrouble(status), true
}

// quorumTrouble says why writes fail, or "" when they should not.
func quorumTrouble(status *holdfastv1.StatusResponse) string {
	if status.GetQuorum() {
		return ""
	}
	var gone []string
	voters := 0
	for _, p := range status.GetPeers() {
		if p.GetVoter() {
			voters++
		}
		if g := p.GetGossip(); p.GetId() != status.GetServedBy() && g != "alive" && g != "" {
			gone = append(gone, fmt.Sprintf("%s (%s)", p.GetId(), g))
		}
	}
	text := fmt.Sprintf("NO QUORUM, says peer %s: a majority of the %d voting peers must be reachable for anything to change", status.GetServedBy(), voters)
	if len(gone) > 0 {
		text += "; not reachable: " + strings.Join(gone, ", ")
	}
	if why := status.GetQuorumError(); why != "" {
		text += "; " + why
	}
	return text + ". Running pods go on. Bring a peer back; `holdfast get KIND --consistency local` still reads."
}
