package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// repeatable are the unary calls that may be sent again when nobody can tell
// whether the first was executed: reads, and writes that do nothing the second
// time. A call that is missing here is treated as a write.
var repeatable = map[string]bool{
	holdfastv1connect.ObjectServiceGetProcedure:         true,
	holdfastv1connect.ObjectServiceListProcedure:        true,
	holdfastv1connect.ObjectServiceKindsProcedure:       true,
	holdfastv1connect.ObjectServiceSchemaProcedure:      true,
	holdfastv1connect.ClusterServiceStatusProcedure:     true,
	holdfastv1connect.AccessServiceWhoAmIProcedure:      true,
	holdfastv1connect.AccessServiceCanIProcedure:        true,
	holdfastv1connect.AccessServiceIssueTokenProcedure:  true, // nothing is kept of a token
	holdfastv1connect.AccessServiceReviewTokenProcedure: true,
	agentv1connect.AgentServiceRegisterProcedure:        true, // brings the Node up to date
	agentv1connect.AgentServiceHeartbeatProcedure:       true, // renews a lease
	agentv1connect.AgentServiceConfirmProcedure:         true,
	agentv1connect.AgentServiceMirrorProcedure:          true, // the whole set, each time
	holdfastv1connect.WhyServicePodProcedure:            true,
	holdfastv1connect.NetworkServiceVerifyProcedure:     true,
	holdfastv1connect.NetworkServiceInspectProcedure:    true,
	holdfastv1connect.NetworkServiceTraceProcedure:      true,
	// Complete statuses; the agent sends them in order, one report at a time.
	agentv1connect.AgentServiceReportStatusProcedure: true,

	storev1connect.StoreServiceRangeProcedure:           true,
	storev1connect.StoreServiceStatusProcedure:          true,
	storev1connect.StoreServiceLeaseKeepAliveProcedure:  true,
	storev1connect.StoreServiceLeaseTimeToLiveProcedure: true,
	storev1connect.StoreServiceLeasesProcedure:          true,
}

const (
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = time.Second
	// lateFactor bounds, in RetryFor, the time within which peers that have not
	// been asked still are.
	lateFactor = 3
)

// retrying is the interceptor that repeats unary calls.
func (c *Client) retrying(next connect.ClientFunc) connect.ClientFunc {
	return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
		if spec.StreamType != connect.StreamTypeUnary {
			return next(ctx, spec)
		}
		ctx, end := context.WithCancel(ctx)
		return &unaryCall{c: c, ctx: ctx, end: end, spec: spec, next: next}, nil
	}
}

// unaryCall is a ClientStream that holds the request back until the answer is
// asked for, so that it can send it more than once. It lives for one call, whose
// context it keeps.
type unaryCall struct {
	c    *Client
	ctx  context.Context
	end  context.CancelFunc // ends all attempts
	spec connect.Spec
	next connect.ClientFunc
	req  any
}

func (u *unaryCall) SendHeaders() error { return nil }

func (u *unaryCall) Send(msg any) error {
	u.req = u.c.ahead(msg)
	return nil
}

func (u *unaryCall) CloseSend() error { return nil }

func (u *unaryCall) Close() error {
	u.end()
	return nil
}

// Receive makes the call, as often as it takes and is allowed.
func (u *unaryCall) Receive(res any) error {
	start := time.Now()
	backoff := firstBackoff
	refused := make(map[string]bool) // addresses of peers that answered Unavailable
	var last error                   // why the attempt before was repeated
	for attempt := 1; ; attempt++ {
		info, err := u.once(res)
		if err == nil {
			u.c.saw(res)
			return nil
		}
		if u.ctx.Err() != nil {
			// A request that was handed to a connection may be written after the
			// context has ended: nobody knows what became of it.
			if last == nil || (info.conn.Load() != nil && !repeatable[u.spec.Procedure]) {
				return err
			}
			return u.giveUp(last, attempt-1, time.Since(start))
		}
		again, err := u.judge(info, err)
		if !again {
			return err
		}
		last = err
		if conn := info.conn.Load(); conn != nil && info.answered {
			refused[conn.address] = true
			if u.c.leaveIfOthers(conn, err) && u.c.anyBut(refused) && time.Since(start) < lateFactor*u.c.cfg.RetryFor {
				continue // another peer may do better, at once
			}
		}
		if elapsed := time.Since(start); elapsed >= u.c.cfg.RetryFor {
			return u.giveUp(last, attempt, elapsed)
		}
		wait := backoff/2 + rand.N(backoff/2+1)
		backoff = min(2*backoff, maxBackoff)
		select {
		case <-u.ctx.Done():
			return u.giveUp(last, attempt, time.Since(start))
		case <-time.After(wait):
		}
	}
}

// attemptInfo is what httpClient says about one attempt, through its context.
type attemptInfo struct {
	// avoid is the address of a peer that is not to be asked, "" for none.
	avoid    string
	conn     atomic.Pointer[conn] // read while the attempt is under way
	answered bool                 // there was an answer, be it an error
	sent     atomic.Bool          // the whole request was sent
}

type attemptKey struct{}

// once makes one attempt: for reads, beside another one when it takes long.
func (u *unaryCall) once(res any) (*attemptInfo, error) {
	if hedged[u.spec.Procedure] {
		return u.hedge(res)
	}
	info := new(attemptInfo)
	return info, u.attempt(u.ctx, info, res)
}

// attempt makes one attempt, and fills in info.
func (u *unaryCall) attempt(ctx context.Context, info *attemptInfo, res any) error {
	stream, err := u.next(context.WithValue(ctx, attemptKey{}, info), u.spec)
	if err != nil {
		return err
	}
	defer stream.Close()
	if err := stream.Send(u.req); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return stream.Receive(res)
}

// judge says whether an attempt that failed may be repeated, and the error for
// the caller if it is not or no more.
func (u *unaryCall) judge(info *attemptInfo, err error) (again bool, _ error) {
	if failure, ok := errors.AsType[*transportError](err); ok {
		switch {
		case failure.permanent:
			return false, connect.NewError(connect.CodeUnauthenticated, failure.Error()).WithCause(failure)
		case failure.sent && !repeatable[u.spec.Procedure]:
			return false, connect.Errorf(connect.CodeUnknown, "the connection broke after %s was sent: it may have been carried out; look before trying again: %v",
				u.name(), failure).WithCause(failure)
		}
		return true, err
	}
	// From a peer, Unavailable promises that nothing was proposed. Unknown, like
	// everything else, is for the caller.
	return connect.CodeOf(err) == connect.CodeUnavailable, err
}

// giveUp is the error after the last attempt. Nothing was carried out.
func (u *unaryCall) giveUp(last error, attempts int, elapsed time.Duration) error {
	why := fmt.Sprintf("gave up on %s after %v and %d attempts", u.name(), elapsed.Round(time.Millisecond), attempts)
	if errors.Is(u.ctx.Err(), context.Canceled) {
		return connect.Errorf(connect.CodeCanceled, "%s: canceled; before that: %v", why, last).WithCause(errors.Join(u.ctx.Err(), last))
	}
	message, details := last.Error(), []*connect.ErrorDetail(nil)
	if e, ok := errors.AsType[*connect.Error](last); ok {
		message, details = e.Message(), e.Details()
	}
	out := connect.Errorf(connect.CodeUnavailable, "%s: %s", why, message).WithCause(errors.Join(u.ctx.Err(), last))
	for _, detail := range details {
		out = out.WithDetail(detail)
	}
	return out
}

// name is the procedure's last part, "Apply".
func (u *unaryCall) name() string { return path.Base(u.spec.Procedure) }

// anyBut reports whether there are peers whose addresses are not in set.
func (c *Client) anyBut(set map[string]bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.peers, func(p *peer) bool { return !set[p.address] })
}

// leaveIfOthers leaves the peer of cn if there is another one to go to, and
// reports whether there is.
func (c *Client) leaveIfOthers(cn *conn, reason error) bool {
	if !c.anyBut(map[string]bool{cn.address: true}) {
		return false
	}
	c.leave(cn, reason)
	return true
}
