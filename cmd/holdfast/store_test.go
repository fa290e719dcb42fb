package main

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/internal/testcluster"
	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
)

// TestStoreSession is every verb of `holdfast store` against a real peer, the good and
// the bad.
func TestStoreSession(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 1})
	config := filepath.Join(t.TempDir(), "config.yaml")
	t.Setenv("HOLDFAST_CONFIG", config)
	t.Setenv("HOLDFAST_CONTEXT", "")
	file := &client.ConfigFile{}
	file.Set(c.Context())
	file.Current = c.Context().Name
	if err := file.Save(config); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name  string
		args  []string
		stdin string
		code  int
		want  string // a regular expression for all that is printed
	}{
		{"put", []string{"put", "a/1", "one"}, "", 0, `^revision \d+\n$`},
		{"put with spaces", []string{"put", "a/2", "two words"}, "", 0, `^revision`},
		{"put what is no text", []string{"put", "a/\x00", "\xff\n"}, "", 0, `^revision`},
		{"put shows what was", []string{"put", "a/1", "uno", "--prev"}, "", 0, `^was one\nrevision`},
		{"get", []string{"get", "a/1"}, "", 0, `^a/1\tuno\n$`},
		{"get only the value", []string{"get", "a/1", "--value-only"}, "", 0, `^uno\n$`},
		{"get what is not there", []string{"get", "x"}, "", exitNotFound, `^error: key x not found\n$`},
		{"get a prefix, binary quoted", []string{"get", "--prefix", "a/"}, "", 0, `^"a/\\x00"\t"\\xff\\n"\na/1\tuno\na/2\ttwo words\n$`},
		{"get from a key on", []string{"get", "--from-key", "a/2"}, "", 0, `^a/2\ttwo words\n$`},
		{"get everything is not the cluster's", []string{"get", "--prefix", "", "--keys-only"}, "", 0, `^"a/\\x00"\na/1\na/2\n$`},
		{"but with all keys", []string{"get", "--prefix", "raw/", "--all-keys", "--keys-only", "--limit", "1"}, "", 0, `^"raw/a/\\x00"\n$`},
		{"limit", []string{"get", "--prefix", "a/", "--limit", "2", "--keys-only"}, "", 0, `^"a/\\x00"\na/1\n$`},
		{"count", []string{"get", "--prefix", "a/", "--count-only"}, "", 0, `^3\n$`},
		{"local", []string{"get", "a/1", "--consistency", "local"}, "", 0, `^a/1\tuno\n$`},
		{"bounded", []string{"get", "a/1", "--consistency", "bounded", "--max-age", "1m"}, "", 0, `^a/1\tuno\n$`},
		{"a consistency that is none", []string{"get", "a/1", "--consistency", "good"}, "", exitUsage, `want linearizable, bounded or local`},
		{"json", []string{"get", "a/1", "-o", "json"}, "", 0, `"key": "YS8x"`},
		{"yaml", []string{"get", "a/1", "-o", "yaml"}, "", 0, `(?m)^- .*\n  key: YS8x`},
		{"a revision to come", []string{"get", "a/1", "--rev", "99999"}, "", exitError, `revision 99999 is not reached`},
		{"no key", []string{"get", ""}, "", exitUsage, `the key is empty`},
		{
			"txn that holds",
			[]string{"txn"},
			"value(\"a/1\") = \"uno\"\nversion(a/2) > 0\n\nput a/1 un\nget --prefix a/\n\nput never x\n", 0,
			`^success, revision \d+\nput\n3 found\n"a/\\x00"\t.*\na/1\tun\na/2\ttwo words\n$`,
		},
		{"txn that does not", []string{"txn"}, "mod(a/1) = 0\n\n\ndelete a/2\n", exitRefused, `^failure, revision \d+\n1 deleted\n$`},
		{
			"txn with faults",
			[]string{"txn"},
			"valu(x) = 1\nmod(x) = y\n\nputt a b\nput a\nput a \"b\n", exitUsage,
			`(?s)standard input:\nline 1: valu.*\nline 2: mod is compared with y, want a number\nline 4: putt is no operation.*\nline 5: put has 1 arguments, want 2.*\nline 6: "b: the quotes`,
		},
		{"delete asks before a range", []string{"delete", "--prefix", "a/"}, "", exitUsage, `Say --yes`},
		{"delete", []string{"delete", "a/1", "--prev"}, "", 0, `^was a/1\tun\n1 deleted, revision \d+\n$`},
		{"delete what is not there", []string{"delete", "a/1"}, "", exitNotFound, `not found`},
		{"delete a range", []string{"delete", "--prefix", "a/", "--yes"}, "", 0, `^1 deleted`},
		{"lease", []string{"lease", "grant", "1h", "--id", "0x4d"}, "", 0, `^lease 77, 1h0m0s\n$`},
		{"lease that is taken", []string{"lease", "grant", "1h", "--id", "77"}, "", exitRefused, `lease exists already|exists`},
		{"lease for no time", []string{"lease", "grant", "0s"}, "", exitUsage, `want a time above 0`},
		{"lease that is no number", []string{"lease", "ttl", "mine"}, "", exitUsage, `lease "mine": want a number`},
		{"put under a lease", []string{"put", "l", "v", "--lease", "77"}, "", 0, `^revision`},
		{"put under no lease", []string{"put", "l", "v", "--lease", "78"}, "", exitNotFound, `lease not found`},
		{"time to live", []string{"lease", "ttl", "77", "--keys"}, "", 0, `^lease 77, 59m59\.\d+s of 1h0m0s left\nl\n$`},
		{"leases", []string{"lease", "list"}, "", 0, `^77\n$`},
		{"leases as json", []string{"lease", "list", "-o", "json"}, "", 0, `"ids": \[`},
		{"keep alive", []string{"lease", "keep-alive", "77", "--once"}, "", 0, `^lease 77 has 1h0m0s again, from peer p1\n$`},
		{"keep alive what is not there", []string{"lease", "keep-alive", "78"}, "", exitNotFound, `lease not found`},
		{"revoke", []string{"lease", "revoke", "77"}, "", 0, `^lease 77 revoked, revision \d+\n$`},
		{"its key is gone", []string{"get", "l"}, "", exitNotFound, `not found`},
		{"revoke again", []string{"lease", "revoke", "77"}, "", exitNotFound, `lease not found`},
		{"status", []string{"status"}, "", 0, `Answer of  p1\nLeader     p1, term \d+\nRevision   \d+, kept from`},
		{"compact nonsense", []string{"compact", "soon"}, "", exitUsage, `want a number above 0`},
		{"compact", []string{"compact", "3"}, "", 0, `^history is kept from revision 3 on\n$`},
		{"a watch of what is gone", []string{"watch", "a", "--rev", "1"}, "", exitError, `kept from 3 on \(--rev\)`},
	} {
		var out strings.Builder
		app := newApp()
		app.stdin, app.stdout, app.stderr = strings.NewReader(step.stdin), &out, &out
		code := app.run(t.Context(), append([]string{"store"}, step.args...))
		if code != step.code || !regexp.MustCompile(step.want).MatchString(out.String()) {
			t.Errorf("%s: holdfast store %q: exit code %d, want %d, and printed\n%swant %s", step.name, step.args, code, step.code, out.String(), step.want)
		}
	}
}

// watchPeers is a StoreService whose every watch breaks after one message.
type watchPeers struct {
	storev1connect.UnimplementedStoreServiceHandler
	asked []int64
	stop  context.CancelFunc
}

func (w *watchPeers) Watch(_ context.Context, stream storev1connect.StoreServiceWatchServerStream) error {
	msg, err := stream.Receive()
	if err != nil {
		return err
	}
	after := msg.GetStart()[0].GetAfter()
	w.asked = append(w.asked, after)
	if len(w.asked) == 4 {
		w.stop()
		return connect.NewError(connect.CodeUnavailable, "gone")
	}
	event := func(key string) *storev1.Event {
		return &storev1.Event{Type: storev1.Event_TYPE_PUT, Kv: &storev1.KeyValue{Key: []byte(key), Value: []byte("v"), ModRevision: after + 10}}
	}
	updates := []*storev1.WatchUpdate{{Id: 1, Events: []*storev1.Event{event("half")}, UpTo: after, More: true}}
	if len(w.asked) != 2 { // the second breaks in the middle of a revision
		updates = append(updates, &storev1.WatchUpdate{Id: 1, Events: []*storev1.Event{event("whole")}, UpTo: after + 10})
	}
	if err := stream.Send(&storev1.WatchResponse{Updates: updates, Header: &storev1.Header{ServedBy: fmt.Sprint("p", len(w.asked))}}); err != nil {
		return err
	}
	return connect.NewError(connect.CodeUnavailable, "this peer is shutting down")
}

// TestStoreWatchGoesOn: a watch whose peer dies resumes where it was, says so, and
// shows nothing twice, not even what of a revision had come.
func TestStoreWatchGoesOn(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	peers := &watchPeers{stop: cancel}
	server := connect.NewServer()
	storev1connect.RegisterStoreServiceHandler(server, peers)
	var out, errs strings.Builder
	a := newApp()
	a.stdout, a.stderr = &out, &errs
	a.connect = func() (*remote, error) { return newRemote(connect.NewClient(connectinprocess.New(server))), nil }
	if code := a.run(ctx, []string{"store", "watch", "--prefix", "", "--rev", "5"}); code != exitInterrupted {
		t.Errorf("exit code %d, want %d", code, exitInterrupted)
	}
	if got := fmt.Sprint(peers.asked); got != "[5 15 15 25]" {
		t.Errorf("the peers were asked for what is after %s", got)
	}
	if want := "15\tPUT\thalf\tv\n15\tPUT\twhole\tv\n25\tPUT\thalf\tv\n25\tPUT\twhole\tv\n"; out.String() != want {
		t.Errorf("printed\n%swant\n%s", out.String(), want)
	}
	for _, want := range []string{"The watch was lost at revision 15", "goes on with peer p2", "goes on with peer p3"} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("%q is not in\n%s", want, errs.String())
		}
	}
}

// leasePeers is a StoreService whose peers fail after the first keepalive, and once more
// after the second.
type leasePeers struct {
	storev1connect.UnimplementedStoreServiceHandler
	calls int
}

func (l *leasePeers) LeaseKeepAlive(context.Context, *storev1.LeaseKeepAliveRequest) (*storev1.LeaseKeepAliveResponse, error) {
	l.calls++
	switch l.calls {
	case 1, 2:
		return &storev1.LeaseKeepAliveResponse{Ttl: durationpb.New(9 * time.Second), Header: &storev1.Header{ServedBy: "p1"}}, nil
	case 3, 4:
		return nil, connect.NewError(connect.CodeUnavailable, "this peer is shutting down")
	case 5:
		return &storev1.LeaseKeepAliveResponse{Ttl: durationpb.New(9 * time.Second), Header: &storev1.Header{ServedBy: "p2"}}, nil
	}
	return nil, connect.NewError(connect.CodeNotFound, "lease not found")
}

// TestStoreKeepAliveGoesOn: a lease is kept alive each third of its time, also when its
// peer is lost, until there is none.
func TestStoreKeepAliveGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := &leasePeers{}
		server := connect.NewServer()
		storev1connect.RegisterStoreServiceHandler(server, peers)
		var out, errs strings.Builder
		a := newApp()
		a.stdout, a.stderr = &out, &errs
		a.connect = func() (*remote, error) { return newRemote(connect.NewClient(connectinprocess.New(server))), nil }
		begin := time.Now()
		if code := a.run(t.Context(), []string{"store", "lease", "keep-alive", "7"}); code != exitNotFound {
			t.Errorf("exit code %d, want %d", code, exitNotFound)
		}
		if took := time.Since(begin); took != 11*time.Second { // 3 + 3, 1 + 1, 3
			t.Errorf("it took %v, want 11s", took)
		}
		if want := "lease 7 has 9s again, from peer p1\n"; out.String() != want {
			t.Errorf("printed %q, want %q", out.String(), want)
		}
		for _, want := range []string{"could not be kept alive, trying on", "is kept alive through peer p2", "lease not found"} {
			if strings.Count(errs.String(), want) != 1 {
				t.Errorf("%q is not once in\n%s", want, errs.String())
			}
		}
	})
}
