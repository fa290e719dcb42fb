package apiserver

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// Mirror makes the mirror pods of the node those of the request. They belong to
// the Node, so that nothing else adopts them and they go with it.
//
// Fails with InvalidArgument for what a node may not make: anything but a pod of
// its own with the annotation of mirrors, which refers to nothing in the cluster.
// FailedPrecondition while there is no Node object, AlreadyExists when a pod that
// is no mirror has the name.
func (s agentService) Mirror(ctx context.Context, req *agentv1.MirrorRequest) (*agentv1.MirrorResponse, error) {
	node, err := nodeName(ctx)
	if err != nil {
		return nil, err
	}
	wish := map[object.Key]*corev1.Pod{}
	for _, data := range req.GetPods() {
		pod, err := mirrorPod(data, node)
		if err != nil {
			return nil, err
		}
		wish[object.KeyOf(pod)] = pod
	}
	view, err := s.sync(ctx)
	if err != nil {
		return nil, err
	}
	owner, ok := object.Get[*corev1.Node](view, object.KeyOf(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}))
	if !ok {
		return nil, notRegistered(node)
	}
	if err := s.desired.wait(ctx, view.Revision()); err != nil {
		return nil, err
	}
	for _, p := range s.desired.snapshot(node).pods {
		obj, err := object.Decode(p.data, p.revision)
		if err != nil {
			panic(fmt.Sprintf("apiserver: decode pod %s: %v", p.uid, err)) // it was encoded here
		}
		have := obj.(*corev1.Pod)
		hash, mirror := have.Annotations[corev1.MirrorPodAnnotationKey]
		if !mirror {
			continue
		}
		key := object.KeyOf(have)
		if w := wish[key]; w != nil && w.Annotations[corev1.MirrorPodAnnotationKey] == hash && !object.Deleting(have) {
			delete(wish, key) // as it should be
			continue
		}
		_, err = s.transact(ctx, "remove mirror "+object.Title(have), "mirror", true, func(view raftstore.View) (change, error) {
			var c change
			now, ok := object.Get[*corev1.Pod](view, key)
			if ok && now.UID == have.UID && len(now.Finalizers) == 0 {
				c.remove(string(key), revisionOf(now))
			}
			return c, nil
		})
		if err != nil {
			return nil, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(wish)) {
		pod := wish[key]
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: owner.Name, UID: owner.UID, Controller: new(true)}}
		s.stampNew(pod)
		w := writing{what: "create mirror " + object.Title(pod), reason: "mirror", manager: "agent"}
		_, _, err := s.commit(ctx, w, func(p *plan) error {
			if _, taken := p.view.Get(string(key)); taken {
				return connect.Errorf(connect.CodeAlreadyExists, "%s exists already: the node's own pod of that name is not shown", object.Title(pod))
			}
			_, err := p.create(pod, 0)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return &agentv1.MirrorResponse{}, nil
}

// mirrorPod reads a pod that a node wants mirrored.
func mirrorPod(data []byte, node string) (*corev1.Pod, error) {
	obj, err := object.Decode(data, 0)
	if err != nil {
		return nil, badRequest("pods", "%v", err)
	}
	pod, ok := obj.(*corev1.Pod)
	switch {
	case !ok:
		return nil, badRequest("pods", "%s is no pod", object.Title(obj))
	case pod.Annotations[corev1.MirrorPodAnnotationKey] == "":
		return nil, badRequest("pods", "%s has no annotation %s: a node makes mirror pods only", object.Title(pod), corev1.MirrorPodAnnotationKey)
	case pod.Spec.NodeName != node:
		return nil, badRequest("pods", "%s is for node %q, not %s", object.Title(pod), pod.Spec.NodeName, node)
	case len(object.PodInputs(pod)) > 0:
		return nil, badRequest("pods", "%s refers to objects of the cluster, as a mirror pod cannot", object.Title(pod))
	}
	pod.Finalizers, pod.UID = nil, ""
	object.Default(pod)
	if faults := object.Validate(pod); len(faults) > 0 {
		return nil, invalid(faults)
	}
	return pod, nil
}
