package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

const (
	// protocolVersion is that of agent.proto which this agent speaks.
	protocolVersion = 1
	// registerTimeout is longer than a peer waits for a leader (10 s).
	registerTimeout = 15 * time.Second
	// firstTimeout is how long a peer may take for the first message.
	firstTimeout = 15 * time.Second
	// catchUpTimeout is how long a peer may stay behind what the agent has.
	catchUpTimeout = 10 * time.Second
	// defaultHeartbeat is the period until a peer names one.
	defaultHeartbeat = time.Second
	// heartbeatTimeout bounds, from both sides, twice the period.
	heartbeatTimeoutMin = 2 * time.Second
	heartbeatTimeoutMax = 10 * time.Second
	// staleGrant is for how long a peer may answer and the lease not be renewed before
	// another is tried; further ones ever more slowly, up to staleGrantMax.
	staleGrant    = 3 * time.Second
	staleGrantMax = time.Minute
	// sessionBackoffFirst and sessionBackoffMax bound the pause between sessions;
	// one that lasted sessionStable starts over.
	sessionBackoffFirst = 100 * time.Millisecond
	sessionBackoffMax   = 5 * time.Second
	sessionStable       = 10 * time.Second
	// saveRetry is how often state that could not be saved is saved again.
	saveRetry = 10 * time.Second
)

// session keeps the agent in touch with the control plane: one peer at a time,
// any peer. The desired state outlives every connection.
type session struct {
	a   *Agent
	log *slog.Logger

	mu      sync.Mutex
	desired desired
	period  time.Duration // of heartbeats
	peer    string        // that the current session is with, or ""
	end     context.CancelCauseFunc

	// saving is held while the desired state is written and replaced; unsaved: the file is
	// older.
	saving  sync.Mutex
	unsaved bool

	registered chan struct{} // closed once the cluster knows the node
	once       sync.Once

	// instance tells this agent from another that has the same certificate: the one
	// before it, or that of a machine which was copied.
	instance string
}

func newSession(a *Agent) *session {
	return &session{a: a, log: a.log, period: defaultHeartbeat, registered: make(chan struct{}), instance: strconv.FormatUint(rand.Uint64(), 36)}
}

// load takes up the state that the agent had in its last life.
func (s *session) load() error {
	d, err := loadDesired(s.a.cfg.DataDir)
	if err != nil {
		// Without it nothing is stopped either, before a peer has been heard: so
		// go on, but keep the file for whoever wants to know.
		s.log.Error("the saved state cannot be used; pods that run go on, and a peer will say what else should run", "error", err)
		path := filepath.Join(s.a.cfg.DataDir, desiredFile)
		if err := os.Rename(path, path+".damaged"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("agent: set the damaged state aside: %w", err)
		}
		d = desired{}
	}
	s.desired = d
	s.setPeers(d.peers)
	s.a.pods.set(d, false)
	s.applyNetwork(d)
	s.a.metrics.revision.Set(float64(d.revision))
	if d.revision > 0 {
		// The cluster knows this node: its lease is renewed even while nobody can
		// take its registration, as during an election.
		s.once.Do(func() { close(s.registered) })
	}
	return nil
}

// setPeers tells the client of peers: those that the cluster named, then those
// of the configuration.
func (s *session) setPeers(named []string) {
	all := slices.Clone(named)
	for _, p := range s.a.cfg.Peers {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	if len(all) > 0 {
		s.a.cfg.Client.SetPeers(all)
	}
}

func (s *session) applyNetwork(d desired) {
	cidrs, routes, err := d.network()
	if err != nil {
		s.log.Error("part of the network's state is unusable", "revision", d.revision, "error", err)
	}
	s.a.routes.set(cidrs, routes)
}

// run keeps a session open until ctx ends.
func (s *session) run(ctx context.Context) error {
	failures := 0
	for {
		began := time.Now()
		err := s.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) >= sessionStable {
			failures = 0
		}
		failures++
		s.a.metrics.connected.Set(0)
		s.a.metrics.sessions.WithLabelValues("ended").Inc()
		peer := s.a.cfg.Client.Peer()
		s.log.Warn("session with peer ended; trying another", "peer", peer, "failures", failures, "error", err)
		// A session that ended because the client has moved on already is with the
		// right peer next time.
		if !errors.Is(err, errMoved) {
			s.a.cfg.Client.Switch(err.Error())
		}
		pause := backoff(failures, sessionBackoffFirst, sessionBackoffMax)
		pause = pause/2 + rand.N(pause/2+1) // many agents lose a peer together
		if why := notAdmitted(err); why != "" {
			// No peer will say anything else until somebody has done something about it.
			s.log.Error("the cluster does not admit this machine; asking again now and then", "every", refusedPause, "why", why)
			pause = refusedPause
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// refusedPause is how long an agent waits that a peer has refused for good.
const refusedPause = 30 * time.Second

// notAdmitted returns what a peer says to a machine that it knows and does not admit: its
// certificate was revoked, it was removed, or it is in quarantine. "" for other errors.
func notAdmitted(err error) string {
	var remote *connect.Error
	if !errors.As(err, &remote) || remote.Code() != connect.CodeUnauthenticated {
		return ""
	}
	for _, detail := range remote.Details() {
		message, err := connectproto.UnmarshalErrorDetail(detail)
		if err != nil {
			continue
		}
		if info, ok := message.(*holdfastv1.ErrorInfo); ok && info.GetReason() == "Revoked" {
			return remote.Message()
		}
	}
	return ""
}

// errMoved ends a session because calls go to another peer now.
var errMoved = errors.New("calls go to another peer now")

// session registers with a peer and takes in what it says until that fails. The
// error is never nil.
func (s *session) session(ctx context.Context) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	cause := func(err error) error {
		if c := context.Cause(ctx); c != nil && ctx.Err() != nil {
			return c
		}
		return err
	}
	if err := s.register(ctx); err != nil {
		return cause(fmt.Errorf("register: %w", err))
	}
	peer := s.a.cfg.Client.Peer()
	s.mu.Lock()
	s.peer, s.end = peer, end
	from := s.desired.revision
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.peer, s.end = "", nil
		s.mu.Unlock()
	}()
	s.once.Do(func() { close(s.registered) })
	s.a.reports.renew()
	s.a.sessions.renew()
	defer inBackground(ctx, s.a.network.follow)() // with this peer, as long as the session is

	watchdog := time.AfterFunc(firstTimeout, func() {
		end(fmt.Errorf("no desired state within %v", firstTimeout))
	})
	defer watchdog.Stop()
	stream, err := s.a.cfg.Client.Agent().Desired(ctx, &agentv1.DesiredRequest{FromRevision: from, RouteChanges: true})
	if err != nil {
		return cause(fmt.Errorf("desired state: %w", err))
	}
	defer stream.Close()
	var last int64
	for first := true; ; first = false {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			err = errors.New("the peer ended the stream")
		}
		if err != nil {
			return cause(fmt.Errorf("desired state: %w", err))
		}
		switch err := s.take(msg, first, last); {
		case errors.Is(err, errStale):
			// The peer is behind. Let it catch up, but not for ever.
			if first {
				s.log.Info("peer is behind, waiting for it", "peer", peer, "has", msg.GetRevision(), "want", from)
				watchdog.Stop()
				watchdog = time.AfterFunc(catchUpTimeout, func() {
					end(fmt.Errorf("peer %s stays behind revision %d", peer, from))
				})
			}
		case err != nil:
			return cause(fmt.Errorf("desired state: %w", err))
		default:
			watchdog.Stop()
			if msg.GetComplete() {
				s.log.Info("session with peer", "peer", peer, "revision", msg.GetRevision(), "pods", len(msg.GetPods()))
				s.a.metrics.sessions.WithLabelValues("begun").Inc()
			}
			s.a.metrics.connected.Set(1)
		}
		last = msg.GetRevision()
	}
}

// inBackground calls f until the function that it returns is called, which waits for
// its end.
func inBackground(ctx context.Context, f func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// register makes the node known.
func (s *session) register(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	node := nodeObject(s.a.cfg, s.a.machine, s.a.cfg.Runtime.Version())
	node.Status.Conditions = s.a.nodeConditions()
	if said := s.a.routes.announcement(); said != "" {
		node.Annotations = map[string]string{object.NodeNetworkAnnotation: said}
	}
	data, err := object.Encode(node)
	if err != nil {
		return err
	}
	res, err := s.a.cfg.Client.Agent().Register(ctx, &agentv1.RegisterRequest{
		ProtocolVersion: protocolVersion, Node: data, BootId: s.a.machine.BootID, Instance: s.instance,
	})
	if err != nil {
		return err
	}
	if p := res.GetHeartbeatPeriod().AsDuration(); p > 0 {
		s.setPeriod(p)
	}
	if len(res.GetPeers()) > 0 {
		s.setPeers(res.GetPeers())
	}
	return nil
}

// take brings the desired state forward by one message: saved first, then acted
// on, so that an agent which dies in between does not act on older state.
func (s *session) take(msg *agentv1.DesiredResponse, first bool, last int64) error {
	s.mu.Lock()
	before := s.desired
	s.mu.Unlock()
	next, err := before.take(msg, first, last)
	if err != nil {
		return err
	}
	// A revision that brings nothing for this node is not worth a write: the
	// saved state is what the node should do at that revision too.
	routes := msg.GetComplete() || msg.GetHasRoutes() || len(msg.GetChangedRoutes())+len(msg.GetRemovedRoutes()) > 0
	changed := routes || len(msg.GetPeers()) > 0 ||
		!maps.EqualFunc(next.raw, before.raw, bytes.Equal) || !maps.Equal(next.inputs, before.inputs)
	s.keep(next, changed)
	s.a.metrics.revision.Set(float64(next.revision))
	if len(msg.GetPeers()) > 0 {
		s.setPeers(msg.GetPeers())
	}
	if routes {
		s.applyNetwork(next)
	}
	s.a.network.needPolicies(msg.GetPolicyRevision())
	s.a.pods.set(next, true)
	s.a.claims.set(next, msg.GetComplete())
	return nil
}

// keep makes next what is desired, and saves it if it has changed.
func (s *session) keep(next desired, changed bool) {
	s.saving.Lock()
	defer s.saving.Unlock()
	if changed {
		err := next.save(s.a.cfg.DataDir)
		if err != nil {
			// Pods matter more than the file: it is needed after a restart only.
			s.log.Error("desired state is not saved; a restart of the agent would begin with older state", "revision", next.revision, "error", err)
		}
		s.unsaved = err != nil
	}
	s.mu.Lock()
	s.desired = next
	s.mu.Unlock()
}

// saveAgain saves what could not be saved, as on a disk that was full, until ctx ends.
func (s *session) saveAgain(ctx context.Context) {
	ticker := time.NewTicker(saveRetry)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		s.saving.Lock()
		if s.unsaved {
			s.mu.Lock()
			d := s.desired
			s.mu.Unlock()
			if err := d.save(s.a.cfg.DataDir); err == nil {
				s.unsaved = false
				s.log.Info("desired state is saved after all", "revision", d.revision)
			}
		}
		s.saving.Unlock()
	}
}

// errWanted: a pod is to run, though the agent was told to end it.
var errWanted = errors.New("a quorum of the peers says that the pod is to run here: the order to end it is not followed")

// confirm returns nil if a quorum of the peers says that the pod is not to run on
// this node.
func (a *Agent) confirm(ctx context.Context, uid string) error {
	res, err := a.cfg.Client.Agent().Confirm(ctx, &agentv1.ConfirmRequest{Uids: []string{uid}})
	switch {
	case err != nil:
		return fmt.Errorf("confirm that the pod is to end: %w", err)
	case slices.Contains(res.GetWantedUids(), uid):
		return errWanted
	default:
		return nil
	}
}

func (s *session) setPeriod(p time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.period = min(max(p, 10*time.Millisecond), time.Minute)
}

// state returns what status pages and heartbeats need.
func (s *session) state() (period time.Duration, revision int64, peer string, end context.CancelCauseFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.period, s.desired.revision, s.peer, s.end
}

// heartbeats renews the node's lease every period, from the node's first
// registration ever on, whatever the desired state's stream does: a lost stream is not a lost
// node. The timer is monotonic.
func (s *session) heartbeats(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-s.registered:
	}
	failing := false
	patience := staleGrant
	for {
		began, sentAt := time.Now(), s.a.cfg.Clock()
		period, revision, _, _ := s.state()
		timeout := min(max(2*period, heartbeatTimeoutMin), heartbeatTimeoutMax)
		cctx, cancel := context.WithTimeout(ctx, timeout)
		res, err := s.a.cfg.Client.Agent().Heartbeat(cctx, &agentv1.HeartbeatRequest{BootId: s.a.machine.BootID, Revision: revision, SentAt: int64(sentAt), Instance: s.instance})
		late := cctx.Err() != nil
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		_, _, peer, end := s.state()
		if err != nil {
			s.a.metrics.heartbeats.WithLabelValues("error").Inc()
			if !failing {
				s.log.Warn("heartbeat failed", "peer", s.a.cfg.Client.Peer(), "error", err)
			}
			failing = true
			switch {
			case late:
				// The peer may hold the connection and not answer: paused, or cut off.
				// Another may do better; if it does, the session follows it there. If
				// none does, the desired state's stream is as good as any.
				s.a.cfg.Client.Switch("heartbeat: " + err.Error())
			case notAdmitted(err) != "":
				if end != nil {
					end(err)
				}
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(refusedPause):
				}
			case connect.CodeOf(err) == connect.CodeNotFound && end != nil:
				end(fmt.Errorf("the cluster does not know this node: %w", err)) // register again
			}
		} else {
			s.a.metrics.heartbeats.WithLabelValues("ok").Inc()
			s.a.metrics.lastHeartbeat.SetToCurrentTime()
			if failing {
				s.log.Info("heartbeats are accepted again", "peer", s.a.cfg.Client.Peer())
			}
			failing = false
			if at := res.GetGrantedAt(); at > 0 {
				s.a.fencing.granted(time.Duration(at))
			}
			switch age := s.a.fencing.age(); {
			case age < staleGrant:
				patience = staleGrant
			case age >= patience:
				// It answers, but what it hears does not reach a leader. Another may do better.
				s.a.cfg.Client.Switch(fmt.Sprintf("the leader has renewed no lease for %v", age.Round(time.Second)))
				patience = age + min(age, staleGrantMax)
			}
			if p := res.GetPeriod().AsDuration(); p > 0 {
				s.setPeriod(p)
			}
			// Calls go to another peer now: the stream follows.
			if now := s.a.cfg.Client.Peer(); end != nil && peer != "" && now != "" && now != peer {
				end(errMoved)
			}
		}
		period, _, _, _ = s.state()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(period-time.Since(began), period/10)):
		}
	}
}
