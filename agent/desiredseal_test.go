package agent

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
)

// TestDesiredIsSealed: what is kept does not show what is in it, comes back as it was,
// is read in its old format too, and not when somebody changed it or its key.
func TestDesiredIsSealed(t *testing.T) {
	dir := t.TempDir()
	want := desired{revision: 7, peers: []string{"canary-192.0.2.1:7443"}}
	if err := want.save(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, desiredFile)
	data, err := os.ReadFile(path)
	if err != nil || bytes.Contains(data, []byte("canary")) {
		t.Errorf("%v: it can be read: %q", err, data)
	}
	if info, err := os.Stat(filepath.Join(dir, desiredKeyFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info, err)
	}
	check := func() {
		t.Helper()
		if got, err := loadDesired(dir); err != nil || got.revision != 7 || len(got.peers) != 1 || got.peers[0] != want.peers[0] {
			t.Errorf("%+v, %v", got, err)
		}
	}
	check()
	for _, change := range []func(){
		func() { data[len(data)-20] ^= 1 },
		func() { data = data[:len(desiredSealed)+3] },
	} {
		change()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadDesired(dir); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("changed: %v", err)
		}
	}
	body, err := proto.Marshal(&agentv1.DesiredResponse{Complete: true, Revision: 7, HasRoutes: true, Peers: want.peers})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(fmt.Appendf(nil, "%s%08x\n", desiredHeader, crc32.ChecksumIEEE(body)), body...), 0o600); err != nil {
		t.Fatal(err)
	}
	check()
}
