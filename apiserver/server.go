package apiserver

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/holdfast-io/holdfast/apiserver/audit"
	"github.com/holdfast-io/holdfast/apiserver/eventlog"
	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// waitTimeout bounds each wait for a leader, a quorum or a revision.
	waitTimeout = 10 * time.Second
	// callTimeout bounds a unary call as a whole.
	callTimeout = 30 * time.Second
	// catchUpTimeout bounds calls that wait until a new peer has caught up.
	catchUpTimeout = 5 * time.Minute

	// readMaxBytes bounds a message that a client sends.
	readMaxBytes = 4 << 20
	// applyMaxBytes bounds an Apply: many manifests in one message.
	applyMaxBytes = 16 << 20
	// joinMaxBytes bounds what a stranger can make a peer read.
	joinMaxBytes = 64 << 10
	// compressMinBytes is the size from which compression is worth its time.
	compressMinBytes = 4 << 10
)

// Member is a machine that gossip sees.
type Member struct {
	Name    string
	Role    string // "peer" or "node"
	Address string // host:port of its gossip
	API     string // host:port; peers only
	State   string // "alive", "suspect", "dead" or "left"
}

// Gossip tells what gossip sees: hints only. Safe for concurrent use.
type Gossip interface {
	Members() []Member
}

// Config says what a Server is made of.
type Config struct {
	// Store is the replicated store. Required. Its own service for other peers is
	// mounted here as well.
	Store *raftstore.Store
	// PeerID is this peer's id, ClusterID the cluster's. Required.
	PeerID, ClusterID string
	// Version is shown by ClusterService.Status.
	Version string
	// CA signs the certificates of joining machines, who also get GossipKey; tokens of
	// service accounts are signed with a key that is derived from it. Nil: nobody can
	// join through this peer, or come with a token.
	CA        *pki.CA
	GossipKey []byte
	// Gossip is optional; without it every machine's state is "unknown".
	Gossip Gossip
	// Events is the log of Events. Required. The caller runs it.
	Events *eventlog.Log
	// Audit gets a record of each call that writes, is refused, or reads a Secret.
	// Optional; the caller runs it.
	Audit *audit.Log
	// Peers returns the API address of each peer by its id, this one included.
	// Required.
	Peers func() map[string]string
	// Dial returns a client that talks to another peer. Required when there are
	// other peers.
	Dial func(peerID string) (*connect.Client, error)
	// HeartbeatPeriod is how often agents are told to call. Optional; 1 s.
	HeartbeatPeriod time.Duration
	// Logger is optional; nil discards.
	Logger *slog.Logger
	// Registerer gets the metrics; Gatherer is what /metrics shows. Optional:
	// without a Gatherer, Registerer if it is one as well, as a
	// *prometheus.Registry is.
	Registerer prometheus.Registerer
	Gatherer   prometheus.Gatherer
	// Kube makes the handler of Kubernetes' REST dialect, which gets all requests
	// that nothing else here answers, and those for /healthz and /readyz. Optional. Callers are authenticated; whether
	// they may do what they ask for is for the handler to find out, by Authorize.
	Kube func(*Server) http.Handler
	// WhyPod says why the pod under key, which r has, is where it is or nowhere: the
	// scheduler's own answer. Optional; without it WhyService is not implemented.
	WhyPod func(r object.Reader, key object.Key) (*holdfastv1.PodResponse, error)
	// ServiceCIDRs are the networks that Services have their addresses from, one of
	// each family at most. Optional; object.DefaultServiceCIDR.
	ServiceCIDRs []netip.Prefix
	// Alarms says what is wrong with this peer beside its store, "name: what, and what to
	// do". Optional.
	Alarms func() []string
	// Certificates are the ends of this peer's certificate and of the CA's, for metrics,
	// by name. Optional.
	Certificates map[string]func() time.Time
	// PodCIDRs are the networks that pods have their addresses from. Optional; agents
	// are told of none.
	PodCIDRs []netip.Prefix
	// ClusterDomain is the domain of Services' names. Optional; "cluster.local".
	ClusterDomain string
	// ImportedSecrets is a key ring of Secrets, as RewrapSecrets makes it, for a cluster
	// restored from another one's backup. Optional; used if the store's cannot be opened.
	ImportedSecrets []byte
	// Now is the clock that objects are stamped with. Optional; time.Now.
	Now func() time.Time
	// NewUID makes uids. Optional; random UUIDs.
	NewUID func() string
}

// Server is the API of one peer. Safe for concurrent use.
type Server struct {
	cfg        Config
	store      *raftstore.Store
	log        *slog.Logger
	metrics    *metrics
	rpc        *connect.Server
	heartbeats *Heartbeats
	desired    *desiredIndex
	network    *networkIndex
	acks       *networkAcks
	sessions   *sessions
	usage      *usage
	users      *fairQueue
	agents     *fairQueue
	streams    streamCount
	watching   atomic.Int64 // watches of objects that are open
	events     *eventCache
	changes    *changeCache
	catalogs   object.CatalogCache
	peers      knownPeers
	namespaces [256]atomic.Pointer[knownNamespace] // a slot has the last that fell on it
	tokens     *pki.TokenKey                       // nil without a CA
	rights     *rights
	live       liveCalls
	clones     clones
	secrets    *secretKeys
	audited    bool // there is an audit

	// lifetime ends with Run, and all streams with it. It is a session of the
	// whole server, not a call's context.
	lifetime context.Context
	// serves ends before it when the store refuses, and streams of the state with it.
	serves      context.Context
	stopServing context.CancelCauseFunc
	end         context.CancelCauseFunc
}

// errShutdown is the cause with which streams end when Run does.
var errShutdown = errors.New("this peer is shutting down")

// New builds a Server. It starts nothing.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Store == nil:
		return nil, errors.New("apiserver: Config.Store is nil")
	case cfg.PeerID == "" || cfg.ClusterID == "":
		return nil, errors.New("apiserver: Config.PeerID and Config.ClusterID must be set")
	case cfg.Events == nil:
		return nil, errors.New("apiserver: Config.Events is nil")
	case cfg.Peers == nil:
		return nil, errors.New("apiserver: Config.Peers is nil")
	}
	if cfg.Dial == nil {
		cfg.Dial = func(peerID string) (*connect.Client, error) {
			return nil, errors.New("no way to reach other peers is configured")
		}
	}
	if cfg.HeartbeatPeriod <= 0 {
		cfg.HeartbeatPeriod = time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Gatherer == nil {
		cfg.Gatherer, _ = cfg.Registerer.(prometheus.Gatherer)
	}
	if len(cfg.ServiceCIDRs) == 0 {
		cfg.ServiceCIDRs = []netip.Prefix{object.DefaultServiceCIDR}
	}
	cfg.ClusterDomain = cmp.Or(cfg.ClusterDomain, "cluster.local")
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.NewUID == nil {
		cfg.NewUID = func() string { return string(uuid.NewUUID()) }
	}
	s := &Server{
		audited:    cfg.Audit != nil,
		cfg:        cfg,
		store:      cfg.Store,
		log:        cfg.Logger,
		heartbeats: newHeartbeats(),
		desired:    newDesiredIndex(),
		network:    newNetworkIndex(),
		acks:       newNetworkAcks(),
		sessions:   newSessions(),
		usage:      newUsage(),
		events:     newEventCache(),
		changes:    newChangeCache(),
		rights:     newRights(cfg.Store),
		live:       liveCalls{calls: make(map[*liveCall]struct{})},
		users:      newFairQueue(userLane),
		agents:     newFairQueue(agentLane),
	}
	if cfg.CA != nil {
		var err error
		if s.tokens, err = cfg.CA.TokenKey(); err != nil {
			return nil, err
		}
	}
	var err error
	if s.secrets, err = newSecretKeys(cfg.Store, cfg.ClusterID, cfg.CA); err != nil {
		return nil, err
	}
	s.secrets.imported = cfg.ImportedSecrets
	s.lifetime, s.end = context.WithCancelCause(context.Background())
	s.serves, s.stopServing = context.WithCancelCause(s.lifetime)
	s.metrics = newMetrics(cfg.Registerer, s)

	s.rpc = connect.NewServer(s.observe, s.audit, s.authorize, s.limit, s.bound)
	holdfastv1connect.RegisterObjectServiceHandler(s.rpc, objectService{s})
	holdfastv1connect.RegisterPodServiceHandler(s.rpc, podService{s})
	holdfastv1connect.RegisterUsageServiceHandler(s.rpc, usageService{s})
	holdfastv1connect.RegisterClusterServiceHandler(s.rpc, clusterService{s})
	holdfastv1connect.RegisterJoinServiceHandler(s.rpc, joinService{s})
	holdfastv1connect.RegisterOperationsServiceHandler(s.rpc, operationsService{s})
	holdfastv1connect.RegisterAccessServiceHandler(s.rpc, accessService{s})
	holdfastv1connect.RegisterWhyServiceHandler(s.rpc, whyService{s})
	holdfastv1connect.RegisterSecretsServiceHandler(s.rpc, secretsService{s})
	holdfastv1connect.RegisterAuditServiceHandler(s.rpc, auditService{s})
	holdfastv1connect.RegisterNetworkServiceHandler(s.rpc, networkService{s})
	storev1connect.RegisterStoreServiceHandler(s.rpc, storeService{Server: s})
	agentv1connect.RegisterAgentServiceHandler(s.rpc, agentService{s})
	peerv1connect.RegisterStoreServiceHandler(s.rpc, s.store.Service())
	peerv1connect.RegisterMembershipServiceHandler(s.rpc, membershipService{s})
	peerv1connect.RegisterHealthServiceHandler(s.rpc, healthService{s})
	peerv1connect.RegisterEventServiceHandler(s.rpc, eventService{s})
	peerv1connect.RegisterSecretsServiceHandler(s.rpc, peerSecrets{s})
	peerv1connect.RegisterAuditServiceHandler(s.rpc, peerAudit{s})
	s.registerHealth()
	return s, nil
}

// Run feeds agents' streams, relays heartbeats and exchanges events until ctx
// ends; then it ends all streams. Agents are served only while it runs. It
// returns nil, or what made a loop impossible.
func (s *Server) Run(ctx context.Context) error {
	defer s.end(errShutdown)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.desired.run(ctx, s) })
	group.Go(func() error { return s.network.run(ctx, s.store) })
	group.Go(func() error { return s.relayHeartbeats(ctx) })
	group.Go(func() error { return s.relayAcks(ctx) })
	group.Go(func() error { return s.exchangeEvents(ctx) })
	group.Go(func() error { return s.endStreams(ctx) })
	group.Go(func() error { return s.rights.run(ctx) })
	group.Go(func() error { return s.endRevoked(ctx) })
	if s.audited {
		group.Go(func() error { return s.witness(ctx) })
	}
	return group.Wait()
}

// Heartbeats returns the table of nodes' heartbeats. On the leader it holds
// those that came through any peer.
func (s *Server) Heartbeats() *Heartbeats { return s.heartbeats }

// The procedures of objects, of pods' streams, of usage, of the raw store, and of the
// peers' stores.
const (
	objectProcedures    = "/holdfast.v1.ObjectService/"
	podProcedures       = "/holdfast.v1.PodService/"
	usageProcedures     = "/holdfast.v1.UsageService/"
	storeProcedures     = "/holdfast.store.v1.StoreService/"
	peerStoreProcedures = "/holdfast.peer.v1.StoreService/"
)

// Handler serves everything: the Connect services, /healthz and /readyz for
// anybody, /metrics for peers and administrators, /debug/pprof for
// administrators. The caller's identity is taken from the request's verified TLS
// certificate.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	connecthttp.Mount(mux, s.rpc,
		connecthttp.WithReadMaxBytes(readMaxBytes),
		connecthttp.WithCompressMinBytes(compressMinBytes),
		connecthttp.WithConditionalOptions(func(spec connect.Spec) []connecthttp.Option {
			var opts []connecthttp.Option
			switch spec.Procedure {
			case holdfastv1connect.ObjectServiceApplyProcedure,
				holdfastv1connect.ObjectServiceSessionProcedure,
				peerv1connect.StoreServiceForwardProcedure: // carries the Apply on to the leader
				opts = append(opts, connecthttp.WithReadMaxBytes(applyMaxBytes))
			case holdfastv1connect.JoinServiceJoinProcedure:
				opts = append(opts, connecthttp.WithReadMaxBytes(joinMaxBytes))
			}
			// Neither the store's users nor its peers want it compressed: values may be
			// anything, networks are near, and it cost more than all else together. A
			// session is for programs that want much done. What many are sent would be
			// compressed for each anew.
			switch {
			case strings.HasPrefix(spec.Procedure, storeProcedures), strings.HasPrefix(spec.Procedure, peerStoreProcedures),
				spec.Procedure == holdfastv1connect.ObjectServiceSessionProcedure,
				spec.Procedure == holdfastv1connect.ObjectServiceWatchProcedure,
				spec.Procedure == agentv1connect.AgentServiceDesiredProcedure:
				opts = append(opts, connecthttp.WithCompressMinBytes(math.MaxInt))
			}
			return opts
		}))

	if s.cfg.Gatherer != nil {
		mux.Handle("GET /metrics", s.only(promhttp.HandlerFor(s.cfg.Gatherer, promhttp.HandlerOpts{}), pki.RoleAdmin, pki.RolePeer))
	}
	mux.Handle("GET /debug/pprof/", s.only(http.HandlerFunc(pprof.Index), pki.RoleAdmin))
	mux.Handle("GET /debug/pprof/cmdline", s.only(http.HandlerFunc(pprof.Cmdline), pki.RoleAdmin))
	mux.Handle("GET /debug/pprof/profile", s.only(http.HandlerFunc(pprof.Profile), pki.RoleAdmin))
	mux.Handle("GET /debug/pprof/symbol", s.only(http.HandlerFunc(pprof.Symbol), pki.RoleAdmin))
	mux.Handle("GET /debug/pprof/trace", s.only(http.HandlerFunc(pprof.Trace), pki.RoleAdmin))
	if s.cfg.Kube != nil {
		mux.Handle("/", s.cfg.Kube(s))
		return s.authenticate(mux)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.Ready(); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Write([]byte("ok\n"))
	})
	return s.authenticate(mux)
}
