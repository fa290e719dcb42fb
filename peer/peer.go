package peer

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/holdfast-io/holdfast/apiserver"
	"github.com/holdfast-io/holdfast/apiserver/audit"
	"github.com/holdfast-io/holdfast/apiserver/eventlog"
	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/controllers"
	"github.com/holdfast-io/holdfast/gossip"
	"github.com/holdfast-io/holdfast/object"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/scheduler"
)

// openStore makes the store, which opens its files and starts nothing.
func (p *Peer) openStore() error {
	p.mux = newMux(p.faults.Listener(p.listener), p.namedTLS(func(*tls.Config) {}, p.apiHosts, protoRaft, protoH2, protoHTTP), p.log.With("part", "listener"))
	p.remotes = &remotes{creds: p.creds, faults: p.faults, resolve: p.addressOf, instance: rand.Text()}
	store, err := raftstore.New(raftstore.Config{
		ID:          p.rec.ID,
		ClusterID:   p.rec.ClusterID,
		Incarnation: p.incarnation,
		Dir:         filepath.Join(p.cfg.DataDir, "raft"),
		Address:     p.rec.Address,
		Stream:      raftStream{p.mux.raft, p.creds, p.faults},
		Remote: func(id string) (peerv1connect.StoreServiceClient, error) {
			conn, err := p.remotes.client(id)
			if err != nil {
				return nil, err
			}
			return peerv1connect.NewStoreServiceClient(conn), nil
		},
		Resolve:    p.gossiped,
		Faults:     p.faults,
		Alive:      p.gossipedAlive,
		Logger:     p.log.With("part", "store"),
		Registerer: p.registry,
	})
	if err != nil {
		return err
	}
	p.store = store
	p.mux.door.refuse = p.refusal
	return nil
}

// gossiped returns the address at which gossip has last seen a peer.
func (p *Peer) gossiped(id string) (string, bool) {
	if p.gossip == nil {
		return "", false
	}
	member, ok := p.gossip.Member(id)
	if !ok || member.Role != gossip.RolePeer || member.API == "" {
		return "", false
	}
	return member.API, true
}

// gossipedAlive reports whether gossip sees a peer alive.
func (p *Peer) gossipedAlive(id string) bool {
	if p.gossip == nil {
		return false
	}
	member, ok := p.gossip.Member(id)
	return ok && member.Role == gossip.RolePeer && member.State == gossip.StateAlive
}

// addressOf returns where to dial a peer: gossip knows of moves, raft's
// configuration knows everybody.
func (p *Peer) addressOf(id string) (string, bool) {
	if address, ok := p.gossiped(id); ok {
		return address, true
	}
	for _, peer := range p.store.Status().Peers {
		if peer.ID == id {
			return peer.Address, true
		}
	}
	return "", false
}

// Run starts the peer's parts, and stops them when ctx ends or one of them
// fails. It returns once all have ended.
func (p *Peer) Run(ctx context.Context) error {
	defer p.Close()
	defer p.remotes.close()

	met := &seeds{addresses: p.rec.Gossip}
	var err error
	p.gossip, err = gossip.New(gossip.Config{
		Name:      p.rec.ID,
		Role:      gossip.RolePeer,
		Listen:    p.cfg.Gossip,
		Advertise: hostOf(p.rec.Address),
		ClusterID: p.rec.ClusterID,
		Key:       p.gossipKey,
		Join:      met.get,
		API:       p.rec.Address,
		Etcd:      p.etcdAddress(),
		Faults:    p.faults,
		Logger:    p.log.With("part", "gossip"),
	})
	if err != nil {
		return err
	}
	events, err := eventlog.New(eventlog.Config{
		Dir:        filepath.Join(p.cfg.DataDir, "events"),
		Peer:       p.rec.ID,
		Logger:     p.log.With("part", "events"),
		Registerer: p.registry,
	})
	if err != nil {
		return err
	}
	records, err := audit.Open(audit.Config{
		Dir: filepath.Join(p.cfg.DataDir, "audit"), Peer: p.rec.ID, Logger: p.log.With("part", "audit"), Registerer: p.registry,
	})
	if err != nil {
		return err
	}
	imported, err := os.ReadFile(filepath.Join(p.cfg.DataDir, secretsImport))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	api, err := apiserver.New(apiserver.Config{
		Store:      p.store,
		PeerID:     p.rec.ID,
		ClusterID:  p.rec.ClusterID,
		Version:    p.cfg.Version,
		CA:         p.ca,
		GossipKey:  p.gossipKey,
		Gossip:     members{p.gossip},
		Events:     events,
		Audit:      records,
		Peers:      p.apiAddresses,
		Dial:       p.remotes.client,
		Logger:     p.log.With("part", "api"),
		Registerer: p.registry,
		Gatherer:   p.registry,
		Kube:       p.kubeHandler,
		WhyPod:     whyPod,
		PodCIDRs:   []netip.Prefix{p.cfg.PodCIDR}, ServiceCIDRs: []netip.Prefix{p.cfg.ServiceCIDR},
		Alarms: func() []string { return p.certificateAlarms(time.Now()) },
		Certificates: map[string]func() time.Time{
			"ca":   p.ca.Expires,
			"peer": func() time.Time { _, end := p.creds.Validity(); return end },
		},

		ImportedSecrets: imported,
	})
	if err != nil {
		return err
	}

	parts := newParts()
	parts.patience = func(err error) time.Duration {
		if errors.Is(err, raftstore.ErrDiskHangs) {
			return hungPatience // others may hang on the same disk
		}
		return 0
	}
	if p.faults != nil {
		parts.start("faults", func(ctx context.Context) error {
			return p.faults.Serve(ctx, filepath.Join(p.cfg.DataDir, FaultSocket))
		})
	}
	// The door first: raft needs it to hear and be heard.
	parts.start("listener", p.mux.run)
	// Who is refused by now is put out.
	parts.start("door", func(ctx context.Context) error { return p.keepDoor(ctx, api.PeerCloned) })
	// A certificate is replaced long before its end, while all goes on.
	parts.start("certificate", p.keepCertificate)
	// The store restores what it has and takes part in elections.
	var storeErr error
	parts.start("store", func(ctx context.Context) error {
		storeErr = p.store.Run(ctx)
		return storeErr
	})
	// Gossip finds peers that have moved; raft asks it at each dial.
	parts.start("gossip", p.gossip.Run)
	// Events come from everywhere below.
	parts.start("events", events.Run)
	parts.start("audit", records.Run)
	// The API relays heartbeats and exchanges events, and answers requests. It
	// waits by itself for a store that is not ready.
	parts.start("api", api.Run)
	parts.start("http", func(ctx context.Context) error {
		return p.serve(ctx, p.mux.http, api.Handler(), api.ConnContext)
	})
	if p.etcd != nil {
		parts.start("etcd", p.runEtcd)
	}
	// Peers whose addresses have all changed find each other again through the one
	// that the operator names.
	parts.start("rendezvous", func(ctx context.Context) error { return p.rendezvous(ctx, met) })
	// A peer that joined, or moved, asks to be (or to be found) in raft.
	parts.start("membership", p.keepMembership)
	// Last, because it acts on the world: stopped first, so that a leader that
	// goes makes no more decisions.
	parts.start("leader", func(ctx context.Context) error {
		return p.store.Lead(ctx, func(ctx context.Context, leader *raftstore.Leader) error {
			return persist(ctx, p.log, "the leader's work", func(ctx context.Context) error {
				return p.lead(ctx, leader, api, events)
			})
		})
	})
	parts.start("ready", p.announceReady)
	err = parts.wait(ctx)
	if storeErr != nil {
		// Others may have noticed before it had ended that it serves no more: what
		// they say is a consequence.
		return fmt.Errorf("store: %w", storeErr)
	}
	return err
}

// hungPatience is how long the parts of a peer whose disk hangs have to stop. Its
// process must end then, since only that makes others see that it is gone.
const hungPatience = 1500 * time.Millisecond

// serve answers HTTP until ctx ends. Streams never end by themselves, so after a
// moment for short requests all connections are closed; clients go on elsewhere.
func (p *Peer) serve(ctx context.Context, listener net.Listener, handler http.Handler, connContext func(context.Context, net.Conn) context.Context) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // exec and port-forward of Kubernetes' clients need Upgrade
	protocols.SetHTTP2(true)
	server := &http.Server{
		Handler:           handler,
		ConnContext:       connContext,
		Protocols:         protocols,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		HTTP2: &http.HTTP2Config{
			// Together the bound after which a cut-off client's streams end.
			SendPingTimeout:      5 * time.Second,
			PingTimeout:          5 * time.Second,
			WriteByteTimeout:     clientStall,
			MaxConcurrentStreams: 1000,
		},
		ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug), // what clients do wrong
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 500*time.Millisecond)
		defer cancel()
		if server.Shutdown(grace) != nil {
			server.Close()
		}
	}()
	err := server.Serve(listener)
	if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
		<-stopped
		return nil
	}
	return err
}

// lead is what the leader does, while it leads.
func (p *Peer) lead(ctx context.Context, leader *raftstore.Leader, api *apiserver.Server, events *eventlog.Log) error {
	p.log.Info("leading", "term", leader.Term())
	defer p.log.Info("no longer leading", "term", leader.Term())
	if err := ensureDefaultNamespace(ctx, leader); err != nil {
		return err
	}
	if err := api.RecordLeader(ctx, leader, p.creds.Certificate(), p.rec.Address); err != nil {
		return err
	}
	parts := newParts()
	parts.start("scheduler", scheduler.New(scheduler.Config{
		Leader:     leader,
		Events:     events.Recorder("scheduler", p.rec.ID),
		Logger:     p.log.With("part", "scheduler"),
		Registerer: p.registry,
	}).Run)
	parts.start("controllers", controllers.New(controllers.Config{
		Leader:      leader,
		Health:      health{api.Heartbeats(), p.gossip},
		Metrics:     podMetrics{api},
		Evictor:     api.Evictor(),
		Events:      events.Recorder("controllers", p.rec.ID),
		Logger:      p.log.With("part", "controllers"),
		Registerer:  p.registry,
		ClusterCIDR: p.cfg.PodCIDR,
	}).Run)
	parts.start("secrets", func(ctx context.Context) error { return api.KeepSecrets(ctx, leader) })
	parts.start("own service", func(ctx context.Context) error { return p.keepOwnService(ctx, leader) })
	return parts.wait(ctx)
}

// ensureDefaultNamespace writes the namespace that objects are in when they name
// none, if it does not exist.
func ensureDefaultNamespace(ctx context.Context, leader *raftstore.Leader) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name:              metav1.NamespaceDefault,
		UID:               uuid.NewUUID(),
		CreationTimestamp: metav1.NewTime(time.Now().UTC().Truncate(time.Second)),
	}}
	object.Default(namespace)
	key := string(object.KeyOf(namespace))
	if _, ok := leader.View().Get(key); ok {
		return nil
	}
	value, err := object.Encode(namespace)
	if err != nil {
		return err
	}
	_, err = leader.Txn(ctx, raftstore.Txn{
		If:     []raftstore.Compare{raftstore.Absent(key)},
		Then:   []raftstore.Op{raftstore.Put(key, value)},
		Actor:  "peer",
		Reason: "the default namespace of a new cluster",
	})
	if errors.Is(err, raftstore.ErrConflict) {
		return nil
	}
	return err
}

// members is gossip as the API shows it.
type members struct{ gossip *gossip.Gossip }

func (m members) Members() []apiserver.Member {
	var out []apiserver.Member
	for _, member := range m.gossip.Members() {
		out = append(out, apiserver.Member{
			Name: member.Name, Role: member.Role, Address: member.Address, API: member.API, State: string(member.State),
		})
	}
	return out
}

// health joins the two witnesses of a node's health.
// podMetrics is what pods use, for autoscalers.
type podMetrics struct{ api *apiserver.Server }

// PodUsage returns what the agents have told any peer that answers.
func (m podMetrics) PodUsage(ctx context.Context) (map[types.UID]controllers.PodUsage, error) {
	answer, err := m.api.Usage().ListPodUsage(ctx, &holdfastv1.ListPodUsageRequest{})
	if err != nil {
		return nil, err
	}
	usage := make(map[types.UID]controllers.PodUsage, len(answer.GetPods()))
	now := time.Now()
	for _, pod := range answer.GetPods() {
		u := controllers.PodUsage{At: now.Add(-pod.GetAge().AsDuration()), Window: pod.GetWindow().AsDuration(), Containers: map[string]corev1.ResourceList{}}
		for _, c := range pod.GetContainers() {
			u.Containers[c.GetName()] = corev1.ResourceList{
				corev1.ResourceCPU:    *resource.NewScaledQuantity(c.GetCpuNanocores(), resource.Nano),
				corev1.ResourceMemory: *resource.NewQuantity(c.GetMemoryBytes(), resource.BinarySI),
			}
		}
		usage[types.UID(pod.GetUid())] = u
	}
	return usage, nil
}

type health struct {
	*apiserver.Heartbeats
	gossip *gossip.Gossip
}

func (h health) Gossip(node string) string {
	member, ok := h.gossip.Member(node)
	if !ok {
		return "unknown"
	}
	return string(member.State)
}

// seeds are gossip addresses to try.
type seeds struct {
	mu        sync.Mutex
	addresses []string
}

func (s *seeds) get() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.addresses)
}

func (s *seeds) add(addresses []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, address := range addresses {
		if !slices.Contains(s.addresses, address) {
			s.addresses = append(s.addresses, address)
		}
	}
}

// rendezvousPause is the time between attempts to find another peer.
const rendezvousPause = time.Second

// rendezvous asks the peers named by --join where they gossip, as long as gossip
// sees no other peer alive. Raft's configuration and this peer's notes may hold
// nothing but addresses of the past; one that is right is enough, since gossip has
// the others.
func (p *Peer) rendezvous(ctx context.Context, met *seeds) error {
	if len(p.cfg.Join) == 0 {
		<-ctx.Done()
		return nil
	}
	asked := client.New(client.Config{Peers: p.cfg.Join, Credentials: p.creds, Logger: p.log})
	defer asked.Close()
	service := peerv1connect.NewMembershipServiceClient(asked.Connect())
	for {
		if !slices.ContainsFunc(p.gossip.Members(), func(m gossip.Member) bool {
			return m.Role == gossip.RolePeer && m.Name != p.rec.ID && m.State == gossip.StateAlive
		}) {
			attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
			resp, err := service.Meet(attempt, &peerv1.MeetRequest{})
			cancel()
			if err == nil {
				met.add(resp.GetGossip())
			} else if ctx.Err() == nil {
				p.log.Info("no other peer found yet", "asked", p.cfg.Join, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rendezvousPause):
		}
	}
}

// knownAddresses returns the API addresses of peers from everywhere.
func (p *Peer) knownAddresses() []string {
	addresses := slices.Concat(p.cfg.Join, p.rec.Peers)
	for _, member := range p.gossip.Members() {
		if member.Role == gossip.RolePeer && member.API != "" {
			addresses = append(addresses, member.API)
		}
	}
	return append(addresses, p.rec.Address)
}

// keepMembership asks the cluster to make this peer part of raft, and to know its
// present address, until that is so. A peer that asks is a learner first; the
// leader gives it a vote when that makes the cluster stronger.
func (p *Peer) keepMembership(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-p.store.Ready():
	}
	seeds := client.New(client.Config{Peers: p.knownAddresses(), Credentials: p.creds, Logger: p.log})
	defer seeds.Close()
	backoff := 100 * time.Millisecond
	for !p.isMember() {
		seeds.SetPeers(p.knownAddresses())
		attempt, cancel := context.WithTimeout(ctx, 20*time.Second)
		_, err := peerv1connect.NewMembershipServiceClient(seeds.Connect()).AddPeer(attempt, &peerv1.AddPeerRequest{
			Id: p.rec.ID, Address: p.rec.Address, Instance: p.store.Instance(), Learner: p.cfg.Learner,
		})
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			p.log.Info("member of raft", "peer", p.rec.ID, "address", p.rec.Address)
			break
		}
		if code := connect.CodeOf(err); code == connect.CodePermissionDenied || code == connect.CodeFailedPrecondition {
			return fmt.Errorf("the cluster does not take this peer: %w", err)
		}
		p.log.Warn("not yet a member of raft, trying again", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, 5*time.Second)
	}
	rec := p.rec // what is written; p.rec is what this process began with
	for {
		changed := p.gossip.Changed()
		rec = p.rememberPeers(rec)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// isMember reports whether this peer is part of raft, under its present address.
func (p *Peer) isMember() bool {
	for _, peer := range p.store.Status().Peers {
		if peer.ID == p.rec.ID {
			return peer.Address == p.rec.Address
		}
	}
	return false
}

// rememberPeers writes down that this peer takes part, and where the others are,
// for the next start. It returns what is written.
func (p *Peer) rememberPeers(written record) record {
	rec := written
	rec.Member, rec.Peers, rec.Gossip = true, nil, nil
	for _, member := range p.gossip.Members() {
		if member.Role != gossip.RolePeer || member.Name == rec.ID {
			continue
		}
		rec.Peers = append(rec.Peers, member.API)
		rec.Gossip = append(rec.Gossip, member.Address)
	}
	slices.Sort(rec.Peers)
	slices.Sort(rec.Gossip)
	if len(rec.Peers) == 0 {
		rec.Peers, rec.Gossip = written.Peers, written.Gossip // alone for now: keep what is known
	}
	if written.Member && slices.Equal(rec.Peers, written.Peers) && slices.Equal(rec.Gossip, written.Gossip) {
		return written
	}
	if err := writeRecord(p.cfg.DataDir, rec); err != nil {
		p.log.Warn("addresses of peers not written", "err", err)
		return written
	}
	return rec
}

// apiAddresses returns where each peer's API is, by id.
func (p *Peer) apiAddresses() map[string]string {
	addresses := make(map[string]string)
	for _, peer := range p.store.Status().Peers {
		if address, ok := p.addressOf(peer.ID); ok && address != "" {
			addresses[peer.ID] = address
		}
	}
	return addresses
}

// announceReady closes Ready once there is a leader.
func (p *Peer) announceReady(ctx context.Context) error {
	for {
		changed := p.store.LeaderChanged()
		if leader, _ := p.store.Leader(); leader != "" {
			close(p.ready)
			<-ctx.Done()
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// hostOf returns the host part of host:port.
func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}
