package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"golang.org/x/sys/unix"
)

// Shutdown ends our containerd and returns once it has ended. Containers go on;
// a later Run finds them. It does nothing to a containerd that is not ours.
// Call it after Run has returned, or Run starts containerd again.
func (r *Runtime) Shutdown(ctx context.Context) error {
	if r.server == nil {
		return nil
	}
	return r.server.stop(ctx)
}

// Purge kills all pods of this node and takes away all that the runtime has made
// for them on the machine: containers, snapshots, mounts, cgroups, processes,
// sockets. Images and containerd's own data stay under Root. In the end it does
// what Shutdown does. Call it after Run has returned, or without Run: also for a
// node whose agent was killed. What it could not undo is in the error, and it
// goes on to the rest.
func (r *Runtime) Purge(ctx context.Context) error {
	var failed error
	if err := r.purgeContainers(ctx); err != nil {
		failed = fmt.Errorf("remove the node's containers: %w", err)
	}
	// From here on without containerd's help: what it could not do, or knew
	// nothing of.
	for _, pid := range r.shimPIDs() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	killCgroup(r.cgroup)
	failed = errors.Join(failed, r.Shutdown(ctx), r.waitShims(ctx), unmountBelow(r.cfg.State), removeCgroup(ctx, r.cgroup))
	removeIfEmpty(ctx, filepath.Dir(r.cgroup)) // shared with other nodes of the machine
	failed = errors.Join(failed, os.RemoveAll(r.cfg.State), os.RemoveAll(filepath.Join(r.cfg.Root, "pods")), os.RemoveAll(filepath.Join(r.cfg.Root, keptDir)))
	if r.server != nil {
		failed = errors.Join(failed, os.RemoveAll(r.server.serve.SocketDir))
	}
	return failed
}

func (r *Runtime) purgeContainers(ctx context.Context) error {
	if r.client == nil {
		if err := r.connect(ctx); err != nil {
			return err
		}
	} else if r.server != nil {
		if err := r.server.ensure(ctx); err != nil {
			return err
		}
		resetBackoff(r.client)
	}
	ctx, cancel := context.WithTimeout(r.containerdContext(ctx), 2*changeTimeout)
	defer cancel()
	all, err := r.client.ContainerService().List(ctx)
	if err != nil {
		return err
	}
	if err := r.removeContainers(ctx, all); err != nil {
		return err
	}
	var uids []string
	for _, record := range r.podRecords() {
		uids = append(uids, record.UID)
	}
	for _, c := range all {
		if id, ok := idOf(c); ok {
			uids = append(uids, id.PodUID)
		}
	}
	// Snapshots are deleted by the garbage collector, some time later: not later.
	if err := collectGarbage(ctx, r.client.LeasesService()); err != nil {
		return err
	}
	slices.Sort(uids)
	for _, uid := range slices.Compact(uids) {
		if err := r.forgetPod(ctx, uid); err != nil {
			return err
		}
	}
	return nil
}

// collectGarbage has containerd delete what nothing refers to, and waits for it:
// which it does for who deletes a lease and asks for it.
func collectGarbage(ctx context.Context, manager leases.Manager) error {
	lease, err := manager.Create(ctx, leases.WithRandomID())
	if err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	if err := manager.Delete(ctx, lease, leases.SynchronousDelete); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}

// waitShims waits until no shim of this node is left.
func (r *Runtime) waitShims(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.killTimeout)
	defer cancel()
	for {
		pids := r.shimPIDs()
		if len(pids) == 0 {
			return nil
		}
		if pause(ctx, 10*time.Millisecond) != nil {
			return fmt.Errorf("shims do not end: processes %v", pids)
		}
	}
}

// unmountBelow undoes all mounts below dir, those within others first.
func unmountBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var failed error
	for _, mount := range slices.Backward(mountsBelow(data, dir)) {
		failed = errors.Join(failed, releaseMount(mount))
	}
	return failed
}

// mountsBelow lists the mount points below dir in the order they were made.
func mountsBelow(mountinfo []byte, dir string) []string {
	var mounts []string
	for line := range strings.Lines(string(mountinfo)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if mount := unescapeMount.Replace(fields[4]); strings.HasPrefix(mount, dir+"/") {
			mounts = append(mounts, mount)
		}
	}
	return mounts
}

// unescapeMount undoes what the kernel does to special characters in mountinfo.
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// removeIfEmpty removes a cgroup that has nothing in it.
func removeIfEmpty(ctx context.Context, cgroup string) {
	mounts, err := cgroupMounts()
	if err != nil {
		return
	}
	for _, mount := range mounts {
		if ctx.Err() != nil {
			return
		}
		_ = unix.Rmdir(filepath.Join(mount, cgroup))
	}
}
