package keyring

import (
	"bytes"
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore/seal"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func wrapper(t testing.TB, b byte) Wrapper {
	t.Helper()
	keys, err := seal.NewKeys(bytes.Repeat([]byte{b}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return Wrapper{Fingerprint: string('a' + rune(b)), Keys: keys}
}

func newRing(t testing.TB) *Ring {
	t.Helper()
	r, err := New("test", now)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func secret() *corev1.Secret {
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "db", UID: "u1", Labels: map[string]string{"app": "db"},
			Annotations: map[string]string{"note": "x", lastApplied: `{"data":{"password":"Y2FuYXJ5LXZhbHVl"}}`},
		},
		Data: map[string][]byte{"password": []byte("canary-value"), "user": []byte("canary-user")},
	}
	object.Default(s)
	return s
}

func mustSeal(t testing.TB, r *Ring, s *corev1.Secret) *corev1.Secret {
	t.Helper()
	sealed, err := r.Seal(s)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// TestSealedSecret: what is secret is nowhere in a sealed object's bytes, what is not
// can be read, what is opened is what it was; and no two are alike.
func TestSealedSecret(t *testing.T) {
	r, s := newRing(t), secret()
	sealed := mustSeal(t, r, s)
	if !equality.Semantic.DeepEqual(s, secret()) {
		t.Error("the object itself was changed")
	}
	data, err := object.Encode(sealed)
	if err != nil {
		t.Fatal(err)
	}
	for _, canary := range []string{"canary", "Y2FuYXJ5", "password"} {
		if bytes.Contains(data, []byte(canary)) {
			t.Errorf("%q is in the sealed bytes", canary)
		}
	}
	stored, err := object.Decode(data, 0)
	if err != nil {
		t.Fatal(err)
	}
	meta := stored.(*corev1.Secret)
	if meta.Labels["app"] != "db" || meta.Annotations["note"] != "x" || meta.Type != corev1.SecretTypeOpaque {
		t.Errorf("%+v: metadata and type are to stay readable", meta)
	}
	again, err := object.Encode(stored)
	if err != nil || !bytes.Equal(again, data) {
		t.Errorf("who writes it again without opening it changes it (%v)", err)
	}
	opened, err := r.Open(meta)
	if err != nil {
		t.Fatal(err)
	}
	opened.TypeMeta = metav1.TypeMeta{}
	if !equality.Semantic.DeepEqual(opened, s) {
		t.Errorf("opened %+v, want %+v", opened, s)
	}
	if other := mustSeal(t, r, s); bytes.Equal(other.Data[SealedEntry], sealed.Data[SealedEntry]) {
		t.Error("sealed twice, it is twice the same: the nonce repeats")
	}
	if twice := mustSeal(t, r, sealed); twice != sealed {
		t.Error("what was sealed was sealed again")
	}
}

// TestSealedElsewhere: a sealed value opens in its own object only, unchanged, and with
// its key.
func TestSealedElsewhere(t *testing.T) {
	r := newRing(t)
	sealed := mustSeal(t, r, secret())
	for name, change := range map[string]func(*corev1.Secret){
		"name":      func(s *corev1.Secret) { s.Name = "other" },
		"namespace": func(s *corev1.Secret) { s.Namespace = "other" },
		"uid":       func(s *corev1.Secret) { s.UID = "u2" },
		"bit":       func(s *corev1.Secret) { s.Data[SealedEntry][40] ^= 1 },
		"nonce":     func(s *corev1.Secret) { s.Data[SealedEntry][7] ^= 1 },
		"cut":       func(s *corev1.Secret) { s.Data[SealedEntry] = s.Data[SealedEntry][:8] },
		"empty":     func(s *corev1.Secret) { s.Data[SealedEntry] = nil },
		"company":   func(s *corev1.Secret) { s.Data["password"] = []byte("x") },
	} {
		s := sealed.DeepCopy()
		change(s)
		if _, err := r.Open(s); !errors.Is(err, ErrDamaged) {
			t.Errorf("with another %s: %v, want ErrDamaged", name, err)
		}
	}
	other, err := newRing(t).Rotate(now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Open(sealed); !errors.Is(err, ErrDamaged) {
		t.Errorf("another ring: %v", err)
	}
	if _, err := (*Ring)(nil).Open(sealed); !errors.Is(err, ErrNoKey) {
		t.Errorf("no ring: %v, want ErrNoKey", err)
	}
}

// TestRecord: a record opens with what wrapped it, for its cluster, and has no key in it.
func TestRecord(t *testing.T) {
	r := newRing(t)
	sealed := mustSeal(t, r, secret())
	w := wrapper(t, 1)
	data, err := r.Record(w)
	if err != nil {
		t.Fatal(err)
	}
	read, err := Read(data, "test", []Wrapper{wrapper(t, 2), w})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := read.Open(sealed); err != nil || read.Wrapper() != w.Fingerprint {
		t.Errorf("%v, wrapped by %q", err, read.Wrapper())
	}
	if _, err := Read(data, "test", []Wrapper{wrapper(t, 2)}); err == nil {
		t.Error("another wrapper reads it")
	}
	if _, err := Read(data, "other", []Wrapper{w}); err == nil {
		t.Error("another cluster reads it")
	}
	if bytes.Contains(data, r.keys[1].secret) {
		t.Error("the key is in the record")
	}
	exported, err := r.Export()
	if err != nil {
		t.Fatal(err)
	}
	imported, err := Import(exported, "other")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := imported.Open(sealed); err != nil {
		t.Errorf("imported: %v", err)
	}
}

// TestRotation: a new key seals, old ones open, and go only when nothing that can be
// read needs them.
func TestRotation(t *testing.T) {
	first := newRing(t)
	old := mustSeal(t, first, secret())
	second, err := first.Rotate(now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if id, _ := SealedWith(mustSeal(t, second, secret())); id != 2 || second.Current().ID != 2 {
		t.Errorf("sealed with key %d, want 2", id)
	}
	if _, err := second.Open(old); err != nil {
		t.Errorf("the old key: %v", err)
	}
	if first.Current().ID != 1 {
		t.Error("the ring before was changed")
	}
	if next := second.Plan(map[uint32]bool{1: true}, 10, 5); next != second {
		t.Error("a key that is in use was touched")
	}
	unused := second.Plan(map[uint32]bool{2: true}, 10, 5)
	if k := unused.Keys()[0]; len(unused.Keys()) != 2 || k.Unused != 10 {
		t.Fatalf("keys %+v, want both, and the first unused from 10", unused.Keys())
	}
	if next := unused.Plan(map[uint32]bool{2: true}, 11, 10); next != unused {
		t.Error("the key went while history at its last revision can be read")
	}
	gone := unused.Plan(map[uint32]bool{2: true}, 12, 11)
	if len(gone.Keys()) != 1 {
		t.Fatalf("keys %+v, want the second alone", gone.Keys())
	}
	if _, err := gone.Open(old); !errors.Is(err, ErrNoKey) {
		t.Errorf("%v, want ErrNoKey", err)
	}
	if again := unused.Plan(map[uint32]bool{1: true}, 12, 11); again.Keys()[0].Unused != 0 {
		t.Error("a key that is in use again counts as unused")
	}
}

// FuzzRead: no record makes it panic.
func FuzzRead(f *testing.F) {
	w := wrapper(f, 1)
	data, err := newRing(f).Record(w)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"version":1,"wrapper":"b","keys":[{"id":1,"key":"AAAA"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := Read(data, "test", []Wrapper{w}); err == nil && r.keys[r.last] == nil {
			t.Error("read without a current key")
		}
		if r, err := Import(data, "test"); err == nil && r.keys[r.last] == nil {
			t.Error("imported without a current key")
		}
	})
}

// FuzzOpen: no stored value makes it panic, and none that was not sealed opens.
func FuzzOpen(f *testing.F) {
	r := newRing(f)
	sealed := mustSeal(f, r, secret())
	f.Add(sealed.Data[SealedEntry])
	f.Add([]byte{1, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, value []byte) {
		s := sealed.DeepCopy()
		s.Data[SealedEntry] = value
		if _, err := r.Open(s); (err == nil) != bytes.Equal(value, sealed.Data[SealedEntry]) {
			t.Errorf("%x: %v", value, err)
		}
	})
}
