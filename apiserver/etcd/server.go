package etcd

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/holdfast-io/holdfast/pki"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// maxRequestBytes and maxTxnOps are etcd's defaults. The transport admits a bit
	// more, so that the answer is etcd's own.
	maxRequestBytes = 1536 << 10
	readMaxBytes    = maxRequestBytes + 512<<10
	maxTxnOps       = 128
	// callTimeout bounds a unary call as a whole.
	callTimeout = 30 * time.Second
	// leaderlessTimeout is how long a stream that asks for a leader goes on without.
	leaderlessTimeout = 5 * time.Second
)

// Member is a peer as etcd's clients see it.
type Member struct {
	ID      string
	Learner bool
	// PeerURLs are for people. ClientURLs are where the peer serves this API; none
	// if it does not, or that is not known.
	PeerURLs, ClientURLs []string
}

// Config says what a Server is made of.
type Config struct {
	// Store is the replicated store. Required.
	Store *raftstore.Store
	// PeerID is this peer's id, ClusterID the cluster's. Required.
	PeerID, ClusterID string
	// Members returns the members of raft, this peer included. Required.
	Members func() []Member
	// Refuse returns why a certificate of the cluster counts no more, nil if it does.
	// Optional. That connections of the refused end is the listener's affair.
	Refuse func(*x509.Certificate) error
	// Logger is optional; nil discards.
	Logger *slog.Logger
}

// Server is etcd's API of one peer. Safe for concurrent use.
type Server struct {
	cfg               Config
	store             *raftstore.Store
	log               *slog.Logger
	cluster, memberID uint64
	rpc               *connect.Server
}

// New builds a Server. It starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Store == nil || cfg.PeerID == "" || cfg.ClusterID == "" || cfg.Members == nil {
		return nil, errors.New("etcd: Config needs Store, PeerID, ClusterID and Members")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg: cfg, store: cfg.Store, log: cfg.Logger,
		cluster: idOf(cfg.ClusterID), memberID: idOf(cfg.PeerID),
	}
	s.rpc = connect.NewServer(s.observe, s.authorize, s.bound)
	handlers := map[protoreflect.FullName]connect.ServerFunc{
		"etcdserverpb.KV.Range":       unary(s.Range),
		"etcdserverpb.KV.RangeStream": s.rangeStream,
		"etcdserverpb.KV.Put":         unary(s.Put),
		"etcdserverpb.KV.DeleteRange": unary(s.DeleteRange),
		"etcdserverpb.KV.Txn":         unary(s.Txn),
		"etcdserverpb.KV.Compact":     unary(s.Compact),

		"etcdserverpb.Watch.Watch": s.watch,

		"etcdserverpb.Lease.LeaseGrant":      unary(s.LeaseGrant),
		"etcdserverpb.Lease.LeaseRevoke":     unary(s.LeaseRevoke),
		"etcdserverpb.Lease.LeaseKeepAlive":  s.leaseKeepAlive,
		"etcdserverpb.Lease.LeaseTimeToLive": unary(s.LeaseTimeToLive),
		"etcdserverpb.Lease.LeaseLeases":     unary(s.LeaseLeases),

		"etcdserverpb.Cluster.MemberList":     unary(s.MemberList),
		"etcdserverpb.Maintenance.Status":     unary(s.Status),
		"etcdserverpb.Maintenance.Alarm":      unary(s.Alarm),
		"etcdserverpb.Maintenance.Defragment": unary(s.Defragment),
		"etcdserverpb.Maintenance.Hash":       unary(s.Hash),
		"etcdserverpb.Maintenance.HashKV":     unary(s.HashKV),
		"etcdserverpb.Auth.AuthStatus":        unary(s.AuthStatus),
	}
	services := pb.File_rpc_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			method := methods.Get(j)
			handler := handlers[method.FullName()]
			if handler == nil {
				handler = refuse(method)
			}
			s.rpc.Register(connect.Method{Spec: specOf(method), Handler: handler})
		}
	}
	return s, nil
}

// specOf describes a method as the generator of Connect's handlers would.
func specOf(method protoreflect.MethodDescriptor) connect.Spec {
	spec := connect.Spec{
		Schema:    method,
		Procedure: "/" + string(method.Parent().FullName()) + "/" + string(method.Name()),
	}
	if method.IsStreamingClient() {
		spec.StreamType |= connect.StreamTypeClient
	}
	if method.IsStreamingServer() {
		spec.StreamType |= connect.StreamTypeServer
	}
	return spec
}

// unary makes a handler of a function of one message.
func unary[Req any, Resp proto.Message](do func(context.Context, *Req) (Resp, error)) connect.ServerFunc {
	return func(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
		req := new(Req)
		if err := stream.Receive(req); err != nil {
			return err
		}
		resp, err := do(ctx, req)
		if err != nil {
			return err
		}
		return stream.Send(resp)
	}
}

// instead says what to use where etcd's own calls are not served.
var instead = map[protoreflect.FullName]string{
	"etcdserverpb.Auth":                   "callers are known by their certificates, and administrators may do everything",
	"etcdserverpb.Cluster":                "members are changed with `holdfast peer`",
	"etcdserverpb.Maintenance.Snapshot":   "use `holdfast backup`",
	"etcdserverpb.Maintenance.MoveLeader": "use `holdfast peer transfer`",
	"etcdserverpb.Maintenance.Downgrade":  "the version of etcd's API is no property of this cluster",
}

// refuse is the handler of a procedure that is not served.
func refuse(method protoreflect.MethodDescriptor) connect.ServerFunc {
	why := instead[method.FullName()]
	if why == "" {
		why = instead[method.Parent().FullName()]
	}
	return func(context.Context, connect.Spec, connect.ServerStream) error {
		return refusal(string(method.Name()), why)
	}
}

func refusal(what, why string) error {
	return connect.Errorf(connect.CodeUnimplemented, "holdfast does not serve etcd's %s: %s", what, why)
}

// idOf makes the number that etcd's clients know a peer or a cluster by. It is
// never 0, which is etcd's "none".
func idOf(name string) uint64 {
	sum := sha256.Sum256([]byte(name))
	return max(1, binary.BigEndian.Uint64(sum[:]))
}

// header says who answers, as of a revision.
func (s *Server) header(revision int64) *pb.ResponseHeader {
	_, term := s.store.Leader()
	return &pb.ResponseHeader{ClusterId: s.cluster, MemberId: s.memberID, Revision: revision, RaftTerm: term}
}

// Handler serves the API. The caller's identity is taken from the verified TLS
// certificate of the connection.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	connecthttp.Mount(mux, s.rpc, connecthttp.WithReadMaxBytes(readMaxBytes))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, known := callerOf(r.Context()); !known && r.TLS != nil {
			r = r.WithContext(s.identify(r.Context(), r.TLS))
		}
		mux.ServeHTTP(w, r)
	})
}

// ConnContext is for http.Server.ConnContext: it reads the identity of a TLS
// connection whose handshake is done, once for all of its requests.
func (s *Server) ConnContext(ctx context.Context, conn net.Conn) context.Context {
	if conn, ok := conn.(*tls.Conn); ok {
		if state := conn.ConnectionState(); state.HandshakeComplete {
			return s.identify(ctx, &state)
		}
	}
	return ctx
}

type callerKey struct{}

func callerOf(ctx context.Context) (pki.Identity, bool) {
	id, ok := ctx.Value(callerKey{}).(pki.Identity)
	return id, ok
}

func (s *Server) identify(ctx context.Context, state *tls.ConnectionState) context.Context {
	if len(state.VerifiedChains) == 0 {
		return ctx
	}
	id, err := pki.IdentityOf(state.PeerCertificates[0])
	if err != nil || id.Cluster != s.cfg.ClusterID {
		return ctx
	}
	return context.WithValue(context.WithValue(ctx, callerKey{}, id), certKey{}, state.PeerCertificates[0])
}

// certKey is for the *x509.Certificate that a call is made with.
type certKey struct{}

// actor names the caller for the audit: "admin/alice".
func actor(ctx context.Context) string {
	id, _ := callerOf(ctx)
	return string(id.Role) + "/" + id.Name
}

// authorize admits administrators, and nobody while this peer's state may be wrong.
func (s *Server) authorize(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		id, ok := callerOf(ctx)
		switch {
		case !ok:
			return connect.NewError(connect.CodeUnauthenticated, "this call needs a client certificate of this cluster")
		case s.refused(ctx) != nil:
			return s.refused(ctx)
		case id.Role != pki.RoleAdmin:
			return connect.Errorf(connect.CodePermissionDenied, "%s %s may not use etcd's API: it is for admins", id.Role, id.Name)
		}
		if err := s.store.Refusal(); err != nil {
			return rpcError(err)
		}
		return next(ctx, spec, stream)
	}
}

// refused returns why the caller's certificate counts no more, nil if it does.
func (s *Server) refused(ctx context.Context) error {
	cert, _ := ctx.Value(certKey{}).(*x509.Certificate)
	if s.cfg.Refuse == nil || cert == nil {
		return nil
	}
	return s.cfg.Refuse(cert)
}

// observe is the outermost interceptor: it gives each error its code, and logs what
// nobody foresaw.
func (s *Server) observe(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) (err error) {
		defer func() {
			if r := recover(); r != nil {
				if r == http.ErrAbortHandler {
					panic(r)
				}
				s.log.Error("handler panicked", "procedure", spec.Procedure, "caller", actor(ctx), "panic", r, "stack", string(debug.Stack()))
				err = connect.NewError(connect.CodeInternal, "internal error: the peer's log has more")
			}
			if err = rpcError(err); connect.CodeOf(err) == connect.CodeInternal {
				s.log.Error("call failed unexpectedly", "procedure", spec.Procedure, "caller", actor(ctx), "err", errors.Unwrap(err))
			}
		}()
		return next(ctx, spec, stream)
	}
}

// errLeaderless is the cause with which streams end that asked for a leader.
var errLeaderless = etcdError(rpctypes.ErrGRPCNoLeader)

// bound gives unary calls a deadline. It refuses calls that want a leader (clientv3's
// WithRequireLeader) while none is known, and ends such streams; and all streams
// once this peer's state may be wrong.
func (s *Server) bound(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		info, _ := connect.CallInfoForServerContext(ctx)
		needsLeader := info != nil && info.RequestHeader().Get(rpctypes.MetadataRequireLeaderKey) == rpctypes.MetadataHasLeader
		if leader, _ := s.store.Leader(); needsLeader && leader == "" {
			return errLeaderless
		}
		if spec.StreamType == connect.StreamTypeUnary {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			return next(ctx, spec, stream)
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		go s.guard(ctx, cancel, needsLeader) // ends with ctx
		err := next(ctx, spec, stream)
		if cause, ok := errors.AsType[*connect.Error](context.Cause(ctx)); ok && err != nil {
			return cause
		}
		return err
	}
}

// guard ends a stream when there is a reason to. It returns when ctx ends.
func (s *Server) guard(ctx context.Context, end context.CancelCauseFunc, needsLeader bool) {
	for {
		changed := s.store.LeaderChanged()
		var lost <-chan time.Time
		stop := func() bool { return true }
		if leader, _ := s.store.Leader(); needsLeader && leader == "" {
			timer := time.NewTimer(leaderlessTimeout)
			lost, stop = timer.C, timer.Stop
		}
		select {
		case <-changed:
		case <-lost:
			end(errLeaderless)
		case <-s.store.Refused():
			end(rpcError(s.store.Refusal()))
			return
		case <-ctx.Done():
			stop()
			return
		}
		stop()
	}
}

// wireKey is a key of the store as clients know it.
func wireKey(key string) []byte { return []byte(strings.TrimPrefix(key, raftstore.UserKeyspace)) }
