package apiserver

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

const (
	// usagePeriod is how often agents report.
	usagePeriod = 15 * time.Second
	// usageForgotten is the age at which a report says nothing any more: of an
	// agent that has gone to another peer, or nowhere.
	usageForgotten = 2 * time.Minute
	// gatherTimeout bounds the question to all other peers.
	gatherTimeout = 2 * time.Second
)

// usage holds the last report of each agent that reports to this peer. It is in
// memory only.
type usage struct {
	mu      sync.Mutex
	reports map[string]usageReport // by node
}

type usageReport struct {
	at   time.Time // when it came, with its monotonic reading
	node *holdfastv1.NodeUsage
	pods []*holdfastv1.PodUsage
}

func newUsage() *usage { return &usage{reports: make(map[string]usageReport)} }

func (u *usage) put(node string, req *agentv1.ReportUsageRequest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reports[node] = usageReport{at: time.Now(), node: req.GetNode(), pods: req.GetPods()}
}

// all returns copies of the reports that are worth something, with their ages by now.
func (u *usage) all() []*peerv1.UsageReport {
	now := time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	var out []*peerv1.UsageReport
	for name, r := range u.reports {
		since := max(now.Sub(r.at), 0)
		if since > usageForgotten {
			delete(u.reports, name)
			continue
		}
		aged := func(age *durationpb.Duration) *durationpb.Duration {
			return durationpb.New(max(age.AsDuration(), 0) + since)
		}
		report := &peerv1.UsageReport{Node: &holdfastv1.NodeUsage{}}
		if r.node != nil {
			report.Node = proto.CloneOf(r.node)
		}
		report.Node.Name, report.Node.Age, report.Node.Labels = name, aged(r.node.GetAge()), nil
		for _, p := range r.pods {
			p = proto.CloneOf(p)
			p.Node, p.Age, p.Labels = name, aged(p.GetAge()), nil
			report.Pods = append(report.Pods, p)
		}
		out = append(out, report)
	}
	return out
}

// ReportUsage keeps what a node's agent has measured.
func (s agentService) ReportUsage(ctx context.Context, req *agentv1.ReportUsageRequest) (*agentv1.ReportUsageResponse, error) {
	node, err := nodeName(ctx)
	if err != nil {
		return nil, err
	}
	s.usage.put(node, req)
	return &agentv1.ReportUsageResponse{Period: durationpb.New(usagePeriod)}, nil
}

// Usage tells another peer what this one was told.
func (s healthService) Usage(context.Context, *peerv1.UsageRequest) (*peerv1.UsageResponse, error) {
	return &peerv1.UsageResponse{Reports: s.usage.all()}, nil
}

// gather returns each node's youngest report, by node, of all peers that answer,
// and the ids of those that do not.
func (s *Server) gather(ctx context.Context) (reports map[string]*peerv1.UsageReport, unheard []string) {
	ctx, cancel := context.WithTimeout(ctx, gatherTimeout)
	defer cancel()
	var (
		group sync.WaitGroup
		mu    sync.Mutex
	)
	reports = make(map[string]*peerv1.UsageReport)
	take := func(all []*peerv1.UsageReport) {
		for _, r := range all {
			name, age := r.GetNode().GetName(), r.GetNode().GetAge().AsDuration()
			if best, ok := reports[name]; !ok || age < best.GetNode().GetAge().AsDuration() {
				reports[name] = r
			}
		}
	}
	take(s.usage.all())
	for id := range s.cfg.Peers() {
		if id == s.cfg.PeerID {
			continue
		}
		group.Go(func() {
			client, err := s.cfg.Dial(id)
			var resp *peerv1.UsageResponse
			if err == nil {
				resp, err = peerv1connect.NewHealthServiceClient(client).Usage(ctx, &peerv1.UsageRequest{})
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				unheard = append(unheard, id)
				return
			}
			take(resp.GetReports())
		})
	}
	group.Wait()
	slices.Sort(unheard)
	return reports, unheard
}

// usageService implements holdfastv1connect.UsageServiceHandler.
type usageService struct{ *Server }

// Usage returns the calls of UsageService for another dialect of this process. It
// asks nobody whether the caller may make them.
func (s *Server) Usage() holdfastv1connect.UsageServiceHandler { return usageService{s} }

// ListPodUsage tells what pods use that are in this peer's state.
func (s usageService) ListPodUsage(ctx context.Context, req *holdfastv1.ListPodUsageRequest) (*holdfastv1.ListPodUsageResponse, error) {
	selector, err := usageSelector(req.GetLabelSelector())
	if err != nil {
		return nil, err
	}
	if req.GetName() != "" && req.GetNamespace() == "" {
		return nil, badRequest("namespace", "is empty: a pod's name needs its namespace")
	}
	reports, unheard := s.gather(ctx)
	read, err := s.read(ctx, &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL})
	if err != nil {
		return nil, err
	}
	r := object.ResourceOf(&corev1.Pod{})
	resp := &holdfastv1.ListPodUsageResponse{Answer: s.answer(read), Unheard: unheard}
	for _, report := range reports {
		for _, p := range report.GetPods() {
			if req.GetNamespace() != "" && p.GetNamespace() != req.GetNamespace() || req.GetName() != "" && p.GetName() != req.GetName() {
				continue
			}
			pod, ok := object.Get[*corev1.Pod](read.view, r.Key(p.GetNamespace(), p.GetName()))
			if !ok || string(pod.UID) != p.GetUid() || pod.Spec.NodeName != p.GetNode() || !selector.Matches(labels.Set(pod.Labels)) {
				continue
			}
			p.Labels = maps.Clone(pod.Labels)
			resp.Pods = append(resp.Pods, p)
		}
	}
	if req.GetName() != "" && len(resp.GetPods()) == 0 {
		if _, ok := object.Get[*corev1.Pod](read.view, r.Key(req.GetNamespace(), req.GetName())); !ok {
			return nil, notFound(r, req.GetNamespace(), req.GetName())
		}
		return nil, connect.Errorf(connect.CodeNotFound, "Pod %s/%s has not been measured: it does not run, or has for less than %s, or its node does not report", req.GetNamespace(), req.GetName(), usagePeriod)
	}
	slices.SortFunc(resp.GetPods(), func(a, b *holdfastv1.PodUsage) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return resp, nil
}

// ListNodeUsage tells what nodes use that are in this peer's state.
func (s usageService) ListNodeUsage(ctx context.Context, req *holdfastv1.ListNodeUsageRequest) (*holdfastv1.ListNodeUsageResponse, error) {
	selector, err := usageSelector(req.GetLabelSelector())
	if err != nil {
		return nil, err
	}
	reports, unheard := s.gather(ctx)
	read, err := s.read(ctx, &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL})
	if err != nil {
		return nil, err
	}
	r := object.ResourceOf(&corev1.Node{})
	resp := &holdfastv1.ListNodeUsageResponse{Answer: s.answer(read), Unheard: unheard}
	for name, report := range reports {
		node, ok := object.Get[*corev1.Node](read.view, r.Key("", name))
		if !ok || req.GetName() != "" && name != req.GetName() || !selector.Matches(labels.Set(node.Labels)) {
			continue
		}
		use := report.GetNode()
		use.Labels = maps.Clone(node.Labels)
		resp.Nodes = append(resp.Nodes, use)
	}
	if req.GetName() != "" && len(resp.GetNodes()) == 0 {
		if _, ok := object.Get[*corev1.Node](read.view, r.Key("", req.GetName())); !ok {
			return nil, notFound(r, "", req.GetName())
		}
		return nil, connect.Errorf(connect.CodeNotFound, "Node %s has not been measured: its agent does not report", req.GetName())
	}
	slices.SortFunc(resp.GetNodes(), func(a, b *holdfastv1.NodeUsage) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return resp, nil
}

func usageSelector(text string) (labels.Selector, error) {
	selector, err := labels.Parse(text)
	if err != nil {
		return nil, badRequest("label_selector", "%v", err)
	}
	return selector, nil
}
