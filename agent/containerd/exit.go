package containerd

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"
)

// exitName is the file beside a container's log in which its shim notes how it
// has ended. containerd forgets containers that end while it is away: when it
// comes back and finds no process, it clears them away, exit code and all.
const exitName = "exit.json"

// exitRecord is how a container has ended, as its shim saw it.
type exitRecord struct {
	Code      int       `json:"code"`
	At        time.Time `json:"at"`
	OOMKilled bool      `json:"oomKilled,omitempty"`
	Message   string    `json:"-"` // why, when that is not known from its shim
}

// lost is the end of a container of which nothing is known.
func lost() exitRecord {
	return exitRecord{Code: exitLost, At: time.Now(), Message: messageLost}
}

// writeExit is called by the shim.
func writeExit(logDir string, e exitRecord) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return writeAtomically(filepath.Join(logDir, exitName), data)
}

// readExit returns what a container's shim has noted, or that it is lost.
func readExit(logDir string) exitRecord {
	data, err := os.ReadFile(filepath.Join(logDir, exitName))
	if err != nil {
		return lost() // a foreign shim's, or one that was killed
	}
	var e exitRecord
	if err := json.Unmarshal(data, &e); err != nil {
		return lost()
	}
	return e
}

// cgroupOfBundle is the cgroup of a container, by the spec in its bundle.
func cgroupOfBundle(bundle string) string {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return ""
	}
	var spec struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if json.Unmarshal(data, &spec) != nil {
		return ""
	}
	return spec.Linux.CgroupsPath
}
