package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"fmt"
	"strings"
)

// tokenPrefix names the form, with its version.
const tokenPrefix = "holdfast1"

const (
	// tokenRandom is the length of ids and secrets, in bytes before encoding: 128
	// bits cannot be guessed, so a plain hash keeps a secret.
	tokenRandom = 16
	// tokenPart is the same in characters.
	tokenPart = 26
	// pinLength is that of a SHA-256 in hexadecimal.
	pinLength = 2 * sha256.Size
)

const (
	base32Chars = "abcdefghijklmnopqrstuvwxyz234567"
	hexChars    = "0123456789abcdef"
)

var tokenEncoding = base32.NewEncoding(base32Chars).WithPadding(base32.NoPadding)

// Token lets a machine join a cluster. Its text form is
// holdfast1.<id>.<secret>.<pin>. What it is good for and until when is known to
// the cluster alone, under its id.
type Token struct {
	ID     string // public; names the token in the store: 26 characters a-z, 2-7
	Secret string // as long as the id; never stored or logged
	Pin    string // see CA.Pin
}

// NewToken makes a token with a random id and secret for the CA with this pin.
func NewToken(pin string) Token {
	return Token{ID: randomPart(), Secret: randomPart(), Pin: pin}
}

func randomPart() string {
	var b [tokenRandom]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return tokenEncoding.EncodeToString(b[:])
}

// String returns the token's text form, which is a secret. To log a token, log
// its ID.
func (t Token) String() string {
	return tokenPrefix + "." + t.Credential() + "." + t.Pin
}

// GoString hides the secret from %#v.
func (t Token) GoString() string { return "pki.Token{ID:" + t.ID + "}" }

// Credential returns what a joining machine sends: "id.secret", without the pin.
func (t Token) Credential() string { return t.ID + "." + t.Secret }

// Hash returns what the cluster keeps of the secret. See [CheckHash].
func (t Token) Hash() []byte { return hashSecret(t.Secret) }

func hashSecret(secret string) []byte {
	sum := sha256.Sum256([]byte("holdfast token secret\x00" + secret))
	return sum[:]
}

// CheckHash reports, in time that does not depend on where they differ, whether
// hash is the Hash of a token with this secret.
func CheckHash(secret string, hash []byte) bool {
	return subtle.ConstantTimeCompare(hashSecret(secret), hash) == 1
}

// ParseToken reads the text form of a token. White space around it is ignored,
// as pasting adds some. The error is [ErrToken] and says what is wrong without
// repeating any of it.
func ParseToken(s string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(s), ".")
	if parts[0] != tokenPrefix {
		if strings.HasPrefix(parts[0], "holdfast") {
			return Token{}, fmt.Errorf("%w: it is of another version; this program knows %s", ErrToken, tokenPrefix)
		}
		return Token{}, fmt.Errorf("%w: it does not begin with %q; make one with: holdfast token create", ErrToken, tokenPrefix+".")
	}
	if len(parts) != 4 {
		return Token{}, fmt.Errorf("%w: it has %d parts between dots, want 4; was it cut off?", ErrToken, len(parts))
	}
	t := Token{ID: parts[1], Secret: parts[2], Pin: parts[3]}
	if err := checkCredential(t.ID, t.Secret); err != nil {
		return Token{}, err
	}
	if err := checkPart("pin", t.Pin, pinLength, hexChars); err != nil {
		return Token{}, err
	}
	return t, nil
}

// ParseTokenCredential reads what [Token.Credential] returned.
func ParseTokenCredential(s string) (id, secret string, err error) {
	id, secret, ok := strings.Cut(s, ".")
	if !ok {
		return "", "", fmt.Errorf("%w: want id.secret", ErrToken)
	}
	if err := checkCredential(id, secret); err != nil {
		return "", "", err
	}
	return id, secret, nil
}

func checkCredential(id, secret string) error {
	if err := checkPart("id", id, tokenPart, base32Chars); err != nil {
		return err
	}
	return checkPart("secret", secret, tokenPart, base32Chars)
}

func checkPart(name, s string, length int, chars string) error {
	if len(s) != length {
		return fmt.Errorf("%w: its %s has %d characters, want %d; was it cut off?", ErrToken, name, len(s), length)
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return !strings.ContainsRune(chars, r) }); i >= 0 {
		return fmt.Errorf("%w: its %s has a character that cannot be in it, at position %d", ErrToken, name, i+1)
	}
	return nil
}
