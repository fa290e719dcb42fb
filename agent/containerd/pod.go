package containerd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"

	"github.com/containerd/containerd/v2/core/containers"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// podRecord is a created pod as its file pod.json holds it.
type podRecord struct {
	UID       string `json:"uid"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Hostname  string `json:"hostname"`
	NetNS     string `json:"netns,omitempty"`
	HostPID   bool   `json:"hostPID,omitempty"`
	HostIPC   bool   `json:"hostIPC,omitempty"`
	SharePID  bool   `json:"sharePID,omitempty"`
	// Sysctls are set in each container: they are the pod's namespaces'.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// Tier is the cgroup that the pod's is in; empty: the node's.
	Tier      string            `json:"tier,omitempty"`
	Resources runtime.Resources `json:"resources"`
}

// podFiles says where a pod's things are.
type podFiles struct {
	dir   string // persistent: record, files, logs
	state string // transient: mounts
}

func (r *Runtime) filesOf(uid string) podFiles {
	return podFiles{
		dir:   filepath.Join(r.cfg.Root, "pods", uid),
		state: filepath.Join(r.cfg.State, "pods", uid),
	}
}

func (p podFiles) record() string   { return filepath.Join(p.dir, "pod.json") }
func (p podFiles) hosts() string    { return filepath.Join(p.dir, "hosts") }
func (p podFiles) resolv() string   { return filepath.Join(p.dir, "resolv.conf") }
func (p podFiles) hostname() string { return filepath.Join(p.dir, "hostname") }
func (p podFiles) shm() string      { return filepath.Join(p.state, "shm") }
func (p podFiles) uts() string      { return filepath.Join(p.state, "uts") }
func (p podFiles) ipc() string      { return filepath.Join(p.state, "ipc") }
func (p podFiles) pid() string      { return filepath.Join(p.state, "pid") }

func (p podFiles) logs(id runtime.ContainerID) string {
	return filepath.Join(p.dir, "logs", id.Name, strconv.Itoa(id.Attempt))
}

// CreatePod prepares what the containers of a pod share: host name and IPC
// namespaces, /dev/shm, and the files that name hosts. Creating a pod that
// exists brings its files up to date and is not an error.
func (r *Runtime) CreatePod(ctx context.Context, pod runtime.Pod) error {
	if err := checkPodUID(pod.UID); err != nil {
		return err
	}
	_, cancel, err := r.call(ctx, changeTimeout)
	if err != nil {
		return err
	}
	defer cancel()
	if err := r.createPod(pod); err != nil {
		return fmt.Errorf("create pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	r.notify()
	return nil
}

func (r *Runtime) createPod(pod runtime.Pod) error {
	files := r.filesOf(pod.UID)
	record := podRecord{
		UID: pod.UID, Namespace: pod.Namespace, Name: pod.Name, Hostname: pod.Hostname, NetNS: pod.NetNS,
		HostPID: pod.HostPID, HostIPC: pod.HostIPC, SharePID: pod.SharePID, Sysctls: pod.Sysctls,
		Tier: tierOf(pod.QOS), Resources: pod.Resources,
	}
	if old, err := r.readPod(pod.UID); err == nil {
		record.Tier, record.SharePID = old.Tier, old.SharePID // where its containers are
	}
	if record.Hostname == "" {
		if record.Hostname = pod.Name; pod.NetNS == "" {
			host, err := os.Hostname()
			if err != nil {
				return err
			}
			record.Hostname = host
		}
	}
	for _, dir := range []string{files.dir, files.state} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	hosts, resolv := pod.Hosts, pod.ResolvConf
	var err error
	if hosts == nil {
		if hosts, err = readIfThere("/etc/hosts"); err != nil {
			return err
		}
	}
	if resolv == nil {
		if resolv, err = readIfThere("/etc/resolv.conf"); err != nil {
			return err
		}
	}
	for path, data := range map[string][]byte{
		files.hosts():    hosts,
		files.resolv():   resolv,
		files.hostname(): []byte(record.Hostname + "\n"),
	} {
		if err := writeInPlace(path, data); err != nil {
			return err
		}
	}
	if err := makeShm(files.shm()); err != nil {
		return err
	}
	if err := makeNamespaces(files.uts(), files.ipc(), record.Hostname); err != nil {
		return err
	}
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	// From here on it is listed, and what follows is undone with it.
	if err := writeAtomically(files.record(), data); err != nil {
		return err
	}
	if err := r.weigh(pod.UID, record); err != nil {
		return err
	}
	if err := setCgroup(r.podCgroup(pod.UID), pod.Resources); err != nil {
		return err
	}
	if record.SharePID {
		return r.holdProcesses(pod.UID)
	}
	return nil
}

func readIfThere(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return []byte{}, nil
	}
	return data, err
}

// writeInPlace keeps the file's inode, which containers have mounted.
func writeInPlace(path string, data []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	return os.WriteFile(path, data, 0o644)
}

func writeAtomically(path string, data []byte) error {
	fresh := path + ".new"
	if err := os.WriteFile(fresh, data, 0o644); err != nil {
		return err
	}
	return os.Rename(fresh, path)
}

// makeShm mounts the pod's /dev/shm, of Kubernetes' size.
func makeShm(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if fsType(dir) == unix.TMPFS_MAGIC && isMountPoint(dir) {
		return nil
	}
	if err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size=65536k"); err != nil {
		return fmt.Errorf("mount /dev/shm at %s: %w", dir, err)
	}
	return nil
}

// makeNamespaces makes a host name namespace and an IPC namespace, held by bind
// mounts at uts and ipc: so they survive the pod's containers, each of which
// joins them. Those that are there are kept.
func makeNamespaces(uts, ipc, hostname string) error {
	if fsType(uts) == unix.NSFS_MAGIC && fsType(ipc) == unix.NSFS_MAGIC {
		return nil
	}
	for _, path := range []string{uts, ipc} {
		if err := releaseMount(path); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
		if err != nil {
			return err
		}
		f.Close()
	}
	return onThrowAwayThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWUTS | unix.CLONE_NEWIPC); err != nil {
			return fmt.Errorf("make namespaces: %w", err)
		}
		if err := unix.Sethostname([]byte(hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", hostname, err)
		}
		for path, ns := range map[string]string{uts: "/proc/thread-self/ns/uts", ipc: "/proc/thread-self/ns/ipc"} {
			if err := unix.Mount(ns, path, "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("bind namespace at %s: %w", path, err)
			}
		}
		return nil
	})
}

// onThrowAwayThread calls f on a thread that ends with it, so that f may change
// the thread's namespaces. It is never the main thread, which cannot end, and
// whose namespaces /proc/self shows.
func onThrowAwayThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // not unlocked: then the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		// On the main thread: while it is locked here, another goroutine gets another.
		inner := make(chan error, 1)
		go func() {
			goruntime.LockOSThread()
			inner <- f()
		}()
		done <- <-inner
		goruntime.UnlockOSThread()
	}()
	return <-done
}

func fsType(path string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return 0
	}
	return st.Type
}

func isMountPoint(dir string) bool {
	var at, above unix.Stat_t
	return unix.Stat(dir, &at) == nil && unix.Stat(filepath.Dir(dir), &above) == nil && at.Dev != above.Dev
}

// releaseMount undoes all mounts at path. What is not mounted, or not there, is
// not an error.
func releaseMount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// readPod returns the record of a created pod, runtime.ErrNotFound if there is none.
func (r *Runtime) readPod(uid string) (podRecord, error) {
	var record podRecord
	data, err := os.ReadFile(r.filesOf(uid).record())
	if errors.Is(err, fs.ErrNotExist) {
		return record, fmt.Errorf("pod %s: %w", uid, runtime.ErrNotFound)
	}
	if err != nil {
		return record, err
	}
	if err := json.Unmarshal(data, &record); err != nil {
		return record, fmt.Errorf("pod %s: its record is damaged: %w", uid, err)
	}
	return record, nil
}

// RemovePod kills what runs in a pod and takes all of it away, but for its logs.
func (r *Runtime) RemovePod(ctx context.Context, uid string) error {
	if err := checkPodUID(uid); err != nil {
		return err
	}
	ctx, cancel, err := r.call(ctx, changeTimeout)
	if err != nil {
		return err
	}
	defer cancel()
	release, err := r.shims.lock(ctx, uid)
	if err != nil {
		return fmt.Errorf("remove pod %s: wait for its containers: %w", uid, err)
	}
	defer release()
	if err := r.removePod(ctx, uid); err != nil {
		return fmt.Errorf("remove pod %s: %w", uid, err)
	}
	r.notify()
	return nil
}

func (r *Runtime) removePod(ctx context.Context, uid string) error {
	all, err := r.client.ContainerService().List(ctx, podFilter(uid))
	if err != nil {
		return fmt.Errorf("list its containers: %w", err)
	}
	if err := r.removeContainers(ctx, all); err != nil {
		return err
	}
	return r.forgetPod(ctx, uid)
}

// removeContainers kills all of them, then removes them.
func (r *Runtime) removeContainers(ctx context.Context, all []containers.Container) error {
	for _, c := range all {
		if err := r.kill(ctx, c.ID); err != nil {
			r.log.Warn("container cannot be killed through containerd", "container", c.ID, "error", err)
		}
	}
	for _, c := range all {
		id, ok := idOf(c)
		if !ok {
			continue
		}
		if err := r.remove(ctx, c); err != nil {
			return fmt.Errorf("remove container %s: %w", id.Name, err)
		}
	}
	return nil
}

// forgetPod takes away all of a pod but its containers.
func (r *Runtime) forgetPod(ctx context.Context, uid string) error {
	files := r.filesOf(uid)
	r.releaseProcesses(uid)
	for _, mount := range []string{files.shm(), files.uts(), files.ipc(), files.pid()} {
		if err := releaseMount(mount); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(files.state); err != nil {
		return err
	}
	if err := removeCgroup(ctx, r.podCgroup(uid)); err != nil {
		return err
	}
	if err := r.weigh(uid, podRecord{}); err != nil {
		r.log.Warn("pods' weights are not up to date", "error", err)
	}
	if err := r.keepLogs(uid); err != nil {
		return err
	}
	// The record goes last: until then, List shows what is left of the pod.
	entries, err := os.ReadDir(files.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if path := filepath.Join(files.dir, e.Name()); path != files.record() {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(files.dir)
}
