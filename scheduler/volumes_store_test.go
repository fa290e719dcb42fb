package scheduler

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore"
)

// lateClass is a StorageClass whose volumes are made where the first pod is to run.
func lateClass() *storagev1.StorageClass {
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "local"}, Provisioner: object.LocalProvisioner, VolumeBindingMode: new(storagev1.VolumeBindingWaitForFirstConsumer)}
}

func newClaim(name string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: new("local"), AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
}

func (b *bench) claim(name string) *corev1.PersistentVolumeClaim {
	b.t.Helper()
	claim, ok := object.Get[*corev1.PersistentVolumeClaim](b.store.View(), claimKey("default", name))
	if !ok {
		b.t.Fatalf("claim %s is gone", name)
	}
	return claim
}

// provision makes the volume of a claim whose node is selected, as the controller of
// volumes does, and reports whether it did.
func (b *bench) provision(claim *corev1.PersistentVolumeClaim) bool {
	b.t.Helper()
	node := claim.Annotations[annSelectedNode]
	if node == "" || claim.Spec.VolumeName != "" {
		return false
	}
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + claim.Name}}
	pv.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchFields: []corev1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
	}}}}
	claim.Spec.VolumeName, claim.Status.Phase = pv.Name, corev1.ClaimBound
	b.put(pv, claim)
	return true
}

// TestVolumesOverTheStore: a pod's node is selected, its volume made there, and then it
// runs there; nothing of this is a failure.
func TestVolumesOverTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.putNodes("n1\nn2")
		b.put(lateClass(), newClaim("data"))
		b.putPods("db claim=data")
		b.run()
		synctest.Wait()
		if pod := b.pod("db"); pod.Spec.NodeName != "" || pod.Status.NominatedNodeName != "n1" {
			t.Fatalf("before its volume is made the pod is on %q, expected on %q", pod.Spec.NodeName, pod.Status.NominatedNodeName)
		}
		if node := b.claim("data").Annotations[annSelectedNode]; node != "n1" {
			t.Fatalf("selected is %q, want n1", node)
		}
		b.provision(b.claim("data"))
		synctest.Wait()
		if node := b.pod("db").Spec.NodeName; node != "n1" {
			t.Errorf("the pod is on %q: %s", node, b.message("db"))
		}
		for _, e := range b.recorded() {
			if strings.Contains(e, "Warning") {
				t.Errorf("event %q, want no warning", e)
			}
		}
	})
}

// TestSelectedNodesStay plays claims, of one pod or shared by several, while volumes
// are made sooner or later and nodes, volumes and pods change all the time: a node
// that is selected for a claim stays so until its volume is there, and then every pod
// is where its volumes are.
func TestSelectedNodesStay(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			b := newBench(t)
			b.putNodes("n1 cpu=8\nn2 cpu=8\nn3 cpu=8")
			b.put(lateClass())
			watcher := b.store.Watch("", b.store.View().Revision())
			b.run()
			const claims = 6
			for i := range claims {
				b.put(newClaim(fmt.Sprint("c", i)))
			}
			pods := 0
			for step := range 120 {
				switch r.IntN(8) {
				case 0, 1:
					if pods < 3*claims {
						b.putPods(fmt.Sprintf("p%d cpu=%dm claim=c%d owner=o%d priority=%d", pods, 100+r.IntN(900), r.IntN(claims), r.IntN(2), r.IntN(2)))
						pods++
					}
				case 2:
					b.putNodes(fmt.Sprintf("n%d cpu=8 label=step:%d", 1+r.IntN(3), step))
				case 3:
					b.put(&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("other-", r.IntN(3)), Labels: map[string]string{"step": fmt.Sprint(step)}}})
				case 4: // somebody else writes the claim
					key := claimKey("default", fmt.Sprint("c", r.IntN(claims)))
					kv, _ := b.store.View().Get(string(key))
					claim, _ := object.Get[*corev1.PersistentVolumeClaim](b.store.View(), key)
					claim.Labels = map[string]string{"step": fmt.Sprint(step)}
					data, err := object.Encode(claim)
					if err != nil {
						t.Fatal(err)
					}
					_, err = b.store.Txn(t.Context(), raftstore.Txn{If: []raftstore.Compare{raftstore.ModIs(string(key), kv.Mod)}, Then: []raftstore.Op{raftstore.Put(string(key), data)}})
					if err != nil && !errors.Is(err, raftstore.ErrConflict) {
						t.Fatal(err)
					}
				case 5:
					synctest.Wait()
					b.provision(b.claim(fmt.Sprint("c", r.IntN(claims))))
				case 6:
					time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
				case 7:
					if i := r.IntN(pods + 1); i < pods {
						b.txn(raftstore.Txn{Then: []raftstore.Op{raftstore.Delete(fmt.Sprintf("pods/default/p%d", i))}})
					}
				}
			}
			for more := true; more; {
				synctest.Wait()
				more = false
				for i := range claims {
					more = b.provision(b.claim(fmt.Sprint("c", i))) || more
				}
			}
			time.Sleep(time.Minute)
			synctest.Wait()

			selected := map[string]string{}
			for read := watcherStart; read < b.store.View().Revision(); {
				events, upTo, ok, err := watcher.Poll()
				if err != nil || !ok {
					t.Fatalf("watch: %v, %v", ok, err)
				}
				for _, ev := range events {
					if !strings.HasPrefix(ev.Key, claimResource.Prefix("")) {
						continue
					}
					obj, err := object.Decode(ev.KV.Value, ev.KV.Mod)
					if err != nil {
						t.Fatal(err)
					}
					was, is := selected[ev.Key], obj.GetAnnotations()[annSelectedNode]
					if was != "" && is != was {
						t.Fatalf("seed %d, revision %d: the node selected for %s was %s and is %q", seed, ev.Revision, ev.Key, was, is)
					}
					selected[ev.Key] = is
				}
				read = upTo
			}
			waiting := 0
			for _, pod := range object.List[*corev1.Pod](b.store.View(), "") {
				claim := b.claim(pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName)
				if pod.Spec.NodeName == "" {
					waiting++ // no room there
				} else if on := claim.Annotations[annSelectedNode]; pod.Spec.NodeName != on {
					t.Errorf("seed %d: %s is on %s, its volume on %s", seed, pod.Name, pod.Spec.NodeName, on)
				}
			}
			if waiting > 0 {
				t.Errorf("seed %d: %d pods wait though their volumes are there and nodes have room", seed, waiting)
			}
		})
	}
}

// watcherStart is before every revision.
const watcherStart = raftstore.Revision(0)

// TestPreemptionOverTheStore: what makes room is told why and is deleted, budgets are
// written down, and the pod runs where it made room.
func TestPreemptionOverTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.putNodes("n1 cpu=1\nn2 cpu=1")
		b.putPods("a cpu=1 node=n1 priority=1\nb cpu=1 node=n2 priority=2")
		b.run()
		synctest.Wait()
		b.putPods("urgent cpu=1 priority=9")
		synctest.Wait()
		pod, victim := b.pod("urgent"), b.pod("a")
		if pod.Spec.NodeName != "" || pod.Status.NominatedNodeName != "n1" {
			t.Fatalf("urgent is on %q, expected on %q; want it expected on n1", pod.Spec.NodeName, pod.Status.NominatedNodeName)
		}
		if c := object.PodCondition(victim, corev1.DisruptionTarget); !object.Deleting(victim) || c == nil || c.Reason != corev1.PodReasonPreemptionByScheduler {
			t.Fatalf("the victim is being deleted: %v, condition %+v", object.Deleting(victim), c)
		}
		if object.Deleting(b.pod("b")) {
			t.Error("more pods go than have to")
		}
		b.putPods("later cpu=1 priority=8") // less urgent: it takes b's place, and not the one that is kept
		synctest.Wait()
		b.txn(raftstore.Txn{Then: []raftstore.Op{raftstore.Delete("pods/default/a")}})
		synctest.Wait()
		if node := b.pod("urgent").Spec.NodeName; node != "n1" {
			t.Errorf("urgent is on %q: %s", node, b.message("urgent"))
		}
		b.txn(raftstore.Txn{Then: []raftstore.Op{raftstore.Delete("pods/default/b")}})
		synctest.Wait()
		if node := b.pod("later").Spec.NodeName; node != "n2" {
			t.Errorf("later is on %q: %s", node, b.message("later"))
		}
		preempted := 0
		for _, e := range b.recorded() {
			if strings.Contains(e, "Preempted: ends to make room for pods/default/") {
				preempted++
			}
		}
		if preempted != 2 {
			t.Errorf("%d events of preemption, want 2: %q", preempted, b.recorded())
		}
	})
}
