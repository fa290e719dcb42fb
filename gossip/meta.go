package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// metaVersion is the version of meta data that this program writes. Later
// versions may only append to it, so that older programs can read their part.
const metaVersion = 1

// meta is what a member says about itself beside its name and address: one
// byte of version, one of role, and the addresses of the API and of etcd's API,
// each with its length; the last is missing where it was written before there was
// one. Every member sends it in every alive message, so it has to stay small
// (memberlist's limit is 512 bytes).
type meta struct {
	Role string // RolePeer or RoleNode
	API  string // host:port; peers only
	Etcd string // host:port; peers that serve etcd's API
}

var roleCodes = map[string]byte{RolePeer: 'p', RoleNode: 'n'}

func (m meta) encode() []byte {
	out := []byte{metaVersion, roleCodes[m.Role]}
	for _, address := range [...]string{m.API, m.Etcd} {
		out = binary.AppendUvarint(out, uint64(len(address)))
		out = append(out, address...)
	}
	return out
}

// decodeMeta reads meta data of this version or a later one. The bytes come
// from the network.
func decodeMeta(data []byte) (meta, error) {
	if len(data) < 2 || data[0] == 0 {
		return meta{}, errors.New("no Holdfast meta data")
	}
	var m meta
	for role, code := range roleCodes {
		if data[1] == code {
			m.Role = role
		}
	}
	if m.Role == "" {
		return meta{}, fmt.Errorf("meta data: unknown role %q", data[1])
	}
	rest := data[2:]
	for i, address := range [...]*string{&m.API, &m.Etcd} {
		if i > 0 && len(rest) == 0 {
			break
		}
		length, n := binary.Uvarint(rest)
		if n <= 0 || length > uint64(len(rest)-n) {
			return meta{}, errors.New("meta data: cut off")
		}
		*address, rest = string(rest[n:][:length]), rest[n:][length:]
	}
	return m, nil
}
