// Package pki makes and checks the identities of a cluster: its certificate
// authority, the certificates of peers, nodes and administrators, the
// tokens with which new machines join, and those of service accounts.
//
// # Identity
//
// An [Identity] is a cluster, a [Role] and a name. A certificate carries it as
// a SPIFFE URI, spiffe://<cluster>/<role>/<name>, and repeats it in its subject
// (CN the name, OU the role, O the cluster) for people and for tools that know
// only subjects; [IdentityOf] refuses a certificate in which the two disagree.
// Host names and addresses prove nothing here: a machine may change all of its
// addresses and stays who it is.
//
// # Guarantees
//
//   - [Credentials.ServerTLS] and [Credentials.ClientTLS] speak TLS 1.3 only.
//     Both check the other side's chain against the cluster's CA and its
//     identity against the cluster's id; a client also checks the role.
//   - Credentials can be replaced while connections are being made
//     ([Credentials.Set]); every handshake uses what is current, and no session
//     is resumed, so that nobody lives on an old certificate.
//   - [PinnedTLS] trusts whoever shows a peer's certificate under the CA whose
//     hash a token holds, and nobody else.
//   - Secrets are compared in constant time, written with mode 0600, and never
//     part of an error or of a log line.
//
// # Life of a certificate
//
// Certificates are valid from one hour before they were signed, so that clocks
// may differ, for as long as [Life] says of their role. [Credentials.RenewAfter] says
// when to renew, and [Credentials.KeepRenewed] does it, in a process that goes on.
// Whoever holds the CA's key, which every peer does, renews with
// [Credentials.Renew] and needs nobody for it.
//
// # Service accounts
//
// A pod's identity is a token, a JWT that [TokenKey.Sign] made: the key is derived
// from the CA's, so all peers have it, and what one has signed every other accepts.
//
// # Out of scope
//
// Nothing here starts a goroutine or dials. Revocation, the store of token
// hashes and who may ask for which name belong to package apiserver.
package pki
