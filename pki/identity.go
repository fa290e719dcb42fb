package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Role is what the holder of a certificate is.
type Role string

const (
	// RolePeer takes part in raft and answers the API. Its certificate is good
	// for servers and clients.
	RolePeer Role = "peer"
	// RoleNode runs an agent. Its certificate is good for clients only.
	RoleNode Role = "node"
	// RoleAdmin is a person or program with all rights. Its certificate is good
	// for clients only.
	RoleAdmin Role = "admin"
	// RoleUser is a person or program that may do what Kubernetes' roles say of its name
	// and groups. Its certificate is good for clients only.
	RoleUser Role = "user"
)

// Valid reports whether r is one of the roles above.
func (r Role) Valid() bool {
	return r == RolePeer || r == RoleNode || r == RoleAdmin || r == RoleUser
}

// maxNameLength bounds clusters' ids and names: a DNS name's length, as for
// Kubernetes' nodes. With it a SPIFFE id stays below the 2,048 bytes allowed.
const maxNameLength = 253

// maxGroups bounds the groups of a user.
const maxGroups = 50

// Identity is who the holder of a certificate is.
type Identity struct {
	Cluster string // the cluster's id, a SPIFFE trust domain: "c-7k2m9q"
	Role    Role
	Name    string // a peer's id, a node's name, an administrator's or user's name: "p1"
	// Groups are a user's, sorted, with commas between: "dev,ops". Empty for others.
	Groups string
}

// GroupList returns the groups one by one.
func (id Identity) GroupList() []string {
	if id.Groups == "" {
		return nil
	}
	return strings.Split(id.Groups, ",")
}

// User returns the identity of a user of cluster in groups, which may come in any order.
func User(cluster, name string, groups ...string) Identity {
	sorted := slices.Compact(slices.Sorted(slices.Values(groups)))
	return Identity{Cluster: cluster, Role: RoleUser, Name: name, Groups: strings.Join(sorted, ",")}
}

// String returns the SPIFFE id, "spiffe://c-7k2m9q/peer/p1".
func (id Identity) String() string {
	return "spiffe://" + id.Cluster + "/" + string(id.Role) + "/" + id.Name
}

// URI returns the SPIFFE id as a URL.
func (id Identity) URI() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.Cluster, Path: "/" + string(id.Role) + "/" + id.Name}
}

// Check returns an error that says what is wrong with id: a cluster's id of
// other characters than a-z, 0-9, '.', '-' and '_' (a SPIFFE trust domain), a
// name with others than these and A-Z, an unknown role, or a part that is empty
// or longer than 253.
func (id Identity) Check() error {
	if err := CheckCluster(id.Cluster); err != nil {
		return err
	}
	if !id.Role.Valid() {
		return fmt.Errorf("role %q: want %q, %q, %q or %q", string(id.Role), RolePeer, RoleNode, RoleAdmin, RoleUser)
	}
	groups := id.GroupList()
	if id.Role != RoleUser && len(groups) > 0 {
		return fmt.Errorf("groups %s: a %s has none", id.Groups, id.Role)
	}
	if len(groups) > maxGroups {
		return fmt.Errorf("%d groups; at most %d are allowed", len(groups), maxGroups)
	}
	for i, group := range groups {
		if err := checkChars("group", group, nameChars); err != nil {
			return err
		}
		if group == string(RoleUser) {
			return fmt.Errorf("group %q: not a name of a group", group) // it says the role in the subject
		}
		if i > 0 && groups[i-1] >= group {
			return fmt.Errorf("groups %s: want them sorted, each once", id.Groups)
		}
	}
	return CheckName(id.Name)
}

// CheckCluster returns an error if id cannot be a cluster's id.
func CheckCluster(id string) error {
	return checkChars("cluster id", id, "abcdefghijklmnopqrstuvwxyz0123456789.-_")
}

// CheckName returns an error if name cannot be in a certificate: the name of a
// peer, a node or an administrator. Nodes' names have further rules of their own.
func CheckName(name string) error {
	if name == "." || name == ".." {
		return fmt.Errorf("name %q: not a name", name) // SPIFFE forbids dot segments
	}
	return checkChars("name", name, nameChars)
}

// nameChars has no ':', so that nobody is named, or in a group, as the system's own are
// ("system:masters").
const nameChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"

func checkChars(what, s, allowed string) error {
	if s == "" {
		return fmt.Errorf("%s is empty", what)
	}
	if len(s) > maxNameLength {
		return fmt.Errorf("%s %q… is %d characters long; at most %d are allowed", what, s[:32], len(s), maxNameLength)
	}
	for _, c := range s {
		if !strings.ContainsRune(allowed, c) {
			if c >= 'A' && c <= 'Z' {
				return fmt.Errorf("%s %q: %q is not allowed; use lower case", what, s, c)
			}
			return fmt.Errorf("%s %q: %q is not allowed; use letters, digits, '.', '-' and '_'", what, s, c)
		}
	}
	return nil
}

// IdentityOf reads the identity in a certificate. It does not verify the
// certificate: in a TLS handshake that this package configured, that has
// happened before. The error is [ErrNoIdentity] with the reason.
func IdentityOf(cert *x509.Certificate) (Identity, error) {
	var none Identity
	if len(cert.URIs) != 1 {
		return none, fmt.Errorf("%w: it has %d URIs, want one, a SPIFFE id", ErrNoIdentity, len(cert.URIs))
	}
	uri := cert.URIs[0]
	role, name, ok := strings.Cut(strings.TrimPrefix(uri.Path, "/"), "/")
	id := Identity{Cluster: uri.Host, Role: Role(role), Name: name}
	if id.Role == RoleUser { // groups stand beside the role
		units := slices.DeleteFunc(slices.Clone(cert.Subject.OrganizationalUnit), func(unit string) bool { return unit == role })
		id = User(id.Cluster, name, units...)
	}
	if !ok || uri.String() != id.String() {
		return none, fmt.Errorf("%w: URI %q is not spiffe://<cluster>/<role>/<name>", ErrNoIdentity, uri)
	}
	if err := id.Check(); err != nil {
		return none, fmt.Errorf("%w: URI %q: %w", ErrNoIdentity, uri, err)
	}
	// The subject says the same for those who read nothing else. If it could
	// differ, one certificate would be two machines.
	if !isSubject(cert.Subject, id) {
		return none, fmt.Errorf("%w: its subject %q contradicts its URI %q", ErrNoIdentity, cert.Subject, uri)
	}
	return id, nil
}

// subject is the X.509 form of an identity.
func subject(id Identity) pkix.Name {
	return pkix.Name{Organization: []string{id.Cluster}, OrganizationalUnit: append([]string{string(id.Role)}, id.GroupList()...), CommonName: id.Name}
}

// isSubject reports whether the subject of a parsed certificate says what that of id
// does, and nothing else. Several units have an order of the encoding's own.
func isSubject(got pkix.Name, id Identity) bool {
	want := subject(id)
	return got.CommonName == want.CommonName && slices.Equal(got.Organization, want.Organization) &&
		slices.Equal(slices.Sorted(slices.Values(got.OrganizationalUnit)), slices.Sorted(slices.Values(want.OrganizationalUnit))) &&
		(len(got.Names) == 2+len(want.OrganizationalUnit) || len(got.Names) == 0) // none: never encoded
}
