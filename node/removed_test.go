package node_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/internal/testcluster"
	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// TestRemovedNode: a node that is removed while its agent runs is refused by every peer,
// also after the agent was started again, and its Node does not come back.
func TestRemovedNode(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 3, Nodes: 2})
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Patience)
	defer cancel()
	gone := c.Nodes[0]
	if _, err := c.Client().Cluster().RemoveNode(ctx, &holdfastv1.RemoveNodeRequest{Name: gone.Name, Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		time.Sleep(3 * time.Second) // in which an agent that is let in registers several times
		for _, obj := range c.List("Node", "") {
			if obj.GetName() == gone.Name {
				t.Fatalf("%s is back", object.Title(obj))
			}
			if !object.NodeReady(obj.(*corev1.Node)) {
				t.Errorf("%s is not ready", object.Title(obj))
			}
		}
		gone.Stop()
		gone.Start()
	}
	list, err := c.Client().Access().ListRevocations(ctx, &holdfastv1.ListRevocationsRequest{})
	if err != nil || len(list.GetRevocations()) != 1 || list.GetRevocations()[0].GetKind() != "removed" || !strings.Contains(list.GetRevocations()[0].GetReason(), "test") {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := c.Client().Access().Readmit(ctx, &holdfastv1.ReadmitRequest{Role: "node", Name: gone.Name}); err != nil {
		t.Fatal(err)
	}
	gone.Stop()
	gone.Start()
	c.WaitFor(ctx, "the node that was readmitted", func() (bool, string) {
		n := len(c.List("Node", ""))
		return n == 2, fmt.Sprintf("%d nodes", n)
	})
	_, err = c.Client().Cluster().RemoveNode(ctx, &holdfastv1.RemoveNodeRequest{Name: "nobody"})
	if connect.CodeOf(err) != connect.CodeNotFound {
		t.Error(err)
	}
}
