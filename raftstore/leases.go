package raftstore

import (
	"container/heap"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// A lease's time is kept by the leader alone, in memory, by its monotonic clock; the
// log knows only which leases there are. What is promised:
//
//   - A lease's keys are not deleted before its TTL has passed since the call of the
//     last KeepAlive that was answered, or since it was granted; whatever happens to
//     leaders and wall clocks. For that, a keepalive is answered only after a round of
//     term quorum that began after it arrived: then every later leader begins later,
//     and begins by giving each lease all of its time again.
//   - With a leader and a majority, they are deleted within the TTL and a second, plus
//     a second for each 1000 leases that end together, plus once more the TTL for each
//     change of leaders in between. Without, they stay.
//   - A pause of the leader (SIGSTOP, a slow machine) ends no lease: its time stands
//     still, as keepalives could not get through.
//
// A lease of more than 10 minutes that has not been kept alive for 5 notes in the log
// what is left of it, for the next leader. The first keepalive after that is answered
// when the log holds the contrary.
const (
	minLease = time.Second
	maxLease = 9_000_000_000 * time.Second // 285 years, as etcd has it

	leaseTick       = 500 * time.Millisecond
	maxLeaseGap     = 2 * leaseTick // between two ticks; more is a pause
	expiriesPerTick = 500

	longLease       = 10 * time.Minute
	checkpointEvery = 5 * time.Minute

	leaseCallTimeout = 3 * time.Second
	maxLeaseCalls    = 8192 // in a message
)

// LeaseInfo is a lease as its leader knows it.
type LeaseInfo struct {
	ID int64
	// Granted is its whole time, Remaining what was left when the leader answered.
	Granted, Remaining time.Duration
}

// GrantLease makes a lease, from any peer: keys that are put under it (see PutWith) are
// deleted when it ends. id 0 has one chosen at random. A ttl below a second is raised to
// one; it must be above 0 and at most 9,000,000,000 s. It fails as Txn does, with
// ErrLeaseExists when the id is taken. To grant an id anew, just after the lease that
// had it has ended, is asking for confusion.
func (s *Store) GrantLease(ctx context.Context, id int64, ttl time.Duration) (LeaseInfo, error) {
	if ttl <= 0 || ttl > maxLease || id < 0 {
		return LeaseInfo{}, fmt.Errorf("%w: a lease has an id of 0 or above and lasts up to %v, not id %d and %v", ErrInvalid, maxLease, id, ttl)
	}
	ttl = max(ttl, minLease).Truncate(time.Millisecond)
	for chosen := id; ; {
		for chosen == 0 {
			chosen = int64(binary.BigEndian.Uint64(randomID()) >> 1)
		}
		_, err := s.Txn(ctx, Txn{Then: []Op{GrantLease(chosen, ttl)}, ID: randomID()})
		switch {
		case err == nil:
			return LeaseInfo{ID: chosen, Granted: ttl, Remaining: ttl}, nil
		case id != 0 || !errors.Is(err, ErrLeaseExists):
			return LeaseInfo{}, fmt.Errorf("grant lease: %w", err)
		}
		chosen = 0
	}
}

// RevokeLease ends a lease at once and deletes its keys, from any peer. It fails as Txn
// does, with ErrLeaseNotFound when there is none.
func (s *Store) RevokeLease(ctx context.Context, id int64) error {
	if _, err := s.Txn(ctx, Txn{Then: []Op{RevokeLease(id)}, ID: randomID()}); err != nil {
		return fmt.Errorf("revoke lease %d: %w", id, err)
	}
	return nil
}

// KeepAlive gives a lease all of its time again, from any peer, and returns that. Calls
// are sent to the leader together, and are not written to the log. It waits for at most
// 10 s, and fails with ErrLeaseNotFound, ErrNoLeader, ErrClosed.
func (s *Store) KeepAlive(ctx context.Context, id int64) (ttl time.Duration, err error) {
	info, err := s.keeper.ask(ctx, &peerv1.LeaseQuestion{Id: id, KeepAlive: true})
	if err != nil {
		return 0, fmt.Errorf("keep lease %d alive: %w", id, err)
	}
	return info.Granted, nil
}

// TimeToLive tells how long a lease lasts, from any peer. It fails as KeepAlive does.
func (s *Store) TimeToLive(ctx context.Context, id int64) (LeaseInfo, error) {
	info, err := s.keeper.ask(ctx, &peerv1.LeaseQuestion{Id: id})
	if err != nil {
		return LeaseInfo{}, fmt.Errorf("time to live of lease %d: %w", id, err)
	}
	return info, nil
}

func randomID() []byte {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	return id
}

// leaseKeeper answers questions about leases: those that callers on this peer have, by
// asking the leader; and, while this peer leads, those of all.
type leaseKeeper struct {
	store *Store
	wake  chan struct{} // capacity 1

	mu      sync.Mutex
	waiting []*pendingLease
	lastErr error
	term    *leaseTerm // nil while this peer does not lead
}

type pendingLease struct {
	ctx      context.Context // of the caller, who waits
	question *peerv1.LeaseQuestion
	done     chan *peerv1.LeaseAnswer // capacity 1
}

func newLeaseKeeper(s *Store) *leaseKeeper {
	return &leaseKeeper{store: s, wake: make(chan struct{}, 1)}
}

// ask has a question answered by the leader, whoever that is.
func (k *leaseKeeper) ask(ctx context.Context, q *peerv1.LeaseQuestion) (LeaseInfo, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, leaderWait, fmt.Errorf("no answer within %v", leaderWait))
	defer cancel()
	p := &pendingLease{ctx: ctx, question: q, done: make(chan *peerv1.LeaseAnswer, 1)}
	k.mu.Lock()
	k.waiting = append(k.waiting, p)
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
	select {
	case a := <-p.done:
		if a.GetTtlMillis() == 0 {
			return LeaseInfo{}, ErrLeaseNotFound
		}
		return LeaseInfo{ID: q.GetId(), Granted: millis(a.GetTtlMillis()), Remaining: millis(a.GetRemainingMillis())}, nil
	case <-ctx.Done():
		k.mu.Lock()
		defer k.mu.Unlock()
		return LeaseInfo{}, fmt.Errorf("%w: %w", ErrNoLeader, errors.Join(context.Cause(ctx), k.lastErr))
	case <-k.store.stopped:
		return LeaseInfo{}, ErrClosed
	}
}

func millis(n int64) time.Duration {
	return time.Duration(min(n, maxLease.Milliseconds())) * time.Millisecond
}

// run asks the leader until ctx ends. There is one call at a time: what arrives
// meanwhile goes into the next.
func (k *leaseKeeper) run(ctx context.Context) {
	var asking []*pendingLease
	retry := newBackoff()
	for {
		if len(asking) == 0 {
			select {
			case <-k.wake:
			case <-ctx.Done():
				return
			}
		}
		leader := k.store.leader.Load()
		k.mu.Lock()
		asking = append(asking, k.waiting...)
		k.waiting = nil
		k.mu.Unlock()
		kept := asking[:0]
		for _, p := range asking {
			if p.ctx.Err() == nil {
				kept = append(kept, p)
			}
		}
		if asking = kept; len(asking) == 0 {
			continue
		}
		batch := asking[:min(len(asking), maxLeaseCalls)]
		req := &peerv1.LeasesRequest{Questions: make([]*peerv1.LeaseQuestion, len(batch))}
		for i, p := range batch {
			req.Questions[i] = p.question
		}
		resp, err := k.call(ctx, leader.id, req)
		if err == nil && len(resp.GetAnswers()) != len(batch) {
			err = fmt.Errorf("peer %s: %d answers to %d questions", leader.id, len(resp.GetAnswers()), len(batch))
		}
		k.mu.Lock()
		k.lastErr = err
		k.mu.Unlock()
		if err == nil {
			for i, p := range batch {
				p.done <- resp.GetAnswers()[i]
			}
			asking, retry = append([]*pendingLease(nil), asking[len(batch):]...), newBackoff()
			continue
		}
		again, stop := retry.timer(leader.id != "")
		select {
		case <-again:
		case <-leader.changed:
		case <-ctx.Done():
			stop()
			return
		}
		stop()
	}
}

func (k *leaseKeeper) call(ctx context.Context, leader string, req *peerv1.LeasesRequest) (*peerv1.LeasesResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseCallTimeout)
	defer cancel()
	switch leader {
	case "":
		return nil, errors.New("no leader is known")
	case k.store.cfg.ID:
		return k.answer(ctx, req)
	}
	client, err := k.store.cfg.Remote(leader)
	if err != nil {
		return nil, err
	}
	resp, err := client.Leases(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("peer %s: %w", leader, err)
	}
	return resp, nil
}

// Leases implements peerv1connect.StoreServiceHandler.
func (s service) Leases(ctx context.Context, req *peerv1.LeasesRequest) (*peerv1.LeasesResponse, error) {
	resp, err := s.keeper.answer(ctx, req)
	if err != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, err.Error())
	}
	return resp, nil
}

// answer answers for all peers, while this one can prove that it leads.
func (k *leaseKeeper) answer(ctx context.Context, req *peerv1.LeasesRequest) (*peerv1.LeasesResponse, error) {
	k.mu.Lock()
	t := k.term
	k.mu.Unlock()
	if t == nil {
		return nil, ErrNotLeader
	}
	// The proof must be younger than the questions: a leader that was deposed
	// before would keep alive what its successor lets end.
	c, err := k.store.reader.confirm(ctx)
	if err != nil {
		return nil, err
	}
	if c.leader != k.store.cfg.ID || c.term != t.leader.term {
		return nil, ErrNotLeader
	}
	if _, err := k.store.waitIndex(ctx, c.index); err != nil {
		return nil, err
	}
	resp := &peerv1.LeasesResponse{Answers: make([]*peerv1.LeaseAnswer, len(req.GetQuestions()))}
	var resets []*proposal
	for i, q := range req.GetQuestions() {
		info, reset, err := t.answer(ctx, q.GetId(), q.GetKeepAlive())
		if err != nil {
			return nil, err
		}
		if reset != nil {
			resets = append(resets, reset)
		}
		resp.Answers[i] = &peerv1.LeaseAnswer{TtlMillis: info.Granted.Milliseconds(), RemainingMillis: info.Remaining.Milliseconds()}
	}
	for _, p := range resets {
		if out := k.store.await(ctx, p); out.err != nil || out.result.GetDeposed() {
			return nil, fmt.Errorf("%w: a checkpoint was not taken back: %w", ErrNotLeader, errors.Join(out.err))
		}
		t.restored(p.leases)
	}
	return resp, nil
}

// changed tells the keeper that a transaction which changes these leases is applied.
func (k *leaseKeeper) changed(ids []int64) {
	k.mu.Lock()
	t := k.term
	k.mu.Unlock()
	if t != nil {
		t.look(ids)
	}
}

// keep keeps the time of all leases while this peer leads, until ctx ends.
func (k *leaseKeeper) keep(ctx context.Context, l *Leader) error {
	t := &leaseTerm{store: k.store, leader: l, base: time.Now(), wake: make(chan struct{}, 1)}
	// From now on it is told of changes; so none is missed by what follows.
	k.set(t)
	defer k.set(nil)
	t.mu.Lock()
	for lease := range l.View().Leases() {
		t.begin(lease)
	}
	t.mu.Unlock()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			if t.tick() {
				timer.Reset(leaseTick)
			}
		case <-t.wake: // there are leases again
			timer.Reset(leaseTick)
		case <-ctx.Done():
			return nil
		}
	}
}

func (k *leaseKeeper) set(t *leaseTerm) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.term = t
}

// leaseTerm is one term's leases.
type leaseTerm struct {
	store  *Store
	leader *Leader
	base   time.Time     // of the clock
	wake   chan struct{} // capacity 1

	mu sync.Mutex
	leaseTimers
}

// begin takes over a lease from the leader before.
func (t *leaseTerm) begin(l mvcc.Lease) {
	ttl, left := max(millis(l.TTL), minLease), millis(l.Remaining)
	if left < ttl {
		// Time for its owner to find the new leader.
		left = min(max(left, 0)+leaderWait, ttl)
	}
	t.set(l.ID, ttl, time.Since(t.base), left).checkpointed = l.Remaining < l.TTL
}

// look brings the leases called so up to date with the state. One that exists begins
// anew: it may have been granted just now.
func (t *leaseTerm) look(ids []int64) {
	root := t.store.current.Load().root
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range ids {
		if l, ok := root.Lease(id); ok {
			ttl := max(millis(l.TTL), minLease)
			t.set(id, ttl, time.Since(t.base), ttl)
		} else {
			t.remove(id)
		}
	}
	t.rouse()
}

// rouse starts the clock if it stands still, and there are leases.
func (t *leaseTerm) rouse() {
	if len(t.byID) == 0 || t.ticking {
		return
	}
	t.start(time.Since(t.base))
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// answer tells of a lease and, if keepAlive, gives it all of its time again. With a
// proposal it counts only once that is committed. The zero LeaseInfo is of no lease.
func (t *leaseTerm) answer(ctx context.Context, id int64, keepAlive bool) (LeaseInfo, *proposal, error) {
	for {
		t.mu.Lock()
		// Looked up with the lock held: what ends leases looks, too, before it does.
		l, ok := t.store.current.Load().root.Lease(id)
		if !ok {
			t.remove(id)
			t.mu.Unlock()
			return LeaseInfo{}, nil, nil
		}
		now, lease := time.Since(t.base), t.byID[id]
		if lease == nil { // its grant is applied, and was not told yet
			ttl := max(millis(l.TTL), minLease)
			lease = t.set(id, ttl, now, ttl)
			t.rouse()
		}
		if ending := lease.ending; ending != nil {
			// It is on its way into the log. If it does not get there the lease lives.
			t.mu.Unlock()
			select {
			case <-ending:
				continue
			case <-ctx.Done():
				return LeaseInfo{}, nil, context.Cause(ctx)
			}
		}
		if lease.undecided {
			t.mu.Unlock()
			return LeaseInfo{}, nil, fmt.Errorf("%w: whether lease %d has ended is undecided", ErrNotLeader, id)
		}
		var reset *proposal
		if keepAlive {
			t.set(id, lease.ttl, now, lease.ttl)
			if lease.checkpointed {
				reset = t.propose(CheckpointLease(id, lease.ttl))
				reset.leases = []int64{id}
				t.store.batcher.submit(reset)
			}
		}
		info := LeaseInfo{ID: id, Granted: lease.ttl, Remaining: max(lease.deadline-t.time(now), time.Millisecond)}
		t.mu.Unlock()
		return info, reset, nil
	}
}

// restored notes that the state holds all of the time of these leases again. There
// cannot be a newer checkpoint: they have just been kept alive.
func (t *leaseTerm) restored(ids []int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range ids {
		if lease := t.byID[id]; lease != nil {
			lease.checkpointed = false
		}
	}
}

// tick proposes the end of leases whose time is up, and what is left of long ones. It
// reports whether there are any leases.
func (t *leaseTerm) tick() bool {
	t.mu.Lock()
	ended, noted := t.pass(time.Since(t.base))
	now := t.time(t.last)
	var out []*proposal
	for _, lease := range noted {
		out = append(out, t.propose(CheckpointLease(lease.id, lease.deadline-now)))
	}
	for _, lease := range ended {
		p := t.propose(RevokeLease(lease.id))
		ending := make(chan struct{})
		lease.ending = ending
		p.answer = func(out outcome) { t.ended(lease, ending, out) }
		out = append(out, p)
	}
	more := len(t.byID) > 0
	t.ticking = more
	t.mu.Unlock()
	for _, p := range out {
		t.store.batcher.submit(p)
	}
	return more
}

// propose makes a proposal of this term.
func (t *leaseTerm) propose(op Op) *proposal {
	data, err := Txn{Then: []Op{op}, Actor: "lease-keeper"}.encode(t.leader.term)
	if err != nil {
		panic(fmt.Sprintf("raftstore: encode %v: %v", op, err)) // a few integers
	}
	p := newProposal(data)
	p.lane = laneControl
	return p
}

// ended is called once the proposal that ends a lease is answered, whatever the answer.
func (t *leaseTerm) ended(lease *leaseTimer, ending chan struct{}, out outcome) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer close(ending)
	lease.ending = nil
	if errors.Is(out.err, ErrOutcomeUnknown) {
		// It may be committed yet, by a leader to come. That one knows before it
		// answers for this lease; until then nobody does.
		lease.undecided = true
	}
	if t.byID[lease.id] != lease {
		return // somebody else has ended it
	}
	if _, exists := t.store.current.Load().root.Lease(lease.id); exists {
		if lease.undecided {
			return // another end would tell no more
		}
		// It could not be proposed: again with the next tick, if this peer leads yet.
		t.schedule(lease)
		return
	}
	t.remove(lease.id)
	t.store.metrics.leasesExpired.Inc()
}

// leaseTimers are the leases' deadlines, on a clock that stands still during pauses.
// Times are since its base; they are given, so that tests can.
type leaseTimers struct {
	byID    map[int64]*leaseTimer
	due     leaseHeap
	last    time.Duration // when pass was called last
	paused  time.Duration // in all
	ticking bool          // pass is called every leaseTick
}

type leaseTimer struct {
	id       int64
	ttl      time.Duration
	deadline time.Duration // by time
	noteAt   time.Duration // when to note what is left; 0: never
	at       time.Duration // the earlier of both
	place    int           // in the heap; -1: not there
	// checkpointed is set when the state may hold less than all of the lease's time.
	checkpointed bool
	ending       chan struct{} // closed when the proposal that ends it is answered
	undecided    bool          // the answer was that nobody knows
}

// time is the leases' time.
func (t *leaseTimers) time(now time.Duration) time.Duration { return now - t.paused }

// start starts the clock, which stood still as there was nothing to do.
func (t *leaseTimers) start(now time.Duration) { t.last, t.ticking = now, true }

// set gives a lease time left, at least. It makes the lease if need be.
func (t *leaseTimers) set(id int64, ttl, now, left time.Duration) *leaseTimer {
	if t.byID == nil {
		t.byID = make(map[int64]*leaseTimer)
	}
	lease := t.byID[id]
	if lease == nil {
		lease = &leaseTimer{id: id, place: -1}
		t.byID[id] = lease
	}
	lease.ttl = ttl
	lease.deadline = max(lease.deadline, t.time(now)+left)
	lease.noteAt = 0
	if ttl > longLease {
		lease.noteAt = t.time(now) + checkpointEvery
	}
	if lease.ending == nil && !lease.undecided {
		t.schedule(lease)
	}
	return lease
}

func (t *leaseTimers) schedule(lease *leaseTimer) {
	if lease.at = lease.deadline; lease.noteAt != 0 {
		lease.at = min(lease.at, lease.noteAt)
	}
	if lease.place < 0 {
		heap.Push(&t.due, lease)
	} else {
		heap.Fix(&t.due, lease.place)
	}
}

func (t *leaseTimers) remove(id int64) {
	if lease := t.byID[id]; lease != nil {
		delete(t.byID, id)
		if lease.place >= 0 {
			heap.Remove(&t.due, lease.place)
		}
	}
}

// pass moves the clock to now and returns the leases whose time is up, which leave the
// heap, and those of which it is time to note what is left. What ends together is
// spread: no more than expiriesPerTick at once.
func (t *leaseTimers) pass(now time.Duration) (ended, noted []*leaseTimer) {
	if gap := now - t.last; gap > maxLeaseGap {
		// Nothing ran here, and no keepalive was heard.
		t.paused += gap - leaseTick
	}
	t.last = now
	for len(t.due) > 0 && t.due[0].at <= t.time(now) && len(ended)+len(noted) < expiriesPerTick {
		lease := t.due[0]
		if lease.deadline <= t.time(now) {
			heap.Pop(&t.due)
			ended = append(ended, lease)
			continue
		}
		if lease.noteAt = t.time(now) + checkpointEvery; lease.noteAt >= lease.deadline {
			lease.noteAt = 0
		} else {
			lease.checkpointed = true // from now on, as it may be on its way
			noted = append(noted, lease)
		}
		t.schedule(lease)
	}
	return ended, noted
}

// leaseHeap implements heap.Interface: what is due first comes first.
type leaseHeap []*leaseTimer

func (h leaseHeap) Len() int           { return len(h) }
func (h leaseHeap) Less(i, j int) bool { return h[i].at < h[j].at }

func (h leaseHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

// Push implements heap.Interface.
func (h *leaseHeap) Push(x any) {
	lease := x.(*leaseTimer)
	lease.place = len(*h)
	*h = append(*h, lease)
}

// Pop implements heap.Interface.
func (h *leaseHeap) Pop() any {
	n := len(*h) - 1
	lease := (*h)[n]
	(*h)[n] = nil
	*h = (*h)[:n]
	lease.place = -1
	return lease
}
