package pki

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
)

// SecretsKey returns the key of 32 bytes that wraps the keys which the values of Secrets
// are sealed with. It is derived from the CA's, as that of tokens is, and for the same
// reason: every peer has it from its join on, no client can read it, and nothing more is
// there to be kept, sent or lost.
func (ca *CA) SecretsKey() ([]byte, error) {
	var secret []byte
	switch key := ca.key.(type) {
	case *ecdsa.PrivateKey:
		var err error
		if secret, err = key.Bytes(); err != nil {
			return nil, fmt.Errorf("derive the key of secrets: %w", err)
		}
	case ed25519.PrivateKey:
		secret = key.Seed()
	default:
		return nil, fmt.Errorf("derive the key of secrets: not from a key of type %T", ca.key)
	}
	return hkdf.Key(sha256.New, secret, nil, "holdfast secrets 1", 32)
}
