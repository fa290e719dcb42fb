package apiserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
	return s.logs(ctx, req, stream)
}

// Exec runs a command in a container on its node.
func (s podService) Exec(ctx context.Context, stream holdfastv1connect.PodServiceExecServerStream) error {
	return s.exec(ctx, stream)
}

// Attach takes part in a container's main process on its node.
func (s podService) Attach(ctx context.Context, stream holdfastv1connect.PodServiceAttachServerStream) error {
	return s.attach(ctx, stream)
}

// PortForward is a connection to a port of a pod on its node.
func (s podService) PortForward(ctx context.Context, stream holdfastv1connect.PodServicePortForwardServerStream) error {
	return s.portForward(ctx, stream)
}

// Pods is PodService for another dialect of this process. Its calls are the
// service's, with the same errors, but it asks nobody whether the caller may make
// them: whoever uses it calls Authorize first. They end when the server does.
type Pods struct{ service podService }

// Pods returns the calls of PodService.
func (s *Server) Pods() Pods { return Pods{podService{s}} }

// Replies is a call with one request, from its handler's side. SendHeaders says that
// the call has begun; it may be called again. An alias, so that whoever uses Pods can
// name the same interface without importing this package.
type Replies[Out any] = interface {
	SendHeaders() error
	Send(*Out) error
}

// Conversation is a call with messages both ways, from its handler's side. Receive
// is called by one goroutine and Send by another. Receive returns io.EOF when the
// caller has said all, and an error soon after the call's context ends.
type Conversation[In, Out any] = interface {
	Receive() (*In, error)
	SendHeaders() error
	Send(*Out) error
}

// Logs is PodService.Logs.
func (p Pods) Logs(ctx context.Context, req *holdfastv1.LogsRequest, to Replies[holdfastv1.LogsResponse]) error {
	return p.within(ctx, func(ctx context.Context, guard func(proto.Message)) error {
		guard(req)
		return p.service.logs(ctx, req, to)
	})
}

// Exec is PodService.Exec.
func (p Pods) Exec(ctx context.Context, with Conversation[holdfastv1.ExecRequest, holdfastv1.ExecResponse]) error {
	return p.within(ctx, func(ctx context.Context, guard func(proto.Message)) error {
		return p.service.exec(ctx, &guarded[holdfastv1.ExecRequest, holdfastv1.ExecResponse]{Conversation: with, guard: func(req *holdfastv1.ExecRequest) { guard(req) }})
	})
}

// Attach is PodService.Attach.
func (p Pods) Attach(ctx context.Context, with Conversation[holdfastv1.AttachRequest, holdfastv1.AttachResponse]) error {
	return p.within(ctx, func(ctx context.Context, guard func(proto.Message)) error {
		return p.service.attach(ctx, &guarded[holdfastv1.AttachRequest, holdfastv1.AttachResponse]{Conversation: with, guard: func(req *holdfastv1.AttachRequest) { guard(req) }})
	})
}

// PortForward is PodService.PortForward.
func (p Pods) PortForward(ctx context.Context, with Conversation[holdfastv1.PortForwardRequest, holdfastv1.PortForwardResponse]) error {
	return p.within(ctx, func(ctx context.Context, guard func(proto.Message)) error {
		return p.service.portForward(ctx, &guarded[holdfastv1.PortForwardRequest, holdfastv1.PortForwardResponse]{Conversation: with, guard: func(req *holdfastv1.PortForwardRequest) { guard(req) }})
	})
}

// guarded is a conversation of which the first message says what it is about.
type guarded[In, Out any] struct {
	Conversation[In, Out]
	guard func(*In) // nil once it was called
}

func (g *guarded[In, Out]) Receive() (*In, error) {
	msg, err := g.Conversation.Receive()
	if err == nil && g.guard != nil {
		g.guard(msg)
		g.guard = nil
	}
	return msg, err
}

// within makes a call end with the server, with the certificate or token of its caller,
// and with the right to what the message that guard gets asks for: as those that come
// by Connect do.
func (p Pods) within(ctx context.Context, call func(ctx context.Context, guard func(proto.Message)) error) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(p.service.serves, func() { end(context.Canceled) })()
	defer p.service.whileAdmitted(ctx, end)()
	err := call(ctx, func(first proto.Message) {
		if id, ok := identityFrom(ctx); ok && byRoles(id.Role) {
			asked := proto.Clone(first)
			go p.service.whileAllowed(ctx, end, func() error { return p.service.authorizeMessage(ctx, asked) })
		}
	})
	if cause := context.Cause(ctx); denied(cause) {
		return cause
	}
	return endedWith(p.service.serves, err)
}

func (s podService) logs(ctx context.Context, req *holdfastv1.LogsRequest, to Replies[holdfastv1.LogsResponse]) error {
	if req.GetLimitBytes() < 0 {
		return badRequest("limit_bytes", "is negative: say how many bytes, or 0 for all")
	}
	wish := proto.CloneOf(req)
	wish.Relayed = false
	var node, purpose string
	pod, container, err := s.container(ctx, req.GetNamespace(), req.GetPod(), req.GetContainer())
	switch {
	case err == nil:
		wish.Namespace, wish.Container, wish.Removed = pod.Namespace, container, false
		node, purpose = pod.Spec.NodeName, "log of "+object.Title(pod)
	case pod == nil && req.GetRemoved() && connect.CodeOf(err) == connect.CodeNotFound:
		wish.Namespace = cmp.Or(req.GetNamespace(), metav1.NamespaceDefault)
		if node = cmp.Or(req.GetNode(), s.lastNode(wish.GetNamespace(), req.GetPod())); node == "" {
			return err
		}
		purpose = "log of the deleted pod " + joinName(wish.GetNamespace(), req.GetPod())
	default:
		return err
	}
	sess, err := s.sessions.open(ctx, node, purpose, &agentv1.SessionsResponse{Start: &agentv1.SessionsResponse_Logs{Logs: wish}})
	if errors.Is(err, errNoAgent) {
		client, err := s.peerWith(ctx, node, purpose, req.GetRelayed())
		if err != nil {
			return err
		}
		wish.Relayed, wish.Removed, wish.Node = true, req.GetRemoved(), node
		return relayLogs(ctx, client, wish, to)
	}
	if err != nil {
		return err
	}
	defer s.sessions.close(sess)
	if err := to.SendHeaders(); err != nil {
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
			if err := to.Send(logs); err != nil {
				return err
			}
		}
	}
}

// lastNode returns the node whose agent has last told of a pod of that name, by the events that
// this peer has; "": none.
func (s podService) lastNode(namespace, name string) (node string) {
	var last time.Time
	events, _ := s.cfg.Events.List(namespace)
	for _, e := range events {
		about := e.InvolvedObject
		if about.Kind == "Pod" && about.Name == name && e.Source.Component == "agent" && e.Source.Host != "" && !e.LastTimestamp.Time.Before(last) {
			node, last = e.Source.Host, e.LastTimestamp.Time
		}
	}
	return node
}

func relayLogs(ctx context.Context, client *connect.Client, req *holdfastv1.LogsRequest, to Replies[holdfastv1.LogsResponse]) error {
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

func (s podService) exec(ctx context.Context, with Conversation[holdfastv1.ExecRequest, holdfastv1.ExecResponse]) error {
	first, err := with.Receive()
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
	onward := proto.CloneOf(wish)
	onward.Relayed = true
	return converse(ctx, s, errand[holdfastv1.ExecRequest, holdfastv1.ExecResponse]{
		node: pod.Spec.NodeName, purpose: "exec in " + object.Title(pod), relayed: start.GetRelayed(),
		wish:  &agentv1.SessionsResponse{Start: &agentv1.SessionsResponse_Exec{Exec: wish}},
		start: &holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Start{Start: onward}},
		end:   &holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_CloseStdin{CloseStdin: true}},
		toAgent: func(in *holdfastv1.ExecRequest) *agentv1.SessionResponse {
			if in.GetStart() != nil {
				return nil
			}
			return &agentv1.SessionResponse{Exec: in}
		},
		fromAgent: (*agentv1.SessionRequest).GetExec,
		last: func(out *holdfastv1.ExecResponse) bool {
			_, last := out.GetMessage().(*holdfastv1.ExecResponse_ExitCode)
			return last
		},
		call: func(ctx context.Context, peer holdfastv1connect.PodServiceClient) (called[holdfastv1.ExecRequest, holdfastv1.ExecResponse], error) {
			return peer.Exec(ctx)
		},
	}, with)
}

func (s podService) attach(ctx context.Context, with Conversation[holdfastv1.AttachRequest, holdfastv1.AttachResponse]) error {
	first, err := with.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return badRequest("start", "the first message of an attach must hold start")
	}
	pod, container, err := s.container(ctx, start.GetNamespace(), start.GetPod(), start.GetContainer())
	if err != nil {
		return err
	}
	wish := proto.CloneOf(start)
	wish.Namespace, wish.Container, wish.Relayed = pod.Namespace, container, false
	onward := proto.CloneOf(wish)
	onward.Relayed = true
	return converse(ctx, s, errand[holdfastv1.AttachRequest, holdfastv1.AttachResponse]{
		node: pod.Spec.NodeName, purpose: "attach to " + object.Title(pod), relayed: start.GetRelayed(),
		wish:  &agentv1.SessionsResponse{Start: &agentv1.SessionsResponse_Attach{Attach: wish}},
		start: &holdfastv1.AttachRequest{Message: &holdfastv1.AttachRequest_Start{Start: onward}},
		end:   &holdfastv1.AttachRequest{Message: &holdfastv1.AttachRequest_CloseStdin{CloseStdin: true}},
		toAgent: func(in *holdfastv1.AttachRequest) *agentv1.SessionResponse {
			if in.GetStart() != nil {
				return nil
			}
			return &agentv1.SessionResponse{Attach: in}
		},
		fromAgent: (*agentv1.SessionRequest).GetAttach,
		last: func(out *holdfastv1.AttachResponse) bool {
			_, last := out.GetMessage().(*holdfastv1.AttachResponse_ExitCode)
			return last
		},
		call: func(ctx context.Context, peer holdfastv1connect.PodServiceClient) (called[holdfastv1.AttachRequest, holdfastv1.AttachResponse], error) {
			return peer.Attach(ctx)
		},
	}, with)
}

func (s podService) portForward(ctx context.Context, with Conversation[holdfastv1.PortForwardRequest, holdfastv1.PortForwardResponse]) error {
	first, err := with.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	switch {
	case start == nil:
		return badRequest("start", "the first message of a port-forward must hold start")
	case start.GetPort() == 0 || start.GetPort() > 65535:
		return badRequest("start.port", "%d is no port: want 1 to 65535", start.GetPort())
	}
	pod, err := s.boundPod(ctx, start.GetNamespace(), start.GetPod())
	if err != nil {
		return err
	}
	wish := proto.CloneOf(start)
	wish.Namespace, wish.Relayed = pod.Namespace, false
	onward := proto.CloneOf(wish)
	onward.Relayed = true
	return converse(ctx, s, errand[holdfastv1.PortForwardRequest, holdfastv1.PortForwardResponse]{
		node: pod.Spec.NodeName, purpose: fmt.Sprintf("connection to port %d of %s", start.GetPort(), object.Title(pod)), relayed: start.GetRelayed(),
		wish:  &agentv1.SessionsResponse{Start: &agentv1.SessionsResponse_PortForward{PortForward: wish}},
		start: &holdfastv1.PortForwardRequest{Message: &holdfastv1.PortForwardRequest_Start{Start: onward}},
		end:   &holdfastv1.PortForwardRequest{Message: &holdfastv1.PortForwardRequest_CloseWrite{CloseWrite: true}},
		toAgent: func(in *holdfastv1.PortForwardRequest) *agentv1.SessionResponse {
			if in.GetStart() != nil {
				return nil
			}
			return &agentv1.SessionResponse{PortForward: in}
		},
		fromAgent: (*agentv1.SessionRequest).GetPortForward,
		call: func(ctx context.Context, peer holdfastv1connect.PodServiceClient) (called[holdfastv1.PortForwardRequest, holdfastv1.PortForwardResponse], error) {
			return peer.PortForward(ctx)
		},
	}, with)
}

// errand is a conversation between a caller and the agent of a node.
type errand[In, Out any] struct {
	node    string
	purpose string // for people: "exec in Pod default/web"
	relayed bool   // by a peer that has found this one: do not look further

	wish      *agentv1.SessionsResponse          // for the agent
	toAgent   func(*In) *agentv1.SessionResponse // nil: the message has no place after the first
	fromAgent func(*agentv1.SessionRequest) *Out // nil: nothing for the caller
	last      func(*Out) bool                    // that ends it; nil: the agent just ends
	end       *In                                // what the end of the caller's stream means

	// For the peer that has the agent, if that is another one.
	start *In
	call  func(context.Context, holdfastv1connect.PodServiceClient) (called[In, Out], error)
}

// called is a Conversation from its caller's side.
type called[In, Out any] interface {
	Send(*In) error
	Receive() (*Out, error)
	Close() error
}

// converse carries an errand out. It has no buffer: whoever is slow slows the
// other side down.
func converse[In, Out any](ctx context.Context, s podService, e errand[In, Out], with Conversation[In, Out]) error {
	sess, err := s.sessions.open(ctx, e.node, e.purpose, e.wish)
	if errors.Is(err, errNoAgent) {
		client, err := s.peerWith(ctx, e.node, e.purpose, e.relayed)
		if err != nil {
			return err
		}
		return relay(ctx, client, e, with)
	}
	if err != nil {
		return err
	}
	defer s.sessions.close(sess)
	if err := with.SendHeaders(); err != nil {
		return err
	}
	// As in Session: it ends with the call, or when nobody listens any more.
	go forward(e, with, func(in *In) bool { return sess.send(ctx, e.toAgent(in)) })
	for {
		msg, err := sess.receive(ctx)
		if errors.Is(err, io.EOF) {
			if e.last == nil {
				return nil
			}
			return connect.Errorf(connect.CodeUnavailable, "%s: node %s's agent ended the session without an exit code", e.purpose, e.node)
		}
		if err != nil {
			return err
		}
		out := e.fromAgent(msg)
		if out == nil {
			continue
		}
		if err := with.Send(out); err != nil {
			return err
		}
		if e.last != nil && e.last(out) {
			return nil
		}
	}
}

// forward passes on what the caller sends until it ends, which the other side is
// told.
func forward[In, Out any](e errand[In, Out], from Conversation[In, Out], send func(*In) bool) {
	for {
		msg, err := from.Receive()
		if errors.Is(err, io.EOF) {
			send(e.end)
			return
		}
		if err != nil || e.toAgent(msg) == nil || !send(msg) {
			return
		}
	}
}

// relay carries an errand out through the peer that has the agent.
func relay[In, Out any](ctx context.Context, client *connect.Client, e errand[In, Out], with Conversation[In, Out]) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	to, err := e.call(ctx, holdfastv1connect.NewPodServiceClient(client))
	if err != nil {
		return relayed(err)
	}
	defer to.Close()
	// By itself, a stream that may still be sent on goes on waiting for an answer.
	defer context.AfterFunc(ctx, func() { to.Close() })()
	if err := to.Send(e.start); err != nil {
		_, recvErr := to.Receive() // says why
		return relayed(errors.Join(recvErr, err))
	}
	if err := with.SendHeaders(); err != nil {
		return err
	}
	go forward(e, with, func(in *In) bool { return to.Send(in) == nil })
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
	pod, err := s.boundPod(ctx, namespace, name)
	if err != nil {
		return nil, "", err
	}
	container, err = chooseContainer(pod, container)
	return pod, container, err
}

// boundPod returns a pod that has a node.
func (s podService) boundPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	r := object.ResourceOf(&corev1.Pod{})
	namespace, err := namespaceFor(r, namespace)
	if err != nil {
		return nil, err
	}
	if name == "" {
		return nil, badRequest("pod", "is empty: say which pod")
	}
	view, err := s.sync(ctx)
	if err != nil {
		return nil, err
	}
	pod, ok := object.Get[*corev1.Pod](view, r.Key(namespace, name))
	if !ok {
		return nil, notFound(r, namespace, name)
	}
	if pod.Spec.NodeName == "" {
		why := "it has not been scheduled"
		if c := object.PodCondition(pod, corev1.PodScheduled); c != nil && c.Message != "" {
			why = c.Message
		}
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "%s runs on no node yet: %s", object.Title(pod), why)
	}
	return pod, nil
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
	for i := range pod.Spec.EphemeralContainers {
		names = append(names, pod.Spec.EphemeralContainers[i].Name)
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
