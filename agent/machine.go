package agent

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"strconv"
	"strings"

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
	capacity := corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewQuantity(int64(m.CPUs), resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(m.MemoryBytes, resource.BinarySI),
		corev1.ResourcePods:   *resource.NewQuantity(maxPods, resource.DecimalSI),
	}
	maps.Copy(capacity, cfg.Capacity)
	return &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: cfg.Node, Labels: labels},
		Status: corev1.NodeStatus{
			Capacity:    capacity,
			Allocatable: capacity.DeepCopy(),
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
