package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// fakeCluster answers as its functions say. It is for what a real cluster, as in
// TestSession, does only in bad weather.
type fakeCluster struct {
	holdfastv1connect.UnimplementedObjectServiceHandler
	holdfastv1connect.UnimplementedPodServiceHandler
	holdfastv1connect.UnimplementedClusterServiceHandler

	exec   func(context.Context, *holdfastv1.ExecStart, holdfastv1connect.PodServiceExecServerStream) error
	apply  func(*holdfastv1.ApplyRequest) (*holdfastv1.ApplyResponse, error)
	get    func(context.Context, *holdfastv1.GetRequest) (*holdfastv1.GetResponse, error)
	list   func(context.Context, *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error)
	remove func(*holdfastv1.DeleteRequest) (*holdfastv1.DeleteResponse, error)
	watch  func(context.Context, *holdfastv1.WatchRequest, func(*holdfastv1.WatchResponse) error) error
	logs   func(*holdfastv1.LogsRequest, func(string) error) error
	status *holdfastv1.StatusResponse
	peers  *holdfastv1.ListPeersResponse
	change func(verb string, id string) error // of a peer
}

func (f *fakeCluster) ListPeers(context.Context, *holdfastv1.ListPeersRequest) (*holdfastv1.ListPeersResponse, error) {
	return f.peers, nil
}

func (f *fakeCluster) CreateToken(context.Context, *holdfastv1.CreateTokenRequest) (*holdfastv1.CreateTokenResponse, error) {
	return &holdfastv1.CreateTokenResponse{Token: "holdfast1token"}, nil
}

func (f *fakeCluster) RemovePeer(_ context.Context, req *holdfastv1.RemovePeerRequest) (*holdfastv1.RemovePeerResponse, error) {
	return &holdfastv1.RemovePeerResponse{}, f.change("remove", req.GetId())
}

func (f *fakeCluster) PromotePeer(_ context.Context, req *holdfastv1.PromotePeerRequest) (*holdfastv1.PromotePeerResponse, error) {
	return &holdfastv1.PromotePeerResponse{}, f.change(fmt.Sprintf("promote %t", req.GetForce()), req.GetId())
}

func (f *fakeCluster) DemotePeer(_ context.Context, req *holdfastv1.DemotePeerRequest) (*holdfastv1.DemotePeerResponse, error) {
	return &holdfastv1.DemotePeerResponse{}, f.change("demote", req.GetId())
}

func (f *fakeCluster) ReplacePeer(_ context.Context, req *holdfastv1.ReplacePeerRequest) (*holdfastv1.ReplacePeerResponse, error) {
	return &holdfastv1.ReplacePeerResponse{Successor: "p9"}, f.change("replace "+req.GetSuccessor(), req.GetId())
}

func (f *fakeCluster) TransferLeadership(_ context.Context, req *holdfastv1.TransferLeadershipRequest) (*holdfastv1.TransferLeadershipResponse, error) {
	return &holdfastv1.TransferLeadershipResponse{Leader: "p2"}, f.change("transfer", req.GetId())
}

func (f *fakeCluster) Apply(_ context.Context, req *holdfastv1.ApplyRequest) (*holdfastv1.ApplyResponse, error) {
	return f.apply(req)
}

func (f *fakeCluster) Get(ctx context.Context, req *holdfastv1.GetRequest) (*holdfastv1.GetResponse, error) {
	if f.get == nil {
		return f.UnimplementedObjectServiceHandler.Get(ctx, req)
	}
	return f.get(ctx, req)
}

func (f *fakeCluster) List(ctx context.Context, req *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
	if f.list == nil {
		return &holdfastv1.ListResponse{}, nil
	}
	return f.list(ctx, req)
}

func (f *fakeCluster) Delete(_ context.Context, req *holdfastv1.DeleteRequest) (*holdfastv1.DeleteResponse, error) {
	return f.remove(req)
}

func (f *fakeCluster) Watch(ctx context.Context, req *holdfastv1.WatchRequest, stream holdfastv1connect.ObjectServiceWatchServerStream) error {
	return f.watch(ctx, req, stream.Send)
}

func (f *fakeCluster) Logs(_ context.Context, req *holdfastv1.LogsRequest, stream holdfastv1connect.PodServiceLogsServerStream) error {
	return f.logs(req, func(data string) error { return stream.Send(&holdfastv1.LogsResponse{Data: []byte(data)}) })
}

func (f *fakeCluster) Exec(ctx context.Context, stream holdfastv1connect.PodServiceExecServerStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	return f.exec(ctx, first.GetStart(), stream)
}

func (f *fakeCluster) Status(context.Context, *holdfastv1.StatusRequest) (*holdfastv1.StatusResponse, error) {
	if f.status == nil {
		return &holdfastv1.StatusResponse{Quorum: true}, nil
	}
	return f.status, nil
}

// call is the outcome of a command line.
type call struct {
	code           int
	stdout, stderr string
}

// run executes a command line against the fake.
func (f *fakeCluster) run(ctx context.Context, change func(*app), args ...string) call {
	server := connect.NewServer()
	holdfastv1connect.RegisterObjectServiceHandler(server, f)
	holdfastv1connect.RegisterPodServiceHandler(server, f)
	holdfastv1connect.RegisterClusterServiceHandler(server, f)
	a := newApp()
	var out, errs strings.Builder
	a.stdin, a.stdout, a.stderr = strings.NewReader(""), &out, &errs
	a.connect = func() (*remote, error) {
		r := newRemote(connect.NewClient(connectinprocess.New(server)))
		r.name = "fake"
		return r, nil
	}
	if change != nil {
		change(a)
	}
	code := a.run(ctx, args)
	return call{code, out.String(), errs.String()}
}

func (c call) check(t *testing.T, code int, want ...string) {
	t.Helper()
	if c.code != code {
		t.Errorf("exit code %d, want %d", c.code, code)
	}
	for _, text := range want {
		if !strings.Contains(c.stdout+c.stderr, text) {
			t.Errorf("%q is not in it", text)
		}
	}
	if t.Failed() {
		t.Logf("stdout:\n%s\nstderr:\n%s", c.stdout, c.stderr)
	}
}

func pod(name string, revision int, change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: name, Namespace: "default", UID: types.UID("uid-" + name), ResourceVersion: fmt.Sprint(revision),
	}}
	if change != nil {
		change(p)
	}
	return p
}

// wire puts an object on the wire, at the revision that it says.
func wire(t *testing.T, obj object.Object) *holdfastv1.Object {
	t.Helper()
	o, err := encode(obj)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Sscan(obj.GetResourceVersion(), &o.Revision)
	return o
}

const twoConfigMaps = `apiVersion: v1
kind: ConfigMap
metadata: {name: a}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: b
data:
  key: value
`

func manifest(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "in.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestApplyShowsServersFaultsAtTheirLines: what only the cluster can find is shown
// like what the command line found, with file and line.
func TestApplyShowsServersFaultsAtTheirLines(t *testing.T) {
	detail, err := connectproto.NewErrorDetail(&holdfastv1.Fault{Object: "v1 ConfigMap default/b", Field: "data", Message: "is immutable", Index: 1})
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeCluster{apply: func(*holdfastv1.ApplyRequest) (*holdfastv1.ApplyResponse, error) {
		return nil, connect.NewError(connect.CodeInvalidArgument, "1 fault").WithDetail(detail)
	}}
	path := manifest(t, twoConfigMaps)
	f.run(t.Context(), nil, "apply", "-f", path).check(t, exitRefused, path+":9: ConfigMap default/b: data: is immutable", "nothing was changed")
}

// TestApplyTellsCodesApart: each code of the API becomes the exit code and the
// advice that scripts and people rely on.
func TestApplyTellsCodesApart(t *testing.T) {
	for _, tc := range []struct {
		code connect.Code
		exit int
		want string
	}{
		{connect.CodeUnknown, exitError, "whether the change was made is unknown"},
		{connect.CodeAborted, exitError, "try again"},
		{connect.CodePermissionDenied, exitRefused, "the cause"},
		{connect.CodeFailedPrecondition, exitRefused, "the cause"},
		{connect.CodeNotFound, exitNotFound, "the cause"},
		{connect.CodeUnavailable, exitUnavailable, "the cause"},
		{connect.CodeInternal, exitError, "the cause"},
	} {
		t.Run(tc.code.String(), func(t *testing.T) {
			f := &fakeCluster{apply: func(*holdfastv1.ApplyRequest) (*holdfastv1.ApplyResponse, error) {
				return nil, connect.NewError(tc.code, "the cause")
			}}
			f.run(t.Context(), nil, "apply", "-f", manifest(t, twoConfigMaps)).check(t, tc.exit, tc.want)
		})
	}
}

// TestApplyRefusesBeforeItSends: faults of several files, and an object that two
// of them have, come together, and the cluster hears nothing.
func TestApplyRefusesBeforeItSends(t *testing.T) {
	f := &fakeCluster{apply: func(*holdfastv1.ApplyRequest) (*holdfastv1.ApplyResponse, error) {
		t.Error("sent")
		return nil, errors.New("sent")
	}}
	dir := t.TempDir()
	for name, content := range map[string]string{
		"1.yaml": twoConfigMaps, "2.yml": twoConfigMaps, "ignored.txt": "nonsense",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.run(t.Context(), nil, "apply", "-f", dir).check(t, exitRefused, "2 things are wrong", "2.yml:1: ConfigMap default/a: is in "+filepath.Join(dir, "1.yaml")+":1 already")
	f.run(t.Context(), nil, "apply", "-f", filepath.Join(dir, "none.yaml")).check(t, exitNotFound, "there is no file")
	f.run(t.Context(), nil, "apply", "-f", t.TempDir()).check(t, exitNotFound, "-R looks into directories within")
	f.run(t.Context(), nil, "apply").check(t, exitUsage, "-f FILE")
	f.run(t.Context(), nil, "apply", "-n", "here", "-f", manifest(t, strings.ReplaceAll(twoConfigMaps, "{name: a}", "{name: a, namespace: there}"))).
		check(t, exitRefused, "in.yaml:3: ConfigMap there/a: metadata.namespace: is there, and --namespace says here")
}

// TestListsComeInPages: a list is asked for with a limit, since peers refuse large
// ones without, and shown whole.
func TestListsComeInPages(t *testing.T) {
	f := &fakeCluster{}
	f.list = func(_ context.Context, req *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
		if req.GetLimit() == 0 {
			return nil, connect.NewError(connect.CodeResourceExhausted, "there are more than 64 MiB of them")
		}
		if req.GetContinue() == "" {
			return &holdfastv1.ListResponse{Objects: []*holdfastv1.Object{wire(t, pod("a", 1, nil))}, Continue: "more"}, nil
		}
		return &holdfastv1.ListResponse{Objects: []*holdfastv1.Object{wire(t, pod("b", 2, nil))}}, nil
	}
	if got := f.run(t.Context(), nil, "get", "pods", "-o", "name"); got.stdout != "pod/a\npod/b\n" {
		got.check(t, exitOK, "pod/a", "pod/b")
		t.Errorf("got %q", got.stdout)
	}
}

// TestCrashShowsTheEndOfTheLog: who waits for what crashes reads the last lines of
// its log, of the run before if another one has begun.
func TestCrashShowsTheEndOfTheLog(t *testing.T) {
	crashing := pod("web", 7, func(p *corev1.Pod) {
		p.Spec.NodeName = "n1"
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{
			Name: "main", RestartCount: 3,
			State:                corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
			LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 2, Reason: "Error"}},
		}}
	})
	f := &fakeCluster{
		apply: func(*holdfastv1.ApplyRequest) (*holdfastv1.ApplyResponse, error) {
			return &holdfastv1.ApplyResponse{Results: []*holdfastv1.ApplyResult{{Object: wire(t, crashing), Action: holdfastv1.ApplyAction_APPLY_ACTION_CREATED}}}, nil
		},
		watch: func(ctx context.Context, req *holdfastv1.WatchRequest, send func(*holdfastv1.WatchResponse) error) error {
			res := &holdfastv1.WatchResponse{Revision: 7, Synced: true}
			if req.GetKind().GetKind() == "Pod" {
				res.Changes = []*holdfastv1.Change{{Type: holdfastv1.ChangeType_CHANGE_TYPE_ADDED, Object: wire(t, crashing)}}
			}
			if err := send(res); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		},
		logs: func(req *holdfastv1.LogsRequest, send func(string) error) error {
			if !req.GetPrevious() || req.GetTailLines() != 10 || req.GetContainer() != "main" || req.GetPod() != "web" {
				t.Errorf("asked for %v", req)
			}
			return send("2026-01-02T15:04:05Z panic: no such table\n2026-01-02T15:04:05Z goroutine 1\n")
		},
	}
	f.run(t.Context(), nil, "apply", "-f", manifest(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: main, image: web}]}\n")).
		check(t, exitRollout, "container main of pod/web has crashed 4 times", "The last lines of container main of pod/web:\n  | panic: no such table\n  | goroutine 1\n")
}

// TestInterruptedApplySaysThatTheChangeGoesOn.
func TestInterruptedApplySaysThatTheChangeGoesOn(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	f := &fakeCluster{
		apply: func(req *holdfastv1.ApplyRequest) (*holdfastv1.ApplyResponse, error) {
			o := req.GetObjects()[0]
			o.Revision = 7
			return &holdfastv1.ApplyResponse{Results: []*holdfastv1.ApplyResult{{Action: holdfastv1.ApplyAction_APPLY_ACTION_CREATED, Object: o}}}, nil
		},
		watch: func(ctx context.Context, _ *holdfastv1.WatchRequest, _ func(*holdfastv1.WatchResponse) error) error {
			interrupt()
			<-ctx.Done()
			return ctx.Err()
		},
	}
	path := manifest(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: one}\nspec: {containers: [{name: c, image: x}]}\n")
	f.run(ctx, nil, "apply", "-f", path).check(t, exitInterrupted, "pod/one created", "the change goes on", "holdfast get pod/one -n default -w")
}

// TestNoQuorumEndsARequest: a request that nobody answers is given up as soon as
// it is sure that there is no quorum, long before its own time is up.
func TestNoQuorumEndsARequest(t *testing.T) {
	f := &fakeCluster{
		list: func(ctx context.Context, _ *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		watch: func(ctx context.Context, _ *holdfastv1.WatchRequest, _ func(*holdfastv1.WatchResponse) error) error {
			<-ctx.Done()
			return ctx.Err()
		},
		status: &holdfastv1.StatusResponse{ServedBy: "p3", QuorumError: "1 of 3 answers", Peers: []*holdfastv1.Peer{
			{Id: "p1", Voter: true, Gossip: "dead"}, {Id: "p2", Voter: true, Gossip: "alive"}, {Id: "p3", Voter: true, Gossip: "alive"},
		}},
	}
	hasty := func(a *app) { a.patience = 2 * time.Millisecond }
	for _, args := range [][]string{{"get", "pods", "--request-timeout", "10m"}, {"get", "pods", "-w"}} {
		f.run(t.Context(), hasty, args...).check(t, exitUnavailable,
			"No answer yet, and no quorum; waiting up to", "NO QUORUM, says peer p3: a majority of the 3 voting peers", "not reachable: p1 (dead)", "1 of 3 answers")
	}
	f.run(t.Context(), nil, "cluster", "status", "-o", "json").check(t, exitUnavailable, `"servedBy": "p3"`)

	// With a quorum, the same silence ends with the request's own time.
	f.status = nil
	f.run(t.Context(), hasty, "get", "pods", "--request-timeout", "50ms").check(t, exitUnavailable, "no answer within 50ms (--request-timeout)")
}

// TestFollowedLogOutlivesAPeer: a broken stream goes on elsewhere, at the time of
// the last line, and no line is lost or shown twice, of equal times either.
func TestFollowedLogOutlivesAPeer(t *testing.T) {
	at := func(s int) string { return time.Date(2026, 1, 2, 3, 4, s, 5, time.UTC).Format(time.RFC3339Nano) }
	var asked []*holdfastv1.LogsRequest
	f := &fakeCluster{logs: func(req *holdfastv1.LogsRequest, send func(string) error) error {
		asked = append(asked, req)
		switch len(asked) {
		case 1: // the third line is cut off
			_ = send(at(1) + " one\n" + at(2) + " two\n" + at(2) + " two again\n" + at(3) + " th")
			return connect.NewError(connect.CodeUnavailable, "peer is stopping")
		case 2:
			return connect.NewError(connect.CodeUnavailable, "no leader")
		default:
			return send(at(2) + " two\n" + at(2) + " two again\n" + at(2) + " two, unseen\n" + at(3) + " three\n" + at(1) + " out of order\n" + at(4) + " no line feed")
		}
	}}
	got := f.run(t.Context(), nil, "logs", "-f", "web", "--tail", "7")
	if want := "one\ntwo\ntwo again\ntwo, unseen\nthree\nout of order\nno line feed\n"; got.stdout != want || got.code != 0 {
		t.Errorf("exit code %d, printed\n%s\nwant\n%s%s", got.code, got.stdout, want, got.stderr)
	}
	last := asked[len(asked)-1]
	if !last.GetSince().AsTime().Equal(timestamppb.New(time.Date(2026, 1, 2, 3, 4, 2, 5, time.UTC)).AsTime()) || last.GetTailLines() != -1 || asked[0].GetTailLines() != 7 {
		t.Errorf("asked for %v, want all since the last line", last)
	}
	if !strings.HasPrefix(f.runAgain(t, &asked, "--timestamps"), at(1)+" one\n") {
		t.Error("--timestamps does not show the times")
	}
}

func (f *fakeCluster) runAgain(t *testing.T, asked *[]*holdfastv1.LogsRequest, flag string) string {
	*asked = nil
	return f.run(t.Context(), nil, "logs", "-f", "web", flag).stdout
}

// TestLogsWithoutFollowFail: without -f a broken log is an error, since a part
// would look like the whole.
func TestLogsWithoutFollowFail(t *testing.T) {
	f := &fakeCluster{logs: func(_ *holdfastv1.LogsRequest, send func(string) error) error {
		_ = send("2026-01-02T03:04:05Z half\n")
		return connect.NewError(connect.CodeUnavailable, "no peer has a connection to the node")
	}}
	f.run(t.Context(), nil, "logs", "web").check(t, exitUnavailable, "half\n", "no peer has a connection to the node")
	f.run(t.Context(), nil, "logs", "configmap/x").check(t, exitUsage, "configmaps have no logs")
}

// TestWatchGoesOn: a watch that breaks resumes at its revision; one that was away
// for too long begins anew, and only the differences show.
func TestWatchGoesOn(t *testing.T) {
	var mu sync.Mutex
	var from []int64
	change := func(kind holdfastv1.ChangeType, p *corev1.Pod) *holdfastv1.Change {
		return &holdfastv1.Change{Type: kind, Object: wire(t, p)}
	}
	const added, deleted = holdfastv1.ChangeType_CHANGE_TYPE_ADDED, holdfastv1.ChangeType_CHANGE_TYPE_DELETED
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	f := &fakeCluster{watch: func(ctx context.Context, req *holdfastv1.WatchRequest, send func(*holdfastv1.WatchResponse) error) error {
		mu.Lock()
		from = append(from, req.GetFromRevision())
		n := len(from)
		mu.Unlock()
		switch n {
		case 1:
			_ = send(&holdfastv1.WatchResponse{Revision: 5, Synced: true, Changes: []*holdfastv1.Change{
				change(added, pod("stays", 3, nil)), change(added, pod("changes", 4, nil)), change(added, pod("goes", 5, nil)),
			}})
			return connect.NewError(connect.CodeUnavailable, "peer is stopping")
		case 2:
			_ = send(&holdfastv1.WatchResponse{Revision: 6, Synced: true, Changes: []*holdfastv1.Change{change(deleted, pod("unseen", 6, nil))}})
			return connect.NewError(connect.CodeUnavailable, "peer is stopping")
		case 3:
			return connect.NewError(connect.CodeOutOfRange, "compacted")
		default:
			_ = send(&holdfastv1.WatchResponse{Revision: 9, Synced: true, Changes: []*holdfastv1.Change{
				change(added, pod("stays", 3, nil)), change(added, pod("changes", 8, nil)), change(added, pod("comes", 9, nil)),
			}})
			stop()
			<-ctx.Done()
			return ctx.Err()
		}
	}}
	got := f.run(ctx, nil, "get", "pods", "-w", "-o", "name")
	if got.code != exitInterrupted {
		t.Errorf("exit code %d, want that of an interruption", got.code)
	}
	first, rest, _ := strings.Cut(got.stdout, "pod/goes\n")
	if first != "pod/stays\npod/changes\n" || !strings.HasPrefix(rest, "pod/unseen\n") {
		t.Errorf("printed\n%s", got.stdout)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []int64{0, 5, 6, 0}; fmt.Sprint(from) != fmt.Sprint(want) {
		t.Errorf("watched from %v, want %v", from, want)
	}
}

// TestWatchShowsDifferencesAfterAGap looks at the follower itself, since which of
// the last lines above are printed before the interruption is not sure.
func TestWatchShowsDifferencesAfterAGap(t *testing.T) {
	f := follower{app: newApp(), req: &holdfastv1.WatchRequest{Kind: wireKind(mustResource("pods"))}, seen: map[object.Key]object.Object{}}
	take := func(changes ...*corev1.Pod) string {
		f.fresh = map[object.Key]bool{}
		res := &holdfastv1.WatchResponse{Revision: 9, Synced: true}
		for _, p := range changes {
			res.Changes = append(res.Changes, &holdfastv1.Change{Type: holdfastv1.ChangeType_CHANGE_TYPE_ADDED, Object: wire(t, p)})
		}
		u, err := f.take(res)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, c := range u.changes {
			out = append(out, strings.ToLower(strings.TrimPrefix(c.kind.String(), "CHANGE_TYPE_"))+" "+c.obj.GetName())
		}
		return strings.Join(out, ", ")
	}
	take(pod("stays", 3, nil), pod("changes", 4, nil), pod("goes", 5, nil))
	got := take(pod("stays", 3, nil), pod("changes", 8, nil), pod("comes", 9, nil))
	if want := "added changes, added comes, deleted goes"; got != want {
		t.Errorf("after the gap: %s, want %s", got, want)
	}
}

// TestDeleteSaysWhoHoldsItUp: a pod on a node that does not answer stays, and the
// wait for it ends with what to do.
func TestDeleteSaysWhoHoldsItUp(t *testing.T) {
	lost := pod("web", 3, func(p *corev1.Pod) { p.Spec.NodeName = "n1" })
	held := pod("held", 4, func(p *corev1.Pod) { p.Finalizers = []string{"example.com/backup"} })
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "uid-n1", ResourceVersion: "2"}}
	inKind := func(kind string) []*holdfastv1.Object {
		switch kind {
		case "Pod":
			return []*holdfastv1.Object{wire(t, lost), wire(t, held)}
		case "Node":
			return []*holdfastv1.Object{wire(t, node)}
		}
		return nil
	}
	f := &fakeCluster{
		list: func(_ context.Context, req *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
			return &holdfastv1.ListResponse{Objects: inKind(req.GetKind().GetKind())}, nil
		},
		watch: func(ctx context.Context, req *holdfastv1.WatchRequest, send func(*holdfastv1.WatchResponse) error) error {
			res := &holdfastv1.WatchResponse{Revision: 9, Synced: true}
			for _, o := range inKind(req.GetKind().GetKind()) {
				res.Changes = append(res.Changes, &holdfastv1.Change{Type: holdfastv1.ChangeType_CHANGE_TYPE_ADDED, Object: o})
			}
			_ = send(res)
			<-ctx.Done()
			return ctx.Err()
		},
		remove: func(req *holdfastv1.DeleteRequest) (*holdfastv1.DeleteResponse, error) {
			if req.GetName() == "none" {
				return nil, connect.NewError(connect.CodeNotFound, "Pod default/none not found")
			}
			return &holdfastv1.DeleteResponse{}, nil
		},
	}
	f.run(t.Context(), nil, "delete", "pods", "web", "held", "--timeout", "200ms").check(t, exitTimeout,
		"pod/web is being deleted", "the deletion goes on",
		"pod/held held by finalizers example.com/backup", "pod/web is on n1, which does not answer", "holdfast delete node n1")
	f.run(t.Context(), nil, "delete", "pods", "web", "held", "--wait=false").check(t, exitOK, "pod/held is being deleted")
	f.run(t.Context(), nil, "delete", "pod/none").check(t, exitNotFound, "pod/none")
	f.run(t.Context(), nil, "delete", "pod/none", "--ignore-not-found").check(t, exitOK)
	f.run(t.Context(), nil, "delete", "pods").check(t, exitUsage, "say which pods")
	f.run(t.Context(), nil, "delete", "pods", "--all").check(t, exitUsage, "deletes 2 objects in context fake: pod/web, pod/held", "--yes")
}

// TestDeleteWhatGoesByItself: an object that was selected and has gone meanwhile is no
// error; the others are deleted all the same.
func TestDeleteWhatGoesByItself(t *testing.T) {
	pods := []*holdfastv1.Object{wire(t, pod("gone", 3, nil)), wire(t, pod("web", 4, nil))}
	for _, flag := range []string{"--selector=app=web", "--all"} {
		f := &fakeCluster{
			list: func(_ context.Context, req *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
				if req.GetKind().GetKind() != "Pod" {
					return &holdfastv1.ListResponse{}, nil
				}
				return &holdfastv1.ListResponse{Objects: pods}, nil
			},
			remove: func(req *holdfastv1.DeleteRequest) (*holdfastv1.DeleteResponse, error) {
				if req.GetName() == "gone" {
					return nil, connect.NewError(connect.CodeNotFound, "Pod default/gone not found")
				}
				return &holdfastv1.DeleteResponse{Gone: true}, nil
			},
		}
		got := f.run(t.Context(), nil, "delete", "pods", flag, "--yes", "--wait=false")
		got.check(t, exitOK, "pod/web deleted")
		if strings.Contains(got.stdout+got.stderr, "pod/gone") {
			t.Errorf("%s: said of a pod that went by itself:\n%s%s", flag, got.stdout, got.stderr)
		}
	}
}

// TestDeleteGracePeriod: durations and kubectl's bare seconds; --force is 0.
func TestDeleteGracePeriod(t *testing.T) {
	for flag, want := range map[string]string{
		"": "none", "--grace-period=5s": "5s", "--grace-period=5": "5s", "--grace-period=0": "0s", "--force": "0s",
	} {
		got := "not asked"
		f := &fakeCluster{remove: func(req *holdfastv1.DeleteRequest) (*holdfastv1.DeleteResponse, error) {
			got = "none"
			if req.GetGracePeriod() != nil {
				got = req.GetGracePeriod().AsDuration().String()
			}
			return &holdfastv1.DeleteResponse{Gone: true}, nil
		}}
		args := []string{"delete", "pod", "web", "--wait=false"}
		if flag != "" {
			args = append(args, flag)
		}
		f.run(t.Context(), nil, args...).check(t, exitOK, "pod/web deleted")
		if got != want {
			t.Errorf("%s asks for %s, want %s", flag, got, want)
		}
	}
	new(fakeCluster).run(t.Context(), nil, "delete", "pod", "web", "--force", "--grace-period=5").check(t, exitUsage, "leave one out")
	new(fakeCluster).run(t.Context(), nil, "delete", "pod", "web", "--grace-period=soon").check(t, exitUsage, "want a duration")
}

// TestNoColourUnlessATerminalWantsIt: pipes, NO_COLOR and dumb terminals get plain
// text, and no line that is overwritten.
func TestNoColourUnlessATerminalWantsIt(t *testing.T) {
	f := &fakeCluster{status: &holdfastv1.StatusResponse{ServedBy: "p1"}}
	for _, tc := range []struct {
		name     string
		terminal bool
		env      map[string]string
		colour   bool
	}{
		{"pipe", false, nil, false},
		{"terminal", true, nil, true},
		{"NO_COLOR", true, map[string]string{"NO_COLOR": "1"}, false},
		{"dumb", true, map[string]string{"TERM": "dumb"}, false},
	} {
		got := f.run(t.Context(), func(a *app) {
			a.terminal = func(any) (int, bool) { return 80, tc.terminal }
			a.getenv = func(name string) string { return tc.env[name] }
		}, "status")
		if colour := strings.Contains(got.stdout, "\x1b[31m"); colour != tc.colour {
			t.Errorf("%s: colour %v, want %v", tc.name, colour, tc.colour)
		}
	}
}

func TestLiveLine(t *testing.T) {
	var out strings.Builder
	l := &liveLine{w: &out, width: func() (int, bool) { return 10, true }}
	l.show("äöü: a line that is too long")
	l.print("news")
	l.clear()
	if got, want := out.String(), "\r\x1b[Käöü: a li\r\x1b[Knews\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	out.Reset()
	l = &liveLine{w: &out, width: func() (int, bool) { return 0, false }}
	l.show("not seen")
	l.print("news")
	if got := out.String(); got != "news\n" {
		t.Errorf("without a terminal: %q, want only what stays", got)
	}
}

func TestParseSelections(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"pods", "pods[]"},
		{"po web-1 web-2", "pods[web-1 web-2]"},
		{"pods,deploy", "pods[] deployments.apps[]"},
		{"Deployment.apps web", "deployments.apps[web]"},
		{"pod/a deploy/b po/c", "pods[a c] deployments.apps[b]"},
		{"all", "pods[] services[] replicationcontrollers[] daemonsets.apps[] deployments.apps[] replicasets.apps[] statefulsets.apps[] jobs.batch[] cronjobs.batch[] horizontalpodautoscalers.autoscaling[]"},
		{"", "error: say which kind"},
		{"podd", "error: resource type \"podd\" is unknown: did you mean pods?"},
		{"pods,deploy web", "error: names go with one kind"},
		{"pods pod/a", "error: pod/a: write either"},
		{"pod/a b", "error: \"b\": want KIND/NAME"},
		{"pod/", "error: \"pod/\": want KIND/NAME"},
	} {
		got := ""
		selections, err := newApp().parseSelections(t.Context(), strings.Fields(tc.args))
		if err != nil {
			got = "error: " + err.Error()
		}
		for i, s := range selections {
			if i > 0 {
				got += " "
			}
			got += fmt.Sprintf("%s%v", s.resource, s.names)
		}
		if got != tc.want && !(err != nil && strings.HasPrefix(got, tc.want)) {
			t.Errorf("%q: %s, want %s", tc.args, got, tc.want)
		}
	}
}

// TestContexts: the file of contexts, through the commands that show and change it.
func TestContexts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	t.Setenv("HOLDFAST_CONFIG", path)
	t.Setenv("HOLDFAST_CONTEXT", "")
	run := func(args ...string) call {
		a := newApp()
		var out, errs strings.Builder
		a.stdout, a.stderr = &out, &errs
		return call{a.run(t.Context(), args), out.String(), errs.String()}
	}
	run("context", "list").check(t, exitOK, "No contexts in "+path)
	run("get", "pods").check(t, exitError, "no cluster is known yet", "holdfast dev")
	const contexts = `current-context: two
contexts:
- {name: one, cluster: c1, peers: ["192.0.2.1:7443"], ca: "", cert: "", key: ""}
- {name: two, cluster: c2, peers: ["192.0.2.2:7443", "192.0.2.3:7443"], ca: "", cert: "", key: ""}
`
	if err := os.WriteFile(path, []byte(contexts), 0o600); err != nil {
		t.Fatal(err)
	}
	run("context", "list").check(t, exitOK, "          one    c1        192.0.2.1:7443\n*         two    c2        192.0.2.2:7443,192.0.2.3:7443\n")
	run("context", "list", "--context", "one").check(t, exitOK, "*         one ")
	run("context", "use", "three").check(t, exitNotFound, "there is no context three; there are one, two")
	run("context", "use", "one").check(t, exitOK, "context one is current now")
	run("context", "list").check(t, exitOK, "*         one ")
	run("get", "pods", "--context", "four").check(t, exitUsage, "there is no context four", "one, two")
}

// TestPeers: the table, what is wrong below it, and each change with its outcome and
// its refusal.
func TestPeers(t *testing.T) {
	hash := []byte{0xab, 0xcd, 0xef, 0x01, 0x23}
	var asked []string
	refusal := error(nil)
	f := &fakeCluster{
		change: func(verb, id string) error {
			asked = append(asked, verb+" "+id)
			return refusal
		},
		peers: &holdfastv1.ListPeersResponse{Notes: []string{"p4 stays a learner, as somebody wished"}, Peers: []*holdfastv1.PeerState{
			{Peer: &holdfastv1.Peer{Id: "p1", Address: "192.0.2.1:7443", Voter: true, Leader: true, Gossip: "alive"}, Term: 3, LastIndex: 20, AppliedIndex: 20, Hash: hash},
			{Peer: &holdfastv1.Peer{Id: "p2", Address: "192.0.2.2:7443", Voter: true, Gossip: "alive"}, Term: 3, LastIndex: 20, AppliedIndex: 18, Lag: 2, Hash: hash, ContactAge: durationpb.New(15 * time.Millisecond), Alarms: []string{"low-space: 1% left"}},
			{Peer: &holdfastv1.Peer{Id: "p3", Address: "192.0.2.3:7443", Voter: true, Gossip: "dead"}, Error: "connection refused"},
			{Peer: &holdfastv1.Peer{Id: "p4", Address: "192.0.2.4:7443", Gossip: "alive"}, Term: 3, LastIndex: 20, AppliedIndex: 20, Hash: hash, ContactAge: durationpb.New(time.Millisecond)},
		}},
	}
	got := f.run(t.Context(), nil, "peer", "list")
	if want := `ID   ADDRESS          ROLE      TERM   LAST   APPLIED   LAG   CONTACT   GOSSIP   HASH
p1   192.0.2.1:7443   leader    3      20     20        0     -         alive    abcdef01
p2   192.0.2.2:7443   voter     3      20     18        2     15ms      alive    abcdef01
p3   192.0.2.3:7443   voter     -      -      -         -     -         dead     -
p4   192.0.2.4:7443   learner   3      20     20        0     1ms       alive    abcdef01

ALARM on p2: low-space: 1% left
p3 does not answer: connection refused
p4 stays a learner, as somebody wished
`; got.stdout != want || got.code != exitOK {
		t.Errorf("exit code %d, printed\n%s\nwant\n%s%s", got.code, got.stdout, want, got.stderr)
	}
	f.run(t.Context(), nil, "peer", "list", "-o", "json").check(t, exitOK, `"lag": "2"`, `"contactAge": "0.015s"`)
	f.run(t.Context(), nil, "peer", "list", "-o", "yaml").check(t, exitOK, "lag: \"2\"")
	f.run(t.Context(), nil, "peer", "add", "--learner").check(t, exitOK,
		"holdfast server --join 192.0.2.1:7443,192.0.2.2:7443,192.0.2.4:7443 --token holdfast1token --learner\n")
	f.run(t.Context(), nil, "peer", "add", "--ttl", "0s").check(t, exitUsage, "--ttl")

	changes := []struct{ line, asked, done string }{
		{"remove p3", "remove p3", "peer p3 removed\n"},
		{"promote p4", "promote false p4", "peer p4 votes\n"},
		{"promote p4 --force", "promote true p4", "peer p4 votes\n"},
		{"demote p2", "demote p2", "peer p2 is a learner, and stays one\n"},
		{"replace p3", "replace  p3", "peer p9 votes in the place of p3, which is removed\n"},
		{"replace p3 p9", "replace p9 p3", "peer p9 votes in the place of p3, which is removed\n"},
		{"transfer", "transfer ", "peer p2 leads\n"},
		{"transfer p2", "transfer p2", "peer p2 leads\n"},
	}
	for _, c := range changes {
		asked, refusal = nil, nil
		args := append([]string{"peer"}, strings.Fields(c.line)...)
		if got := f.run(t.Context(), nil, args...); got.stdout != c.done || got.code != exitOK {
			t.Errorf("%s: exit code %d, printed %q, want %q; %s", c.line, got.code, got.stdout, c.done, got.stderr)
		}
		if len(asked) != 1 || asked[0] != c.asked {
			t.Errorf("%s asks for %q, want %q", c.line, asked, c.asked)
		}
		refusal = connect.NewError(connect.CodeFailedPrecondition, "the reason")
		f.run(t.Context(), nil, args...).check(t, exitRefused, "the reason")
		refusal = connect.NewError(connect.CodeNotFound, "no peer is called so")
		f.run(t.Context(), nil, args...).check(t, exitNotFound, "no peer is called so")
	}
	f.run(t.Context(), nil, "peer", "remove").check(t, exitUsage, "holdfast peer list")
	f.run(t.Context(), nil, "peer", "replace").check(t, exitUsage)
}
