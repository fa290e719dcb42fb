package pki

import "errors"

var (
	// ErrNoIdentity is returned for a certificate without a Holdfast identity,
	// or with two that contradict each other.
	ErrNoIdentity = errors.New("certificate has no Holdfast identity")

	// ErrWrongCluster is returned for a certificate, key or CA that belongs to
	// another cluster.
	ErrWrongCluster = errors.New("wrong cluster")

	// ErrWrongRole is returned when the other side proved who it is, and that is
	// not who was asked for.
	ErrWrongRole = errors.New("wrong identity")

	// ErrUntrusted is returned for a certificate that the cluster's CA has not
	// signed.
	ErrUntrusted = errors.New("certificate not signed by this cluster's CA")

	// ErrExpired is returned when a certificate is past its end.
	ErrExpired = errors.New("certificate expired")

	// ErrNotYetValid is returned when a certificate begins in the future, by this
	// machine's clock. One of the two clocks is wrong by more than an hour.
	ErrNotYetValid = errors.New("certificate not yet valid")

	// ErrPin is returned when the machine that answers a joining one does not
	// belong to the CA which the token pins.
	ErrPin = errors.New("certificate authority does not match the token")

	// ErrReadable is returned for a private key that others can read.
	ErrReadable = errors.New("private key is readable by others")

	// ErrServiceAccountToken is returned by [TokenKey.Verify].
	ErrServiceAccountToken = errors.New("service account token not valid")

	// ErrToken is returned by ParseToken and ParseTokenCredential for a string
	// that is not a token.
	ErrToken = errors.New("not a Holdfast token")
)
