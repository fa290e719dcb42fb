package seal

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// WriteFile makes a file of mode 0600 that exists whole or not at all, power loss
// included, in place of one that may be there.
func WriteFile(path string, data []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*"+TempSuffix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	if _, err := tmp.Write(data); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// TempSuffix ends the names of files that a crash may leave behind, for nobody.
const TempSuffix = ".tmp"

// SyncDir makes the names in a directory durable.
func SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// keyFilePrefix begins the one line of a key file; the key follows in base64.
const keyFilePrefix = "holdfast-key-1 "

// MakeKeyFile makes a file with a new key, of mode 0600, and returns it.
func MakeKeyFile(path string) (Keys, error) {
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	if err := WriteFile(path, []byte(keyFilePrefix+base64.StdEncoding.EncodeToString(key)+"\n")); err != nil {
		return nil, err
	}
	return NewKeys(key)
}

// KeyFile returns the key in a file that MakeKeyFile made. It refuses a file that
// others than its owner may read.
func KeyFile(path string) (Keys, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("key file %s has mode %#o, so others can read it: chmod 600 it, and rotate the key if somebody may have", path, perm)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	text, ok := strings.CutPrefix(strings.TrimSpace(string(data)), keyFilePrefix)
	key, err := base64.StdEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(key) != keySize {
		return nil, fmt.Errorf("key file %s: %w", path, ErrDamaged)
	}
	return NewKeys(key)
}

// NewKeys returns Keys that wrap by AES-256-GCM under one key of 32 bytes.
func NewKeys(key []byte) (Keys, error) {
	if len(key) != keySize {
		return nil, fmt.Errorf("a key of %d bytes, where 32 are needed", len(key))
	}
	aead, err := newAEAD(key)
	return &fixedKey{aead, rand.Reader}, err
}

type fixedKey struct {
	aead   cipher.AEAD
	random io.Reader
}

// Wrap implements Keys.
func (f *fixedKey) Wrap(key, context []byte) ([]byte, error) {
	nonce := make([]byte, nonceSize, nonceSize+len(key)+tagSize)
	if _, err := io.ReadFull(f.random, nonce); err != nil {
		return nil, err
	}
	return f.aead.Seal(nonce, nonce, key, context), nil
}

// Unwrap implements Keys.
func (f *fixedKey) Unwrap(wrapped, context []byte) ([]byte, error) {
	if len(wrapped) < nonceSize {
		return nil, ErrDamaged
	}
	key, err := f.aead.Open(nil, wrapped[:nonceSize], wrapped[nonceSize:], context)
	if err != nil {
		return nil, fmt.Errorf("%w; or the key that wraps it is another", ErrDamaged)
	}
	return key, nil
}
