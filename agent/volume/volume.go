package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
)

// ErrMissing is in the error of SetUp when an object that a volume shows does
// not exist, or not the part of it that is asked for.
var ErrMissing = errors.New("not found")

// Sources is where volumes take what they show from, for one pod. Methods return
// nil for what does not exist.
type Sources interface {
	ConfigMap(name string) *corev1.ConfigMap
	Secret(name string) *corev1.Secret
	Claim(name string) *corev1.PersistentVolumeClaim
	Volume(name string) *corev1.PersistentVolume
	// Token returns a token of the pod's service account, "" if there is none, and what tells
	// it from the next. It may be out of date; who calls SetUp sees to new ones.
	Token(p *corev1.ServiceAccountTokenProjection) (text, version string)
	// Field returns the value of a field of the pod for the downward API, Resource
	// that of a container's resource.
	Field(path string) (string, error)
	Resource(ref *corev1.ResourceFieldSelector) (string, error)
}

// Config is what a Manager needs.
type Config struct {
	Dir    string // required; made if it is missing
	Node   string // required; the node's name
	Mounts Mounts // required
}

// Manager makes and removes volumes. Calls for different pods may overlap, calls
// that change one pod's may not.
type Manager struct {
	dir    string
	node   string
	mounts Mounts
	claims sync.Mutex // pods may share a local volume
}

// New returns a Manager. It touches nothing.
func New(cfg Config) *Manager { return &Manager{dir: cfg.Dir, node: cfg.Node, mounts: cfg.Mounts} }

const (
	claimsDir = "claims"
	pathMode  = 0o711 // what is in a directory decides who may read it
)

func (m *Manager) podDir(uid string) string { return filepath.Join(m.dir, uid) }

func (m *Manager) path(pod *corev1.Pod, name string) string {
	return filepath.Join(m.podDir(string(pod.UID)), "volumes", name)
}

// SetUp makes all volumes of a pod, and writes anew those whose objects show
// something else now. Its error names each volume that is not as it should be;
// the others are.
func (m *Manager) SetUp(ctx context.Context, pod *corev1.Pod, src Sources) error {
	if len(pod.Spec.Volumes) == 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(m.podDir(string(pod.UID)), "volumes"), pathMode); err != nil {
		return fmt.Errorf("make volumes: %w", err)
	}
	var faults []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.setUp(ctx, pod, v, src); err != nil {
			faults = append(faults, fmt.Errorf("volume %q: %w", v.Name, err))
		}
	}
	return inOneLine(faults)
}

// inOneLine is errors.Join for people.
func inOneLine(faults []error) error {
	if len(faults) == 0 {
		return nil
	}
	err := faults[0]
	for _, next := range faults[1:] {
		err = fmt.Errorf("%w; %w", err, next)
	}
	return err
}

func (m *Manager) setUp(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, src Sources) error {
	switch {
	case v.EmptyDir != nil:
		return m.emptyDir(pod, v)
	case v.HostPath != nil:
		return hostPath(v.HostPath)
	case isShown(v):
		files, err := content(pod, v, src)
		if err != nil {
			return err
		}
		path := m.path(pod, v.Name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if showsSecrets(v) {
			if err := m.mounts.Memory(path, MemoryOptions{Mode: 0o755}); err != nil {
				return err
			}
		}
		_, err = write(path, files, fsGroup(pod))
		return err
	case object.ClaimName(pod, v) != "":
		return m.setUpClaim(ctx, pod, v, src)
	default:
		return errors.New("volumes of this type are not supported")
	}
}

// emptyDir makes a directory that everybody may write to. It appears complete or
// not at all.
func (m *Manager) emptyDir(pod *corev1.Pod, v *corev1.Volume) error {
	path := m.path(pod, v.Name)
	mode, group := fs.FileMode(0o777), fsGroup(pod)
	if v.EmptyDir.Mode != nil {
		mode = unixMode(*v.EmptyDir.Mode)
	}
	if group != nil {
		mode |= 0o770 | fs.ModeSetgid
	}
	if v.EmptyDir.Medium == corev1.StorageMediumMemory {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		return m.mounts.Memory(path, MemoryOptions{Size: memorySize(pod, v.EmptyDir), Mode: mode, Group: group})
	}
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	fresh, err := os.MkdirTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh) // gone by then if all went well
	if group != nil {
		if err := os.Lchown(fresh, -1, *group); err != nil {
			return err
		}
	}
	if err := os.Chmod(fresh, mode); err != nil {
		return err
	}
	return os.Rename(fresh, path)
}

// unixMode converts 01777 to what package os means by it.
func unixMode(mode int32) fs.FileMode {
	m := fs.FileMode(mode) & fs.ModePerm
	if mode&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// memorySize is what an emptyDir in memory may hold: its limit, and no more than
// the pod's containers may use together if each of them has a limit. 0: as much
// as the kernel allows, half of the machine's memory.
func memorySize(pod *corev1.Pod, e *corev1.EmptyDirVolumeSource) int64 {
	var sum int64
	for i := range pod.Spec.Containers {
		limit, ok := pod.Spec.Containers[i].Resources.Limits[corev1.ResourceMemory]
		if !ok {
			sum = 0
			break
		}
		sum += limit.Value()
	}
	if limit := e.SizeLimit; limit != nil && limit.Value() > 0 && (sum == 0 || limit.Value() < sum) {
		return limit.Value()
	}
	return sum
}

// fsGroup returns the group that volumes of a pod belong to, nil for none.
func fsGroup(pod *corev1.Pod) *int {
	if sc := pod.Spec.SecurityContext; sc != nil && sc.FSGroup != nil {
		return new(int(*sc.FSGroup))
	}
	return nil
}

// hostPath checks a path of the node, or makes it, as its type says. Without a
// type, a directory is made if there is nothing.
func hostPath(h *corev1.HostPathVolumeSource) error {
	kind := corev1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	info, err := os.Stat(h.Path)
	if errors.Is(err, fs.ErrNotExist) {
		switch kind {
		case corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate:
			return os.MkdirAll(h.Path, 0o755)
		case corev1.HostPathFileOrCreate:
			f, err := os.OpenFile(h.Path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
			if err != nil {
				return err
			}
			return f.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("hostPath of type %s: %w", kind, err)
	}
	is := map[corev1.HostPathType]bool{
		corev1.HostPathUnset:             true,
		corev1.HostPathDirectoryOrCreate: info.IsDir(), corev1.HostPathDirectory: info.IsDir(),
		corev1.HostPathFileOrCreate: info.Mode().IsRegular(), corev1.HostPathFile: info.Mode().IsRegular(),
		corev1.HostPathSocket:  info.Mode().Type() == fs.ModeSocket,
		corev1.HostPathCharDev: info.Mode().Type() == fs.ModeDevice|fs.ModeCharDevice, corev1.HostPathBlockDev: info.Mode().Type() == fs.ModeDevice,
	}
	if !is[kind] {
		return fmt.Errorf("hostPath: %s is not of type %s", h.Path, kind)
	}
	return nil
}

// Shown returns what a volume that shows something has in a file, fs.ErrNotExist if it does not.
func (m *Manager) Shown(pod *corev1.Pod, volume, path string) ([]byte, error) {
	dir, err := os.OpenRoot(m.path(pod, volume))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.ReadFile(filepath.Join(dataLink, path))
}

// TearDown removes a pod's volumes with all that is in them; hostPaths and claims
// stay. Tearing down what is not there is not an error. The pod's containers must
// be gone.
func (m *Manager) TearDown(uid string) error {
	dir := m.podDir(uid)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := m.mounts.Unmount(dir); err != nil {
		return fmt.Errorf("unmount volumes: %w", err)
	}
	if err := m.rest(uid); err != nil {
		return fmt.Errorf("unmount volumes of claims: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove volumes: %w", err)
	}
	return nil
}

// List returns the uids of the pods that have something here, whether anybody
// knows them or not.
func (m *Manager) List() ([]string, error) {
	entries, err := os.ReadDir(m.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var uids []string
	for _, e := range entries {
		if e.Name() != claimsDir && !strings.HasPrefix(e.Name(), ".") {
			uids = append(uids, e.Name())
		}
	}
	slices.Sort(uids)
	return uids, nil
}
