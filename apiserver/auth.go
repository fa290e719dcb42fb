package apiserver

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-io/holdfast/pki"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// anybody in a row of the table admits callers without a certificate.
const anybody pki.Role = "anybody"

// table says who may call what. A procedure that is not in it can be called by
// nobody; a test holds that each one that is registered has its row.
var table = map[string][]pki.Role{
	// Of these, nodes are let to what is theirs: see nodes.go.
	holdfastv1connect.ObjectServiceGetProcedure:              {pki.RoleAdmin, pki.RoleNode, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.ObjectServiceListProcedure:             {pki.RoleAdmin, pki.RoleNode, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.ObjectServiceWatchProcedure:            {pki.RoleAdmin, pki.RoleNode, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.ObjectServiceCreateProcedure:           {pki.RoleAdmin, pki.RoleNode, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.ObjectServiceUpdateProcedure:           {pki.RoleAdmin, pki.RoleNode, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.ObjectServiceApplyProcedure:            {pki.RoleAdmin, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.ObjectServiceDeleteProcedure:           {pki.RoleAdmin, pki.RoleNode, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.ObjectServicePatchProcedure:            {pki.RoleAdmin, pki.RoleNode, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.ObjectServiceDeleteCollectionProcedure: {pki.RoleAdmin, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.ObjectServiceEvictProcedure:            {pki.RoleAdmin, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.ObjectServiceBindProcedure:             {pki.RoleAdmin, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.ObjectServiceKindsProcedure:            {pki.RoleAdmin, pki.RoleNode, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.ObjectServiceSchemaProcedure:           {pki.RoleAdmin, pki.RoleNode, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.ObjectServiceSessionProcedure:          {pki.RoleAdmin, roleServiceAccount, pki.RoleUser},

	// Peers pass these on to the peer that has the node's connection.
	holdfastv1connect.PodServiceLogsProcedure:        {pki.RoleAdmin, pki.RolePeer, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.PodServiceExecProcedure:        {pki.RoleAdmin, pki.RolePeer, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.PodServiceAttachProcedure:      {pki.RoleAdmin, pki.RolePeer, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.PodServicePortForwardProcedure: {pki.RoleAdmin, pki.RolePeer, roleServiceAccount, pki.RoleUser},

	holdfastv1connect.UsageServiceListPodUsageProcedure:  {pki.RoleAdmin, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.UsageServiceListNodeUsageProcedure: {pki.RoleAdmin, roleServiceAccount, pki.RoleUser},

	holdfastv1connect.ClusterServiceStatusProcedure:      {pki.RoleAdmin, pki.RolePeer},
	holdfastv1connect.ClusterServiceListPeersProcedure:   {pki.RoleAdmin},
	holdfastv1connect.ClusterServiceCreateTokenProcedure: {pki.RoleAdmin},
	holdfastv1connect.ClusterServiceListTokensProcedure:  {pki.RoleAdmin},
	holdfastv1connect.ClusterServiceRevokeTokenProcedure: {pki.RoleAdmin},
	holdfastv1connect.ClusterServiceRemoveNodeProcedure:  {pki.RoleAdmin},
	// Passed on to the leader.
	holdfastv1connect.ClusterServiceRemovePeerProcedure:         {pki.RoleAdmin, pki.RolePeer},
	holdfastv1connect.ClusterServicePromotePeerProcedure:        {pki.RoleAdmin, pki.RolePeer},
	holdfastv1connect.ClusterServiceDemotePeerProcedure:         {pki.RoleAdmin, pki.RolePeer},
	holdfastv1connect.ClusterServiceReplacePeerProcedure:        {pki.RoleAdmin, pki.RolePeer},
	holdfastv1connect.ClusterServiceTransferLeadershipProcedure: {pki.RoleAdmin, pki.RolePeer},

	holdfastv1connect.OperationsServiceBackupProcedure:  {pki.RoleAdmin},
	holdfastv1connect.OperationsServiceSurveyProcedure:  {pki.RoleAdmin},
	holdfastv1connect.OperationsServiceRecoverProcedure: {pki.RoleAdmin},

	holdfastv1connect.AuditServiceQueryProcedure:  {pki.RoleAdmin, pki.RolePeer},
	holdfastv1connect.AuditServiceVerifyProcedure: {pki.RoleAdmin, pki.RolePeer},

	holdfastv1connect.SecretsServiceStatusProcedure:    {pki.RoleAdmin},
	holdfastv1connect.SecretsServiceRotateKeyProcedure: {pki.RoleAdmin},

	// Says no more than /readyz.
	healthCheckProcedure: {anybody, pki.RoleAdmin, pki.RolePeer, pki.RoleNode, roleServiceAccount, pki.RoleUser},
	healthWatchProcedure: {anybody, pki.RoleAdmin, pki.RolePeer, pki.RoleNode, roleServiceAccount, pki.RoleUser},

	// Each about itself.
	holdfastv1connect.AccessServiceWhoAmIProcedure: {pki.RoleAdmin, pki.RolePeer, pki.RoleNode, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.AccessServiceCanIProcedure:   {pki.RoleAdmin, pki.RolePeer, pki.RoleNode, roleServiceAccount, pki.RoleUser},
	// A node gets those of its pods.
	holdfastv1connect.AccessServiceIssueTokenProcedure:       {pki.RoleAdmin, pki.RoleNode, roleServiceAccount, pki.RoleUser},
	holdfastv1connect.AccessServiceWhoCanProcedure:           {pki.RoleAdmin},
	holdfastv1connect.AccessServiceIssueCertificateProcedure: {pki.RoleAdmin},
	holdfastv1connect.AccessServiceReviewTokenProcedure:      {pki.RoleAdmin, roleServiceAccount, pki.RoleUser},
	// Each its own.
	holdfastv1connect.AccessServiceRenewCertificateProcedure: {pki.RoleAdmin, pki.RoleNode, pki.RoleUser},
	holdfastv1connect.AccessServiceRevokeProcedure:           {pki.RoleAdmin},
	holdfastv1connect.AccessServiceListRevocationsProcedure:  {pki.RoleAdmin},
	holdfastv1connect.AccessServiceReadmitProcedure:          {pki.RoleAdmin},

	holdfastv1connect.NetworkServiceVerifyProcedure:  {pki.RoleAdmin},
	holdfastv1connect.NetworkServiceTraceProcedure:   {pki.RoleAdmin},
	holdfastv1connect.NetworkServiceInspectProcedure: {pki.RoleAdmin, pki.RolePeer},

	holdfastv1connect.WhyServicePodProcedure: {pki.RoleAdmin, roleServiceAccount, pki.RoleUser},

	holdfastv1connect.JoinServiceJoinProcedure: {anybody, pki.RoleAdmin, pki.RolePeer, pki.RoleNode},

	agentv1connect.AgentServiceRegisterProcedure:     {pki.RoleNode},
	agentv1connect.AgentServiceDesiredProcedure:      {pki.RoleNode},
	agentv1connect.AgentServiceHeartbeatProcedure:    {pki.RoleNode},
	agentv1connect.AgentServiceReportStatusProcedure: {pki.RoleNode},
	agentv1connect.AgentServiceReportUsageProcedure:  {pki.RoleNode},
	agentv1connect.AgentServiceConfirmProcedure:      {pki.RoleNode},
	agentv1connect.AgentServiceMirrorProcedure:       {pki.RoleNode},
	agentv1connect.AgentServiceSessionsProcedure:     {pki.RoleNode},
	agentv1connect.AgentServiceNetworkProcedure:      {pki.RoleNode},
	agentv1connect.AgentServiceAckNetworkProcedure:   {pki.RoleNode},
	agentv1connect.AgentServiceDrainedProcedure:      {pki.RoleNode},
	agentv1connect.AgentServiceSessionProcedure:      {pki.RoleNode},

	// The whole keyspace, objects included, can be read there.
	storev1connect.StoreServiceRangeProcedure:           {pki.RoleAdmin},
	storev1connect.StoreServicePutProcedure:             {pki.RoleAdmin},
	storev1connect.StoreServiceDeleteProcedure:          {pki.RoleAdmin},
	storev1connect.StoreServiceTxnProcedure:             {pki.RoleAdmin},
	storev1connect.StoreServiceSessionProcedure:         {pki.RoleAdmin},
	storev1connect.StoreServiceWatchProcedure:           {pki.RoleAdmin},
	storev1connect.StoreServiceLeaseGrantProcedure:      {pki.RoleAdmin},
	storev1connect.StoreServiceLeaseRevokeProcedure:     {pki.RoleAdmin},
	storev1connect.StoreServiceLeaseKeepAliveProcedure:  {pki.RoleAdmin},
	storev1connect.StoreServiceLeaseTimeToLiveProcedure: {pki.RoleAdmin},
	storev1connect.StoreServiceLeasesProcedure:          {pki.RoleAdmin},
	storev1connect.StoreServiceCompactProcedure:         {pki.RoleAdmin},
	storev1connect.StoreServiceStatusProcedure:          {pki.RoleAdmin},

	peerv1connect.StoreServiceReadIndexProcedure:    {pki.RolePeer},
	peerv1connect.StoreServiceReadIndexesProcedure:  {pki.RolePeer},
	peerv1connect.StoreServiceForwardProcedure:      {pki.RolePeer},
	peerv1connect.StoreServiceDescribeProcedure:     {pki.RolePeer},
	peerv1connect.StoreServiceCompactProcedure:      {pki.RolePeer},
	peerv1connect.StoreServiceLeasesProcedure:       {pki.RolePeer},
	peerv1connect.MembershipServiceAddPeerProcedure: {pki.RolePeer},
	peerv1connect.MembershipServiceMeetProcedure:    {pki.RolePeer},
	peerv1connect.HealthServiceRelayProcedure:       {pki.RolePeer},
	peerv1connect.HealthServiceLocateProcedure:      {pki.RolePeer},
	peerv1connect.HealthServiceUsageProcedure:       {pki.RolePeer},
	peerv1connect.HealthServiceRelayAcksProcedure:   {pki.RolePeer},
	peerv1connect.HealthServiceDrainedProcedure:     {pki.RolePeer},
	peerv1connect.EventServiceTailProcedure:         {pki.RolePeer},
	peerv1connect.SecretsServiceCheckProcedure:      {pki.RolePeer},
	peerv1connect.AuditServiceHeadProcedure:         {pki.RolePeer},
}

type identityKey struct{}

// withIdentity returns ctx for a call by id.
func withIdentity(ctx context.Context, id pki.Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, id)
}

// identityFrom returns who makes the call, false for a caller without a
// certificate or token of this cluster.
func identityFrom(ctx context.Context) (pki.Identity, bool) {
	id, ok := ctx.Value(identityKey{}).(pki.Identity)
	return id, ok
}

// actor names the caller for the log and the audit: "admin/alice".
func actor(ctx context.Context) string {
	id, ok := identityFrom(ctx)
	if !ok {
		return string(anybody)
	}
	if by, ok := ctx.Value(impersonatorKey{}).(string); ok {
		return by + " as " + id.Name
	}
	return string(id.Role) + "/" + id.Name
}

// ConnContext is for http.Server.ConnContext: it reads the identity of a TLS
// connection whose handshake is done, once for all of its requests. Reading it for
// each took a tenth of the CPU of a peer under small writes. Without it, Handler
// does so.
func (s *Server) ConnContext(ctx context.Context, conn net.Conn) context.Context {
	if conn, ok := conn.(*tls.Conn); ok {
		ctx = withSource(ctx, conn.RemoteAddr().String())
		if state := conn.ConnectionState(); state.HandshakeComplete {
			return s.identify(ctx, &state, conn.RemoteAddr().String())
		}
	}
	return ctx
}

// authenticate puts the identity of the request's certificate into its context,
// unless ConnContext has, and without one that of its bearer token.
func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Context().Value(sourceKey{}) == nil {
			r = r.WithContext(withSource(r.Context(), r.RemoteAddr))
		}
		if _, known := identityFrom(r.Context()); !known && r.TLS != nil {
			r = r.WithContext(s.identify(r.Context(), r.TLS, r.RemoteAddr))
		}
		if ctx := s.withoutRevoked(r.Context(), r.URL.Path); ctx != r.Context() {
			r = r.WithContext(ctx)
			r.Header.Del("Authorization") // who is refused by his certificate is not let in by a token
		}
		if _, known := identityFrom(r.Context()); !known {
			r = r.WithContext(s.identifyBearer(r.Context(), r.Header))
		}
		if ctx := s.impersonate(r.Context(), r.Header); ctx != r.Context() {
			r = r.WithContext(ctx)
		}
		if _, known := identityFrom(r.Context()); known {
			w.Header().Set(peersHeader, s.peers.header(s.cfg.Peers))
		}
		next.ServeHTTP(w, r)
	})
}

// peersHeader tells clients, in each answer, which peers there are: package client
// learns from it.
const peersHeader = "Holdfast-Peers"

// knownPeers is the value of peersHeader, made anew once a second at most: asking
// the store for its members costs more than a small write's other parts.
type knownPeers struct {
	mu   sync.Mutex
	at   time.Time
	list string
}

func (k *knownPeers) header(peers func() map[string]string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now(); now.Sub(k.at) > time.Second {
		k.at = now
		k.list = strings.Join(slices.Sorted(maps.Values(peers())), ",")
	}
	return k.list
}

// identify returns ctx with the identity of a connection's certificate. The TLS
// layer has verified the chain; a certificate of another cluster, or without an
// identity, counts as none.
func (s *Server) identify(ctx context.Context, state *tls.ConnectionState, remote string) context.Context {
	if len(state.VerifiedChains) == 0 {
		return ctx
	}
	id, err := pki.IdentityOf(state.PeerCertificates[0])
	if err != nil || id.Cluster != s.cfg.ClusterID {
		s.log.Debug("certificate is not of this cluster", "remote", remote, "identity", id.String(), "err", err)
		return ctx
	}
	return withIdentity(context.WithValue(ctx, certKey{}, state.PeerCertificates[0]), id)
}

// authorize is the interceptor that holds the table, before any of the request is
// read, and then the request itself against what its caller may do.
func (s *Server) authorize(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		if err := permit(ctx, spec.Procedure); err != nil {
			return err
		}
		if err := s.serving(spec.Procedure); err != nil {
			return err
		}
		if spec.StreamType != connect.StreamTypeUnary {
			within, end := context.WithCancelCause(ctx)
			defer end(nil)
			defer s.whileAdmitted(within, end)()
			err := s.judged(next)(within, spec, stream)
			if cause := context.Cause(within); denied(cause) {
				return cause
			}
			return err
		}
		return s.judged(next)(ctx, spec, stream)
	}
}

// judged holds the messages of a call against what its caller may do.
func (s *Server) judged(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		id, _ := identityFrom(ctx)
		if id.Role == pki.RolePeer || !perMessage(spec.Procedure) { // a peer has asked for its own caller
			return next(ctx, spec, stream)
		}
		if !byRoles(id.Role) && id.Role != pki.RoleNode {
			return next(ctx, spec, authorizedStream{stream, func(msg any) error { return s.authorizeMessage(ctx, msg) }})
		}
		ctx, end := context.WithCancelCause(ctx)
		defer end(nil)
		guarded := spec.StreamType == connect.StreamTypeUnary || spec.Procedure == holdfastv1connect.ObjectServiceSessionProcedure
		err := next(ctx, spec, authorizedStream{stream, func(msg any) error {
			if err := s.authorizeMessage(ctx, msg); err != nil || guarded {
				return err
			}
			guarded = true // by the first message, which says what the stream is about
			asked := proto.Clone(msg.(proto.Message))
			go s.whileAllowed(ctx, end, func() error { return s.authorizeMessage(ctx, asked) })
			return nil
		}})
		if cause := context.Cause(ctx); denied(cause) {
			return cause
		}
		return err
	}
}

// perMessage reports whether requests of a procedure are held against the rights of
// their callers one by one.
func perMessage(procedure string) bool {
	return strings.HasPrefix(procedure, objectProcedures) || strings.HasPrefix(procedure, podProcedures) || strings.HasPrefix(procedure, usageProcedures)
}

// permit returns nil if the caller may call the procedure.
func permit(ctx context.Context, procedure string) error {
	roles := table[procedure]
	id, ok := identityFrom(ctx)
	if !ok {
		if slices.Contains(roles, anybody) {
			return nil
		}
		return Stranger(ctx)
	}
	if slices.Contains(roles, id.Role) {
		return nil
	}
	name := procedure[strings.LastIndexByte(procedure, '.')+1:]
	return connect.Errorf(connect.CodePermissionDenied, "%s %s may not call %s: it is for %s", id.Role, id.Name, name, roleNames(roles))
}

func roleNames(roles []pki.Role) string {
	if len(roles) == 0 {
		return "nobody"
	}
	names := make([]string, len(roles))
	for i, role := range roles {
		names[i] = string(role) + "s"
	}
	return strings.Join(names, " and ")
}

// only lets callers of the given roles through to an HTTP handler.
func (s *Server) only(next http.Handler, roles ...pki.Role) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, ok := identityFrom(r.Context())
		switch {
		case !ok:
			http.Error(w, "a client certificate of this cluster is needed", http.StatusUnauthorized)
		case !slices.Contains(roles, id.Role):
			http.Error(w, "this is for "+roleNames(roles), http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// nodeName returns the name of the node whose agent calls. The table admits
// nobody else to where it is used.
func nodeName(ctx context.Context) (string, error) {
	id, ok := identityFrom(ctx)
	if !ok || id.Role != pki.RoleNode {
		return "", connect.NewError(connect.CodePermissionDenied, "this call is for nodes' agents")
	}
	return id.Name, nil
}
