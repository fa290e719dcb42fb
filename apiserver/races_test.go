package apiserver

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// atOnce calls f n times at once, through both Servers of a cluster, and returns its
// errors.
func atOnce(c *cluster, n int, f func(objects ObjectAPI, i int) error) []error {
	errs := make([]error, n)
	var calls sync.WaitGroup
	for i := range n {
		calls.Go(func() { errs[i] = f(c.servers[fmt.Sprint("peer-", 1+i%2)].Objects(), i) })
	}
	calls.Wait()
	return errs
}

func text(manifest string) *holdfastv1.Object {
	return &holdfastv1.Object{Data: []byte(manifest), Encoding: holdfastv1.Encoding_ENCODING_JSON}
}

// TestEvictionsAtOnce: of any number of evictions at once, as many succeed as the
// budget can spare.
func TestEvictionsAtOnce(t *testing.T) {
	c := newCluster(t, 2)
	ctx := withIdentity(t.Context(), alice)
	const pods, least = 12, 7
	budget := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: new(intstr.FromInt32(least)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}},
	}
	c.put(budget)
	for i := range pods {
		pod := boundPod(fmt.Sprint("web-", i), "n1")
		pod.Labels = map[string]string{"app": "web"}
		pod.Status.Phase = corev1.PodRunning
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		c.put(pod)
	}
	evicted := 0
	for i, err := range atOnce(c, pods, func(objects ObjectAPI, i int) error {
		for {
			_, err := objects.Evict(ctx, &holdfastv1.EvictRequest{Name: fmt.Sprint("web-", i)})
			if connect.CodeOf(err) != connect.CodeAborted || err == nil { // lost the race ten times: as a client would
				return err
			}
		}
	}) {
		switch {
		case err == nil:
			evicted++
		case connect.CodeOf(err) != connect.CodeResourceExhausted || !strings.Contains(err.Error(), "needs 7 healthy pods and has 7"):
			t.Errorf("web-%d: %v", i, err)
		}
	}
	if evicted != pods-least {
		t.Errorf("%d were evicted, want %d", evicted, pods-least)
	}
}

// TestQuotaAtOnce: a quota is not exceeded by calls at once, nor by many objects in
// one, and shows what is taken.
func TestQuotaAtOnce(t *testing.T) {
	c := newCluster(t, 2)
	ctx := withIdentity(t.Context(), alice)
	c.put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	quota := &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "few", Namespace: "default"},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"count/configmaps": resource.MustParse("5"), "pods": resource.MustParse("1")}},
	}
	c.put(quota)
	made := 0
	for _, err := range atOnce(c, 8, func(objects ObjectAPI, i int) error {
		for {
			_, err := objects.Create(ctx, &holdfastv1.CreateRequest{Object: text(fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c%d"}}`, i))})
			if connect.CodeOf(err) != connect.CodeAborted || err == nil {
				return err
			}
		}
	}) {
		if err == nil {
			made++
			continue
		}
		wantCode(t, err, connect.CodeResourceExhausted, "exceeded quota: few, requested: count/configmaps=1, used: count/configmaps=5, limited: count/configmaps=5")
		if infoOf(err).GetReason() != "Forbidden" {
			t.Errorf("reason is %v", infoOf(err))
		}
	}
	if made != 5 {
		t.Errorf("%d were made, want 5", made)
	}
	got, _ := object.Get[*corev1.ResourceQuota](c.store.View(), object.KeyOf(quota))
	if used := got.Status.Used["count/configmaps"]; used.Value() != 5 {
		t.Errorf("the quota shows %v", got.Status.Used)
	}
	_, err := c.servers["peer-1"].Objects().Apply(ctx, &holdfastv1.ApplyRequest{Objects: []*holdfastv1.Object{
		text(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"main","image":"web:1"}]}}`),
		text(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"},"spec":{"containers":[{"name":"main","image":"web:1"}]}}`),
	}})
	wantCode(t, err, connect.CodeResourceExhausted, "exceeded quota: few, requested: pods=1, used: pods=1, limited: pods=1")
	if _, there := c.pod("a"); there {
		t.Error("half of an apply was made")
	}
}

// TestAddressesAtOnce: no two Services get the same address or port.
func TestAddressesAtOnce(t *testing.T) {
	c := newCluster(t, 2)
	ctx := withIdentity(t.Context(), alice)
	for _, err := range atOnce(c, 8, func(objects ObjectAPI, i int) error {
		for {
			_, err := objects.Create(ctx, &holdfastv1.CreateRequest{Object: text(fmt.Sprintf(
				`{"apiVersion":"v1","kind":"Service","metadata":{"name":"s%d"},"spec":{"type":"NodePort","selector":{"app":"web"},"ports":[{"port":80}]}}`, i))})
			if connect.CodeOf(err) != connect.CodeAborted || err == nil {
				return err
			}
		}
	}) {
		if err != nil {
			t.Error(err)
		}
	}
	addresses, ports := map[string]string{}, map[int32]string{}
	for _, svc := range object.List[*corev1.Service](c.store.View(), "") {
		ip, port := svc.Spec.ClusterIP, svc.Spec.Ports[0].NodePort
		if ip == "" || port == 0 || addresses[ip] != "" || ports[port] != "" {
			t.Errorf("%s has %s and port %d, as %s%s", svc.Name, ip, port, addresses[ip], ports[port])
		}
		addresses[ip], ports[port] = svc.Name, svc.Name
	}
	if len(addresses) != 8 {
		t.Errorf("%d Services, want 8", len(addresses))
	}
	// A replacement that names no address keeps it.
	before, _ := object.Get[*corev1.Service](c.store.View(), "services/default/s0")
	_, err := c.servers["peer-1"].Objects().Update(ctx, &holdfastv1.UpdateRequest{Object: text(
		`{"apiVersion":"v1","kind":"Service","metadata":{"name":"s0"},"spec":{"type":"NodePort","selector":{"app":"other"},"ports":[{"port":80}]}}`)})
	after, _ := object.Get[*corev1.Service](c.store.View(), "services/default/s0")
	if err != nil || after.Spec.ClusterIP != before.Spec.ClusterIP || after.Spec.Ports[0].NodePort != before.Spec.Ports[0].NodePort || after.Spec.Selector["app"] != "other" {
		t.Errorf("%v: %v became %v", err, before.Spec, after.Spec)
	}
}

// TestAppliersAtOnce: two managers who apply the same fields at once: one of them
// owns them at the end, and the other was told, every time.
func TestAppliersAtOnce(t *testing.T) {
	c := newCluster(t, 2)
	ctx := withIdentity(t.Context(), alice)
	for round := range 20 {
		errs := atOnce(c, 2, func(objects ObjectAPI, i int) error {
			_, err := objects.Apply(ctx, &holdfastv1.ApplyRequest{FieldManager: fmt.Sprint("m", i), Objects: []*holdfastv1.Object{
				text(fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c%d"},"data":{"a":"%d"}}`, round, i)),
			}})
			return err
		})
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
				continue
			}
			wantCode(t, err, connect.CodeAborted, ".data.a: conflict with")
			faults := faultsOf(err)
			if len(faults) != 1 || faults[0].GetReason() != "FieldManagerConflict" || faults[0].GetField() != ".data.a" {
				t.Errorf("faults %v", faults)
			}
		}
		if won != 1 {
			t.Fatalf("round %d: %d of two succeeded: %v", round, won, errs)
		}
	}
}

// TestPrunesAtOnce: two appliers of one set that prune at once leave what one of them
// has asked for, and the record says so.
func TestPrunesAtOnce(t *testing.T) {
	c := newCluster(t, 2)
	ctx := withIdentity(t.Context(), alice)
	for round := range 20 {
		set := fmt.Sprint("set", round)
		errs := atOnce(c, 4, func(objects ObjectAPI, i int) error {
			_, err := objects.Apply(ctx, &holdfastv1.ApplyRequest{Set: set, Prune: true, Objects: []*holdfastv1.Object{
				text(fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"%s-%d"}}`, set, i)),
			}})
			return err
		})
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, cm := range object.List[*corev1.ConfigMap](c.store.View(), "default") {
			if strings.HasPrefix(cm.Name, set+"-") {
				left = append(left, cm.Name)
			}
		}
		record, _ := c.store.View().Get("holdfast/sets//" + set)
		if len(left) != 1 || !strings.Contains(string(record.Value), left[0]) || strings.Count(string(record.Value), `"name"`) != 1 {
			t.Fatalf("round %d: %v are left, the record is %s", round, left, record.Value)
		}
	}
}
