package raftstore_test

import (
	"bytes"
	"testing"

	"github.com/holdfast-io/holdfast/raftstore"
)

// FuzzReadBackup: whatever is in the file, it is read whole or refused.
func FuzzReadBackup(f *testing.F) {
	f.Add([]byte("holdfast/backup\r\n\x1a"))
	f.Add([]byte("holdfast/backup\r\n\x1a\x01\x00\x00\x00\x02\x00\x00\x00\x00\x08\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = raftstore.ReadBackupHeader(bytes.NewReader(data))
		if info, err := raftstore.ReadBackup(bytes.NewReader(data)); err == nil && info.ClusterID == "" {
			t.Errorf("a backup of no cluster: %+v", info)
		}
	})
}
