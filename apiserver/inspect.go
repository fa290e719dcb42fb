package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

const (
	// inspectParallel bounds how many nodes are asked at one time.
	inspectParallel = 50
	// inspectTries is how often a node is asked that seems to be behind: it may be
	// about to hear what this peer knows. inspectPause lies between.
	inspectTries = 4
	inspectPause = 300 * time.Millisecond
)

// networkService implements holdfastv1connect.NetworkServiceHandler.
type networkService struct{ *Server }

// Verify asks the nodes and says of each what is to be said.
func (s networkService) Verify(ctx context.Context, req *holdfastv1.VerifyRequest) (*holdfastv1.VerifyResponse, error) {
	view, err := s.sync(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.network.wait(ctx, view.Revision()); err != nil {
		return nil, err
	}
	var names []string
	for _, node := range object.List[*corev1.Node](view, "") {
		if len(req.GetNodes()) == 0 || slices.Contains(req.GetNodes(), node.Name) {
			names = append(names, node.Name)
		}
	}
	for _, name := range req.GetNodes() {
		if !slices.Contains(names, name) {
			return nil, connect.Errorf(connect.CodeNotFound, "there is no node %s", name)
		}
	}
	verdicts := make([]*holdfastv1.NodeVerdict, len(names))
	var group sync.WaitGroup
	slots := make(chan struct{}, inspectParallel)
	for i, name := range names {
		slots <- struct{}{}
		group.Go(func() {
			verdicts[i] = s.verify(ctx, name)
			<-slots
		})
	}
	group.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	revision, hash := s.network.state()
	return &holdfastv1.VerifyResponse{Revision: revision, Hash: hash, Nodes: verdicts}, nil
}

func (s networkService) verify(ctx context.Context, node string) *holdfastv1.NodeVerdict {
	var repaired *holdfastv1.NodeVerdict
	for try := 1; ; try++ {
		before, beforeHash := s.network.state()
		found, err := s.inspect(ctx, &holdfastv1.InspectRequest{Node: node})
		after, afterHash := s.network.state()
		v := networkVerdict(found, err, []networkState{{before, beforeHash}, {after, afterHash}})
		v.Node = node
		switch v.GetVerdict() {
		case holdfastv1.Verdict_VERDICT_LAGS, holdfastv1.Verdict_VERDICT_DIFFERS:
			if try < inspectTries {
				select {
				case <-time.After(inspectPause):
					continue
				case <-ctx.Done():
				}
			}
		case holdfastv1.Verdict_VERDICT_REPAIRED:
			repaired = v
		case holdfastv1.Verdict_VERDICT_SAME:
			if repaired != nil {
				return repaired
			}
		}
		return v
	}
}

// networkState is the network's state at a revision, by its hash.
type networkState struct {
	revision int64
	hash     string
}

// networkVerdict says what is to be said of a node's answer, given what this peer knew
// when it asked and when it was answered. It is pure.
func networkVerdict(found *holdfastv1.NodeNetwork, err error, known []networkState) *holdfastv1.NodeVerdict {
	v := &holdfastv1.NodeVerdict{Found: found}
	say := func(verdict holdfastv1.Verdict, format string, args ...any) *holdfastv1.NodeVerdict {
		v.Verdict, v.Message = verdict, fmt.Sprintf(format, args...)
		return v
	}
	if err != nil {
		return say(holdfastv1.Verdict_VERDICT_NO_ANSWER, "%s", errorText(err))
	}
	if found.GetError() != "" {
		return say(holdfastv1.Verdict_VERDICT_NO_ANSWER, "its tables cannot be read: %s", found.GetError())
	}
	var faults []string
	repaired := true
	for _, t := range found.GetTables() {
		if len(t.GetFaults()) > 0 {
			faults = append(faults, fmt.Sprintf("table %s: %s", t.GetName(), strings.Join(t.GetFaults(), "; ")))
			repaired = repaired && t.GetRepaired()
		}
	}
	last := known[len(known)-1]
	same := slices.ContainsFunc(known, func(k networkState) bool { return k.hash == found.GetHash() })
	switch {
	case len(faults) > 0 && repaired:
		return say(holdfastv1.Verdict_VERDICT_REPAIRED, "somebody else changed its rules; the agent has repaired them: %s", strings.Join(faults, "; "))
	case len(faults) > 0:
		return say(holdfastv1.Verdict_VERDICT_TAMPERED, "somebody else changed its rules, and they are NOT repaired: %s", strings.Join(faults, "; "))
	case !same && found.GetRevision() < last.revision:
		return say(holdfastv1.Verdict_VERDICT_LAGS, "it has heard nothing since revision %d; the cluster is at %d", found.GetRevision(), last.revision)
	case !same && found.GetRevision() == last.revision:
		return say(holdfastv1.Verdict_VERDICT_DIFFERS, "its state at revision %d has the hash %s, the cluster's %s", found.GetRevision(), found.GetHash(), last.hash)
	case !same:
		return say(holdfastv1.Verdict_VERDICT_LAGS, "it is at revision %d, and this peer at %d: ask again", found.GetRevision(), last.revision)
	case found.GetProgrammed() < found.GetRevision():
		return say(holdfastv1.Verdict_VERDICT_LAGS, "its rules are those of revision %d; it knows of revision %d", found.GetProgrammed(), found.GetRevision())
	case len(found.GetTables()) == 0:
		return say(holdfastv1.Verdict_VERDICT_SAME, "it has the cluster's state; it keeps no packet rules")
	}
	return say(holdfastv1.Verdict_VERDICT_SAME, "%d tables are what its state makes of them", len(found.GetTables()))
}

func errorText(err error) string {
	if e, ok := errors.AsType[*connect.Error](err); ok {
		return e.Message()
	}
	return err.Error()
}

// Inspect asks one node.
func (s networkService) Inspect(ctx context.Context, req *holdfastv1.InspectRequest) (*holdfastv1.InspectResponse, error) {
	if req.GetNode() == "" {
		return nil, badRequest("node", "is empty: say which node")
	}
	found, err := s.inspect(ctx, req)
	if err != nil {
		return nil, err
	}
	return &holdfastv1.InspectResponse{Found: found}, nil
}

func (s networkService) inspect(ctx context.Context, req *holdfastv1.InspectRequest) (*holdfastv1.NodeNetwork, error) {
	purpose := "inspect the network of node " + req.GetNode()
	sess, err := s.sessions.open(ctx, req.GetNode(), purpose, &agentv1.SessionsResponse{Start: &agentv1.SessionsResponse_Inspect{Inspect: req}})
	if errors.Is(err, errNoAgent) {
		client, err := podService(s).peerWith(ctx, req.GetNode(), purpose, req.GetRelayed())
		if err != nil {
			return nil, err
		}
		resp, err := holdfastv1connect.NewNetworkServiceClient(client).Inspect(ctx, &holdfastv1.InspectRequest{Node: req.GetNode(), Relayed: true, Packets: req.GetPackets()})
		if err != nil {
			return nil, relayed(err)
		}
		return resp.GetFound(), nil
	}
	if err != nil {
		return nil, err
	}
	defer s.sessions.close(sess)
	for {
		msg, err := sess.receive(ctx)
		if err != nil {
			return nil, err
		}
		if found := msg.GetNetwork(); found != nil {
			return found, nil
		}
	}
}

// state returns the revision that the index is at, and the hash of what it holds.
func (x *networkIndex) state() (revision int64, hash string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.revision, fmt.Sprintf("%016x", x.hash)
}
