package pki

import (
	"encoding/base64"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func tokenKey(t *testing.T, ca *CA) *TokenKey {
	t.Helper()
	key, err := ca.TokenKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestTokenKeyIsTheCAs: every holder of a CA has one key, other CAs have others.
func TestTokenKeyIsTheCAs(t *testing.T) {
	ca, err := NewCA("c-1")
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadCA(ca.CertPEM(), ca.KeyPEM())
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewCA("c-1")
	if err != nil {
		t.Fatal(err)
	}
	a, b, c := tokenKey(t, ca), tokenKey(t, again), tokenKey(t, other)
	if !a.key.Equal(b.key) || a.id != b.id {
		t.Error("two peers with one CA have different keys")
	}
	if a.key.Equal(c.key) || a.id == c.id {
		t.Error("two CAs have one key")
	}
	if a.key.Equal(ca.key) {
		t.Error("the CA's own key signs tokens")
	}
}

func TestServiceAccountToken(t *testing.T) {
	ca, err := NewCA("c-1")
	if err != nil {
		t.Fatal(err)
	}
	key := tokenKey(t, ca)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := ServiceAccountToken{
		ID: "id", Namespace: "shop", ServiceAccount: TokenObject{"web", "uid-1"}, Audiences: []string{"vault", ServiceAccountIssuer},
		Issued: now, Expires: now.Add(time.Hour), Pod: &TokenObject{"web-1", "uid-2"}, Node: &TokenObject{"n1", "uid-3"},
	}
	text, err := key.Sign(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := key.Verify(text, now.Add(59*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	got.Issued, got.Expires = got.Issued.UTC(), got.Expires.UTC()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, want := want.Subject(), "system:serviceaccount:shop:web"; got != want {
		t.Errorf("subject %q, want %q", got, want)
	}
	// What others read, and rely on.
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(text, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		`"iss":"https://kubernetes.default.svc.cluster.local"`, `"sub":"system:serviceaccount:shop:web"`, `"exp":1767326645`,
		`"kubernetes.io":{"namespace":"shop","serviceaccount":{"name":"web","uid":"uid-1"},"pod":{"name":"web-1","uid":"uid-2"},"node":{"name":"n1","uid":"uid-3"}}`,
	} {
		if !strings.Contains(string(payload), part) {
			t.Errorf("%s lacks %s", payload, part)
		}
	}

	parts := strings.Split(text, ".")
	other, err := NewCA("c-1")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := tokenKey(t, other).Sign(want)
	if err != nil {
		t.Fatal(err)
	}
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + "."
	for name, test := range map[string]struct {
		text string
		at   time.Time
		why  string
	}{
		"expired":           {text, now.Add(time.Hour), "it expired on 2026-01-02T04:04:05Z"},
		"clock far behind":  {text, now.Add(-2 * time.Hour), "a clock is wrong"},
		"another cluster's": {foreign, now, "did not sign it"},
		"unsigned":          {none, now, "did not sign it"},
		"signature cut off": {text[:len(text)-4], now, "did not sign it"},
		"another's payload": {parts[0] + "." + strings.Split(foreign, ".")[1] + "x." + parts[2], now, "did not sign it"},
		"a token to join":   {NewToken(ca.Pin()).String(), now, "did not sign it"},
		"nothing":           {"", now, "did not sign it"},
	} {
		if _, err := key.Verify(test.text, test.at); !errors.Is(err, ErrServiceAccountToken) || !strings.Contains(err.Error(), test.why) {
			t.Errorf("%s: %v, want it refused: %s", name, err, test.why)
		} else if test.text != "" && strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: the error repeats the token", name)
		}
	}
	if _, err := key.Verify(text, now.Add(-30*time.Minute)); err != nil {
		t.Errorf("on a peer whose clock is half an hour behind: %v", err)
	}
}
