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
// byte of version, one of role, and the API's address with its length. Every
// member sends it in every alive message, so it has to stay small (memberlist's
// limit is 512 bytes).
type meta struct {
	Role string // RolePeer or RoleNode
	API  string // host:port; peers only
}

var roleCodes = map[string]byte{RolePeer: 'p', RoleNode: 'n'}

func (m meta) encode() []byte {
	out := []byte{metaVersion, roleCodes[m.Role]}
	out = binary.AppendUvarint(out, uint64(len(m.API)))
	return append(out, m.API...)
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
	length, n := binary.Uvarint(data[2:])
	if n <= 0 || length > uint64(len(data)-2-n) {
		return meta{}, errors.New("meta data: cut off")
	}
	m.API = string(data[2+n:][:length])
	return m, nil
}
