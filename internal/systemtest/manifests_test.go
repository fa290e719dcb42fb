package systemtest

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/internal/ociimage"
	"github.com/holdfast-io/holdfast/object"
)

const corpus = "../../object/testdata/corpus"

// TestManifestsConverge applies the manifests that other people wrote (the corpus of
// package object) and waits until everything that runs something is as they ask. The
// images are small local ones of the same names, in which internal/systemtest/standin
// is every program; they are never pulled. What object/testdata/corpus/report.txt
// refuses is left out; everything else of an object is as it was written.
func TestManifestsConverge(t *testing.T) {
	if os.Getenv("HOLDFAST_MANIFESTS") == "" {
		t.Skip("make test-manifests plays it: two minutes")
	}
	files, err := filepath.Glob(corpus + "/*/*.yaml")
	if err != nil || len(files) < 50 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	m := newMachine(t)
	images := map[string]*standIn{}
	var manifests []manifest
	for _, file := range files {
		if strings.HasSuffix(file, "nodesjs-mongodb-web-controller.yaml") {
			continue // its image is called <YOUR-CONTAINER>
		}
		if read := readManifest(t, file); read.runs > 0 {
			manifests = append(manifests, read)
			for _, obj := range read.objects {
				if spec := podSpecOf(obj); spec != nil {
					noteImages(images, spec)
				}
			}
		}
	}
	if len(manifests) < 20 {
		t.Fatalf("only %d manifests run something", len(manifests))
	}
	m.writeStandIns(images)
	c := m.up("--peers", "1", "--nodes", "2")
	m.must("apply", "-f", "testdata/manifests/cluster.yaml", "--detach") // what a cluster has besides: classes, and volumes that people make

	// As many at once as the nodes have CPUs for.
	const cores = 3000
	var mu sync.Mutex
	free, changed := int64(cores), sync.NewCond(&mu)
	var all sync.WaitGroup
	for _, one := range manifests {
		need := min(one.cpu, cores)
		mu.Lock()
		for free < need {
			changed.Wait()
		}
		free -= need
		mu.Unlock()
		all.Go(func() {
			t.Run(one.name, func(t *testing.T) {
				here := *m
				here.t = t
				here.converges(one)
			})
			mu.Lock()
			free += need
			changed.Signal()
			mu.Unlock()
		})
	}
	all.Wait()
	c.stop()
	if left := m.leavings(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

// manifest is what of a file is not refused.
type manifest struct {
	name    string
	objects []object.Object
	runs    int   // objects that have pods
	cpu     int64 // that they ask for, in thousandths
}

func readManifest(t *testing.T, file string) manifest {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := manifest{name: strings.TrimSuffix(filepath.Base(file), ".yaml")}
	for text := range strings.SplitSeq("\n"+string(data), "\n---") {
		docs, err := object.ParseManifests(file, []byte(text))
		if err != nil {
			continue // refused: see the corpus' report
		}
		for _, doc := range docs {
			if len(doc.Check()) > 0 {
				continue
			}
			obj := doc.Object
			if obj.GetNamespace() != "" {
				obj.SetNamespace(m.name)
			}
			if spec := podSpecOf(obj); spec != nil {
				m.runs++
				pods := int64(3) // at most, in the corpus
				for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
					for i := range list {
						list[i].ImagePullPolicy = corev1.PullNever
						m.cpu += pods * list[i].Resources.Requests.Cpu().MilliValue()
					}
				}
				m.cpu += pods * 30 // what it takes to start one
			}
			m.objects = append(m.objects, obj)
		}
	}
	return m
}

// podSpecOf returns the spec of the pods that obj stands for, nil if it has none.
func podSpecOf(obj object.Object) *corev1.PodSpec {
	switch obj := obj.(type) {
	case *corev1.Pod:
		return &obj.Spec
	case *corev1.ReplicationController:
		return &obj.Spec.Template.Spec
	case *appsv1.Deployment:
		return &obj.Spec.Template.Spec
	case *appsv1.StatefulSet:
		return &obj.Spec.Template.Spec
	}
	return nil
}

// standIn is an image and what its users ask of it.
type standIn struct {
	ports    map[string]bool
	programs map[string]bool
	ends     bool // of init containers
}

func noteImages(images map[string]*standIn, spec *corev1.PodSpec) {
	note := func(c *corev1.Container, ends bool) {
		image := images[c.Image]
		if image == nil {
			image = &standIn{ports: map[string]bool{}, programs: map[string]bool{}, ends: ends}
			images[c.Image] = image
		}
		for _, port := range c.Ports {
			image.ports[fmt.Sprint(port.ContainerPort)] = true
		}
		program := func(command []string) {
			if len(command) > 0 {
				image.programs[command[0]] = true
			}
		}
		program(c.Command)
		for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
			switch {
			case probe == nil:
			case probe.Exec != nil:
				program(probe.Exec.Command)
			case probe.TCPSocket != nil && probe.TCPSocket.Port.IntVal > 0:
				image.ports[probe.TCPSocket.Port.String()] = true
			case probe.HTTPGet != nil && probe.HTTPGet.Port.IntVal > 0:
				image.ports[probe.HTTPGet.Port.String()] = true
			case probe.GRPC != nil:
				image.ports[fmt.Sprint(probe.GRPC.Port)] = true
			}
		}
		if l := c.Lifecycle; l != nil {
			for _, hook := range []*corev1.LifecycleHandler{l.PostStart, l.PreStop} {
				if hook != nil && hook.Exec != nil {
					program(hook.Exec.Command)
				}
			}
		}
	}
	for i := range spec.InitContainers {
		note(&spec.InitContainers[i], true)
	}
	for i := range spec.Containers {
		note(&spec.Containers[i], false)
	}
}

// writeStandIns writes the images, one layer for all that have the same programs.
func (m *machine) writeStandIns(images map[string]*standIn) {
	m.t.Helper()
	binary := filepath.Join(filepath.Dir(m.binary), "standin")
	build := exec.CommandContext(m.t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "./standin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		m.t.Fatalf("%v\n%s", err, out)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		m.t.Fatal(err)
	}
	contents := map[string]ociimage.File{"/standin": {Data: program, Mode: 0o755}}
	for _, image := range images {
		for name := range image.programs {
			if !path.IsAbs(name) {
				name = "/bin/" + name
			}
			contents[name] = ociimage.File{Link: "/standin"}
		}
	}
	var out []ociimage.Image
	for _, ref := range slices.Sorted(maps.Keys(images)) {
		image := images[ref]
		env := []string{"PATH=/bin", "STANDIN_PORTS=" + strings.Join(slices.Sorted(maps.Keys(image.ports)), " ")}
		if image.ends {
			env = append(env, "STANDIN_ENDS=yes")
		}
		out = append(out, ociimage.Image{Ref: ref, Files: contents, Entrypoint: []string{"/standin"}, Env: env})
	}
	m.writeImages("standins.tar", out)
}

// converges applies a manifest in a namespace of its name, waits until all is as it
// asks, and deletes it.
func (m *machine) converges(one manifest) {
	m.t.Helper()
	m.must("create", "namespace", one.name)
	var text []byte
	for _, obj := range one.objects {
		data, err := object.EncodeYAML(obj)
		if err != nil {
			m.t.Fatal(err)
		}
		text = append(append(text, "---\n"...), data...)
	}
	if before := filepath.Join("testdata/manifests", one.name+".yaml"); exists(before) {
		m.must("--namespace", one.name, "apply", "-f", before)
	}
	file := filepath.Join(m.t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		m.t.Fatal(err)
	}
	if out, code := m.holdfast("--namespace", one.name, "apply", "-f", file, "--timeout", "80s"); code != 0 {
		pods, _ := m.holdfast("--namespace", one.name, "get", "pods", "-o", "wide")
		events, _ := m.holdfast("--namespace", one.name, "get", "events")
		m.t.Errorf("exit code %d\n%s\n%s\n%s", code, out, pods, events)
	}
	m.must("delete", "namespace", one.name)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
