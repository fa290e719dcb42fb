package pki

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

var testPin = strings.Repeat("0123456789abcdef", 4)

func TestToken(t *testing.T) {
	token := NewToken(testPin)
	if other := NewToken(testPin); other.ID == token.ID || other.Secret == token.Secret {
		t.Fatal("two tokens are alike")
	}
	got, err := ParseToken(" " + token.String() + "\n")
	if err != nil || got != token {
		t.Fatalf("ParseToken(String()) = %v, %v", got, err)
	}
	id, secret, err := ParseTokenCredential(token.Credential())
	if err != nil || id != token.ID || secret != token.Secret {
		t.Errorf("ParseTokenCredential(Credential()) = %q, %v", id, err)
	}
	if !CheckHash(secret, token.Hash()) {
		t.Error("the hash does not fit its own secret")
	}
	for name, wrong := range map[string][]byte{"another": NewToken(testPin).Hash(), "none": nil, "short": token.Hash()[:16]} {
		if CheckHash(secret, wrong) {
			t.Errorf("hash %q accepted", name)
		}
	}
	if s := fmt.Sprintf("%#v", token); strings.Contains(s, token.Secret) {
		t.Errorf("%%#v shows the secret: %s", s)
	}
}

func TestParseTokenRefuses(t *testing.T) {
	token := NewToken(testPin)
	good := token.String()
	tests := []struct{ name, in, want string }{
		{"empty", "", "does not begin with"},
		{"something else", "K10abc::server:def", "token create"},
		{"another version", strings.Replace(good, "holdfast1", "holdfast2", 1), "another version"},
		{"cut off in the pin", good[:len(good)-3], "pin has 61 characters"},
		{"cut off before the pin", good[:len(good)-65], "3 parts"},
		{"too long", good + ".x", "5 parts"},
		{"short secret", strings.Replace(good, token.Secret, token.Secret[1:], 1), "secret has 25 characters"},
		{"upper case", "holdfast1." + strings.ToUpper(token.ID) + "." + token.Secret + "." + testPin, "id has a character"},
		{"pin not hexadecimal", strings.Replace(good, testPin, strings.Repeat("g", 64), 1), "pin has a character"},
		{"letters that look alike", strings.Replace(good, token.ID, strings.Repeat("о", 13), 1), "id has a character"}, // Cyrillic
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseToken(tt.in)
			if !errors.Is(err, ErrToken) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want ErrToken with %q", err, tt.want)
			}
			if strings.Contains(err.Error(), token.Secret[1:]) {
				t.Errorf("error %q holds the secret", err)
			}
		})
	}
	for _, in := range []string{"", "a", "a.b", token.Credential() + ".c", token.ID + token.Secret} {
		if _, _, err := ParseTokenCredential(in); !errors.Is(err, ErrToken) {
			t.Errorf("ParseTokenCredential(%q): %v, want ErrToken", in, err)
		}
	}
}

// FuzzParseToken: whatever is accepted is exactly one token's text form, and no
// error repeats what was given.
func FuzzParseToken(f *testing.F) {
	f.Add(NewToken(testPin).String())
	f.Add("holdfast1...")
	f.Add("holdfast1." + strings.Repeat("a", 26) + "." + strings.Repeat("b", 26) + "." + testPin + "\x00")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseToken(s)
		if err != nil {
			if !errors.Is(err, ErrToken) {
				t.Errorf("error %v is not ErrToken", err)
			}
			if len(s) > 30 && strings.Contains(err.Error(), s[10:]) {
				t.Errorf("error %q repeats its input", err)
			}
			return
		}
		if token.String() != strings.TrimSpace(s) {
			t.Errorf("%q parsed as %q", s, token.String())
		}
		id, secret, err := ParseTokenCredential(token.Credential())
		if err != nil || id != token.ID || secret != token.Secret {
			t.Errorf("credential of %q: %v", s, err)
		}
	})
}
