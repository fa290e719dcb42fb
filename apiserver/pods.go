package apiserver

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// locateTimeout bounds the question to all other peers, who has a node's agent.
const locateTimeout = 2 * time.Second

// podService implements holdfastv1connect.PodServiceHandler.
type podService struct{ *Server }

// Logs streams a container's log from its node.
func (s podService) Logs(ctx context.Context, req *holdfastv1.LogsRequest, stream holdfastv1connect.PodServiceLogsServerStream) error {
	pod, container, err := s.container(ctx, req.GetNamespace(), req.GetPod(), req.GetContainer())
	if err != nil {
		return err
	}
	wish := proto.CloneOf(req)
	wish.Namespace, wish.Container, wish.Relayed = pod.Namespace, container, false
	purpose := "log of " + object.Title(pod)
	sess, err := s.sessions.open(ctx, pod.Spec.NodeName, purpose, &agentv1.SessionsResponse{Start: &agentv1.SessionsResponse_Logs{Logs: wish}})
	if errors.Is(err, errNoAgent) {
		client, err := s.peerWith(ctx, pod.Spec.NodeName, purpose, req.GetRelayed())
		if err != nil {
			return err
		}
		wish.Relayed = true
		return relayLogs(ctx, client, wish, stream)
	}
	if err != nil {
		return err
	}
	defer s.sessions.close(sess)
	if err := stream.SendHeaders(); err != nil {
		return err
	}
	for {
		msg, err := sess.receive(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if logs := msg.GetLogs(); logs != nil {
			if err := stream.Send(logs); err != nil {
				return err
			}
		}
	}
}

func relayLogs(ctx context.Context, client *connect.Client, req *holdfastv1.LogsRequest, to holdfastv1connect.PodServiceLogsServerStream) error {
	from, err := holdfastv1connect.NewPodServiceClient(client).Logs(ctx, req)
	if err != nil {
		return relayed(err)
	}
	defer from.Close()
	if err := to.SendHeaders(); err != nil { // a quiet log must not look like a peer that does not answer
		return err
	}
	for {
		msg, err := from.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return relayed(err)
		}
		if err := to.Send(msg); err != nil {
			return err
		}
	}
}

// Exec runs a command in a container on its node.
func (s podService) Exec(ctx context.Context, stream holdfastv1connect.PodServiceExecServerStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	switch {
	case start == nil:
		return badRequest("start", "the first message of an exec must hold start")
	case len(start.GetCommand()) == 0:
		return badRequest("start.command", "is empty: say what to run")
	}
	pod, container, err := s.container(ctx, start.GetNamespace(), start.GetPod(), start.GetContainer())
	if err != nil {
		return err
	}
	wish := proto.CloneOf(start)
	wish.Namespace, wish.Container, wish.Relayed = pod.Namespace, container, false
	purpose := "exec in " + object.Title(pod)
	sess, err := s.sessions.open(ctx, pod.Spec.NodeName, purpose, &agentv1.SessionsResponse{Start: &agentv1.SessionsResponse_Exec{Exec: wish}})
	if errors.Is(err, errNoAgent) {
		client, err := s.peerWith(ctx, pod.Spec.NodeName, purpose, start.GetRelayed())
		if err != nil {
			return err
		}
		wish.Relayed = true
		return relayExec(ctx, client, wish, stream)
	}
	if err != nil {
		return err
	}
	defer s.sessions.close(sess)
	if err := stream.SendHeaders(); err != nil {
		return err
	}
	// As in Session: it ends with the call, or when nobody listens any more.
	go forwardInput(stream, func(msg *holdfastv1.ExecRequest) bool { return sess.send(ctx, msg) })
	for {
		msg, err := sess.receive(ctx)
		if errors.Is(err, io.EOF) {
			return connect.Errorf(connect.CodeUnavailable, "%s: node %s's agent ended the session without an exit code", purpose, pod.Spec.NodeName)
		}
		if err != nil {
			return err
		}
		out := msg.GetExec()
		if out == nil {
			continue
		}
		if err := stream.Send(out); err != nil {
			return err
		}
		if _, last := out.GetMessage().(*holdfastv1.ExecResponse_ExitCode); last {
			return nil
		}
	}
}

// forwardInput passes on what the caller sends until it ends, which the other
// side sees as the end of stdin.
func forwardInput(from holdfastv1connect.PodServiceExecServerStream, send func(*holdfastv1.ExecRequest) bool) {
	for {
		msg, err := from.Receive()
		if errors.Is(err, io.EOF) {
			send(&holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_CloseStdin{CloseStdin: true}})
			return
		}
		if err != nil || msg.GetStart() != nil || !send(msg) {
			return
		}
	}
}

func relayExec(ctx context.Context, client *connect.Client, start *holdfastv1.ExecStart, with holdfastv1connect.PodServiceExecServerStream) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	to, err := holdfastv1connect.NewPodServiceClient(client).Exec(ctx)
	if err != nil {
		return relayed(err)
	}
	defer to.Close()
	if err := to.Send(&holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Start{Start: start}}); err != nil {
		_, recvErr := to.Receive() // says why
		return relayed(errors.Join(recvErr, err))
	}
	if err := with.SendHeaders(); err != nil {
		return err
	}
	go forwardInput(with, func(msg *holdfastv1.ExecRequest) bool { return to.Send(msg) == nil })
	for {
		msg, err := to.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return relayed(err)
		}
		if err := with.Send(msg); err != nil {
			return err
		}
	}
}

// container returns the pod and the name of its container that a caller means.
func (s podService) container(ctx context.Context, namespace, name, container string) (*corev1.Pod, string, error) {
	r := object.ResourceOf(&corev1.Pod{})
	namespace, err := namespaceFor(r, namespace)
	if err != nil {
		return nil, "", err
	}
	if name == "" {
		return nil, "", badRequest("pod", "is empty: say which pod")
	}
	view, err := s.sync(ctx)
	if err != nil {
		return nil, "", err
	}
	pod, ok := object.Get[*corev1.Pod](view, r.Key(namespace, name))
	if !ok {
		return nil, "", notFound(r, namespace, name)
	}
	if pod.Spec.NodeName == "" {
		why := "it has not been scheduled"
		if c := object.PodCondition(pod, corev1.PodScheduled); c != nil && c.Message != "" {
			why = c.Message
		}
		return nil, "", connect.Errorf(connect.CodeFailedPrecondition, "%s runs on no node yet: %s", object.Title(pod), why)
	}
	container, err = chooseContainer(pod, container)
	return pod, container, err
}

func chooseContainer(pod *corev1.Pod, name string) (string, error) {
	var names []string
	for i := range pod.Spec.Containers {
		names = append(names, pod.Spec.Containers[i].Name)
	}
	if name == "" && len(names) == 1 {
		return names[0], nil
	}
	if name == "" {
		return "", badRequest("container", "is empty, and %s has several: choose %s", object.Title(pod), strings.Join(names, " or "))
	}
	for i := range pod.Spec.InitContainers {
		names = append(names, pod.Spec.InitContainers[i].Name)
	}
	if !slices.Contains(names, name) {
		return "", connect.Errorf(connect.CodeNotFound, "%s has no container %q: it has %s", object.Title(pod), name, strings.Join(names, ", "))
	}
	return name, nil
}

// peerWith finds the peer to which node's agent is connected. Of several, that
// of the youngest connection: an agent keeps one, so older ones are dead and
// not yet known to be.
func (s podService) peerWith(ctx context.Context, node, purpose string, relayed bool) (*connect.Client, error) {
	nobody := connect.Errorf(connect.CodeUnavailable,
		"%s: no peer has a connection to node %s; its agent is down, cut off, or about to connect", purpose, node)
	if relayed {
		return nil, connect.Errorf(connect.CodeUnavailable, "%s: node %s's agent is not connected to peer %s any more; retry", purpose, node, s.cfg.PeerID)
	}
	ctx, cancel := context.WithTimeout(ctx, locateTimeout)
	defer cancel()
	var (
		group    sync.WaitGroup
		mu       sync.Mutex
		best     *connect.Client
		youngest time.Duration
		silent   []string
	)
	for id := range s.cfg.Peers() {
		if id == s.cfg.PeerID {
			continue
		}
		group.Go(func() {
			client, err := s.cfg.Dial(id)
			var resp *peerv1.LocateResponse
			if err == nil {
				resp, err = peerv1connect.NewHealthServiceClient(client).Locate(ctx, &peerv1.LocateRequest{Node: node})
			}
			mu.Lock()
			defer mu.Unlock()
			switch age := resp.GetAge().AsDuration(); {
			case err != nil:
				silent = append(silent, id)
			case resp.GetConnected() && (best == nil || age < youngest):
				best, youngest = client, age
			}
		})
	}
	group.Wait()
	if best != nil {
		return best, nil
	}
	if len(silent) > 0 {
		slices.Sort(silent)
		return nil, connect.Errorf(connect.CodeUnavailable, "%s (peers that did not answer: %s)", nobody.Message(), strings.Join(silent, ", "))
	}
	return nil, nobody
}
