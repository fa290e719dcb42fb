package apiserver

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

// backupMessage is the usual size of a backup's messages.
const backupMessage = 256 << 10

// surveyTimeout bounds how long Survey waits for an entry to be applied.
const surveyTimeout = 10 * time.Second

// operationsService implements holdfastv1connect.OperationsServiceHandler.
type operationsService struct{ *Server }

// Backup streams a backup, while this peer goes on to serve. Compressing it takes
// one core as long as it lasts; a slow caller slows nobody but keeps the revision's
// state in memory.
func (s operationsService) Backup(ctx context.Context, req *holdfastv1.BackupRequest, stream holdfastv1connect.OperationsServiceBackupServerStream) error {
	var pinned raftstore.Pinned
	if req.GetLocal() {
		pinned = s.store.PinLocal()
	} else {
		var err error
		if pinned, err = s.store.Pin(ctx); err != nil {
			return storeError("backup", err)
		}
	}
	info := pinned.Info
	var keys []byte
	if req.GetWithSecretKeys() {
		var err error
		// Those of now have those of the pinned revision.
		if keys, err = s.secrets.export(s.store.View()); err != nil {
			return err
		}
	}
	err := stream.Send(&holdfastv1.BackupResponse{Info: &holdfastv1.BackupInfo{
		ClusterId: info.ClusterID, Peer: info.Peer, Revision: info.Revision, Keys: info.Keys, Hash: info.Hash[:], Bytes: pinned.Bytes,
	}, SecretKeys: keys})
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(sender(func(data []byte) error { return stream.Send(&holdfastv1.BackupResponse{Data: data}) }), backupMessage)
	info, err = pinned.Write(ctx, out)
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return storeError("backup", err)
	}
	s.log.Info("backup taken", "revision", info.Revision, "keys", info.Keys, "bytes", info.Size, "caller", actor(ctx))
	return nil
}

// sender is an io.Writer whose Writes are messages.
type sender func([]byte) error

func (s sender) Write(data []byte) (int, error) {
	for rest := data; len(rest) > 0; {
		n := min(len(rest), backupMessage)
		if err := s(rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(data), nil
}

// Survey tells what this peer's store has, and whom it can reach.
func (s operationsService) Survey(ctx context.Context, req *holdfastv1.SurveyRequest) (*holdfastv1.SurveyResponse, error) {
	resp := &holdfastv1.SurveyResponse{ClusterId: s.cfg.ClusterID}
	if index := req.GetIndex(); index != 0 {
		bounded, cancel := context.WithTimeout(ctx, surveyTimeout)
		defer cancel()
		hash, ok, err := s.store.HashAt(bounded, index)
		if err != nil {
			return nil, connect.Errorf(connect.CodeUnavailable, "peer %s has not applied entry %d within %v", s.cfg.PeerID, index, surveyTimeout).WithCause(err)
		}
		if ok {
			resp.HashAt = hash[:]
		}
	} else {
		for _, v := range s.store.Reach(ctx) {
			resp.Reached = append(resp.Reached, vitalsMessage(v))
		}
	}
	resp.Vitals = vitalsMessage(s.store.Vitals())
	for _, p := range s.store.Status().Peers {
		resp.Peers = append(resp.Peers, &holdfastv1.Peer{Id: p.ID, Address: p.Address, Voter: p.Voter, Leader: p.Leader})
	}
	return resp, nil
}

func vitalsMessage(v raftstore.Vitals) *holdfastv1.Vitals {
	return &holdfastv1.Vitals{
		Peer: v.Peer, Incarnation: v.Incarnation, Term: v.Term, LastTerm: v.LastTerm, LastIndex: v.LastIndex,
		CommitIndex: v.CommitIndex, AppliedIndex: v.AppliedIndex, Revision: v.Revision, Hash: v.Hash[:], Alarms: v.Alarms,
	}
}

// Recover looks once more whether the majority is lost, and leaves the rest to the
// store, which ends for it: this peer's process begins anew.
func (s operationsService) Recover(ctx context.Context, req *holdfastv1.RecoverRequest) (*holdfastv1.RecoverResponse, error) {
	if have := s.store.Incarnation(); have != req.GetIncarnation() {
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "peer %s is in incarnation %d, not %d: look again", s.cfg.PeerID, have, req.GetIncarnation())
	}
	reached := map[string]bool{s.cfg.PeerID: true}
	for _, v := range s.store.Reach(ctx) {
		reached[v.Peer] = true
	}
	var voters, there []string
	for _, p := range s.store.Status().Peers {
		if p.Voter {
			voters = append(voters, p.ID)
			if reached[p.ID] {
				there = append(there, p.ID)
			}
		}
	}
	if len(there) > len(voters)/2 {
		return nil, connect.Errorf(connect.CodeFailedPrecondition,
			"refused: peer %s reaches %v, which is a majority of the voters %v: they elect a leader by themselves within seconds, and nothing is lost", s.cfg.PeerID, there, voters)
	}
	next, err := s.store.Recover(raftstore.Seen{Incarnation: req.GetSeenIncarnation(), Term: req.GetSeenTerm()}, req.GetLastTerm(), req.GetLastIndex())
	if err != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, err.Error()).WithCause(err)
	}
	s.log.Warn("majority given up: a new incarnation begins", "incarnation", next, "caller", actor(ctx))
	return &holdfastv1.RecoverResponse{Incarnation: next}, nil
}

// serving returns an error while this peer's store serves neither reads nor writes:
// what is in its memory may be wrong, or of an earlier incarnation of the cluster.
func (s *Server) serving(procedure string) error {
	err := s.store.Refusal()
	if err == nil || servesAlways(procedure) {
		return nil
	}
	return connect.NewError(connect.CodeUnavailable, fmt.Sprintf("peer %s does not serve: %v; go to another peer", s.cfg.PeerID, err)).WithCause(err)
}

// servesAlways reports whether a peer answers a call though its store refuses: those
// that tell what is wrong, and those of other peers, who ask for its log and its
// term, which are not in doubt; its store refuses the rest by itself.
func servesAlways(procedure string) bool {
	switch procedure {
	case healthCheckProcedure, healthWatchProcedure,
		holdfastv1connect.ClusterServiceStatusProcedure,
		holdfastv1connect.ClusterServiceListPeersProcedure,
		storev1connect.StoreServiceStatusProcedure,
		holdfastv1connect.OperationsServiceSurveyProcedure,
		holdfastv1connect.OperationsServiceRecoverProcedure:
		return true
	}
	return strings.HasPrefix(procedure, "/holdfast.peer.v1.")
}

// endStreams ends the streams that show this peer's state once its store refuses,
// until ctx ends.
func (s *Server) endStreams(ctx context.Context) error {
	select {
	case <-s.store.Refused():
		s.stopServing(connect.NewError(connect.CodeUnavailable, s.store.Refusal().Error()))
	case <-ctx.Done():
	}
	return nil
}
