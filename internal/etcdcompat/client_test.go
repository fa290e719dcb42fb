package etcdcompat

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// TestClientErrors: clientv3 gives its users values to compare with, which it finds
// by the texts of the server.
func TestClientErrors(t *testing.T) {
	ctx, client := testContext(t), connect(t)
	put, err := client.Put(ctx, "err/a", "1")
	if err != nil {
		t.Fatal(err)
	}
	rev := put.Header.Revision
	if put, err = client.Put(ctx, "err/a", "2"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Compact(ctx, put.Header.Revision); err != nil {
		t.Fatal(err)
	}
	a := clientv3.OpPut("err/a", "v")
	for name, test := range map[string]struct {
		do   func() error
		want error
	}{
		"compacted": {func() error { _, err := client.Get(ctx, "err/a", clientv3.WithRev(rev)); return err }, rpctypes.ErrCompacted},
		"future":    {func() error { _, err := client.Get(ctx, "err/a", clientv3.WithRev(rev+1e9)); return err }, rpctypes.ErrFutureRev},
		"future, local": {func() error {
			_, err := client.Get(ctx, "err/a", clientv3.WithRev(rev+1e9), clientv3.WithSerializable())
			return err
		}, rpctypes.ErrFutureRev},
		"empty key":      {func() error { _, err := client.Put(ctx, "", "v"); return err }, rpctypes.ErrEmptyKey},
		"no such key":    {func() error { _, err := client.Put(ctx, "err/none", "", clientv3.WithIgnoreValue()); return err }, rpctypes.ErrKeyNotFound},
		"no such lease":  {func() error { _, err := client.Put(ctx, "err/a", "v", clientv3.WithLease(77)); return err }, rpctypes.ErrLeaseNotFound},
		"written twice":  {func() error { _, err := client.Txn(ctx).Then(a, a).Commit(); return err }, rpctypes.ErrDuplicateKey},
		"too large":      {func() error { _, err := client.Put(ctx, "err/a", strings.Repeat("x", 1600<<10)); return err }, rpctypes.ErrRequestTooLarge},
		"lease too long": {func() error { _, err := client.Grant(ctx, 9_000_000_001); return err }, rpctypes.ErrLeaseTTLTooLarge},
	} {
		if err := test.do(); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	gone := <-client.Watch(ctx, "err/a", clientv3.WithRev(rev))
	if !errors.Is(gone.Err(), rpctypes.ErrCompacted) || gone.CompactRevision < rev+1 {
		t.Errorf("a watch from before the compaction: %v, compacted to %d", gone.Err(), gone.CompactRevision)
	}
}

// TestClientTxn: nested transactions, compares of leases and ranges, and every
// response where it belongs.
func TestClientTxn(t *testing.T) {
	ctx, client := testContext(t), connect(t)
	lease, err := client.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Put(ctx, "nest/a", "1", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	resp, err := client.Txn(ctx).If(
		clientv3.Compare(clientv3.LeaseValue("nest/a"), "=", lease.ID),
		clientv3.Compare(clientv3.Version("nest/").WithPrefix(), ">", 0),
	).Then(
		clientv3.OpPut("nest/b", "2", clientv3.WithPrevKV()),
		clientv3.OpTxn(
			[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision("nest/b"), "=", 0)}, // as it was before
			[]clientv3.Op{clientv3.OpGet("nest/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(1))},
			[]clientv3.Op{clientv3.OpDelete("nest/a")},
		),
		clientv3.OpDelete("nest/a", clientv3.WithPrevKV()),
	).Commit()
	if err != nil {
		t.Fatal(err)
	}
	if !resp.Succeeded || len(resp.Responses) != 3 {
		t.Fatalf("%+v", resp)
	}
	inner := resp.Responses[1].GetResponseTxn()
	if kvs := inner.GetResponses()[0].GetResponseRange(); !inner.Succeeded || len(kvs.Kvs) != 1 || string(kvs.Kvs[0].Value) != "2" || !kvs.More || kvs.Count != 2 {
		t.Errorf("the inner transaction: %v", inner)
	}
	if del := resp.Responses[2].GetResponseDeleteRange(); del.Deleted != 1 || string(del.PrevKvs[0].Value) != "1" {
		t.Errorf("the delete: %v", del)
	}
	failed, err := client.Txn(ctx).If(clientv3.Compare(clientv3.Value("nest/b"), "=", "x")).Then(clientv3.OpPut("nest/b", "3")).Commit()
	if err != nil || failed.Succeeded || failed.Header.Revision < resp.Header.Revision {
		t.Errorf("a failed compare: %+v, %v", failed, err)
	}
}

// TestClientWatch: one revision's events come together, fragments are put together,
// and progress on request is never ahead of the events.
func TestClientWatch(t *testing.T) {
	ctx, client := testContext(t), connect(t)
	watch := client.Watch(clientv3.WithRequireLeader(ctx), "wa/", clientv3.WithPrefix(), clientv3.WithCreatedNotify(), clientv3.WithPrevKV(), clientv3.WithFragment())
	if first := <-watch; !first.Created {
		t.Fatalf("the first response is %+v", first)
	}
	big := strings.Repeat("x", 400<<10)
	var ops []clientv3.Op
	for i := range 3 {
		ops = append(ops, clientv3.OpPut(fmt.Sprint("wa/", i), big))
	}
	if _, err := client.Txn(ctx).Then(ops...).Commit(); err != nil {
		t.Fatal(err)
	}
	if resp := <-watch; len(resp.Events) != 3 || !resp.Events[0].IsCreate() {
		t.Fatalf("%d events, want the 3 of the transaction", len(resp.Events))
	}
	// With the values before, the next response has more than a message may.
	if _, err := client.Txn(ctx).Then(ops...).Commit(); err != nil {
		t.Fatal(err)
	}
	if resp := <-watch; len(resp.Events) != 3 || len(resp.Events[2].PrevKv.Value) != len(big) || !resp.Events[2].IsModify() {
		t.Fatalf("%d events, want 3 with what was before", len(resp.Events))
	}
	deleted, err := client.Delete(ctx, "wa/", clientv3.WithPrefix())
	if err != nil || deleted.Deleted != 3 {
		t.Fatalf("%+v, %v", deleted, err)
	}
	if resp := <-watch; len(resp.Events) != 3 || resp.Events[0].Type != clientv3.EventTypeDelete {
		t.Fatalf("%+v, want 3 deletes", resp.Events)
	}
	for told := int64(0); told < deleted.Header.Revision; {
		if err := client.RequestProgress(clientv3.WithRequireLeader(ctx)); err != nil {
			t.Fatal(err)
		}
		resp, ok := <-watch
		if !ok || !resp.IsProgressNotify() {
			t.Fatalf("%+v, want progress", resp)
		}
		told = resp.Header.Revision
	}
}

// TestClientLease: a lease that is kept alive outlives its time, and one that is not
// ends, with its keys.
func TestClientLease(t *testing.T) {
	ctx, client := testContext(t), connect(t)
	kept, err := client.Grant(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	left, err := client.Grant(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	alive, err := client.KeepAlive(ctx, kept.ID)
	if err != nil {
		t.Fatal(err)
	}
	watch := client.Watch(ctx, "le/left")
	if _, err := client.Put(ctx, "le/kept", "v", clientv3.WithLease(kept.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Put(ctx, "le/left", "v", clientv3.WithLease(left.ID)); err != nil {
		t.Fatal(err)
	}
	for resp := range watch {
		if err := resp.Err(); err != nil {
			t.Fatal(err)
		}
		if last := resp.Events[len(resp.Events)-1]; last.Type == clientv3.EventTypeDelete {
			break
		}
	}
	if resp := <-alive; resp == nil || resp.TTL != 2 {
		t.Errorf("kept alive: %v", resp)
	}
	if resp, err := client.Get(ctx, "le/", clientv3.WithPrefix()); err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Key) != "le/kept" {
		t.Errorf("keys: %v, %v", resp, err)
	}
	if ttl, err := client.TimeToLive(ctx, left.ID); err != nil || ttl.TTL != -1 {
		t.Errorf("time to live: %+v, %v", ttl, err)
	}
	if _, err := client.KeepAliveOnce(ctx, left.ID); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("keep-alive of what has ended: %v", err)
	}
}

// TestConcurrencyMutex: a counter that is read and written under the mutex misses no
// step, though nothing else guards it.
func TestConcurrencyMutex(t *testing.T) {
	ctx := testContext(t)
	const clients, steps = 3, 5
	var all sync.WaitGroup
	for i := range clients {
		client := connect(t, shared.endpoints()[i])
		all.Go(func() {
			session, err := concurrency.NewSession(client, concurrency.WithTTL(30))
			if err != nil {
				t.Error(err)
				return
			}
			defer session.Close()
			mutex := concurrency.NewMutex(session, "mutex/")
			for range steps {
				if err := mutex.Lock(ctx); err != nil {
					t.Error(err)
					return
				}
				n := 0
				got, err := client.Get(ctx, "mutex-counter")
				if err == nil && len(got.Kvs) > 0 {
					n, err = strconv.Atoi(string(got.Kvs[0].Value))
				}
				if err == nil {
					_, err = client.Put(ctx, "mutex-counter", strconv.Itoa(n+1))
				}
				if err = errors.Join(err, mutex.Unlock(ctx)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	wantOut(t, lines(strconv.Itoa(clients*steps)), "get", "mutex-counter", "--print-value-only")
}

// TestConcurrencyElection: there is one leader at a time, the next follows when it
// resigns, and an observer sees them in order.
func TestConcurrencyElection(t *testing.T) {
	ctx := testContext(t)
	var elections []*concurrency.Election
	for i := range 2 {
		session, err := concurrency.NewSession(connect(t, shared.endpoints()[i]), concurrency.WithTTL(30))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { session.Close() })
		elections = append(elections, concurrency.NewElection(session, "election/"))
	}
	if err := elections[0].Campaign(ctx, "first"); err != nil {
		t.Fatal(err)
	}
	observed := elections[1].Observe(ctx)
	if resp := <-observed; string(resp.Kvs[0].Value) != "first" {
		t.Fatalf("observed %v", resp.Kvs)
	}
	won := make(chan error, 1)
	go func() { won <- elections[1].Campaign(ctx, "second") }()
	if err := elections[0].Resign(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-won; err != nil {
		t.Fatal(err)
	}
	if resp := <-observed; string(resp.Kvs[0].Value) != "second" {
		t.Fatalf("observed %v", resp.Kvs)
	}
}

// TestConcurrencySTM: transfers between accounts, at both isolations, keep the sum.
func TestConcurrencySTM(t *testing.T) {
	ctx := testContext(t)
	client := connect(t)
	const accounts, each = 4, 100
	name := func(i int) string { return fmt.Sprint("stm/", i) }
	for i := range accounts {
		if _, err := client.Put(ctx, name(i), strconv.Itoa(each)); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for i, isolation := range []concurrency.Isolation{concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads} {
		random := rand.New(rand.NewPCG(1, uint64(i)))
		all.Go(func() {
			for range 10 {
				from, to, amount := random.IntN(accounts), random.IntN(accounts-1), random.IntN(10)
				if to >= from {
					to++
				}
				_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
					a, err := strconv.Atoi(stm.Get(name(from)))
					if err != nil {
						return err
					}
					b, err := strconv.Atoi(stm.Get(name(to)))
					if err != nil {
						return err
					}
					stm.Put(name(from), strconv.Itoa(a-amount))
					stm.Put(name(to), strconv.Itoa(b+amount))
					return nil
				}, concurrency.WithIsolation(isolation), concurrency.WithAbortContext(ctx))
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	got, err := client.Get(ctx, "stm/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, kv := range got.Kvs {
		n, err := strconv.Atoi(string(kv.Value))
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	if sum != accounts*each {
		t.Errorf("the accounts hold %d, want %d", sum, accounts*each)
	}
}

// TestLeaderKilled: a watch goes on when the leader is killed and shows, in order and
// once, every put that was acknowledged. A write whose outcome is unknown is not sent
// again by the client, so no value is written twice.
func TestLeaderKilled(t *testing.T) {
	ctx, client := testContext(t), connect(t)
	stop, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	watch := client.Watch(stop, "kill/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-watch
	leader := ""
	for i, endpoint := range shared.endpoints() {
		status, err := client.Status(ctx, endpoint)
		if err != nil {
			t.Fatal(err)
		}
		if status.Leader == status.Header.MemberId {
			leader = fmt.Sprint("p", i+1)
		}
	}
	if leader == "" {
		t.Fatal("no leader")
	}
	acknowledged := make(map[string]bool)
	failed, after, last := 0, 0, ""
	for i := 0; after < 20; i++ {
		if i == 20 {
			shared.kill(leader)
		}
		last = fmt.Sprintf("kill/%04d", i)
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := client.Put(attempt, last, "v")
		cancel()
		switch {
		case err == nil:
			acknowledged[last] = true
			if i > 20 {
				after++
			}
		case ctx.Err() != nil:
			t.Fatal(err)
		default:
			failed++
		}
	}
	seen, revision := make(map[string]bool), int64(0)
	for !seen[last] {
		resp, ok := <-watch
		if !ok || resp.Err() != nil {
			t.Fatalf("the watch ended: %v", resp.Err())
		}
		for _, event := range resp.Events {
			key := string(event.Kv.Key)
			if event.Kv.ModRevision <= revision || event.Kv.Version != 1 || seen[key] {
				t.Errorf("%s at revision %d, version %d, after revision %d, seen %t", key, event.Kv.ModRevision, event.Kv.Version, revision, seen[key])
			}
			seen[key], revision = true, event.Kv.ModRevision
		}
	}
	for key := range acknowledged {
		if !seen[key] {
			t.Errorf("%s was acknowledged, and the watch did not show it", key)
		}
	}
	t.Logf("%s killed: %d puts acknowledged, %d failed, %d seen", leader, len(acknowledged), failed, len(seen))
	if err := shared.start(leader); err != nil {
		t.Fatal(err)
	}
	if err := wait(ctx, shared.healthy); err != nil {
		t.Fatal(err)
	}
}
