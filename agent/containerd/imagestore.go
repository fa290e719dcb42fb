package containerd

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	imagestore "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// Images returns all images, by digest. An image's size is that of its blobs,
// compressed as they came, and of its files.
func (r *Runtime) Images(ctx context.Context) ([]runtime.ImageState, error) {
	ctx, cancel, err := r.call(ctx, readTimeout)
	if err != nil {
		return nil, err
	}
	defer cancel()
	all, err := r.client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var list []runtime.ImageState
	for _, img := range all {
		digest := img.Target.Digest.String()
		if i := slices.IndexFunc(list, func(s runtime.ImageState) bool { return s.Digest == digest }); i >= 0 {
			list[i].Names = append(list[i].Names, img.Name)
			continue
		}
		list = append(list, runtime.ImageState{Digest: digest, Names: []string{img.Name}, Bytes: r.imageSize(ctx, img)})
	}
	for i := range list {
		slices.Sort(list[i].Names)
	}
	slices.SortFunc(list, func(a, b runtime.ImageState) int { return cmp.Compare(a.Digest, b.Digest) })
	return list, nil
}

// imageSize adds up what an image takes, 0 for what cannot be told.
func (r *Runtime) imageSize(ctx context.Context, img imagestore.Image) int64 {
	size, err := img.Size(ctx, r.client.ContentStore(), platforms.Default())
	if err != nil {
		return 0
	}
	info, err := r.images.info(ctx, img.Name)
	if err != nil {
		return size
	}
	snapshots := r.client.SnapshotService(r.cfg.Snapshotter)
	for key := info.chainID; key != ""; {
		usage, err := snapshots.Usage(ctx, key)
		if err != nil {
			break
		}
		size += usage.Size
		layer, err := snapshots.Stat(ctx, key)
		if err != nil {
			break
		}
		key = layer.Parent
	}
	return size
}

// RemoveImage takes away an image under all its names. It returns once its space is
// free, but for what other images and containers share with it.
func (r *Runtime) RemoveImage(ctx context.Context, digest string) error {
	ctx, cancel, err := r.call(ctx, changeTimeout)
	if err != nil {
		return err
	}
	defer cancel()
	all, err := r.client.ImageService().List(ctx)
	if err != nil {
		return fmt.Errorf("remove image %s: %w", digest, err)
	}
	for _, img := range all {
		if img.Target.Digest.String() != digest {
			continue
		}
		// A pull under this name must not end in between.
		release, err := r.images.busy.lock(ctx, img.Name)
		if err != nil {
			return fmt.Errorf("remove image %s: it is being pulled: %w", img.Name, err)
		}
		err = r.client.ImageService().Delete(ctx, img.Name, imagestore.SynchronousDelete())
		release()
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove image %s: %w", img.Name, err)
		}
	}
	return nil
}

// ImageDisk returns how full the file system of Config.Root is.
func (r *Runtime) ImageDisk(context.Context) (runtime.Disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(r.cfg.Root, &st); err != nil {
		return runtime.Disk{}, fmt.Errorf("look at the disk of %s: %w", r.cfg.Root, err)
	}
	return runtime.Disk{
		// Without what is kept for root, as df counts.
		Bytes: int64(st.Blocks-st.Bfree+st.Bavail) * st.Bsize, FreeBytes: int64(st.Bavail) * st.Bsize,
		Inodes: int64(st.Files), FreeInodes: int64(st.Ffree),
	}, nil
}
