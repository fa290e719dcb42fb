package apiserver

import (
	"github.com/holdfast-io/holdfast/pki"
)

// DiscoveryDocuments are those of OpenID Connect's discovery, by path: programs outside of
// the cluster check service accounts' tokens with them. Nil on a peer without the CA's
// key.
func (s *Server) DiscoveryDocuments() map[string]func() ([]byte, error) {
	if s.tokens == nil {
		return nil
	}
	return map[string]func() ([]byte, error){pki.DiscoveryPath: pki.Discovery, pki.KeysPath: s.tokens.Keys}
}

// issues reports whether a is to read those documents. Service accounts may, as
// Kubernetes' role system:service-account-issuer-discovery has it by default; others
// need a role for the paths.
func (a Attributes) issues() bool {
	return a.Verb == "get" && (a.Path == pki.DiscoveryPath || a.Path == pki.KeysPath)
}
