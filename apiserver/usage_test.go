package apiserver

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/holdfast-io/holdfast/pki"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// podUses writes usage as the tests compare it.
func podUses(pods []*holdfastv1.PodUsage) string {
	var out []string
	for _, p := range pods {
		text := fmt.Sprintf("%s/%s on %s age %s:", p.GetNamespace(), p.GetName(), p.GetNode(), p.GetAge().AsDuration())
		for _, c := range p.GetContainers() {
			text += fmt.Sprintf(" %s %d %d", c.GetName(), c.GetCpuNanocores(), c.GetMemoryBytes())
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

// TestUsage: agents report to the peers they are with, and any peer tells all of it,
// as old as it is. What is not in the state, or not the reporting node's, is left out.
func TestUsage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		web, db, moved := boundPod("web", "n1"), boundPod("db", "n2"), boundPod("moved", "n2")
		web.Labels = map[string]string{"app": "web"}
		n1 := newNode("n1", "10.1.0.1")
		n1.Labels = map[string]string{"zone": "a"}
		c.put(n1, newNode("n2", "10.1.0.2"), web, db, moved)
		report := func(peer, node string, cpu int64, pods ...string) {
			t.Helper()
			req := &agentv1.ReportUsageRequest{Node: &holdfastv1.NodeUsage{CpuNanocores: 10 * cpu, MemoryBytes: 1 << 30, Window: durationpb.New(15 * time.Second), Name: "forged"}}
			for _, p := range pods {
				req.Pods = append(req.Pods, &holdfastv1.PodUsage{
					Namespace: "default", Name: p, Uid: "uid-" + p, Node: "forged",
					Containers: []*holdfastv1.ContainerUsage{{Name: "main", CpuNanocores: cpu, MemoryBytes: 5}},
				})
			}
			res, err := c.agent(peer, node).ReportUsage(t.Context(), req)
			if err != nil || res.GetPeriod().AsDuration() != usagePeriod {
				t.Fatalf("report: %v, %v", res, err)
			}
		}
		usage := func(peer string) holdfastv1connect.UsageServiceClient {
			return holdfastv1connect.NewUsageServiceClient(c.client(peer, alice))
		}
		report("peer-2", "n1", 100, "web", "moved", "gone")
		time.Sleep(10 * time.Second)
		report("peer-3", "n2", 200, "db")
		report("peer-3", "n1", 101, "web") // n1's agent has moved
		time.Sleep(time.Second)
		for _, peer := range []string{"peer-1", "peer-2", "peer-3"} {
			resp, err := usage(peer).ListPodUsage(t.Context(), &holdfastv1.ListPodUsageRequest{})
			if want := "default/db on n2 age 1s: main 200 5; default/web on n1 age 1s: main 101 5"; err != nil || podUses(resp.GetPods()) != want {
				t.Errorf("through %s: %s, %v, want %s", peer, podUses(resp.GetPods()), err, want)
			}
			if resp.GetAnswer().GetServedBy() != peer || len(resp.GetUnheard()) > 0 {
				t.Errorf("through %s: answer %v, unheard %v", peer, resp.GetAnswer(), resp.GetUnheard())
			}
		}
		one := usage("peer-1")
		pods := func(req *holdfastv1.ListPodUsageRequest) string {
			resp, err := one.ListPodUsage(t.Context(), req)
			if err != nil {
				return err.Error()
			}
			return podUses(resp.GetPods())
		}
		for _, tt := range []struct {
			req  *holdfastv1.ListPodUsageRequest
			want string
		}{
			{&holdfastv1.ListPodUsageRequest{LabelSelector: "app=web"}, "default/web on n1 age 1s: main 101 5"},
			{&holdfastv1.ListPodUsageRequest{LabelSelector: "app in"}, "label_selector"},
			{&holdfastv1.ListPodUsageRequest{Namespace: "other"}, ""},
			{&holdfastv1.ListPodUsageRequest{Namespace: "default", Name: "db"}, "default/db on n2 age 1s: main 200 5"},
			{&holdfastv1.ListPodUsageRequest{Namespace: "default", Name: "none"}, "not found"},
			{&holdfastv1.ListPodUsageRequest{Namespace: "default", Name: "moved"}, "has not been measured"},
			{&holdfastv1.ListPodUsageRequest{Name: "db"}, "needs its namespace"},
		} {
			if got := pods(tt.req); !strings.Contains(got, tt.want) || tt.want == "" && got != "" {
				t.Errorf("%v: %s, want %s", tt.req, got, tt.want)
			}
		}
		nodes, err := one.ListNodeUsage(t.Context(), &holdfastv1.ListNodeUsageRequest{})
		if err != nil || len(nodes.GetNodes()) != 2 || nodes.GetNodes()[0].GetName() != "n1" || nodes.GetNodes()[0].GetCpuNanocores() != 1010 || nodes.GetNodes()[0].GetLabels()["zone"] != "a" {
			t.Errorf("nodes: %v, %v", nodes, err)
		}
		_, err = one.ListNodeUsage(t.Context(), &holdfastv1.ListNodeUsageRequest{Name: "n9"})
		wantCode(t, err, connect.CodeNotFound, "Node n9 not found")

		// What a peer that is down was told is missing until agents report elsewhere.
		c.setDown("peer-3", true)
		resp, err := one.ListPodUsage(t.Context(), &holdfastv1.ListPodUsageRequest{})
		if want := "default/web on n1 age 11s: main 100 5"; err != nil || podUses(resp.GetPods()) != want || fmt.Sprint(resp.GetUnheard()) != "[peer-3]" {
			t.Errorf("without peer-3: %s, unheard %v, %v, want %s", podUses(resp.GetPods()), resp.GetUnheard(), err, want)
		}
		time.Sleep(usageForgotten)
		if got := pods(&holdfastv1.ListPodUsageRequest{}); got != "" {
			t.Errorf("after %s: %s, want nothing", usageForgotten, got)
		}

		// Only administrators may ask, and only agents report.
		_, err = holdfastv1connect.NewUsageServiceClient(c.client("peer-1", pki.Identity{Cluster: testCluster, Role: pki.RoleNode, Name: "n1"})).ListNodeUsage(t.Context(), &holdfastv1.ListNodeUsageRequest{})
		wantCode(t, err, connect.CodePermissionDenied, "may not")
	})
}
