//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-io/holdfast/internal/devcluster"
	"github.com/holdfast-io/holdfast/internal/faults"
	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// grow lets n peers join.
func (e *experiment) grow(ctx context.Context, n int) (made []*machine, err error) {
	for range n {
		m, err := e.add()
		if err != nil {
			return nil, err
		}
		if err := m.join(ctx); err != nil {
			return nil, err
		}
		made = append(made, m)
	}
	e.follow()
	return made, nil
}

// follow tells those clients that may go to any peer who the peers are.
func (e *experiment) follow() {
	peers := addresses(e.all(), "")
	e.witness.client.SetPeers(peers)
	e.load.mu.Lock()
	defer e.load.mu.Unlock()
	for _, c := range e.load.roaming {
		c.SetPeers(peers)
	}
}

// remove takes m out of the cluster, and ends its process.
func (e *experiment) remove(ctx context.Context, m *machine) error {
	if _, err := e.cli(ctx, "peer", "remove", m.name(), "--peer", e.others(m)[0].spec.APIAddress()); err != nil {
		return err
	}
	e.forget(m)
	e.follow()
	return m.kill()
}

// playMembers makes five peers of three and three of five, with the leader among those
// that go; replaces one; and tries a change while the leader is cut off.
func playMembers(ctx context.Context, e *experiment) error {
	if _, err := e.grow(ctx, 2); err != nil {
		return err
	}
	if err := e.settle(ctx, 5); err != nil {
		return err
	}
	e.strike(1, "five voters")
	leader, err := e.leader(ctx)
	if err != nil {
		return err
	}
	mark := e.load.mark()
	if err := e.remove(ctx, leader); err != nil {
		return err
	}
	if err := e.writes(ctx, mark, progressWithin, "gap_leader_removed"); err != nil {
		return err
	}
	e.strike(1, leader.name()+", the leader, removed")
	if leader, err = e.leader(ctx); err != nil {
		return err
	}
	if err := e.remove(ctx, e.others(leader)[0]); err != nil {
		return err
	}
	if err := e.settle(ctx, 3); err != nil {
		return err
	}
	e.strike(1, "three voters")

	successor, err := e.grow(ctx, 1)
	if err != nil {
		return err
	}
	if leader, err = e.leader(ctx); err != nil {
		return err
	}
	old := e.others(leader, successor[0])[0]
	if _, err := e.cli(ctx, "peer", "replace", old.name(), successor[0].name()); err != nil {
		return err
	}
	e.forget(old)
	e.follow()
	if err := old.kill(); err != nil {
		return err
	}
	if err := e.settle(ctx, 3); err != nil {
		return err
	}
	e.strike(1, old.name()+" replaced by "+successor[0].name())

	// A leader that has no majority can remove nobody.
	if leader, err = e.leader(ctx); err != nil {
		return err
	}
	rest := e.others(leader)
	if err := isolate([]*machine{leader}, rest); err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if _, err := leader.client.Cluster().RemovePeer(asking, &holdfastv1.RemovePeerRequest{Id: rest[0].name()}); err == nil {
		e.fail("P6: %s removed %s without a majority", leader.name(), rest[0].name())
	}
	if _, err := e.heal(); err != nil {
		return err
	}
	e.strike(1, "a change of members while its leader was cut off")
	return e.settle(ctx, 3)
}

// playTransfer hands leadership over again and again, sometimes while a follower
// stands still.
func playTransfer(ctx context.Context, e *experiment) error {
	return e.turns(ctx, func(n int) error {
		leader, err := e.leader(ctx)
		if err != nil {
			return err
		}
		to := e.others(leader)[n%2]
		still := n%3 == 2
		if still {
			if err := to.pause(); err != nil {
				return err
			}
		}
		mark := e.load.mark()
		asking, cancel := context.WithTimeout(ctx, 12*time.Second)
		_, err = leader.client.Cluster().TransferLeadership(asking, &holdfastv1.TransferLeadershipRequest{Id: to.name()})
		cancel()
		if still {
			if err := to.resume(); err != nil {
				return err
			}
		} else if err == nil {
			e.strike(1, "leadership handed to "+to.name())
		}
		if err := e.writes(ctx, mark, progressWithin, "gap_transfer"); err != nil {
			return err
		}
		sleep(ctx, time.Second)
		return nil
	})
}

// playClock lets each peer's wall clock jump somewhere else, and drift.
func playClock(ctx context.Context, e *experiment) error {
	before := e.changes.Load()
	err := e.turns(ctx, func(n int) error {
		jumps := []string{"offset=1h", "offset=-1h drift=0.1", "offset=87600h", "offset=-87600h drift=-0.1"}
		for i, m := range e.all() {
			if _, err := m.fault(ctx, "set clock clock "+jumps[(n+i)%len(jumps)]); err != nil {
				return err
			}
		}
		sleep(ctx, 5*time.Second)
		for _, m := range e.all() {
			e.strike(m.struck(ctx, faults.Clock), "wrong clock of "+m.name())
		}
		return nil
	})
	if n := e.changes.Load() - before; n > 0 {
		e.fail("clocks have moved the leader %d times", n)
	}
	return err
}

// playGossip cuts gossip alone: no peer leaves, and the leader stays.
func playGossip(ctx context.Context, e *experiment) error {
	before := e.changes.Load()
	for _, m := range e.all() {
		var blocks []block
		for _, o := range e.others(m) {
			blocks = append(blocks, block{from: o, udp: true, port: 7946})
		}
		if err := m.deafen(blocks...); err != nil {
			return err
		}
	}
	sleep(ctx, e.opts.seconds)
	packets, err := e.heal()
	if err != nil {
		return err
	}
	if packets > 0 {
		e.strike(1, fmt.Sprintf("gossip cut: %d packets dropped", packets))
	}
	if n := e.changes.Load() - before; n > 0 {
		e.fail("the leader has changed %d times without gossip", n)
	}
	return e.settle(ctx, len(e.all()))
}

// playStarve gives the leader's process a tenth of a core.
func playStarve(ctx context.Context, e *experiment) error {
	return e.turns(ctx, func(int) error {
		leader, err := e.leader(ctx)
		if err != nil {
			return err
		}
		mark := e.load.mark()
		if err := leader.starve(10); err != nil {
			return err
		}
		e.strike(1, leader.name()+", the leader, has a tenth of a core")
		sleep(ctx, 8*time.Second)
		if err := leader.feed(); err != nil {
			return err
		}
		return e.writes(ctx, mark, progressWithin, "gap_starved")
	})
}

// use is what a process has of things that leak.
type use struct{ goroutines, files float64 }

// use reads the peer's metrics.
func (m *machine) use(ctx context.Context) (use, error) {
	all, err := m.metrics(ctx)
	u := use{all["go_goroutines"], all["process_open_fds"]}
	if err == nil && (u.goroutines == 0 || u.files == 0) {
		err = fmt.Errorf("%s has no go_goroutines or process_open_fds in its metrics", m.name())
	}
	return u, err
}

// playReconnects connects a thousand times, each time with a session and a watch, and
// wants goroutines and files to come back to where they were.
func playReconnects(ctx context.Context, e *experiment) error {
	before := make(map[*machine]use)
	for _, m := range e.all() {
		u, err := m.use(ctx)
		if err != nil {
			return err
		}
		before[m] = u
	}
	var done atomic.Int64
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			for n := range 100 {
				if ctx.Err() != nil {
					return
				}
				m := e.all()[(i+n)%len(e.all())]
				c := e.dial(m)
				f := &follower{peer: m.name(), client: c, prefix: hotPrefix}
				watching, cancel := context.WithCancel(ctx)
				f.seen = func([]raftEvent) { cancel() }
				timer := time.AfterFunc(time.Second, cancel)
				f.stream(watching)
				timer.Stop()
				cancel()
				c.Close()
				done.Add(1)
			}
		})
	}
	all.Wait()
	e.strike(int(done.Load()), "reconnects")
	return eventually(ctx, 30*time.Second, "return to the goroutines and files of before", func(ctx context.Context) error {
		for _, m := range e.all() {
			u, err := m.use(ctx)
			if err != nil {
				return err
			}
			// Five in a hundred, and what the load has open at any moment.
			if b := before[m]; u.goroutines > 1.05*b.goroutines+20 || u.files > 1.05*b.files+10 {
				return fmt.Errorf("%s has %.0f goroutines and %.0f files, it had %.0f and %.0f", m.name(), u.goroutines, u.files, b.goroutines, b.files)
			}
		}
		return nil
	})
}

// contents reads all keys of clients, at a revision (0: now), from one machine.
func (m *machine) contents(ctx context.Context, rev int64) (*storev1.RangeResponse, error) {
	return storev1connect.NewStoreServiceClient(m.client.Connect()).Range(ctx, &storev1.RangeRequest{RangeEnd: []byte(allRangeEnd), Revision: rev})
}

func same(a, b *storev1.RangeResponse) bool {
	if len(a.GetKvs()) != len(b.GetKvs()) {
		return false
	}
	for i, kv := range a.GetKvs() {
		if o := b.GetKvs()[i]; !bytes.Equal(kv.GetKey(), o.GetKey()) || !bytes.Equal(kv.GetValue(), o.GetValue()) || kv.GetModRevision() != o.GetModRevision() {
			return false
		}
	}
	return true
}

// stays demands of a cluster that was brought back on m that it has what was there,
// takes writes, and has not gone back.
func (e *experiment) stays(ctx context.Context, m *machine, want *storev1.RangeResponse, revision int64) error {
	return eventually(ctx, 30*time.Second, "old contents and new writes on "+m.name(), func(ctx context.Context) error {
		have, err := m.contents(ctx, 0)
		if err != nil {
			return err
		}
		if !same(have, want) {
			return fmt.Errorf("%d keys at revision %d differ from the %d that were there", len(have.GetKvs()), have.GetHeader().GetRevision(), len(want.GetKvs()))
		}
		put, err := storev1connect.NewStoreServiceClient(m.client.Connect()).Put(ctx, &storev1.PutRequest{Key: have.GetKvs()[0].GetKey(), Value: have.GetKvs()[0].GetValue()})
		if err != nil {
			return err
		}
		if put.GetHeader().GetRevision() <= revision {
			e.fail("P3: the revision went back from %d to %d", revision, put.GetHeader().GetRevision())
		}
		return nil
	})
}

// playLoss is load alone: what is lost must have been equal on all peers, since what
// a lost majority acknowledged without the survivor cannot come back.
func playLoss(ctx context.Context, e *experiment) error {
	sleep(ctx, e.opts.seconds/2)
	return killAll(ctx, e)
}

// afterLoss destroys a disk, hides another, recovers with the third, and lets the
// hidden one come back.
func afterLoss(ctx context.Context, e *experiment) error {
	leader, err := e.leader(ctx)
	if err != nil {
		return err
	}
	survivor := e.others(leader)[0]
	hidden := e.others(leader, survivor)[0]
	want, err := leader.contents(ctx, 0)
	if err != nil {
		return err
	}
	for _, m := range e.all() {
		if err := m.kill(); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(leader.data()); err != nil {
		return err
	}
	if err := survivor.begin(devcluster.Boot{}); err != nil {
		return err
	}
	begin := time.Now()
	err = eventually(ctx, 40*time.Second, "recovery", func(context.Context) error {
		_, err := e.cli(ctx, "recover", "--yes", "--peer", survivor.spec.APIAddress())
		return err
	})
	if err != nil {
		return err
	}
	e.strike(2, "two of three peers lost, recovered with "+survivor.name())
	if err := e.stays(ctx, survivor, want, want.GetHeader().GetRevision()); err != nil {
		return err
	}
	e.measure("until_recovered", time.Since(begin))
	e.forget(leader)
	if err := hidden.boot(ctx, devcluster.Boot{Join: []string{survivor.spec.APIAddress()}}); err != nil {
		return err
	}
	if _, err := e.grow(ctx, 1); err != nil {
		return err
	}
	if err := e.settle(ctx, 3); err != nil {
		return err
	}
	e.strike(1, hidden.name()+" came back and joined the new cluster")
	return nil
}

// backupFile is where playBackup leaves its backup.
func (e *experiment) backupFile() string { return filepath.Join(e.dir, "backup") }

// playBackup takes a backup from a follower under load, while another is down.
func playBackup(ctx context.Context, e *experiment) error {
	leader, err := e.leader(ctx)
	if err != nil {
		return err
	}
	rest := e.others(leader)
	if err := rest[0].kill(); err != nil {
		return err
	}
	e.strike(1, rest[0].name()+" is down")
	out, err := e.cli(ctx, "backup", e.backupFile(), "--peer", rest[1].spec.APIAddress())
	if err != nil {
		return err
	}
	e.note("%s", strings.TrimSpace(out))
	if _, err := e.cli(ctx, "inspect", e.backupFile()); err != nil {
		return err
	}
	if err := os.Remove(e.backupFile()); err != nil {
		return err
	}
	sleep(ctx, e.opts.seconds/2)
	return nil
}

// afterBackup loses all peers after a backup and restores it on a new machine, whose
// clients are told to list again.
func afterBackup(ctx context.Context, e *experiment) error {
	m := e.all()[0]
	want, err := m.contents(ctx, 0)
	if err != nil {
		return err
	}
	if _, err := e.cli(ctx, "backup", e.backupFile(), "--peer", m.spec.APIAddress()); err != nil {
		return err
	}
	// What comes after the backup is lost with the peers.
	if _, err := storev1connect.NewStoreServiceClient(m.client.Connect()).Put(ctx, &storev1.PutRequest{Key: []byte("after"), Value: []byte("the backup")}); err != nil {
		return err
	}
	st, err := m.status(ctx)
	if err != nil {
		return err
	}
	last := st.GetHeader().GetRevision()
	old := e.all()
	for _, o := range old {
		if err := o.kill(); err != nil {
			return err
		}
	}
	fresh, err := e.add()
	if err != nil {
		return err
	}
	if _, err := e.cli(ctx, "restore", e.backupFile(), "--data-dir", fresh.data(), "--pki", m.data(), "--name", fresh.name(), "--advertise", fresh.spec.Address.String()); err != nil {
		return err
	}
	fresh.client = e.dial(fresh)
	for _, o := range old {
		e.forget(o)
	}
	if err := fresh.restart(ctx); err != nil {
		return err
	}
	e.strike(len(old), "all peers lost, restored as "+fresh.name())
	if err := e.stays(ctx, fresh, want, last); err != nil {
		return err
	}
	f := &follower{peer: fresh.name(), client: fresh.client, prefix: hotPrefix, after: last - 1}
	watching, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	f.stream(watching)
	if !f.gone() {
		return errors.New("P4: a watch from before the restored state was not told to list again")
	}
	return nil
}
