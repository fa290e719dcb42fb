package object

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/holdfast-io/holdfast/internal/golden"
)

// TestPodSpecs runs testdata/podspec/*.txtar: what a pod or a template becomes,
// or what is wrong with it, by Kubernetes' rules alone. Fields that the table of
// supported fields still refuses are looked at as if it did not.
func TestPodSpecs(t *testing.T) {
	golden.Run(t, "testdata/podspec/*.txtar", func(t *testing.T, in golden.Input) string {
		var out strings.Builder
		for _, name := range in.Names() {
			docs, faults := Builtin().parse(name, in.File(name))
			if len(faults) > 0 {
				t.Fatal(faults)
			}
			for i, d := range docs {
				if i > 0 {
					out.WriteString("---\n")
				}
				out.WriteString(byKubernetesRules(t, d))
			}
		}
		return out.String()
	})
}

func byKubernetesRules(t *testing.T, d Document) string {
	t.Helper()
	Default(d.Object)
	faults := faultsOf(d.Object, kindOfObject(d.Object).validate(d.Object))
	for i, f := range faults {
		faults[i].File, faults[i].Line, faults[i].Index = d.File, d.LineOf(f.Field), d.Index
		faults[i].Object = ""
	}
	sortFaults(faults)
	if len(faults) > 0 {
		return faults.Error() + "\n"
	}
	text, err := EncodeYAML(d.Object)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestNeverVolumes: every source of volumes is either refused for ever, with
// what to use instead, or known to validation and description.
func TestNeverVolumes(t *testing.T) {
	info := infoOf(reflect.TypeFor[corev1.VolumeSource]())
	for _, name := range info.names {
		v := corev1.Volume{Name: "v"}
		fill(reflect.ValueOf(&v.VolumeSource).Elem().FieldByIndex(info.fields[name]))
		pod := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{v}}}
		scope := &podScope{spec: &pod.Spec, pod: pod}
		_, never := neverVolumes[name]
		refused := strings.Contains(fmt.Sprint(scope.validateVolume(&pod.Spec.Volumes[0], field.NewPath("v"))), "no volumes of this type")
		if never != refused {
			t.Errorf("%s: in the list of sources that will never be %v, refused for that %v", name, never, refused)
		}
	}
	for name := range neverVolumes {
		if info.fields[name] == nil {
			t.Errorf("%s is not a source of volumes", name)
		}
	}
}
