//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent/deadman"
	"github.com/holdfast-io/holdfast/agent/volume"
	"github.com/holdfast-io/holdfast/internal/datadir"
)

// nodeFiles are what a node has in its data directory. What else is there is somebody
// else's.
var nodeFiles = []string{"node.json", "pki", "gossip.key", "agent", "containers", "lock"}

// endPatience bounds the wait for a process of ours that was told to end.
const endPatience = 15 * time.Second

// runUninstall takes away all that a node has on this machine. It may be called again,
// also after it was broken off.
func (a *app) runUninstall(ctx context.Context, f agentFlags) error {
	dir, err := filepath.Abs(f.config.DataDir)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return failf(exitError, "links, mounts and containers need root: run this with sudo")
	}
	name, err := uninstallName(dir, f.config.Name)
	if err != nil {
		return err
	}
	if f.host.runDir == "" {
		f.host.runDir = filepath.Join("/run/holdfast", name)
	}
	var files []string
	for _, file := range nodeFiles {
		if path := filepath.Join(dir, file); exists(path) {
			files = append(files, path)
		}
	}
	if len(files) == 0 && !exists(f.host.runDir) {
		fmt.Fprintf(a.stdout, "nothing of a node is in %s or %s\n", dir, f.host.runDir)
		return nil
	}
	// Whoever runs the agent would only set it all up again.
	lock, err := datadir.Lock(dir)
	if err != nil {
		return fmt.Errorf("the agent must be stopped before: %w", err)
	}
	defer lock.Close()

	fmt.Fprintf(a.stderr, `This removes node %s from this machine:
  all of its pods and their containers, which are killed at once
  links, routes and rules between its pods and other nodes
  %s
  with all images, logs, and the data of volumes that were made here
`, name, strings.Join(append(files, f.host.runDir), "\n  "))
	if err := a.confirm(f.yes, "Remove it all?"); err != nil {
		return err
	}

	f.host.dataDir = dir
	log := slog.New(slog.DiscardHandler)
	rt, net, err := f.host.containers(name, log)
	if err != nil {
		return err
	}
	var failed error
	if exists(filepath.Join(dir, "containers")) {
		failed = errors.Join(failed, rt.Purge(ctx))
	}
	failed = errors.Join(failed, endDeadman(filepath.Join(dir, "agent", "fencing")), net.Remove(ctx))
	for _, path := range []string{filepath.Join(dir, "agent"), filepath.Join(dir, "containers"), f.host.runDir} {
		if exists(path) {
			failed = errors.Join(failed, volume.Kernel{}.Unmount(path))
		}
	}
	if failed != nil {
		// With a mount left below, removing files would remove what is mounted.
		return fmt.Errorf("not all could be removed, and no file was; run this again: %w", failed)
	}
	for _, path := range append([]string{f.host.runDir}, files...) {
		failed = errors.Join(failed, os.RemoveAll(path))
	}
	// Made by the lock, perhaps just now.
	failed = errors.Join(failed, os.RemoveAll(filepath.Join(dir, "lock")))
	for _, path := range []string{dir, filepath.Dir(f.host.runDir)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			failed = errors.Join(failed, err)
		}
	}
	if failed != nil {
		return failed
	}
	if exists(dir) {
		fmt.Fprintf(a.stdout, "%s stays: it has files that are none of the node's\n", dir)
	}
	fmt.Fprintf(a.stdout, "node %s is gone from this machine; the cluster forgets it with: holdfast delete node %s\n", name, name)
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// uninstallName is the name of the node of dir: what it was made with, or would be.
func uninstallName(dir, given string) (string, error) {
	var rec struct {
		Name string `json:"name"`
	}
	if ok, err := datadir.ReadJSON(filepath.Join(dir, "node.json"), &rec, "say its --name"); ok && err == nil && rec.Name != "" {
		return rec.Name, nil
	} else if err != nil && given == "" {
		return "", err
	}
	if given != "" {
		return given, nil
	}
	return datadir.HostName()
}

// endDeadman ends the process that watches over the pods of a node that has none any
// more.
func endDeadman(dir string) error {
	if !exists(dir) {
		return nil
	}
	// It must not wait for pods: they are gone.
	if err := os.RemoveAll(filepath.Join(dir, "pods")); err != nil {
		return err
	}
	for deadline := time.Now().Add(endPatience); ; time.Sleep(50 * time.Millisecond) {
		pids, err := deadmen(dir)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the dead-man does not end: processes %v", pids)
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGTERM)
		}
	}
}

// deadmen are the processes that watch over that directory.
func deadmen(dir string) (pids []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue // gone
		}
		var args []string
		for _, arg := range bytes.Split(line, []byte{0}) {
			args = append(args, string(arg))
		}
		if deadman.Is(args) && slices.Contains(args[1:], dir) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
