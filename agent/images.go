package agent

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

const (
	// imageCheckPeriod is how often the disk with the images is looked at.
	imageCheckPeriod = time.Minute
	// imageMinAge is how long an image stays after it was last used, or first seen: a
	// pod may have had it pulled and not begun yet.
	imageMinAge = 2 * time.Minute
	// Of the disk with the images, in percent: above the first, images go that nobody
	// uses, until it is not above the second. Kubernetes' defaults.
	defaultImageHigh = 85
	defaultImageLow  = 80
)

// imageUse is an image, and whether anybody needs it.
type imageUse struct {
	runtime.ImageState
	InUse    bool
	LastUsed time.Time // or first seen
}

// planImages chooses the images to remove from a disk that is fuller than high
// percent, to bring it down to low: of those that nobody uses, the one first that was not
// used for longest, and no later than minAge ago. short is how many bytes more should go and cannot.
func planImages(all []imageUse, disk runtime.Disk, high, low int64, minAge time.Duration, now time.Time) (remove []imageUse, short int64) {
	if disk.Bytes <= 0 || (disk.Bytes-disk.FreeBytes)*100 <= high*disk.Bytes {
		return nil, 0
	}
	short = disk.Bytes/100*(100-low) - disk.FreeBytes
	unused := slices.DeleteFunc(slices.Clone(all), func(i imageUse) bool { return i.InUse || now.Sub(i.LastUsed) < minAge })
	slices.SortFunc(unused, func(a, b imageUse) int {
		return cmp.Or(a.LastUsed.Compare(b.LastUsed), cmp.Compare(a.Digest, b.Digest))
	})
	for _, i := range unused {
		if short <= 0 {
			break
		}
		remove = append(remove, i)
		short -= i.Bytes
	}
	return remove, max(short, 0)
}

// imageCollector keeps the disk with the images from filling up with those that
// nobody uses.
type imageCollector struct {
	runtime   runtime.Runtime
	pods      func() ([]runtime.PodState, bool) // as listed; false: that is not known now
	high, low int64
	log       *slog.Logger

	mu   sync.Mutex           // held during a pass
	used map[string]time.Time // by digest; when it was last used, or first seen
}

// run looks at the disk until ctx ends.
func (c *imageCollector) run(ctx context.Context) error {
	for {
		c.collect(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(imageCheckPeriod):
		}
	}
}

// collect is one pass. What fails is tried again with the next.
func (c *imageCollector) collect(ctx context.Context) { c.pass(ctx, c.high, c.low, imageMinAge) }

// collectAll removes every image that nobody uses: the node is short of disk. A pod that has had
// one pulled and has not begun has it pulled again.
func (c *imageCollector) collectAll(ctx context.Context) { c.pass(ctx, 0, 0, 0) }

func (c *imageCollector) pass(ctx context.Context, high, low int64, minAge time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	disk, err := c.runtime.ImageDisk(ctx)
	if err != nil {
		c.log.Warn("the disk with the images cannot be looked at", "error", err)
		return
	}
	images, err := c.runtime.Images(ctx)
	if err != nil {
		if ctx.Err() == nil {
			c.log.Warn("images cannot be listed", "error", err)
		}
		return
	}
	pods, known := c.pods()
	if !known {
		return
	}
	now := time.Now()
	remove, short := planImages(c.uses(images, pods, now), disk, high, low, minAge, now)
	for _, i := range remove {
		if err := c.runtime.RemoveImage(ctx, i.Digest); err != nil {
			c.log.Warn("image cannot be removed", "image", i.Names, "error", err)
			continue
		}
		c.log.Info("image removed: the disk fills up and nobody uses it", "image", i.Names, "bytes", i.Bytes, "unused", now.Sub(i.LastUsed).Round(time.Second))
	}
	if short > 0 && low > 0 {
		c.log.Warn("the disk with the images is too full, and no unused image is left to remove", "bytes", short)
	}
}

// uses says of each image whether a container needs it, and since when not.
func (c *imageCollector) uses(images []runtime.ImageState, pods []runtime.PodState, now time.Time) []imageUse {
	before := c.used
	c.used = map[string]time.Time{}
	var all []imageUse
	for _, image := range images {
		use := imageUse{ImageState: image, LastUsed: now}
		use.InUse = slices.ContainsFunc(pods, func(p runtime.PodState) bool {
			return slices.ContainsFunc(p.Containers, func(s runtime.ContainerState) bool {
				return strings.HasSuffix(s.ImageID, image.Digest) || slices.Contains(image.Names, s.Image)
			})
		})
		if last, known := before[image.Digest]; known && !use.InUse {
			use.LastUsed = last
		}
		c.used[image.Digest] = use.LastUsed
		all = append(all, use)
	}
	return all
}
