package agent

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxPods is Kubernetes' customary number of pods for one node.
const maxPods = 110

// machine is what the agent found out about the computer it runs on.
type machine struct {
	BootID, MachineID, SystemUUID string
	Kernel, OSImage               string
	CPUs                          int
	MemoryBytes                   int64
}

// capacity is what the machine has, where cfg does not say otherwise. Of the disk it
// counts the file system that pods' data is on.
func (m machine) capacity(cfg Config) corev1.ResourceList {
	capacity := corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewQuantity(int64(m.CPUs), resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(m.MemoryBytes, resource.BinarySI),
		corev1.ResourcePods:   *resource.NewQuantity(maxPods, resource.DecimalSI),
	}
	var disk unix.Statfs_t
	if unix.Statfs(existing(cfg.DataDir), &disk) == nil {
		capacity[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(int64(disk.Blocks-disk.Bfree+disk.Bavail)*disk.Bsize, resource.BinarySI)
	}
	maps.Copy(capacity, cfg.Capacity)
	return capacity
}

// existing returns dir or the nearest one above it that is there.
func existing(dir string) string {
	for dir != filepath.Dir(dir) {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

// allocatable is what pods may ask for: capacity without what is reserved, never
// less than nothing.
func allocatable(capacity, reserved corev1.ResourceList) corev1.ResourceList {
	left := capacity.DeepCopy()
	for name, q := range reserved {
		have, ok := left[name]
		if !ok {
			continue
		}
		if have.Sub(q); have.Sign() < 0 {
			have = *resource.NewQuantity(0, have.Format)
		}
		left[name] = have
	}
	return left
}

// kept is what pods cannot use, since some would be ended for it.
func kept(capacity corev1.ResourceList, thresholds []Threshold) corev1.ResourceList {
	list := corev1.ResourceList{}
	for _, t := range thresholds {
		name := map[Signal]corev1.ResourceName{SignalMemory: corev1.ResourceMemory, SignalNodeFS: corev1.ResourceEphemeralStorage}[t.Signal]
		if q, ok := capacity[name]; ok {
			list[name] = *resource.NewQuantity(t.of(q.Value()), resource.BinarySI)
		}
	}
	return list
}

// thisMachine reads the machine's description. What is only informative may be
// missing; the boot id and the memory may not.
func thisMachine() (machine, error) {
	read := func(path string) string {
		data, _ := os.ReadFile(path)
		return strings.TrimSpace(string(data))
	}
	m := machine{
		BootID:     read("/proc/sys/kernel/random/boot_id"),
		MachineID:  read("/etc/machine-id"),
		SystemUUID: read("/sys/class/dmi/id/product_uuid"),
		Kernel:     read("/proc/sys/kernel/osrelease"),
		OSImage:    osImage(read("/etc/os-release")),
		CPUs:       runtime.NumCPU(),
	}
	if m.BootID == "" {
		return m, fmt.Errorf("read /proc/sys/kernel/random/boot_id: it is missing or empty; the agent needs Linux with /proc mounted")
	}
	var err error
	if m.MemoryBytes, err = memoryLine(read("/proc/meminfo"), "MemTotal:"); err != nil {
		return m, fmt.Errorf("read /proc/meminfo: %w", err)
	}
	return m, nil
}

func osImage(release string) string {
	for line := range strings.Lines(release) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			if s, err := strconv.Unquote(v); err == nil {
				return s
			}
			return strings.Trim(v, `'"`)
		}
	}
	return "Linux"
}

// memoryLine returns the bytes that a line of /proc/meminfo says.
func memoryLine(meminfo, name string) (int64, error) {
	for line := range strings.Lines(meminfo) {
		words := strings.Fields(line)
		if len(words) == 3 && words[0] == name && words[2] == "kB" {
			n, err := strconv.ParseInt(words[1], 10, 64)
			return n * 1024, err
		}
	}
	return 0, fmt.Errorf("no line %s", strings.TrimSuffix(name, ":"))
}

// nodeObject is the Node that the agent registers: labels, addresses, capacity
// and description. Everything else about a Node has other writers.
func nodeObject(cfg Config, m machine, runtimeVersion string) *corev1.Node {
	labels := map[string]string{
		corev1.LabelHostname:   cfg.Node,
		corev1.LabelOSStable:   runtime.GOOS,
		corev1.LabelArchStable: runtime.GOARCH,
	}
	maps.Copy(labels, cfg.Labels)
	capacity := m.capacity(cfg)
	return &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: cfg.Node, Labels: labels},
		Status: corev1.NodeStatus{
			Capacity:    capacity,
			Allocatable: allocatable(allocatable(capacity, cfg.Limits.Reserved), kept(capacity, cfg.Limits.Eviction)),
			Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: cfg.Address.String()},
				{Type: corev1.NodeHostName, Address: cfg.Node},
			},
			NodeInfo: corev1.NodeSystemInfo{
				MachineID: m.MachineID, SystemUUID: m.SystemUUID, BootID: m.BootID,
				KernelVersion: m.Kernel, OSImage: m.OSImage,
				ContainerRuntimeVersion: runtimeVersion, KubeletVersion: cfg.Version,
				OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
			},
		},
	}
}
