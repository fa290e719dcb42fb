package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/internal/golden"
)

// TestPlanEviction runs testdata/evict/*.txtar. Each states one rule in its comment: pods, and a
// script of what is seen, line by line. Expected is what is decided after each "look".
//
//	SIGNAL AVAILABLE of CAPACITY     what the node has
//	use POD CONTAINER memory=… root=… logs=… inodes=… pids=…
//	fill POD VOLUME BYTES [limit=…] [claim=…] [inodes=…]
//	ends POD                         it is no longer there
//	pass DURATION
//	look [reclaimed]
func TestPlanEviction(t *testing.T) {
	golden.Run(t, "testdata/evict/*.txtar", func(t *testing.T, in golden.Input) string {
		var pods []corev1.Pod
		if err := yaml.UnmarshalStrict(in.File("pods"), &pods); err != nil {
			t.Fatalf("pods: %v", err)
		}
		thresholds, err := ParseThresholds(strings.Split(DefaultEvictionHard+",pid.available<100", ","))
		if err != nil {
			t.Fatal(err)
		}
		x := evictionInput{Thresholds: thresholds, Node: map[Signal]amount{}, Transition: defaultEvictionTransition}
		for i := range pods {
			pods[i].Namespace = "default"
			x.Pods = append(x.Pods, podUse{Pod: &pods[i], Static: pods[i].Annotations["static"] != "", Containers: map[string]containerUse{}})
		}
		var out strings.Builder
		now := time.Date(2026, 1, 1, 10, 0, 0, 0, time.UTC)
		for line := range strings.Lines(string(in.File("script"))) {
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			words := strings.Fields(line)
			pod := func() *podUse {
				i := slices.IndexFunc(x.Pods, func(p podUse) bool { return p.Pod.Name == words[1] })
				if i < 0 {
					t.Fatalf("script line %q: no such pod", line)
				}
				return &x.Pods[i]
			}
			bytes := func(text string) int64 {
				q, err := resource.ParseQuantity(text)
				if err != nil {
					t.Fatalf("script line %q: %q: %v", line, text, err)
				}
				return q.Value()
			}
			values := func(from int) map[string]int64 {
				m := map[string]int64{}
				for _, word := range words[from:] {
					name, value, ok := strings.Cut(word, "=")
					if !ok {
						t.Fatalf("script line %q: %q is no NAME=VALUE", line, word)
					}
					m[name] = bytes(value)
				}
				return m
			}
			switch words[0] {
			case "use":
				v, p := values(3), pod()
				p.Containers[words[2]] = containerUse{Memory: v["memory"], Root: v["root"], Logs: v["logs"], Inodes: v["inodes"]}
				p.PIDs += v["pids"]
			case "fill":
				p := pod()
				u := volumeUse{Name: words[2], Bytes: bytes(words[3])}
				if last := words[len(words)-1]; strings.HasPrefix(last, "claim=") {
					u.Claim, words = strings.TrimPrefix(last, "claim="), words[:len(words)-1]
				}
				v := values(4)
				u.Limit, u.Inodes = v["limit"], v["inodes"]
				p.Volumes = append(p.Volumes, u)
			case "ends":
				x.Pods = slices.DeleteFunc(x.Pods, func(p podUse) bool { return p.Pod.Name == words[1] })
			case "pass":
				d, err := time.ParseDuration(words[1])
				if err != nil {
					t.Fatal(err)
				}
				now = now.Add(d)
			case "look":
				x.Reclaimed = len(words) > 1
				plan := planEviction(x, now)
				x.LastMet = plan.LastMet
				fmt.Fprintf(&out, "%s: %v", line, plan.Pressure)
				if plan.Reclaim {
					out.WriteString(", reclaim")
				}
				if plan.Stuck != "" {
					fmt.Fprintf(&out, ", stuck for %s", plan.Stuck)
				}
				if plan.Evict != nil {
					fmt.Fprintf(&out, ", evict %s: %s", plan.Evict.Name, strings.TrimSpace(plan.Message))
				}
				out.WriteString("\n")
				for _, p := range x.Pods {
					if why := refused(p, plan.Pressure); why != "" {
						fmt.Fprintf(&out, "\tnew pods like %s: %s\n", p.Pod.Name, strings.TrimSpace(why))
					}
				}
			default:
				if _, known := signalInfo[Signal(words[0])]; !known || len(words) != 4 {
					t.Fatalf("script line %q is not understood", line)
				}
				x.Node[Signal(words[0])] = amount{bytes(words[1]), bytes(words[3])}
			}
		}
		return out.String()
	})
}

func TestParseThresholds(t *testing.T) {
	all, err := ParseThresholds([]string{"memory.available<1.5Gi", "nodefs.available<12.5%", ""})
	if want := fmt.Sprint([]Threshold{{SignalMemory, 3 << 29, 0}, {SignalNodeFS, 0, 12.5}}); err != nil || fmt.Sprint(all) != want {
		t.Errorf("got %v (%v), want %s", all, err, want)
	}
	if all, err := ParseThresholds(nil); all == nil || len(all) > 0 || err != nil {
		t.Errorf("nothing is read as %v (%v), want an empty list: nothing is evicted", all, err)
	}
	for _, bad := range []string{"memory<1Gi", "memory.available", "memory.available<", "nodefs.available<101%", "nodefs.available<-1%", "pid.available<-1", "pid.available<x"} {
		if all, err := ParseThresholds([]string{bad}); err == nil {
			t.Errorf("%q is read as %v", bad, all)
		}
	}
	if _, err := ParseThresholds([]string{"pid.available<1", "pid.available<2"}); err == nil {
		t.Error("two thresholds of one signal are taken")
	}
}

// TestNodeSignals: this machine has some of everything, and not more than there is.
func TestNodeSignals(t *testing.T) {
	got := nodeSignals(t.TempDir())()
	for _, s := range []Signal{SignalMemory, SignalNodeFS, SignalPIDs} {
		if a := got[s]; a.Available <= 0 || a.Available > a.Capacity {
			t.Errorf("%s: %+v", s, a)
		}
	}
}
