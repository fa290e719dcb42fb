package apiserver

import (
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// TestPages: pages show one revision, whatever is written meanwhile, and say how
// much is left while nobody has to look at each object for that.
func TestPages(t *testing.T) {
	c := newCluster(t, 1)
	var objs []object.Object
	for i := range 10 {
		pod := labelled(fmt.Sprintf("p%d", i), "web")
		objs = append(objs, pod)
	}
	revision := c.put(objs...)
	for _, selector := range []string{"", "app=web"} {
		var names []string
		req := &holdfastv1.ListRequest{Kind: podKind, Limit: 4, LabelSelector: selector}
		for page := 0; ; page++ {
			resp, err := c.objects("peer-1").List(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			for _, obj := range resp.GetObjects() {
				names = append(names, obj.GetName())
			}
			want := []int64{6, 2, 0}[page]
			if selector != "" {
				want = 0
			}
			if resp.GetRemaining() != want || resp.GetAnswer().GetRevision() != revision {
				t.Errorf("page %d of %q: %d remain at %d, want %d at %d", page, selector, resp.GetRemaining(), resp.GetAnswer().GetRevision(), want, revision)
			}
			if req.Continue = resp.GetContinue(); req.Continue == "" {
				break
			}
			c.put(labelled(fmt.Sprintf("p%da", page), "web"))
			c.remove(labelled(fmt.Sprintf("p%d", 9-page), "web"))
		}
		if got := strings.Join(names, " "); got != "p0 p1 p2 p3 p4 p5 p6 p7 p8 p9" {
			t.Errorf("with %q: %s", selector, got)
		}
		for page := range 3 {
			c.remove(labelled(fmt.Sprintf("p%da", page), "web"))
		}
		revision = c.put(objs...)
	}
}

// TestListBytes: a list that is too large for one answer is refused with what to do,
// and comes in pages that are not.
func TestListBytes(t *testing.T) {
	c := newCluster(t, 1)
	const n = 70
	for i := range n {
		c.put(&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c%02d", i), Namespace: "default"},
			Data:       map[string]string{"a": strings.Repeat("x", 1<<20)},
		})
	}
	req := &holdfastv1.ListRequest{Kind: &holdfastv1.Kind{Version: "v1", Kind: "ConfigMap"}}
	objects, ctx := c.servers["peer-1"].Objects(), withIdentity(t.Context(), alice)
	_, err := objects.List(ctx, req)
	wantCode(t, err, connect.CodeResourceExhausted, "there are more than 64 MiB of them: ask for pages, with limit 5000")
	req.Limit = 5000
	got, pages := 0, 0
	for {
		resp, err := objects.List(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		got += len(resp.GetObjects())
		pages++
		if req.Continue = resp.GetContinue(); req.Continue == "" {
			break
		}
		if int(resp.GetRemaining()) != n-got {
			t.Errorf("%d remain after %d of %d", resp.GetRemaining(), got, n)
		}
	}
	if got != n || pages != 2 {
		t.Errorf("%d objects in %d pages, want %d in 2", got, pages, n)
	}
}

// BenchmarkList lists 10,000 pods, as its handler does: without the wire.
func BenchmarkList(b *testing.B) {
	c := newCluster(b, 1)
	for i := 0; i < 10_000; i += 100 {
		var objs []object.Object
		for j := range 100 {
			objs = append(objs, labelled(fmt.Sprintf("p%05d", i+j), "web"))
		}
		c.put(objs...)
	}
	objects, ctx := c.servers["peer-1"].Objects(), withIdentity(b.Context(), alice)
	for name, encoding := range map[string]holdfastv1.Encoding{"protobuf": holdfastv1.Encoding_ENCODING_PROTOBUF, "json": holdfastv1.Encoding_ENCODING_JSON} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				resp, err := objects.List(ctx, &holdfastv1.ListRequest{Kind: podKind, Encoding: encoding})
				if err != nil || len(resp.GetObjects()) != 10_000 {
					b.Fatal(err)
				}
			}
		})
	}
}
