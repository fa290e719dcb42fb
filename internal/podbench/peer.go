package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// peer is as much of one as an agent needs: it says what to run, and takes in what became of it.
// It is the agent's client as well.
type peer struct {
	agentv1connect.UnimplementedAgentServiceHandler
	client *connect.Client
	out    chan *agentv1.DesiredResponse

	mu       sync.Mutex
	revision int64
	pods     []*corev1.Pod
	status   map[string]*corev1.PodStatus
	removed  map[string]bool
	changed  chan struct{} // closed at each report
}

func newPeer() *peer {
	p := &peer{out: make(chan *agentv1.DesiredResponse, 1000), revision: 1, status: map[string]*corev1.PodStatus{}, removed: map[string]bool{}, changed: make(chan struct{})}
	server := connect.NewServer()
	agentv1connect.RegisterAgentServiceHandler(server, p)
	p.client = connect.NewClient(connectinprocess.New(server))
	return p
}

func (p *peer) Agent() agentv1connect.AgentServiceClient {
	return agentv1connect.NewAgentServiceClient(p.client)
}

func (p *peer) Access() holdfastv1connect.AccessServiceClient {
	return holdfastv1connect.NewAccessServiceClient(p.client)
}

func (p *peer) Peer() string      { return "bench" }
func (p *peer) SetPeers([]string) {}
func (p *peer) Switch(string)     {}

func (p *peer) Register(context.Context, *agentv1.RegisterRequest) (*agentv1.RegisterResponse, error) {
	return &agentv1.RegisterResponse{HeartbeatPeriod: durationpb.New(time.Second)}, nil
}

func (p *peer) Heartbeat(context.Context, *agentv1.HeartbeatRequest) (*agentv1.HeartbeatResponse, error) {
	return &agentv1.HeartbeatResponse{}, nil
}

func (p *peer) Confirm(context.Context, *agentv1.ConfirmRequest) (*agentv1.ConfirmResponse, error) {
	return &agentv1.ConfirmResponse{}, nil
}

func (p *peer) Mirror(context.Context, *agentv1.MirrorRequest) (*agentv1.MirrorResponse, error) {
	return &agentv1.MirrorResponse{}, nil
}

func (p *peer) ReportUsage(context.Context, *agentv1.ReportUsageRequest) (*agentv1.ReportUsageResponse, error) {
	return &agentv1.ReportUsageResponse{}, nil
}

func (p *peer) Sessions(ctx context.Context, _ *agentv1.SessionsRequest, stream agentv1connect.AgentServiceSessionsServerStream) error {
	if err := stream.Send(&agentv1.SessionsResponse{}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// Desired begins with nothing, at the first revision.
func (p *peer) Desired(ctx context.Context, _ *agentv1.DesiredRequest, stream agentv1connect.AgentServiceDesiredServerStream) error {
	if err := stream.Send(&agentv1.DesiredResponse{Complete: true, Revision: 1, HasRoutes: true, PodCidrs: []string{"10.99.0.0/16"}}); err != nil {
		return err
	}
	for {
		select {
		case m := <-p.out:
			if err := stream.Send(m); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *peer) ReportStatus(_ context.Context, req *agentv1.ReportStatusRequest) (*agentv1.ReportStatusResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range req.GetPods() {
		s := &corev1.PodStatus{}
		if err := s.Unmarshal(r.GetStatus()); err != nil {
			return nil, err
		}
		p.status[r.GetUid()] = s
		p.removed[r.GetUid()] = p.removed[r.GetUid()] || r.GetRemoved()
	}
	close(p.changed)
	p.changed = make(chan struct{})
	return &agentv1.ReportStatusResponse{Revision: p.revision}, nil
}

// add has a pod run.
func (p *peer) add(pod *corev1.Pod) error {
	object.Default(pod)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.revision++
	pod.ResourceVersion = fmt.Sprint(p.revision)
	data, err := object.Encode(pod)
	if err != nil {
		return err
	}
	p.pods = append(p.pods, pod)
	p.out <- &agentv1.DesiredResponse{Revision: p.revision, Pods: [][]byte{data}}
	return nil
}

// endAll marks all pods deleted.
func (p *peer) endAll() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.revision++
	m := &agentv1.DesiredResponse{Revision: p.revision}
	for _, pod := range p.pods {
		now := metav1.Now()
		pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &now, new(int64(0))
		pod.ResourceVersion = fmt.Sprint(p.revision)
		data, err := object.Encode(pod)
		if err != nil {
			return err
		}
		m.Pods = append(m.Pods, data)
	}
	p.out <- m
	return nil
}

// forget removes all pods, which have ended.
func (p *peer) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.revision++
	m := &agentv1.DesiredResponse{Revision: p.revision}
	for _, pod := range p.pods {
		m.RemovedPods = append(m.RemovedPods, string(pod.UID))
	}
	p.out <- m
	p.pods = nil
	clear(p.status)
	clear(p.removed)
}

// wait waits until a pod is as it should be.
func (p *peer) wait(uid string, as func(s *corev1.PodStatus, removed bool) bool) error {
	late := time.After(patience)
	for {
		p.mu.Lock()
		s, removed, changed := p.status[uid], p.removed[uid], p.changed
		p.mu.Unlock()
		if s == nil {
			s = &corev1.PodStatus{}
		}
		if as(s, removed) {
			return nil
		}
		select {
		case <-changed:
		case <-late:
			return fmt.Errorf("pod %s is %s after %v: %s %s", uid, s.Phase, patience, s.Reason, s.Message)
		}
	}
}
