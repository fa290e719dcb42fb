package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// joinTimes bounds the attempt to join through one peer.
type joinTimes struct {
	dial  time.Duration // TCP, and TLS again
	whole time.Duration
}

// A peer that waits for a leader takes up to 10 s to answer.
var defaultJoinTimes = joinTimes{dial: 5 * time.Second, whole: 15 * time.Second}

// JoinResult is what a machine has once it has joined.
type JoinResult struct {
	Credentials *pki.Credentials
	ClusterID   string
	CA          []byte   // PEM of the cluster's CA certificates
	CAKey       []byte   // peers only: PEM of the CA's private key
	GossipKey   []byte   // 32 bytes
	Peers       []string // API addresses of all peers
	Gossip      []string // gossip addresses to join
	Incarnation uint64   // peers only: the cluster's, as raftstore has it
	// Peers only: where pods and Services have their addresses from; "": the defaults.
	PodCIDR, ServiceCIDR string
}

// Join trades token for a certificate as role and name, through the first of
// addrs (API addresses, host:port, of any peers) that can do it. address is
// where this machine can be reached: a peer's API, a node's gossip, host:port.
//
// The private key is made here and does not leave the machine. The peer is
// trusted only if its CA is the one that the token pins. The whole takes at most
// 15 s for each address, or until ctx ends. Each way to fail has its own
// sentence; those of the token, the name and the cluster end the attempt, others
// go on with the next address.
func Join(ctx context.Context, addrs []string, token pki.Token, role pki.Role, name, address string) (*JoinResult, error) {
	return join(ctx, defaultJoinTimes, addrs, token, role, name, address)
}

func join(ctx context.Context, times joinTimes, addrs []string, token pki.Token, role pki.Role, name, address string) (*JoinResult, error) {
	wire, ok := map[pki.Role]holdfastv1.Role{pki.RolePeer: holdfastv1.Role_ROLE_PEER, pki.RoleNode: holdfastv1.Role_ROLE_NODE}[role]
	if !ok {
		return nil, fmt.Errorf("join as %q: only a %s or a %s can join", role, pki.RolePeer, pki.RoleNode)
	}
	if err := pki.CheckName(name); err != nil {
		return nil, fmt.Errorf("join as %s: %w", role, err)
	}
	if len(addrs) == 0 {
		return nil, errors.New("join: no peer's address given")
	}
	for _, addr := range addrs {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return nil, fmt.Errorf("join through %q: want host:port, the API address of a peer", addr)
		}
	}
	key, csr, err := pki.NewRequest()
	if err != nil {
		return nil, err
	}
	req := &holdfastv1.JoinRequest{Token: token.Credential(), Role: wire, Name: name, Csr: csr, Address: address}

	var failures []error
	for _, addr := range addrs {
		resp, err := joinThrough(ctx, times, addr, token, req)
		if err != nil {
			failures = append(failures, fmt.Errorf("join through %s: %w", addr, err))
			if ctx.Err() != nil || final(err) {
				break
			}
			continue
		}
		creds, err := pki.NewCredentials(key, resp.GetCertificates(), resp.GetCa())
		if err != nil {
			return nil, fmt.Errorf("join through %s: the peer's answer is of no use: %w", addr, err)
		}
		return checkJoin(addr, token, role, name, creds, resp)
	}
	return nil, joined(failures)
}

// checkJoin makes sure that we became who we wanted to be.
func checkJoin(addr string, token pki.Token, role pki.Role, name string, creds *pki.Credentials, resp *holdfastv1.JoinResponse) (*JoinResult, error) {
	want := pki.Identity{Cluster: resp.GetClusterId(), Role: role, Name: name}
	if got := creds.Identity(); got != want {
		return nil, fmt.Errorf("join through %s: the peer's certificate says %s, want %s", addr, got, want)
	}
	if err := creds.CheckTime(time.Now()); err != nil {
		return nil, fmt.Errorf("join through %s: the new %w", addr, err)
	}
	if role == pki.RolePeer {
		ca, err := pki.LoadCA(resp.GetCa(), resp.GetCaKey())
		if err != nil {
			return nil, fmt.Errorf("join through %s: the CA that came back is of no use: %w", addr, err)
		}
		if ca.Cluster() != want.Cluster {
			return nil, fmt.Errorf("join through %s: %w: the CA that came back is of cluster %s", addr, pki.ErrWrongCluster, ca.Cluster())
		}
	}
	return &JoinResult{
		Credentials: creds,
		ClusterID:   resp.GetClusterId(),
		CA:          resp.GetCa(),
		CAKey:       resp.GetCaKey(),
		GossipKey:   resp.GetGossipKey(),
		Peers:       resp.GetPeers(),
		Gossip:      resp.GetGossip(),
		Incarnation: resp.GetIncarnation(),
		PodCIDR:     resp.GetPodCidr(),
		ServiceCIDR: resp.GetServiceCidr(),
	}, nil
}

func joinThrough(ctx context.Context, times joinTimes, addr string, token pki.Token, req *holdfastv1.JoinRequest) (*holdfastv1.JoinResponse, error) {
	tooSlow := fmt.Errorf("no answer within %v; is the peer overloaded, or without a leader?", times.whole)
	ctx, cancel := context.WithTimeoutCause(ctx, times.whole, tooSlow)
	defer cancel()
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: times.dial}).DialContext,
		TLSHandshakeTimeout: times.dial,
		TLSClientConfig:     pki.PinnedTLS(token.Pin, "h2"),
		Protocols:           &protocols,
	}
	defer transport.CloseIdleConnections()
	service := holdfastv1connect.NewJoinServiceClient(connect.NewClient(
		connecthttp.NewTransport(&http.Client{Transport: transport}, "https://"+addr)))
	resp, err := service.Join(ctx, req)
	if err != nil {
		return nil, explainJoin(ctx, req, err)
	}
	return resp, nil
}

// finalError is a failure that no other peer will change.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

func final(err error) bool {
	_, ok := errors.AsType[finalError](err)
	return ok
}

// explainJoin gives each way to fail its own sentence.
func explainJoin(ctx context.Context, req *holdfastv1.JoinRequest, err error) error {
	code, message := connect.CodeOf(err), err.Error()
	remote := false
	if e, ok := errors.AsType[*connect.Error](err); ok {
		message, remote = e.Message(), e.IsRemote()
	}
	role := strings.ToLower(strings.TrimPrefix(req.GetRole().String(), "ROLE_"))
	switch {
	case remote && code == connect.CodeUnauthenticated && strings.HasPrefix(message, "the token ") && !strings.Contains(message, "wrong, expired"): // it says which
		return finalError{fmt.Errorf("%s (%w)", message, err)}
	case remote && code == connect.CodeUnauthenticated:
		return finalError{fmt.Errorf("the token is wrong, has expired or is not for a %s; make a new one on a peer: holdfast token create --role %s (%w)", role, role, err)}
	case remote && code == connect.CodeAlreadyExists:
		return finalError{fmt.Errorf("the name %s belongs to a machine that is alive; choose another name, or stop that machine first (%w)", req.GetName(), err)}
	case remote && (code == connect.CodeInvalidArgument || code == connect.CodePermissionDenied || code == connect.CodeFailedPrecondition):
		return finalError{fmt.Errorf("the peer refuses: %s (%w)", message, err)}
	case remote && code == connect.CodeUnavailable:
		return fmt.Errorf("the peer cannot record anything at the moment, so try again: %s (%w)", message, err)
	case remote && (code == connect.CodeUnimplemented || code == connect.CodeNotFound):
		return fmt.Errorf("what answers is no Holdfast API; is this the API's address? (%w)", err)
	case remote:
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	// The connection's: take off what Connect and net/http put around it.
	cause := err
	if e, ok := errors.AsType[*connect.Error](cause); ok && e.Unwrap() != nil {
		cause = e.Unwrap()
	}
	if e, ok := errors.AsType[*url.Error](cause); ok {
		cause = e.Err
	}
	text, _ := sentence(cause)
	return fmt.Errorf("%s%w", text, cause)
}
