package apiserver

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// Evictor evicts pods for the cluster itself, as Evict does for a caller: for
// controllers of this process, which nobody has to authorize.
type Evictor struct{ s *Server }

// Evictor returns what controllers evict pods with.
func (s *Server) Evictor() Evictor { return Evictor{s} }

// Evict begins to end a pod, if that may be now; else refused says why not. grace, if
// not nil, is the time that it has to stop in. That the pod is gone is no error. Safe
// for concurrent use.
func (e Evictor) Evict(ctx context.Context, pod *corev1.Pod, replaceFirst bool, grace *time.Duration) (refused string, err error) {
	req := &holdfastv1.EvictRequest{Namespace: pod.Namespace, Name: pod.Name, Uid: string(pod.UID), ReplaceFirst: replaceFirst}
	if grace != nil {
		req.GracePeriod = durationpb.New(*grace)
	}
	_, err = objectService{e.s}.Evict(withIdentity(ctx, pki.Identity{Role: "controllers", Name: "drain"}), req)
	switch connect.CodeOf(err) {
	case connect.CodeNotFound:
		return "", nil
	case connect.CodeResourceExhausted:
		if fault := firstFault(err); fault != "" {
			return fault, nil
		}
		return err.Error(), nil
	}
	return "", err
}

// firstFault returns the first fault among an error's details.
func firstFault(err error) string {
	var rpc *connect.Error
	if !errors.As(err, &rpc) {
		return ""
	}
	for _, detail := range rpc.Details() {
		if message, err := connectproto.UnmarshalErrorDetail(detail); err == nil {
			if fault, ok := message.(*holdfastv1.Fault); ok {
				return fault.GetMessage()
			}
		}
	}
	return ""
}
