package apiserver

import (
	"context"
	"maps"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// Bind puts a pod onto a node, which must be there. Whether the pod fits is for the
// caller to have seen.
func (s objectService) Bind(ctx context.Context, req *holdfastv1.BindRequest) (*holdfastv1.BindResponse, error) {
	_, namespace, err := s.target(ctx, kindOf(podResource), req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	if req.GetNode() == "" {
		return nil, badRequest("node", "is empty: say onto which one")
	}
	w := writing{what: "bind Pod " + joinName(namespace, req.GetName()), reason: "bound to " + req.GetNode(), dryRun: req.GetDryRun()}
	revision, p, err := s.commit(ctx, w, func(p *plan) error {
		was, err := p.load(podResource, namespace, req.GetName())
		if err != nil {
			return err
		}
		if uid := req.GetUid(); uid != "" && uid != string(was.obj.GetUID()) {
			return replacedSince(was.obj, uid)
		}
		return p.bind(was, req)
	})
	if err != nil {
		return nil, err
	}
	return &holdfastv1.BindResponse{Answer: p.answerTo(revision)}, nil
}

func (p *plan) bind(was stored, req *holdfastv1.BindRequest) error {
	pod := was.obj.DeepCopyObject().(*corev1.Pod)
	refused := func(format string, args ...any) error {
		return connect.Errorf(connect.CodeFailedPrecondition, object.Title(pod)+" "+format, args...)
	}
	switch {
	case object.Deleting(pod):
		return refused("is being deleted, cannot be assigned to a host")
	case pod.Spec.NodeName != "":
		return refused("is already assigned to node %q", pod.Spec.NodeName)
	case len(pod.Spec.SchedulingGates) > 0:
		return refused("has scheduling gates: it waits until they are taken away")
	}
	node := string(nodeResource.Key("", req.GetNode()))
	if _, ok := p.view.Get(node); !ok {
		return notFound(nodeResource, "", req.GetNode())
	}
	p.conditions = append(p.conditions, raftstore.Present(node))
	pod.Spec.NodeName = req.GetNode()
	if pod.Annotations == nil && len(req.GetAnnotations()) > 0 {
		pod.Annotations = make(map[string]string)
	}
	maps.Copy(pod.Annotations, req.GetAnnotations())
	object.SetPodCondition(pod, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(p.now)})
	_, err := p.put(pod, was.mod)
	return err
}
