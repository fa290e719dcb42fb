package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/apiserver/keyring"
	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

const canary = "canary-7d1f0c"

// keepSecrets plays the leader's part until the test ends.
func (c *cluster) keepSecrets(peer string) {
	c.t.Helper()
	s := c.servers[peer]
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.t.Context()))
	done := make(chan error, 1)
	go func() {
		done <- s.store.Lead(ctx, func(ctx context.Context, l *raftstore.Leader) error { return s.KeepSecrets(ctx, l) })
	}()
	c.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			c.t.Errorf("keep secrets: %v", err)
		}
	})
}

// secrets waits until the keys are as wanted.
func (c *cluster) secrets(wanted func(*holdfastv1.SecretsServiceStatusResponse) bool) *holdfastv1.SecretsServiceStatusResponse {
	c.t.Helper()
	client := holdfastv1connect.NewSecretsServiceClient(c.client(slices.Min(slices.Collect(maps.Keys(c.servers))), alice))
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	for {
		status, err := client.Status(ctx, &holdfastv1.SecretsServiceStatusRequest{})
		if err != nil {
			c.t.Fatal(err)
		}
		if wanted(status) {
			return status
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			c.t.Fatalf("the keys of secrets are %v", status)
		}
	}
}

func hasRing(s *holdfastv1.SecretsServiceStatusResponse) bool { return len(s.GetKeys()) > 0 }

func newSecret(name, value string) *corev1.Secret {
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": name}},
		Data:       map[string][]byte{"password": []byte(value)},
	}
	object.Default(s)
	return s
}

func valueOf(t testing.TB, o *holdfastv1.Object) string {
	t.Helper()
	obj, err := object.Decode(o.GetData(), o.GetRevision())
	if err != nil {
		t.Fatal(err)
	}
	return string(obj.(*corev1.Secret).Data["password"])
}

// wantSealed fails the test if the canary is in the store: in what is, or what was since
// a revision.
func (c *cluster) wantSealed(since int64) {
	c.t.Helper()
	view := c.store.View()
	for kv := range view.Prefix("") {
		if bytes.Contains(kv.Value, []byte(canary)) {
			c.t.Errorf("the store has the value under %s at revision %d: %q", kv.Key, kv.Mod, kv.Value)
		}
	}
	cursor := c.store.Watch("", since)
	for revision := since; revision < view.Revision(); {
		events, upTo, err := cursor.Next(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		for _, e := range events {
			if bytes.Contains(e.KV.Value, []byte(canary)) || e.Prev != nil && bytes.Contains(e.Prev.Value, []byte(canary)) {
				c.t.Errorf("the history has the value: %s at revision %d", e.Key, e.Revision)
			}
		}
		revision = upTo
	}
}

var secretKind = &holdfastv1.Kind{Version: "v1", Kind: "Secret"}

// TestSecretsAreSealed: whichever way a Secret is written, its value is nowhere in the
// store; whichever way it is read, it is what was written; and what has not changed is
// seen not to have.
func TestSecretsAreSealed(t *testing.T) {
	c := newCluster(t, 2)
	c.keepSecrets("peer-1")
	since := c.secrets(hasRing).GetRevision()
	client, ctx := c.objects("peer-1"), t.Context()
	created, err := client.Create(ctx, &holdfastv1.CreateRequest{Object: message(t, newSecret("a", canary+"-a"))})
	if err != nil {
		t.Fatal(err)
	}
	if got := valueOf(t, created.GetObject()); got != canary+"-a" {
		t.Errorf("created with %q", got)
	}
	manifest := &holdfastv1.Object{Encoding: holdfastv1.Encoding_ENCODING_JSON, Data: []byte(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"b","labels":{"app":"b"},
		"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"stringData\":{\"password\":\"` + canary + `-b\"}}"}},"stringData":{"password":"` + canary + `-b"}}`)}
	for i, want := range []holdfastv1.ApplyAction{holdfastv1.ApplyAction_APPLY_ACTION_CREATED, holdfastv1.ApplyAction_APPLY_ACTION_UNCHANGED} {
		applied, err := client.Apply(ctx, &holdfastv1.ApplyRequest{Objects: []*holdfastv1.Object{manifest}})
		if err != nil {
			t.Fatal(err)
		}
		if got := applied.GetResults()[0].GetAction(); got != want {
			t.Errorf("apply %d: %v, want %v", i, got, want)
		}
	}
	before := c.store.View().Revision()
	patch := func(value string) (*holdfastv1.PatchResponse, error) {
		return client.Patch(ctx, &holdfastv1.PatchRequest{
			Kind: secretKind, Namespace: "default", Name: "a", Type: holdfastv1.PatchType_PATCH_TYPE_MERGE, Patch: []byte(`{"stringData":{"password":"` + value + `"}}`),
		})
	}
	if _, err := patch(canary + "-a"); err != nil {
		t.Fatal(err)
	}
	if now := c.store.View().Revision(); now != before {
		t.Errorf("a patch that changes nothing wrote revision %d", now)
	}
	if resp, err := patch(canary + "-a2"); err != nil || valueOf(t, resp.GetObject()) != canary+"-a2" {
		t.Errorf("%v, %v", resp, err)
	}
	for _, peer := range []string{"peer-1", "peer-2"} {
		client := c.objects(peer)
		for _, encoding := range []holdfastv1.Encoding{holdfastv1.Encoding_ENCODING_PROTOBUF, holdfastv1.Encoding_ENCODING_JSON} {
			got, err := client.Get(ctx, &holdfastv1.GetRequest{Kind: secretKind, Namespace: "default", Name: "a", Encoding: encoding})
			if err != nil || valueOf(t, got.GetObject()) != canary+"-a2" {
				t.Errorf("get from %s: %v, %v", peer, got, err)
			}
			list, err := client.List(ctx, &holdfastv1.ListRequest{Kind: secretKind, LabelSelector: "app=b", Encoding: encoding})
			if err != nil || len(list.GetObjects()) != 1 || valueOf(t, list.GetObjects()[0]) != canary+"-b" {
				t.Errorf("list from %s: %v, %v", peer, list, err)
			}
		}
		old, err := client.Get(ctx, &holdfastv1.GetRequest{Kind: secretKind, Namespace: "default", Name: "a", Read: &holdfastv1.ReadOptions{AtRevision: before}})
		if err != nil || valueOf(t, old.GetObject()) != canary+"-a" {
			t.Errorf("get at an older revision: %v, %v", old, err)
		}
		stream, err := client.Watch(ctx, &holdfastv1.WatchRequest{Kind: secretKind, FromRevision: before})
		if err != nil {
			t.Fatal(err)
		}
		var change *holdfastv1.Change
		for change == nil {
			msg, err := stream.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if len(msg.GetChanges()) > 0 {
				change = msg.GetChanges()[0]
			}
		}
		if got := valueOf(t, change.GetObject()); got != canary+"-a2" {
			t.Errorf("watched %q", got)
		}
		stream.Close()
	}
	c.wantSealed(since)
	deleted, err := client.Delete(ctx, &holdfastv1.DeleteRequest{Kind: secretKind, Namespace: "default", Name: "a"})
	if err != nil || valueOf(t, deleted.GetObject()) != canary+"-a2" {
		t.Errorf("deleted %v, %v", deleted, err)
	}
}

// TestSecretsOfNodes: an agent gets the values of what its pods name, opened.
func TestSecretsOfNodes(t *testing.T) {
	c := newCluster(t, 1)
	c.keepSecrets("peer-1")
	c.secrets(hasRing)
	if _, err := c.objects("peer-1").Create(t.Context(), &holdfastv1.CreateRequest{Object: message(t, newSecret("db", canary))}); err != nil {
		t.Fatal(err)
	}
	pod := boundPod("web", "n1")
	pod.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "db"}}}}
	c.put(pod)
	agent := c.agent("peer-1", "n1")
	register(t, agent, newNode("n1", "10.1.0.1"))
	stream, err := agent.Desired(t.Context(), &agentv1.DesiredRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	msg, err := stream.Receive()
	if err != nil {
		t.Fatal(err)
	}
	if len(msg.GetInputs()) != 1 || valueOf(t, &holdfastv1.Object{Data: msg.GetInputs()[0].GetObject()}) != canary {
		t.Errorf("the agent got %v", msg.GetInputs())
	}
	c.wantSealed(0)
}

// TestSecretsOfOldClusters: Secrets that were there before are sealed in the background,
// and with the newest key after a rotation; who reads meanwhile sees nothing of it. The
// old key goes once no history needs it.
func TestSecretsOfOldClusters(t *testing.T) {
	c := newCluster(t, 1)
	const many = 3*resealBatch + 5
	for i := range many {
		c.put(newSecret(fmt.Sprint("s", i), fmt.Sprint(canary, i)))
	}
	c.keepSecrets("peer-1")
	sealedWith := func(key uint32) func(s *holdfastv1.SecretsServiceStatusResponse) bool {
		return func(s *holdfastv1.SecretsServiceStatusResponse) bool {
			return s.GetReadable() == 0 && slices.ContainsFunc(s.GetKeys(), func(k *holdfastv1.SecretsKey) bool { return k.GetId() == key && k.GetSecrets() == many })
		}
	}
	c.secrets(sealedWith(1))
	c.wantSealed(c.store.View().Revision())
	check := func() {
		t.Helper()
		list, err := c.objects("peer-1").List(t.Context(), &holdfastv1.ListRequest{Kind: secretKind})
		if err != nil || len(list.GetObjects()) != many {
			t.Fatalf("%d secrets, %v", len(list.GetObjects()), err)
		}
		for _, o := range list.GetObjects() {
			if want := canary + strings.TrimPrefix(o.GetName(), "s"); valueOf(t, o) != want {
				t.Errorf("%s has another value", o.GetName())
			}
		}
	}
	check()
	client := holdfastv1connect.NewSecretsServiceClient(c.client("peer-1", alice))
	rotated, err := client.RotateKey(t.Context(), &holdfastv1.SecretsServiceRotateKeyRequest{})
	if err != nil || rotated.GetId() != 2 {
		t.Fatalf("%v, %v", rotated, err)
	}
	check()
	c.secrets(sealedWith(2))
	check()
	c.secrets(func(s *holdfastv1.SecretsServiceStatusResponse) bool {
		return len(s.GetKeys()) == 2 && s.GetKeys()[0].GetUnused() > 0
	})
	if err := c.store.Compact(t.Context(), c.store.View().Revision()); err != nil {
		t.Fatal(err)
	}
	// The loop looks after a change of the ring, or after a while.
	if _, err = client.RotateKey(t.Context(), &holdfastv1.SecretsServiceRotateKeyRequest{}); err != nil {
		t.Fatal(err)
	}
	status := c.secrets(func(s *holdfastv1.SecretsServiceStatusResponse) bool {
		return sealedWith(3)(s) && s.GetKeys()[0].GetId() == 2
	})
	if status.GetObstacle() != "" {
		t.Errorf("obstacle: %s", status.GetObstacle())
	}
	check()
}

// TestSecretsSealingGoesOn: a leader that is lost in the middle of a rotation leaves the
// rest to the next one.
func TestSecretsSealingGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, raft := newRaftCluster(t, 3)
		for id := range c.servers {
			c.keepSecrets(id)
		}
		const many = 6 * resealBatch
		leader := raft.WaitLeader()
		c.secrets(hasRing)
		for i := range many {
			if _, err := c.objects(leader.ID).Create(t.Context(), &holdfastv1.CreateRequest{Object: message(t, newSecret(fmt.Sprint("s", i), canary))}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := holdfastv1connect.NewSecretsServiceClient(c.client(leader.ID, alice)).RotateKey(t.Context(), &holdfastv1.SecretsServiceRotateKeyRequest{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * resealPause) // a batch or two
		view := leader.Store.View()
		raft.Cut([]*storetest.Peer{leader}, raft.Others(leader))
		next := raft.WaitLeader(raft.Others(leader)...)
		count := func(view raftstore.View) (old int) {
			for kv := range view.Prefix(secretPrefix) {
				obj, err := object.Decode(kv.Value, 0)
				if err != nil {
					t.Fatal(err)
				}
				if id, _ := keyring.SealedWith(obj.(*corev1.Secret)); id != 2 {
					old++
				}
			}
			return old
		}
		if old := count(view); old == 0 || old == many {
			t.Fatalf("%d of %d are sealed with the old key: the cut was to be in the middle", old, many)
		}
		for deadline := time.Now().Add(time.Minute); count(next.Store.View()) > 0; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d are still sealed with the old key", count(next.Store.View()))
			}
		}
		raft.Heal()
	})
}

// TestSecretsWaitForOldPeers: as long as a peer does not know sealed values, or cannot be
// asked, nothing is sealed; and values can be written and read all the same.
func TestSecretsWaitForOldPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		c.setDown("peer-2", true)
		c.keepSecrets("peer-1")
		time.Sleep(5 * secretsRetry)
		if status := c.secrets(func(*holdfastv1.SecretsServiceStatusResponse) bool { return true }); len(status.GetKeys()) != 0 || status.GetObstacle() == "" {
			t.Fatalf("there is a ring: %v", status)
		}
		created, err := c.objects("peer-1").Create(t.Context(), &holdfastv1.CreateRequest{Object: message(t, newSecret("a", canary))})
		if err != nil || valueOf(t, created.GetObject()) != canary {
			t.Fatalf("%v, %v", created, err)
		}
		c.setDown("peer-2", false)
		c.secrets(func(s *holdfastv1.SecretsServiceStatusResponse) bool { return hasRing(s) && s.GetReadable() == 0 })
		c.wantSealed(c.store.View().Revision())
	})
}

// TestSecretsOfAnotherCluster: what does not open is an error that says so, is counted,
// and can be deleted; everything else goes on.
func TestSecretsOfAnotherCluster(t *testing.T) {
	c := newCluster(t, 1)
	c.keepSecrets("peer-1")
	c.secrets(hasRing)
	foreign, err := keyring.New("other", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for range 6 {
		if foreign, err = foreign.Rotate(time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	sealed, err := foreign.Seal(newSecret("lost", canary))
	if err != nil {
		t.Fatal(err)
	}
	c.put(sealed, newSecret("plain", "x"))
	client := c.objects("peer-1")
	_, err = client.Get(t.Context(), &holdfastv1.GetRequest{Kind: secretKind, Namespace: "default", Name: "lost"})
	wantCode(t, err, connect.CodeDataLoss, "sealed with a key that the cluster no longer has: key 7")
	if got, err := client.Get(t.Context(), &holdfastv1.GetRequest{Kind: secretKind, Namespace: "default", Name: "plain"}); err != nil || valueOf(t, got.GetObject()) != "x" {
		t.Errorf("%v, %v", got, err)
	}
	list, err := client.List(t.Context(), &holdfastv1.ListRequest{Kind: secretKind})
	if err != nil || len(list.GetObjects()) != 2 || valueOf(t, list.GetObjects()[0]) != "" || valueOf(t, list.GetObjects()[1]) != "x" {
		t.Fatalf("%v, %v: one that cannot be opened hides the other", list, err)
	}
	lost, err := object.Decode(list.GetObjects()[0].GetData(), 0)
	if err != nil || !strings.Contains(lost.GetAnnotations()[unreadableAnnotation], "key 7") {
		t.Errorf("%v, %v: it does not say why it has no values", lost, err)
	}
	_, err = client.Update(t.Context(), &holdfastv1.UpdateRequest{Object: message(t, lost)})
	wantCode(t, err, connect.CodeDataLoss, "cannot be opened")
	if status := c.secrets(hasRing); !strings.Contains(status.GetObstacle(), "keys which the cluster does not have") {
		t.Errorf("%v: the status does not say it", status)
	}
	if _, err := client.Delete(t.Context(), &holdfastv1.DeleteRequest{Kind: secretKind, Namespace: "default", Name: "lost"}); err != nil {
		t.Error(err)
	}
}

// TestSecretsKeysAreForAdministrators: nobody else learns of the keys, nor changes them.
func TestSecretsKeysAreForAdministrators(t *testing.T) {
	c := newCluster(t, 1)
	for _, role := range []pki.Role{pki.RoleUser, pki.RoleNode, ""} {
		client := holdfastv1connect.NewSecretsServiceClient(c.client("peer-1", pki.Identity{Cluster: testCluster, Role: role, Name: "x"}))
		_, err := client.RotateKey(t.Context(), &holdfastv1.SecretsServiceRotateKeyRequest{})
		if code := connect.CodeOf(err); code != connect.CodePermissionDenied && code != connect.CodeUnauthenticated {
			t.Errorf("%q rotates the key: %v", role, err)
		}
	}
}
