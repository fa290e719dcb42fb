package agent

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// What the agent keeps of its desired state has secrets in it, so that pods start while
// no peer answers. It is sealed with a key in a file beside it: that keeps values out of
// copies of single files, of logs of a disk's blocks, and of searches; not from whoever
// reads the whole directory as its owner.

// desiredKeyFile has the key, 32 bytes.
const desiredKeyFile = "desired.key"

// desiredSealer returns what seals the state in dir. Its key is made if create is set and
// there is none.
func desiredSealer(dir string, create bool) (cipher.AEAD, error) {
	path := filepath.Join(dir, desiredKeyFile)
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && create {
		var fresh [32]byte
		rand.Read(fresh[:])
		key, err = fresh[:], writeAtomic(path, fresh[:])
	}
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// sealDesired returns body as it is kept in dir.
func sealDesired(dir string, body []byte) ([]byte, error) {
	aead, err := desiredSealer(dir, true)
	if err != nil {
		return nil, err
	}
	return aead.Seal([]byte(desiredSealed), nil, body, []byte(desiredSealed)), nil
}

// openDesired returns what sealDesired was given.
func openDesired(dir string, data []byte) ([]byte, error) {
	aead, err := desiredSealer(dir, false)
	if err != nil {
		return nil, err
	}
	body, err := aead.Open(nil, nil, data[len(desiredSealed):], []byte(desiredSealed))
	if err != nil {
		return nil, fmt.Errorf("%s is damaged, or sealed with another key than %s", filepath.Join(dir, desiredFile), desiredKeyFile)
	}
	return body, nil
}
