package containerd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	imagestore "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// labelArchive marks an image that came from a file in one of Config.ImageDirs.
const labelArchive = "holdfast.archive"

// archiveEndings are those of files that are image archives.
var archiveEndings = []string{".tar", ".tar.gz", ".tgz", ".tar.zst"}

// EnsureImage makes an image present and unpacked, as policy says: IfNotPresent
// looks at what is there, then into the image directories, then asks the
// registry; Always asks the registry, but for images from the image directories,
// where the newest file counts; Never does not ask, and fails with
// runtime.ErrImageNeverPull. An empty policy is IfNotPresent.
func (r *Runtime) EnsureImage(ctx context.Context, ref string, policy corev1.PullPolicy, progress func(string), credentials ...runtime.Credential) (runtime.Image, error) {
	ctx, cancel, err := r.call(ctx, pullTimeout)
	if err != nil {
		return runtime.Image{}, err
	}
	defer cancel()
	if progress == nil {
		progress = func(string) {}
	}
	name, err := normalize(ref)
	if err != nil {
		return runtime.Image{}, err
	}
	img, err := r.images.ensure(ctx, name, policy, progress, credentials)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return runtime.Image{}, err // the caller names the image
	}
	return runtime.Image{Ref: ref, Digest: img.Target.Digest.String()}, nil
}

// normalize is the one name under which an image is kept: "web:1" is
// "docker.io/library/web:1", "web" is "docker.io/library/web:latest".
func normalize(ref string) (string, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", fmt.Errorf("image reference %q: %w", ref, err)
	}
	return named.String(), nil
}

// images looks after what is in containerd's image store.
type images struct {
	r      *Runtime
	client *client.Client

	busy      keyLock // by name
	importing keyLock // one key, held while archives are imported

	mu    sync.Mutex            // protects what follows
	infos map[string]imageInfo  // by digest
	users map[string]specs.User // by digest and name
}

func newImages(r *Runtime) *images {
	return &images{
		r: r, client: r.client,
		infos: map[string]imageInfo{}, users: map[string]specs.User{},
	}
}

// imageInfo is what starting a container needs to know of its image.
type imageInfo struct {
	name    string
	digest  string
	chainID string // of the unpacked image's snapshot
	config  ocispec.ImageConfig
}

func (m *images) ensure(ctx context.Context, name string, policy corev1.PullPolicy, progress func(string), credentials []runtime.Credential) (imagestore.Image, error) {
	// One call at a time works on an image; the next finds its result.
	release, err := m.busy.lock(ctx, name)
	if err != nil {
		return imagestore.Image{}, fmt.Errorf("wait for another pull of the image: %w", err)
	}
	defer release()

	img, err := m.find(ctx, name)
	found := err == nil
	if err != nil && !errdefs.IsNotFound(err) {
		return img, err
	}
	fromArchive := found && img.Labels[labelArchive] != ""
	// The image may be in a file that could not be read: then its absence alone would say
	// too little.
	unread := func(err error) error { return err }
	if !found || (policy == corev1.PullAlways && fromArchive) {
		importErr := m.importDirs(ctx)
		if again, err := m.find(ctx, name); err == nil {
			img, found, fromArchive = again, true, again.Labels[labelArchive] != ""
		} else if !errdefs.IsNotFound(err) {
			return img, err
		}
		if !found && importErr != nil {
			progress(fmt.Sprintf("not all image archives could be read: %v", importErr))
			unread = func(err error) error {
				return fmt.Errorf("%w; not all image archives could be read: %w", err, importErr)
			}
		}
	}
	switch {
	case found && (policy != corev1.PullAlways || fromArchive):
		return img, m.unpack(ctx, img)
	case policy == corev1.PullNever:
		return img, unread(runtime.ErrImageNeverPull)
	}
	progress("pulling " + name)
	started := time.Now()
	pulled, err := m.pull(ctx, name, credentials, progress)
	if err != nil {
		return img, unread(err)
	}
	progress(fmt.Sprintf("pulled %s in %s", name, time.Since(started).Round(time.Millisecond)))
	return pulled, nil
}

func (m *images) find(ctx context.Context, name string) (imagestore.Image, error) {
	return m.client.ImageService().Get(ctx, name)
}

func (m *images) unpack(ctx context.Context, img imagestore.Image) error {
	image := client.NewImage(m.client, img)
	unpacked, err := image.IsUnpacked(ctx, m.r.cfg.Snapshotter)
	if err == nil && !unpacked {
		err = image.Unpack(ctx, m.r.cfg.Snapshotter)
	}
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}

// unpacked calls use, which needs the snapshot of an image, and once more after
// unpacking the image again if the snapshot is not there: containerd collects it when
// the last image with the same layers goes in the moment in which this one comes.
func (m *images) unpacked(ctx context.Context, info imageInfo, use func() error) error {
	err := use()
	if !errdefs.IsNotFound(err) {
		return err
	}
	img, gone := m.find(ctx, info.name)
	if gone != nil {
		return err
	}
	if again := client.NewImage(m.client, img).Unpack(ctx, m.r.cfg.Snapshotter); again != nil {
		return fmt.Errorf("%w; unpack it again: %w", err, again)
	}
	return use()
}

// pull fetches an image with the first of the credentials that its registry takes,
// without any if there are none.
func (m *images) pull(ctx context.Context, name string, credentials []runtime.Credential, progress func(string)) (imagestore.Image, error) {
	if len(credentials) == 0 {
		credentials = []runtime.Credential{{}}
	}
	var refused error
	for _, c := range credentials {
		resolver := m.resolver(ctx, registryOf(name), c)
		// Getting hold of the registry is bounded apart from the transfer: a host that
		// does not answer must be told apart from an image that takes its time.
		resolving, cancel := context.WithTimeoutCause(ctx, resolveTimeout, fmt.Errorf("registry %s did not answer within %v", registryOf(name), resolveTimeout))
		_, _, err := resolver.Resolve(resolving, name)
		if err != nil && resolving.Err() != nil {
			err = context.Cause(resolving)
			cancel()
			return imagestore.Image{}, err
		}
		cancel()
		if err != nil {
			refused = err
			continue
		}
		stop := m.tellProgress(ctx, name, progress)
		image, err := m.client.Pull(ctx, name,
			client.WithResolver(resolver), client.WithPullUnpack, client.WithPullSnapshotter(m.r.cfg.Snapshotter))
		stop()
		if err != nil {
			m.dropSpoiled(ctx, err)
			return imagestore.Image{}, err
		}
		return image.Metadata(), nil
	}
	return imagestore.Image{}, refused
}

// spoiledBlob is how containerd's client names what it could not commit.
var spoiledBlob = regexp.MustCompile(`failed commit on ref "([^"]+)"`)

// dropSpoiled throws away what has come and is not what its digest says. containerd
// keeps it, and the next pull would go on behind its end, to the same error for ever.
func (m *images) dropSpoiled(ctx context.Context, err error) {
	found := spoiledBlob.FindStringSubmatch(err.Error())
	if found == nil || !strings.Contains(err.Error(), "unexpected commit") {
		return
	}
	if err := m.client.ContentStore().Abort(ctx, found[1]); err != nil && !errdefs.IsNotFound(err) {
		m.r.log.Warn("a part of an image that came spoiled is not thrown away", "part", found[1], "error", err)
	}
}

// resolver speaks to a registry as the configuration says, and to its mirrors, which
// are not shown the credential.
func (m *images) resolver(ctx context.Context, registry string, credential runtime.Credential) remotes.Resolver {
	options := config.HostOptions{
		Credentials: func(host string) (string, string, error) {
			if own, err := docker.DefaultHost(registry); host == registry || err == nil && host == own {
				return credential.Username, credential.Password, nil
			}
			return "", "", nil
		},
	}
	if m.r.cfg.RegistryDir != "" {
		options.HostDir = config.HostDirFromRoot(m.r.cfg.RegistryDir)
	}
	if local, err := docker.MatchLocalhost(registry); slices.Contains(m.r.cfg.PlainHTTP, registry) || err == nil && local {
		options.DefaultScheme = "http"
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, options)})
}

// progressInterval is how often a pull that takes its time is told of.
const progressInterval = 30 * time.Second

// tellProgress reports how much of an image has come, until stop is called.
func (m *images) tellProgress(ctx context.Context, name string, progress func(string)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var ended sync.WaitGroup
	ended.Go(func() {
		for pause(ctx, progressInterval) == nil {
			parts, err := m.client.ContentStore().ListStatuses(ctx)
			if err != nil {
				continue
			}
			var have, want int64
			for _, part := range parts {
				have, want = have+part.Offset, want+part.Total
			}
			if len(parts) > 0 {
				progress(fmt.Sprintf("pulling %s: %d of %d MiB under way", name, have>>20, want>>20))
			}
		}
	})
	return func() { cancel(); ended.Wait() }
}

// registryOf returns the host that an image comes from.
func registryOf(name string) string {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return "of " + name
	}
	return reference.Domain(named)
}

// info returns what a container needs to know of an image that is present. It
// returns runtime.ErrNotFound for one that is not.
func (m *images) info(ctx context.Context, ref string) (imageInfo, error) {
	name, err := normalize(ref)
	if err != nil {
		return imageInfo{}, err
	}
	img, err := m.find(ctx, name)
	if errdefs.IsNotFound(err) {
		return imageInfo{}, fmt.Errorf("image %s: %w", ref, runtime.ErrNotFound)
	}
	if err != nil {
		return imageInfo{}, fmt.Errorf("image %s: %w", ref, err)
	}
	digest := img.Target.Digest.String()
	m.mu.Lock()
	info, ok := m.infos[digest]
	m.mu.Unlock()
	if ok {
		info.name = name
		return info, nil
	}
	store := m.client.ContentStore()
	configDesc, err := img.Config(ctx, store, platforms.Default())
	if err != nil {
		return imageInfo{}, fmt.Errorf("image %s: read its manifest: %w", ref, err)
	}
	data, err := content.ReadBlob(ctx, store, configDesc)
	if err != nil {
		return imageInfo{}, fmt.Errorf("image %s: read its configuration: %w", ref, err)
	}
	var image ocispec.Image
	if err := json.Unmarshal(data, &image); err != nil {
		return imageInfo{}, fmt.Errorf("image %s: its configuration: %w", ref, err)
	}
	info = imageInfo{
		name: name, digest: digest, config: image.Config,
		chainID: identity.ChainID(image.RootFS.DiffIDs).String(),
	}
	m.mu.Lock()
	m.infos[digest] = info
	m.mu.Unlock()
	return info, nil
}

// user returns a user of an image, "name[:group]" or in numbers; "" is root. It is
// looked up once, in a view of the image.
func (m *images) user(ctx context.Context, info imageInfo, name string) (specs.User, error) {
	known := info.digest + " " + name
	m.mu.Lock()
	user, ok := m.users[known]
	m.mu.Unlock()
	if ok {
		return user, nil
	}
	ctx, done, err := m.client.WithLease(ctx)
	if err != nil {
		return user, err
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }() // the view goes with the lease
	snapshots := m.client.SnapshotService(m.r.cfg.Snapshotter)
	key := fmt.Sprintf("user-of-%s-%d", info.digest, time.Now().UnixNano())
	err = m.unpacked(ctx, info, func() error {
		_, err := snapshots.View(ctx, key, info.chainID)
		return err
	})
	if err != nil {
		return user, fmt.Errorf("look into image %s: %w", info.name, err)
	}
	defer func() { _ = snapshots.Remove(context.WithoutCancel(ctx), key) }()
	user, err = userOf(ctx, m.client, &containers.Container{Snapshotter: m.r.cfg.Snapshotter, SnapshotKey: key}, name)
	if err != nil {
		return user, err
	}
	m.mu.Lock()
	m.users[known] = user
	m.mu.Unlock()
	return user, nil
}

// archiveRecord remembers an imported file, so that it is not read again.
type archiveRecord struct {
	Modified time.Time `json:"modified"`
	Size     int64     `json:"size"`
	Images   []string  `json:"images"`
}

// importDirs imports all archives in the image directories that are new, have
// changed, or whose images are gone. A file that cannot be imported is tried
// again next time, and does not keep others from being imported.
func (m *images) importDirs(ctx context.Context) error {
	if len(m.r.cfg.ImageDirs) == 0 {
		return nil
	}
	release, err := m.importing.lock(ctx, "")
	if err != nil {
		return fmt.Errorf("wait for another import of image archives: %w", err)
	}
	defer release()
	recordPath := filepath.Join(m.r.cfg.Root, "archives.json")
	records := map[string]archiveRecord{}
	if data, err := os.ReadFile(recordPath); err == nil {
		_ = json.Unmarshal(data, &records) // damaged: import all again
	}
	seen := map[string]archiveRecord{}
	var failed error
	for _, path := range archivesIn(m.r.cfg.ImageDirs) {
		info, err := os.Stat(path)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		if record, ok := records[path]; ok && record.Modified.Equal(info.ModTime()) && record.Size == info.Size() && m.haveAll(ctx, record.Images) {
			seen[path] = record
			continue
		}
		names, err := m.importFile(ctx, path)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("import %s: %w", path, err))
			continue
		}
		m.r.log.Info("image archive imported", "file", path, "images", names)
		seen[path] = archiveRecord{Modified: info.ModTime(), Size: info.Size(), Images: names}
	}
	if data, err := json.Marshal(seen); err == nil {
		failed = errors.Join(failed, writeAtomically(recordPath, data))
	}
	return failed
}

// archivesIn lists the archives in dirs, oldest first: when several hold an
// image of one name, the newest file wins.
func archivesIn(dirs []string) []string {
	type file struct {
		path     string
		modified time.Time
	}
	var files []file
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // one that is not there (yet) is as good as an empty one
		}
		for _, e := range entries {
			if !slices.ContainsFunc(archiveEndings, func(end string) bool { return strings.HasSuffix(e.Name(), end) }) {
				continue
			}
			path := filepath.Join(dir, e.Name())
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				files = append(files, file{path, info.ModTime()})
			}
		}
	}
	slices.SortFunc(files, func(a, b file) int {
		return cmp.Or(a.modified.Compare(b.modified), cmp.Compare(a.path, b.path))
	})
	var paths []string
	for _, f := range files {
		paths = append(paths, f.path)
	}
	return paths
}

func (m *images) haveAll(ctx context.Context, names []string) bool {
	for _, name := range names {
		if _, err := m.find(ctx, name); err != nil {
			return false
		}
	}
	return true
}

// importFile imports one archive, OCI or docker, compressed or not, and returns
// the names of its images.
func (m *images) importFile(ctx context.Context, path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	stream, err := compression.DecompressStream(f)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	translate := func(ref string) string {
		name, err := normalize(ref)
		if err != nil {
			return ref // seen again, and reported, below
		}
		return name
	}
	imported, err := m.client.Import(ctx, stream,
		client.WithImageRefTranslator(translate), client.WithImageLabels(map[string]string{labelArchive: filepath.Base(path)}))
	if err != nil {
		return nil, err
	}
	if len(imported) == 0 {
		return nil, errors.New("no image in it has a name")
	}
	var names []string
	for _, img := range imported {
		if img, err = m.rename(ctx, img); err != nil {
			return nil, err
		}
		if err := m.unpack(ctx, img); err != nil {
			return nil, fmt.Errorf("image %s: %w", img.Name, err)
		}
		names = append(names, img.Name)
	}
	return names, nil
}

// rename gives an image its one name: archives name images as they like.
func (m *images) rename(ctx context.Context, img imagestore.Image) (imagestore.Image, error) {
	name, err := normalize(img.Name)
	if err != nil || name == img.Name {
		return img, err
	}
	old := img.Name
	img.Name = name
	store := m.client.ImageService()
	renamed, err := store.Update(ctx, img, "target", "labels")
	if errdefs.IsNotFound(err) {
		renamed, err = store.Create(ctx, img)
	}
	if err != nil {
		return img, fmt.Errorf("name image %s: %w", name, err)
	}
	if err := store.Delete(ctx, old); err != nil && !errdefs.IsNotFound(err) {
		return img, err
	}
	return renamed, nil
}
