package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"
)

// A sealed backup is an age file (age-encryption.org/v1), which age itself opens, too. In
// it are: the magic, the length of the keys that Secrets are sealed with (four bytes, big
// endian), these keys, and a backup as it is without a seal.
const (
	sealedBackupMagic = "holdfast/sealed-backup/1\n"
	ageMagic          = "age-encryption.org/v1\n"
	maxSecretKeys     = 1 << 20
	// passphraseWork is how much a guess of the passphrase costs: about a second.
	passphraseWork = 18
)

// backupSeal says how a backup is sealed: with a passphrase, or for recipients.
type backupSeal struct {
	passphraseFile string
	recipients     []string
}

// to returns for whom a backup is sealed; none: it is not.
func (s backupSeal) to() ([]age.Recipient, error) {
	if s.passphraseFile != "" && len(s.recipients) > 0 {
		return nil, failf(exitUsage, "--passphrase-file and --recipient do not go together")
	}
	if s.passphraseFile != "" {
		passphrase, err := readPassphrase(s.passphraseFile)
		if err != nil {
			return nil, err
		}
		r, err := age.NewScryptRecipient(passphrase)
		if err != nil {
			return nil, err
		}
		r.SetWorkFactor(passphraseWork)
		return []age.Recipient{r}, nil
	}
	var to []age.Recipient
	for _, text := range s.recipients {
		found, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil {
			return nil, failf(exitUsage, "--recipient %s: %v; age-keygen makes one", text, err)
		}
		to = append(to, found...)
	}
	return to, nil
}

// readPassphrase returns the first line of a file that only its owner can read.
func readPassphrase(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if perm := info.Mode().Perm(); info.Mode().IsRegular() && perm&0o077 != 0 {
		return "", failf(exitUsage, "%s has mode %#o, so others can read the passphrase: chmod 600 it", path, perm)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	if line = strings.TrimRight(line, "\r"); line == "" {
		return "", failf(exitUsage, "the first line of %s is empty: it is to be the passphrase", path)
	}
	return line, nil
}

// sealBackup returns a writer whose content goes sealed to out. It begins with the keys;
// Close ends it, and not out.
func sealBackup(out io.Writer, to []age.Recipient, secretKeys []byte) (io.WriteCloser, error) {
	w, err := age.Encrypt(out, to...)
	if err != nil {
		return nil, err
	}
	head := append([]byte(sealedBackupMagic), binary.BigEndian.AppendUint32(nil, uint32(len(secretKeys)))...)
	_, err = w.Write(append(head, secretKeys...))
	return w, err
}

// backupKey says how a sealed backup is opened.
type backupKey struct {
	passphraseFile, identityFile string
}

func (k backupKey) identities() ([]age.Identity, error) {
	switch {
	case k.passphraseFile != "":
		passphrase, err := readPassphrase(k.passphraseFile)
		if err != nil {
			return nil, err
		}
		id, err := age.NewScryptIdentity(passphrase)
		if err != nil {
			return nil, err
		}
		return []age.Identity{id}, nil
	case k.identityFile != "":
		file, err := os.Open(k.identityFile)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		return age.ParseIdentities(file)
	}
	return nil, failf(exitUsage, "the backup is sealed: say --passphrase-file, or --identity, with what it was sealed with")
}

// openBackup returns the backup in a file, which may be sealed, and the keys that Secrets
// in it are sealed with, if it has them.
func openBackup(file io.ReadSeeker, key backupKey) (backup io.ReadSeeker, secretKeys []byte, err error) {
	begin := make([]byte, len(ageMagic))
	n, err := io.ReadFull(file, begin)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, nil, err
	}
	if string(begin[:n]) != ageMagic {
		return file, nil, nil
	}
	identities, err := key.identities()
	if err != nil {
		return nil, nil, err
	}
	sealed := &sealedBackup{file: file, identities: identities}
	if secretKeys, err = sealed.rewind(); err != nil {
		return nil, nil, err
	}
	return sealed, secretKeys, nil
}

// sealedBackup reads what is in a sealed backup. It seeks to its beginning alone, which
// is what a restore does.
type sealedBackup struct {
	file       io.ReadSeeker
	identities []age.Identity
	r          io.Reader
}

func (s *sealedBackup) rewind() (secretKeys []byte, err error) {
	if _, err := s.file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	r, err := age.Decrypt(bufio.NewReader(s.file), s.identities...)
	if noMatch := new(age.NoIdentityMatchError); errors.As(err, &noMatch) {
		return nil, errors.New("the backup does not open: the passphrase or key is not the one that it was sealed with")
	}
	if err != nil {
		return nil, fmt.Errorf("open the sealed backup: %w", err)
	}
	head := make([]byte, len(sealedBackupMagic)+4)
	if _, err := io.ReadFull(r, head); err != nil || !bytes.HasPrefix(head, []byte(sealedBackupMagic)) {
		return nil, errors.New("it is an age file, but no backup of holdfast's: open it with age, and restore what is in it")
	}
	size := binary.BigEndian.Uint32(head[len(sealedBackupMagic):])
	if size > maxSecretKeys {
		return nil, fmt.Errorf("the sealed backup is damaged: %d bytes of keys", size)
	}
	secretKeys = make([]byte, size)
	if _, err := io.ReadFull(r, secretKeys); err != nil {
		return nil, fmt.Errorf("read the sealed backup: %w", err)
	}
	s.r = r
	return secretKeys, nil
}

func (s *sealedBackup) Read(p []byte) (int, error) { return s.r.Read(p) }

func (s *sealedBackup) Seek(offset int64, whence int) (int64, error) {
	if offset != 0 || whence != io.SeekStart {
		return 0, errors.New("a sealed backup is read from its beginning")
	}
	_, err := s.rewind()
	return 0, err
}
