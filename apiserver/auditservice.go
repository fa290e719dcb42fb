package apiserver

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/apiserver/audit"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

const (
	defaultAuditLimit = 1000
	maxAuditLimit     = 100_000
	auditBatch        = 256 // records of a message
)

// auditService implements holdfastv1connect.AuditServiceHandler.
type auditService struct{ *Server }

var errNoAudit = connect.NewError(connect.CodeUnimplemented, "this peer keeps no audit")

// Query answers for this peer, and asks the others.
func (s auditService) Query(ctx context.Context, req *holdfastv1.AuditServiceQueryRequest, stream holdfastv1connect.AuditServiceQueryServerStream) error {
	if s.cfg.Audit == nil {
		return errNoAudit
	}
	limit := int(req.GetLimit())
	switch {
	case limit < 0 || limit > maxAuditLimit:
		return badRequest("limit", "is %d: use 0 for %d, or at most %d", limit, defaultAuditLimit, maxAuditLimit)
	case limit == 0:
		limit = defaultAuditLimit
	}
	f := audit.Filter{User: req.GetUser(), Verb: req.GetVerb(), Resource: req.GetResource(), Namespace: req.GetNamespace(), Name: req.GetName(), Outcome: req.GetOutcome()}
	if req.GetFrom() != nil {
		f.From = req.GetFrom().AsTime()
	}
	if req.GetUntil() != nil {
		f.Until = req.GetUntil().AsTime()
	}
	own, err := s.cfg.Audit.Query(ctx, f, limit)
	if err != nil {
		return err
	}
	var all []*holdfastv1.AuditRecord
	for _, r := range own {
		all = append(all, r.Message(s.cfg.PeerID))
	}
	last := &holdfastv1.AuditServiceQueryResponse{}
	if !req.GetLocal() {
		s.others(func(peer string, client holdfastv1connect.AuditServiceClient) (func(), error) {
			records, err := queryPeer(ctx, client, req)
			return func() { all = append(all, records...) }, err
		}, func(peer string, err error) {
			last.Silent = append(last.Silent, &holdfastv1.AuditSilence{Peer: peer, Reason: err.Error()})
		})
	}
	slices.SortStableFunc(all, func(a, b *holdfastv1.AuditRecord) int { return a.GetTime().AsTime().Compare(b.GetTime().AsTime()) })
	for batch := range slices.Chunk(all[max(len(all)-limit, 0):], auditBatch) {
		if err := stream.Send(&holdfastv1.AuditServiceQueryResponse{Records: batch}); err != nil {
			return err
		}
	}
	return stream.Send(last)
}

func queryPeer(ctx context.Context, client holdfastv1connect.AuditServiceClient, req *holdfastv1.AuditServiceQueryRequest) (found []*holdfastv1.AuditRecord, err error) {
	stream, err := client.Query(ctx, &holdfastv1.AuditServiceQueryRequest{
		User: req.GetUser(), Verb: req.GetVerb(), Resource: req.GetResource(), Namespace: req.GetNamespace(), Name: req.GetName(),
		Outcome: req.GetOutcome(), From: req.GetFrom(), Until: req.GetUntil(), Limit: req.GetLimit(), Local: true,
	})
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		found = append(found, msg.GetRecords()...)
	}
}

// others asks all other peers at once. What ask returns is called by one goroutine.
func (s *Server) others(ask func(peer string, client holdfastv1connect.AuditServiceClient) (func(), error), silent func(peer string, err error)) {
	var mu sync.Mutex
	var asked sync.WaitGroup
	for id := range s.cfg.Peers() {
		if id == s.cfg.PeerID {
			continue
		}
		asked.Go(func() {
			client, err := s.cfg.Dial(id)
			var take func()
			if err == nil {
				take, err = ask(id, holdfastv1connect.NewAuditServiceClient(client))
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent(id, err)
				return
			}
			take()
		})
	}
	asked.Wait()
}

// Verify reads this peer's records, has the others read theirs, and compares each with
// what the others have written down of it.
func (s auditService) Verify(ctx context.Context, req *holdfastv1.AuditServiceVerifyRequest) (*holdfastv1.AuditServiceVerifyResponse, error) {
	if s.cfg.Audit == nil {
		return nil, errNoAudit
	}
	if req.GetLocal() {
		verdict, err := s.verifyOwn(ctx, req.GetSeen())
		if err != nil {
			return nil, err
		}
		return &holdfastv1.AuditServiceVerifyResponse{Verdicts: []*holdfastv1.AuditVerdict{verdict}}, nil
	}
	// First for what each has seen of the others, then with that.
	first, err := s.verifyAll(ctx, nil)
	if err != nil {
		return nil, err
	}
	seen := make(map[string][]*holdfastv1.AuditHead)
	for _, v := range first {
		for _, head := range v.GetHeads() {
			seen[head.GetPeer()] = append(seen[head.GetPeer()], head)
		}
	}
	verdicts, err := s.verifyAll(ctx, seen)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(verdicts, func(a, b *holdfastv1.AuditVerdict) int { return strings.Compare(a.GetPeer(), b.GetPeer()) })
	return &holdfastv1.AuditServiceVerifyResponse{Verdicts: verdicts}, nil
}

// verifyAll has all peers verify their own. seen is what others have seen of each.
func (s *Server) verifyAll(ctx context.Context, seen map[string][]*holdfastv1.AuditHead) ([]*holdfastv1.AuditVerdict, error) {
	own, err := s.verifyOwn(ctx, seen[s.cfg.PeerID])
	if err != nil {
		return nil, err
	}
	verdicts := []*holdfastv1.AuditVerdict{own}
	s.others(func(peer string, client holdfastv1connect.AuditServiceClient) (func(), error) {
		resp, err := client.Verify(ctx, &holdfastv1.AuditServiceVerifyRequest{Local: true, Seen: seen[peer]})
		return func() { verdicts = append(verdicts, resp.GetVerdicts()...) }, err
	}, func(peer string, err error) {
		verdicts = append(verdicts, &holdfastv1.AuditVerdict{Peer: peer, Unreachable: err.Error()})
	})
	return verdicts, nil
}

// verifyOwn verifies this peer's records. seen are its heads, as others have seen them.
func (s *Server) verifyOwn(ctx context.Context, seen []*holdfastv1.AuditHead) (*holdfastv1.AuditVerdict, error) {
	wanted := make(map[uint64]bool)
	var heads []audit.Head
	out := &holdfastv1.AuditVerdict{Peer: s.cfg.PeerID}
	for _, h := range seen {
		if len(h.GetHash()) != len(audit.Head{}.Hash) {
			return nil, badRequest("seen.hash", "has %d bytes, want 32", len(h.GetHash()))
		}
		wanted[h.GetSequence()] = true
		heads = append(heads, audit.Head{Sequence: h.GetSequence(), Hash: [32]byte(h.GetHash())})
		out.Witnesses++
		out.Witnessed = max(out.GetWitnessed(), h.GetSequence())
	}
	v, err := s.cfg.Audit.Verify(ctx, wanted)
	if err != nil {
		return nil, err
	}
	out.First, out.Last, out.Faults = v.First, v.Last, append(v.Faults, audit.Compare(v, heads)...)
	for _, h := range v.Heads {
		out.Heads = append(out.Heads, &holdfastv1.AuditHead{Peer: h.Peer, Sequence: h.Sequence, Hash: h.Hash[:]})
	}
	return out, nil
}
