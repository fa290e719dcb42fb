package apiserver

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// protocolVersion is that of the agents' protocol; agent.proto has its history.
	protocolVersion = 1
	// agentLabels is the annotation of a Node that lists the labels its agent has
	// set, so that one which the agent ceases to report can be taken away without
	// touching those of the users.
	agentLabels = "holdfast.io/agent-labels"
)

// agentService implements agentv1connect.AgentServiceHandler. Desired is in
// desired.go, ReportStatus in status.go, Sessions and Session in sessions.go,
// Heartbeat in heartbeats.go.
type agentService struct{ *Server }

// Register creates the node's Node object, or brings what the agent owns of it
// up to date: labels of its own, and of the status capacity, allocatable,
// addresses, nodeInfo and the conditions about what it is short of. If nothing differs, nothing is written and no leader is
// needed: an election does not keep agents out.
func (s agentService) Register(ctx context.Context, req *agentv1.RegisterRequest) (*agentv1.RegisterResponse, error) {
	name, err := nodeName(ctx)
	if err != nil {
		return nil, err
	}
	if v := req.GetProtocolVersion(); v != protocolVersion {
		return nil, connect.Errorf(connect.CodeFailedPrecondition,
			"the agent speaks protocol version %d, this peer %d: upgrade whichever is older", v, protocolVersion)
	}
	obj, err := object.Decode(req.GetNode(), 0)
	if err != nil {
		return nil, badRequest("node", "%v", err)
	}
	reported, ok := obj.(*corev1.Node)
	if !ok {
		return nil, badRequest("node", "is a %s, want a Node", object.ResourceOf(obj).Kind)
	}
	if reported.Name != name {
		return nil, connect.Errorf(connect.CodePermissionDenied, "the certificate is node %s's, it cannot register %q", name, reported.Name)
	}
	if err := ownLabels(name, reported.Labels); err != nil {
		return nil, err
	}
	if reported.Status.NodeInfo.BootID == "" {
		reported.Status.NodeInfo.BootID = req.GetBootId()
	}

	key := object.KeyOf(reported)
	view := s.store.View()
	node, err := s.registered(view, key, reported)
	if err != nil {
		return nil, err
	}
	if node == nil {
		_, err = s.transact(ctx, "register node "+name, "register", false, func(view raftstore.View) (change, error) {
			var c change
			old, exists := object.Get[*corev1.Node](view, key)
			var revision int64
			next := s.newNode(reported)
			if exists {
				revision = revisionOf(old)
				next = old.DeepCopy()
				takeFromAgent(next, reported)
			}
			if faults := object.Validate(next); len(faults) > 0 {
				return change{}, invalid(faults)
			}
			node = next
			if exists && sameObject(next, old) {
				return change{}, nil
			}
			_, err := c.put(next, revision)
			return c, err
		})
		if err != nil {
			return nil, err
		}
		s.log.Info("node registered", "node", name)
	}
	s.heartbeats.beat(name, req.GetBootId(), 0, 0, true)
	return &agentv1.RegisterResponse{
		PodCidrs:        podCIDRs(node),
		Peers:           s.peerAddresses(),
		HeartbeatPeriod: durationpb.New(s.cfg.HeartbeatPeriod),
	}, nil
}

// registered returns the Node as it is in view if what the agent reports makes
// no difference to it, nil if there is something to write.
func (s agentService) registered(view raftstore.View, key object.Key, reported *corev1.Node) (*corev1.Node, error) {
	old, ok := object.Get[*corev1.Node](view, key)
	if !ok {
		return nil, nil
	}
	next := old.DeepCopy()
	takeFromAgent(next, reported)
	if !sameObject(next, old) {
		return nil, nil
	}
	return old, nil
}

// newNode makes the Node object of a node that is new to the cluster.
func (s agentService) newNode(reported *corev1.Node) *corev1.Node {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: reported.Name}}
	object.Default(node)
	s.stampNew(node)
	takeFromAgent(node, reported)
	return node
}

// takeFromAgent copies what the agent owns, and nothing else.
func takeFromAgent(node, reported *corev1.Node) {
	reported = reported.DeepCopy()
	delete(reported.Labels, object.IngressNodeLabel)
	for _, key := range strings.Split(node.Annotations[agentLabels], ",") {
		if _, still := reported.Labels[key]; !still {
			delete(node.Labels, key)
		}
	}
	if len(reported.Labels) > 0 && node.Labels == nil {
		node.Labels = make(map[string]string)
	}
	maps.Copy(node.Labels, reported.Labels)
	if node.Annotations == nil {
		node.Annotations = make(map[string]string)
	}
	if said := reported.Annotations[object.NodeNetworkAnnotation]; said != "" { // an agent that has just started says nothing yet
		node.Annotations[object.NodeNetworkAnnotation] = said
	}
	node.Annotations[agentLabels] = strings.Join(slices.Sorted(maps.Keys(reported.Labels)), ",")

	capacity, allocatable := reported.Status.Capacity.DeepCopy(), reported.Status.Allocatable.DeepCopy()
	for name, amount := range node.Status.Capacity { // what people say it has besides
		if _, measured := capacity[name]; !measured && object.ExtendedResource(name) && capacity != nil && allocatable != nil {
			capacity[name], allocatable[name] = amount, amount
		}
	}
	node.Status.Capacity, node.Status.Allocatable = capacity, allocatable
	node.Status.Addresses = slices.Clone(reported.Status.Addresses)
	node.Status.NodeInfo = reported.Status.NodeInfo
	for _, c := range reported.Status.Conditions {
		switch c.Type {
		case corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure, corev1.NodeNetworkUnavailable:
			object.SetNodeCondition(node, c)
		}
	}
}

// revisionOf returns the revision of a stored object: its resourceVersion.
func revisionOf(obj object.Object) int64 {
	revision, _ := strconv.ParseInt(obj.GetResourceVersion(), 10, 64)
	return revision
}

// podCIDRs returns the node's pod CIDRs, both families.
func podCIDRs(node *corev1.Node) []string {
	if len(node.Spec.PodCIDRs) > 0 {
		return node.Spec.PodCIDRs
	}
	if node.Spec.PodCIDR != "" {
		return []string{node.Spec.PodCIDR}
	}
	return nil
}

// peerAddresses returns the API addresses of all peers, sorted.
func (s *Server) peerAddresses() []string {
	addresses := slices.Collect(maps.Values(s.cfg.Peers()))
	slices.Sort(addresses)
	return slices.Compact(addresses)
}

var errNotRegistered = errors.New("node is not registered")

// notRegistered is the answer to an agent whose Node object is not there.
func notRegistered(node string) error {
	return connect.Errorf(connect.CodeFailedPrecondition, "node %s has no Node object, or it was deleted: call Register", node).WithCause(errNotRegistered)
}
