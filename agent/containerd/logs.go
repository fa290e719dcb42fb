package containerd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent/containerd/logfile"
	"github.com/holdfast-io/holdfast/agent/runtime"
)

// Logs writes a container's log to w. The logs of the last few runs are there,
// also when the container or its pod was removed. It returns
// runtime.ErrNotFound when there never was such a container, or RemoveLogs was called.
func (r *Runtime) Logs(ctx context.Context, id runtime.ContainerID, options runtime.LogOptions, w io.Writer) error {
	if err := checkContainerID(id); err != nil {
		return err
	}
	dir := r.filesOf(id.PodUID).logs(id)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		dir = r.keptFiles(id.PodUID).logs(id)
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("log of container %s, run %d: %w", id.Name, id.Attempt, runtime.ErrNotFound)
	}
	read := logfile.Options{Tail: options.TailLines, Since: options.Since, Timestamps: options.Timestamps}
	if options.Follow {
		read.Ended = func(ctx context.Context) bool { return r.logEnded(ctx, id) }
	}
	err := logfile.Read(ctx, dir, read, w)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // created, nothing written
	}
	if err != nil {
		return fmt.Errorf("log of container %s: %w", id.Name, err)
	}
	return nil
}

// logEnded tells whether a container whose log nobody has open will not write
// again: it has ended, or is gone. When containerd cannot be asked, it may.
func (r *Runtime) logEnded(ctx context.Context, id runtime.ContainerID) bool {
	ctx, cancel, err := r.call(ctx, readTimeout)
	if err != nil {
		return false
	}
	defer cancel()
	handle := handleOf(id)
	if r.isStarting(handle) {
		return false
	}
	record, err := r.client.ContainerService().Get(ctx, handle)
	if errdefs.IsNotFound(err) {
		return true
	}
	if err != nil {
		return false
	}
	if record.Labels[labelFinished] != "" {
		return true
	}
	ended, err := r.hasEnded(ctx, handle)
	return err == nil && ended
}

// keptDir is where the logs of removed pods are, below Root: UID/pod.json and UID/logs.
const keptDir = "removed"

// keptRecord is a removed pod as its file pod.json holds it.
type keptRecord struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	RemovedAt time.Time `json:"removedAt"`
}

func (r *Runtime) keptFiles(uid string) podFiles {
	return podFiles{dir: filepath.Join(r.cfg.Root, keptDir, uid)}
}

// keepLogs puts a pod's logs aside. It may be called again.
func (r *Runtime) keepLogs(uid string) error {
	from, to := r.filesOf(uid), r.keptFiles(uid)
	logs := filepath.Join(from.dir, "logs")
	if _, err := os.Stat(logs); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.RemoveAll(to.dir); err != nil {
		return err
	}
	record := keptRecord{RemovedAt: time.Now()}
	if pod, err := r.readPod(uid); err == nil {
		record.Namespace, record.Name = pod.Namespace, pod.Name
	}
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to.dir, 0o711); err != nil {
		return err
	}
	if err := writeAtomically(to.record(), data); err != nil {
		return err
	}
	return os.Rename(logs, filepath.Join(to.dir, "logs"))
}

// KeptLogs returns the removed pods whose logs are still there, by uid.
func (r *Runtime) KeptLogs(context.Context) ([]runtime.KeptLogs, error) {
	dir := filepath.Join(r.cfg.Root, keptDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list logs of removed pods: %w", err)
	}
	var all []runtime.KeptLogs
	for _, e := range entries {
		uid := e.Name()
		if checkPodUID(uid) != nil {
			continue
		}
		kept := runtime.KeptLogs{UID: uid}
		var record keptRecord
		if data, err := os.ReadFile(r.keptFiles(uid).record()); err == nil && json.Unmarshal(data, &record) == nil {
			kept.Namespace, kept.Name, kept.RemovedAt = record.Namespace, record.Name, record.RemovedAt
		} // else it is as old as can be, and goes first
		logs := filepath.Join(dir, uid, "logs")
		_ = filepath.WalkDir(logs, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // it is removed just now
			}
			below, err := filepath.Rel(logs, path)
			if err != nil {
				return nil
			}
			if name, text, ok := strings.Cut(below, "/"); ok && d.IsDir() {
				if attempt, err := strconv.Atoi(text); err == nil {
					kept.Runs = append(kept.Runs, runtime.ContainerID{PodUID: uid, Name: name, Attempt: attempt})
				}
			}
			var st unix.Stat_t
			if !d.IsDir() && unix.Lstat(path, &st) == nil {
				kept.Bytes += st.Blocks * 512
			}
			return nil
		})
		slices.SortFunc(kept.Runs, func(a, b runtime.ContainerID) int {
			return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Attempt, b.Attempt))
		})
		all = append(all, kept)
	}
	return all, nil
}

// RemoveLogs takes away the logs of a removed pod.
func (r *Runtime) RemoveLogs(_ context.Context, podUID string) error {
	if err := checkPodUID(podUID); err != nil {
		return err
	}
	if err := os.RemoveAll(r.keptFiles(podUID).dir); err != nil {
		return fmt.Errorf("remove the logs of pod %s: %w", podUID, err)
	}
	return nil
}
