package etcd

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/holdfast-io/holdfast/raftstore"
)

// apiVersion is the version of etcd whose API this is: clients look there for what
// they may use. It is not read from etcd's package version, which would bring a
// library with it.
const apiVersion = "3.7.3+holdfast"

// MemberList returns raft's members. A linearizable one sees all changes before it.
func (s *Server) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	view, err := s.read(ctx, !r.GetLinearizable())
	if err != nil {
		return nil, err
	}
	resp := &pb.MemberListResponse{Header: s.header(view.Revision())}
	for _, m := range s.cfg.Members() {
		resp.Members = append(resp.Members, &pb.Member{
			ID: idOf(m.ID), Name: m.ID, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.Learner,
		})
	}
	return resp, nil
}

// Status tells how this peer's store stands. The version is that of the API.
func (s *Server) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	status, stats := s.store.Status(), s.store.View().Stats()
	resp := &pb.StatusResponse{
		Header: s.header(status.Revision), Version: apiVersion,
		RaftTerm: status.Term, RaftIndex: status.CommitIndex, RaftAppliedIndex: status.AppliedIndex,
		DbSize: stats.KeysBytes + stats.HistoryBytes, DbSizeInUse: stats.KeysBytes, Errors: status.Alarms,
	}
	if status.Leader != "" {
		resp.Leader = idOf(status.Leader)
	} else {
		resp.Errors = append(resp.Errors, rpctypes.ErrNoLeader.Error())
	}
	for _, m := range s.cfg.Members() {
		resp.IsLearner = resp.IsLearner || m.ID == s.cfg.PeerID && m.Learner
	}
	return resp, nil
}

// Alarm lists this peer's alarms that etcd has a name for. They end by themselves.
func (s *Server) Alarm(_ context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if r.GetAction() != pb.AlarmRequest_GET {
		return nil, refusal("Alarm", "alarms end by themselves, once what they are about has ended")
	}
	status := s.store.Status()
	resp := &pb.AlarmResponse{Header: s.header(status.Revision)}
	for _, alarm := range status.Alarms {
		name, _, _ := strings.Cut(alarm, ":")
		if kind, ok := alarmTypes[name]; ok && (r.GetAlarm() == pb.AlarmType_NONE || r.GetAlarm() == kind) {
			resp.Alarms = append(resp.Alarms, &pb.AlarmMember{MemberID: s.memberID, Alarm: kind})
		}
	}
	return resp, nil
}

// alarmTypes are the store's alarms that etcd has, too.
var alarmTypes = map[string]pb.AlarmType{
	"low-space":   pb.AlarmType_NOSPACE,
	"quarantined": pb.AlarmType_CORRUPT,
}

// Defragment does nothing, which is enough: the store's files are never fragmented.
func (s *Server) Defragment(context.Context, *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	return &pb.DefragmentResponse{Header: s.header(s.store.View().Revision())}, nil
}

// Hash is HashKV of the newest revision.
func (s *Server) Hash(context.Context, *pb.HashRequest) (*pb.HashResponse, error) {
	view := s.store.View()
	return &pb.HashResponse{Header: s.header(view.Revision()), Hash: hashOf(view)}, nil
}

// HashKV returns a hash of all that clients can read at a revision. Equal states
// have equal hashes on all peers; they are not those that etcd computes.
func (s *Server) HashKV(_ context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	now := s.store.View()
	at, err := s.viewAt(now, r.GetRevision())
	if err != nil {
		return nil, err
	}
	return &pb.HashKVResponse{
		Header: s.header(now.Revision()), Hash: hashOf(at), HashRevision: at.Revision(), CompactRevision: now.Stats().Horizon,
	}, nil
}

func hashOf(view raftstore.View) uint32 {
	hash := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	var buf []byte
	for kv := range view.Range(raftstore.UserKeyspace, rawEnd) {
		buf = buf[:0]
		for _, n := range [...]int64{int64(len(kv.Key)), int64(len(kv.Value)), kv.Create, kv.Mod, kv.Version, kv.Lease} {
			buf = binary.BigEndian.AppendUint64(buf, uint64(n))
		}
		hash.Write(buf)
		io.WriteString(hash, kv.Key)
		hash.Write(kv.Value)
	}
	return hash.Sum32()
}

// AuthStatus says that there are no users and roles.
func (s *Server) AuthStatus(context.Context, *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	return &pb.AuthStatusResponse{Header: s.header(s.store.View().Revision())}, nil
}
