package pki

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
)

// Paths of the documents by which programs outside of the cluster check service
// accounts' tokens, as OpenID Connect's discovery and Kubernetes have them.
const (
	DiscoveryPath = "/.well-known/openid-configuration"
	KeysPath      = "/openid/v1/jwks"
)

// Discovery returns the provider's configuration: who issues, and where the keys are.
func Discovery() ([]byte, error) {
	return json.Marshal(map[string]any{
		"issuer":                                ServiceAccountIssuer,
		"jwks_uri":                              ServiceAccountIssuer + KeysPath,
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{"ES256"},
	})
}

// Keys returns the public keys of tokens as a JSON Web Key Set (RFC 7517).
func (k *TokenKey) Keys() ([]byte, error) {
	public, err := k.key.PublicKey.Bytes() // 4, x, y
	if err != nil || len(public) != 65 {
		return nil, fmt.Errorf("encode the key of tokens: %d bytes, %w", len(public), err)
	}
	part := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	return json.Marshal(map[string]any{"keys": []map[string]string{{
		"use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": k.id, "x": part(public[1:33]), "y": part(public[33:]),
	}}})
}
