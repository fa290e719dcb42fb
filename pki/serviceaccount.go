package pki

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// ServiceAccountIssuer is who issues the tokens of service accounts, and the
// audience of those that are for the cluster's own API. It is the same in every
// cluster: their keys tell clusters apart.
const ServiceAccountIssuer = "https://kubernetes.default.svc.cluster.local"

// serviceAccountSubject begins the subject of a token: "system:serviceaccount:NAMESPACE:NAME".
const serviceAccountSubject = "system:serviceaccount:"

// ServiceAccountToken is what a token of a service account says, in the words of
// Kubernetes' tokens.
type ServiceAccountToken struct {
	ID              string // of this token; public
	Namespace       string
	ServiceAccount  TokenObject
	Audiences       []string
	Issued, Expires time.Time // whole seconds
	// What the token is bound to: it is good only as long as this object lives. One of
	// them at most, but that a token bound to a pod may name the pod's node.
	Pod, Secret, Node *TokenObject
}

// TokenObject names one object, and no later one of the same name.
type TokenObject struct {
	Name string `json:"name"`
	UID  string `json:"uid,omitempty"`
}

// Subject is as whom the holder of the token acts.
func (t ServiceAccountToken) Subject() string {
	return serviceAccountSubject + t.Namespace + ":" + t.ServiceAccount.Name
}

// claims is the form of a token.
type claims struct {
	jwt.RegisteredClaims
	Kubernetes struct {
		Namespace      string       `json:"namespace"`
		ServiceAccount TokenObject  `json:"serviceaccount"`
		Pod            *TokenObject `json:"pod,omitempty"`
		Secret         *TokenObject `json:"secret,omitempty"`
		Node           *TokenObject `json:"node,omitempty"`
	} `json:"kubernetes.io"`
}

// TokenKey signs and checks tokens of service accounts. It is immutable and safe for
// concurrent use.
type TokenKey struct {
	key *ecdsa.PrivateKey
	id  string // of its public key
}

// TokenKey returns the key of the cluster's service account tokens: ECDSA P-256,
// derived from the CA's. So every peer that has the one has the other, a new peer
// from its join on, and no further secret is there to be kept, sent or lost.
func (ca *CA) TokenKey() (*TokenKey, error) {
	var secret []byte
	switch key := ca.key.(type) {
	case *ecdsa.PrivateKey:
		var err error
		if secret, err = key.Bytes(); err != nil {
			return nil, fmt.Errorf("derive the key of tokens: %w", err)
		}
	case ed25519.PrivateKey:
		secret = key.Seed()
	default:
		return nil, fmt.Errorf("derive the key of tokens: not from a key of type %T", ca.key)
	}
	// FIPS 186-5, A.2.1: 128 bits more than the group's order has, reduced, are a
	// uniform scalar.
	curve := elliptic.P256()
	wide, err := hkdf.Key(sha256.New, secret, nil, "holdfast service account tokens 1", 48)
	if err != nil {
		return nil, fmt.Errorf("derive the key of tokens: %w", err)
	}
	one := big.NewInt(1)
	scalar := new(big.Int).SetBytes(wide)
	scalar.Mod(scalar, new(big.Int).Sub(curve.Params().N, one)).Add(scalar, one)
	key, err := ecdsa.ParseRawPrivateKey(curve, scalar.FillBytes(make([]byte, 32)))
	if err != nil {
		return nil, fmt.Errorf("derive the key of tokens: %w", err)
	}
	public, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("derive the key of tokens: %w", err)
	}
	sum := sha256.Sum256(public)
	return &TokenKey{key: key, id: base64.RawURLEncoding.EncodeToString(sum[:])}, nil
}

// Sign returns the text of a token, which is a secret: a JWT, ES256. It is good from
// one hour before its issue, since clocks may differ.
func (k *TokenKey) Sign(t ServiceAccountToken) (string, error) {
	c := claims{RegisteredClaims: jwt.RegisteredClaims{
		Issuer: ServiceAccountIssuer, Subject: t.Subject(), Audience: t.Audiences, ID: t.ID,
		IssuedAt: jwt.NewNumericDate(t.Issued), NotBefore: jwt.NewNumericDate(t.Issued.Add(-backdate)), ExpiresAt: jwt.NewNumericDate(t.Expires),
	}}
	c.Kubernetes.Namespace, c.Kubernetes.ServiceAccount = t.Namespace, t.ServiceAccount
	c.Kubernetes.Pod, c.Kubernetes.Secret, c.Kubernetes.Node = t.Pod, t.Secret, t.Node
	token := jwt.NewWithClaims(jwt.SigningMethodES256, c)
	token.Header["kid"] = k.id
	text, err := token.SignedString(k.key)
	if err != nil {
		return "", fmt.Errorf("sign a token of %s: %w", t.Subject(), err)
	}
	return text, nil
}

// Verify reads the text of a token. The error is [ErrServiceAccountToken], and says
// why without repeating any of it. For whom the token is, and whether what it is bound
// to still lives, is for the caller to see.
func (k *TokenKey) Verify(text string, now time.Time) (ServiceAccountToken, error) {
	var none ServiceAccountToken
	var c claims
	_, err := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodES256.Alg()}), jwt.WithIssuer(ServiceAccountIssuer),
		jwt.WithExpirationRequired(), jwt.WithTimeFunc(func() time.Time { return now }),
	).ParseWithClaims(text, &c, func(token *jwt.Token) (any, error) {
		if token.Header["kid"] != k.id {
			return nil, errors.New("another key")
		}
		return &k.key.PublicKey, nil
	})
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return none, fmt.Errorf("%w: it expired on %s", ErrServiceAccountToken, c.ExpiresAt.UTC().Format(time.RFC3339))
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		return none, fmt.Errorf("%w: it begins in the future: a clock is wrong by more than an hour", ErrServiceAccountToken)
	case err != nil:
		return none, fmt.Errorf("%w: this cluster did not sign it", ErrServiceAccountToken)
	}
	t := ServiceAccountToken{
		ID: c.ID, Namespace: c.Kubernetes.Namespace, ServiceAccount: c.Kubernetes.ServiceAccount, Audiences: slices.Clone(c.Audience),
		Expires: c.ExpiresAt.Time, Pod: c.Kubernetes.Pod, Secret: c.Kubernetes.Secret, Node: c.Kubernetes.Node,
	}
	if c.IssuedAt != nil {
		t.Issued = c.IssuedAt.Time
	}
	if t.Subject() != c.Subject || strings.Contains(t.Namespace, ":") {
		return none, fmt.Errorf("%w: it contradicts itself", ErrServiceAccountToken)
	}
	return t, nil
}
