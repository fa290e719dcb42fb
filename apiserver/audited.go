package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/apiserver/audit"
	"github.com/holdfast-io/holdfast/pki"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// What goes into the audit: every call that writes, or lets somebody into a container or
// at keys; reads of Secrets; and whatever was refused. Not: other reads, what agents and
// peers tell each other all the time, and what the leader's own parts write, whose actor
// and reason are in the log. No record has a value of an object in it.

// reads are the calls that are recorded only if they are refused, or about Secrets.
var reads = map[string]bool{
	holdfastv1connect.ObjectServiceGetProcedure:    true,
	holdfastv1connect.ObjectServiceListProcedure:   true,
	holdfastv1connect.ObjectServiceWatchProcedure:  true,
	holdfastv1connect.ObjectServiceKindsProcedure:  true,
	holdfastv1connect.ObjectServiceSchemaProcedure: true,
	// Each call in it is a call.
	holdfastv1connect.ObjectServiceSessionProcedure:      true,
	holdfastv1connect.PodServiceLogsProcedure:            true,
	holdfastv1connect.UsageServiceListPodUsageProcedure:  true,
	holdfastv1connect.UsageServiceListNodeUsageProcedure: true,
	holdfastv1connect.ClusterServiceStatusProcedure:      true,
	holdfastv1connect.ClusterServiceListPeersProcedure:   true,
	holdfastv1connect.OperationsServiceSurveyProcedure:   true,
	holdfastv1connect.AccessServiceWhoAmIProcedure:       true,
	holdfastv1connect.AccessServiceCanIProcedure:         true,
	holdfastv1connect.AccessServiceWhoCanProcedure:       true,
	holdfastv1connect.AccessServiceReviewTokenProcedure:  true,
	holdfastv1connect.WhyServicePodProcedure:             true,
	holdfastv1connect.SecretsServiceStatusProcedure:      true,
	storev1connect.StoreServiceRangeProcedure:            true,
	storev1connect.StoreServiceWatchProcedure:            true,
	storev1connect.StoreServiceLeasesProcedure:           true,
	storev1connect.StoreServiceLeaseTimeToLiveProcedure:  true,
	storev1connect.StoreServiceLeaseKeepAliveProcedure:   true,
	storev1connect.StoreServiceStatusProcedure:           true,
	healthCheckProcedure:                                 true,
	healthWatchProcedure:                                 true,
	agentv1connect.AgentServiceDesiredProcedure:          true,
	agentv1connect.AgentServiceHeartbeatProcedure:        true,
	agentv1connect.AgentServiceReportStatusProcedure:     true,
	agentv1connect.AgentServiceReportUsageProcedure:      true,
	agentv1connect.AgentServiceConfirmProcedure:          true,
	agentv1connect.AgentServiceMirrorProcedure:           true,
	agentv1connect.AgentServiceSessionsProcedure:         true,
	agentv1connect.AgentServiceNetworkProcedure:          true,
	agentv1connect.AgentServiceAckNetworkProcedure:       true,
	agentv1connect.AgentServiceDrainedProcedure:          true,
	agentv1connect.AgentServiceSessionProcedure:          true,
	peerv1connect.StoreServiceForwardProcedure:           true,
	peerv1connect.StoreServiceReadIndexProcedure:         true,
	peerv1connect.StoreServiceReadIndexesProcedure:       true,
}

// intrusive are the subresources that let a caller into a container.
var intrusive = []string{"exec", "attach", "portforward", "proxy"}

// auditing is what becomes the record of one call. Safe for concurrent use.
type auditing struct {
	server    *Server
	procedure string
	stream    bool

	mu       sync.Mutex
	record   audit.Record
	objects  int
	secrets  bool
	written  bool
	previous Attributes
}

type auditingKey struct{}

func auditingOf(ctx context.Context) *auditing {
	e, _ := ctx.Value(auditingKey{}).(*auditing)
	return e
}

type sourceKey struct{}

// withSource returns ctx for a call from a network address.
func withSource(ctx context.Context, address string) context.Context {
	if host, _, err := net.SplitHostPort(address); err == nil {
		address = host
	}
	return context.WithValue(ctx, sourceKey{}, address)
}

// audit is the interceptor that records calls, with the code and the words that the
// caller gets; it is inside of observe. A call that must be recorded is refused while
// that cannot be done.
func (s *Server) audit(next connect.ServerFunc) connect.ServerFunc {
	if s.cfg.Audit == nil {
		return next
	}
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		id, _ := identityFrom(ctx)
		if id.Role == pki.RolePeer && permit(ctx, spec.Procedure) == nil { // it was recorded where it came in
			return next(ctx, spec, stream)
		}
		e := &auditing{server: s, procedure: spec.Procedure, stream: spec.StreamType != connect.StreamTypeUnary}
		e.record = recordOf(ctx)
		e.record.Verb = strings.ToLower(spec.Procedure[strings.LastIndexByte(spec.Procedure, '/')+1:])
		// Nodes must be able to come back whatever is wrong here, and who looks after the
		// audit must be able to read it.
		if !reads[spec.Procedure] && id.Role != pki.RoleNode && !strings.HasPrefix(spec.Procedure, "/holdfast.v1.AuditService/") {
			if err := s.auditReady(); err != nil {
				return err
			}
		}
		ctx = context.WithValue(ctx, auditingKey{}, e)
		err := next(ctx, spec, audited{stream, ctx, e})
		e.end(err)
		return err
	}
}

// auditReady returns Unavailable while the audit cannot be written.
func (s *Server) auditReady() error {
	if err := s.cfg.Audit.Ready(); err != nil {
		return connect.Errorf(connect.CodeUnavailable, "peer %s cannot record who does what, so it lets nobody do anything: %v; make room on its disk, or ask another peer", s.cfg.PeerID, err)
	}
	return nil
}

// recordOf returns a record of ctx's caller.
func recordOf(ctx context.Context) (r audit.Record) {
	r.Source, _ = ctx.Value(sourceKey{}).(string)
	id, ok := identityFrom(ctx)
	if !ok {
		r.User, r.Role = "system:anonymous", string(anybody)
		return r
	}
	caller, _ := CallerFrom(ctx)
	r.User, r.Role = caller.Name, string(id.Role)
	return r
}

// audited tells a call's audit what the messages say that name no objects.
type audited struct {
	connect.ServerStream
	ctx context.Context // of the one call
	e   *auditing
}

func (a audited) Receive(msg any) error {
	if err := a.ServerStream.Receive(msg); err != nil {
		return err
	}
	switch req := msg.(type) {
	case *storev1.PutRequest:
		a.e.key("put", req.GetKey())
	case *storev1.DeleteRequest:
		a.e.key("delete", req.GetKey())
	case *holdfastv1.CreateTokenRequest:
		a.e.about("tokens", strings.ToLower(strings.TrimPrefix(req.GetRole().String(), "ROLE_")))
	case *holdfastv1.RemovePeerRequest:
		a.e.about("peers", req.GetId())
	case *holdfastv1.PromotePeerRequest:
		a.e.about("peers", req.GetId())
	case *holdfastv1.DemotePeerRequest:
		a.e.about("peers", req.GetId())
	case *holdfastv1.IssueCertificateRequest:
		a.e.about("certificates", req.GetName())
	case *holdfastv1.JoinRequest:
		a.e.about("machines", req.GetName())
	case *agentv1.RegisterRequest:
		a.e.about("nodes", "")
	}
	if a.e.stream && !reads[a.e.procedure] && !perMessage(a.e.procedure) {
		a.e.begin()
	}
	return nil
}

func (e *auditing) key(verb string, key []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.record.Verb, e.record.Resource, e.record.Name = verb, "keys", fmt.Sprintf("%q", key)
}

func (e *auditing) about(resource, name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.record.Resource, e.record.Name = resource, name
}

// saw notes what the caller of ctx asked for, and whether he may. Outside of a recorded
// call, where other dialects ask, it records refusals, and who goes into a container. The
// error is err, or why the call must not go on unrecorded.
func (s *Server) saw(ctx context.Context, a Attributes, err error) error {
	if s.cfg.Audit == nil || a.Path != "" && err == nil {
		return err
	}
	secret := a.Group == "" && a.Resource == secretResource.Plural && a.Subresource == ""
	into := slices.Contains(intrusive, a.Subresource)
	if err == nil && (secret || into) {
		if err := s.auditReady(); err != nil {
			return err
		}
	}
	e := auditingOf(ctx)
	if e == nil {
		if err == nil && !into {
			return nil
		}
		e = &auditing{server: s, record: recordOf(ctx)}
		e.saw(a, secret)
		e.finish(err)
		return err
	}
	e.saw(a, secret)
	if err == nil && e.stream && (secret || into) {
		e.begin()
	}
	return err
}

// resourceOf names what a is about: "deployments.apps", "pods/exec".
func (a Attributes) resource() string {
	text := a.Resource
	if a.Group != "" {
		text += "." + a.Group
	}
	if a.Subresource != "" {
		text += "/" + a.Subresource
	}
	return text
}

func (e *auditing) saw(a Attributes, secret bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.written || e.objects > 0 && a == e.previous {
		return
	}
	e.previous = a
	e.secrets = e.secrets || secret
	r, resource := &e.record, a.resource()
	if a.Path != "" {
		resource = a.Path
	}
	if e.objects++; e.objects == 1 {
		r.Verb, r.Resource, r.Namespace, r.Name = a.Verb, resource, a.Namespace, a.Name
		return
	}
	other := a.Name
	if a.Namespace != "" {
		other = a.Namespace + "/" + a.Name
	}
	if resource != r.Resource {
		other = resource + " " + other
	}
	r.Others = append(r.Others, other)
}

// named gives the object that was seen last, which is to be created, its name.
func (e *auditing) named(name string) {
	if e == nil || name == "" {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch last := len(e.record.Others) - 1; {
	case last >= 0:
		e.record.Others[last] += name
	default:
		e.record.Name = name
	}
	e.previous = Attributes{}
}

// changed notes what a write did.
func (e *auditing) changed(revision int64) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.record.Revision = revision
}

// noted takes over what a plan has to say to the audit.
func (e *auditing) noted(p *plan) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.record.DryRun, e.record.Notes = p.dryRun, p.notes
}

// begin records a stream at its beginning: it may be long.
func (e *auditing) begin() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.written {
		return
	}
	e.written = true
	e.record.Outcome = "ok"
	e.server.cfg.Audit.Append(e.record)
}

// end records a call at its end, if it is one that is to be.
func (e *auditing) end(err error) {
	refused := denied(err) || connect.CodeOf(err) == connect.CodeUnauthenticated && err != nil
	e.mu.Lock()
	skip := e.written && !refused || !refused && reads[e.procedure] && !e.secrets
	e.mu.Unlock()
	if !skip {
		e.finish(err)
	}
}

func (e *auditing) finish(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.written = true
	e.record.Outcome = "ok"
	if err != nil {
		code := connect.CodeOf(err)
		if _, ok := errors.AsType[*connect.Error](err); !ok && errors.Is(err, context.Canceled) {
			code = connect.CodeCanceled
		}
		e.record.Outcome = code.String()
		// Of other errors nobody knows what they quote.
		if code == connect.CodePermissionDenied || code == connect.CodeUnauthenticated {
			e.record.Reason = err.Error()
		}
	}
	e.server.cfg.Audit.Append(e.record)
}

// witnessPeriod is how often a peer writes down the heads of the others' audits.
const witnessPeriod = time.Minute

// witness writes down the heads of the other peers' audits, so that none can be made anew
// unseen, until ctx ends. Where there was no news nothing is written.
func (s *Server) witness(ctx context.Context) error {
	tick := time.NewTicker(witnessPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s.witnessOnce(ctx)
	}
}

func (s *Server) witnessOnce(ctx context.Context) {
	for id := range s.cfg.Peers() {
		if id == s.cfg.PeerID {
			continue
		}
		client, err := s.cfg.Dial(id)
		if err != nil {
			continue
		}
		asked, cancel := context.WithTimeout(ctx, waitTimeout)
		head, err := peerv1connect.NewAuditServiceClient(client).Head(asked, &peerv1.AuditServiceHeadRequest{})
		cancel()
		if err == nil && len(head.GetHash()) == len(audit.Head{}.Hash) {
			s.cfg.Audit.Witness(id, audit.Head{Sequence: head.GetSequence(), Hash: [32]byte(head.GetHash())})
		}
	}
}

// peerAudit implements peerv1connect.AuditServiceHandler.
type peerAudit struct{ *Server }

// Head returns the newest record.
func (s peerAudit) Head(context.Context, *peerv1.AuditServiceHeadRequest) (*peerv1.AuditServiceHeadResponse, error) {
	if s.cfg.Audit == nil {
		return &peerv1.AuditServiceHeadResponse{}, nil
	}
	head := s.cfg.Audit.Head()
	return &peerv1.AuditServiceHeadResponse{Sequence: head.Sequence, Hash: head.Hash[:]}, nil
}
