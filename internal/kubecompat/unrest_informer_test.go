package kubecompat

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// TestInformer runs client-go's informer, in JSON and in protobuf, through the
// proxy, while the leader dies: in the end it must have what the cluster has, and
// have told of each change.
func TestInformer(t *testing.T) {
	for _, media := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		t.Run(media[len("application/"):], func(t *testing.T) {
			namespace := "informer-" + media[len(media)-4:]
			config, err := clientcmd.BuildConfigFromFlags("", shared.kubeconfig(t, namespace, true))
			if err != nil {
				t.Fatal(err)
			}
			config.ContentType = media
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			maps := client.CoreV1().ConfigMaps(namespace)
			create := func(name string) {
				t.Helper()
				_, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"a": "1"}}, metav1.CreateOptions{})
				if apierrors.IsTimeout(err) { // the leader died with it: nobody knows, so look
					if _, err = maps.Get(ctx, name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
						_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"a": "1"}}, metav1.CreateOptions{})
					}
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			create("before")

			factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace))
			informer := factory.Core().V1().ConfigMaps()
			told := make(chan string, 100)
			if _, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
				AddFunc:    func(obj any) { told <- "add " + obj.(*corev1.ConfigMap).Name },
				UpdateFunc: func(_, obj any) { told <- "update " + obj.(*corev1.ConfigMap).Name },
				DeleteFunc: func(obj any) {
					if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
						obj = gone.Obj
					}
					told <- "delete " + obj.(*corev1.ConfigMap).Name
				},
			}); err != nil {
				t.Fatal(err)
			}
			factory.Start(ctx.Done())
			if !cache.WaitForCacheSync(ctx.Done(), informer.Informer().HasSynced) {
				t.Fatal("the informer never synced: no end of the initial events was seen")
			}
			expect := func(want string) {
				t.Helper()
				for {
					select {
					case got := <-told:
						if got == want {
							return
						}
						t.Logf("told %s before %s", got, want)
					case <-ctx.Done():
						t.Fatalf("never told: %s", want)
					}
				}
			}
			expect("add before")
			create("during")
			expect("add during")

			kill(t, leader(t))
			for i := range 5 {
				create(fmt.Sprint("after-", i))
			}
			if err := maps.Delete(ctx, "before", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			expect("delete before")
			// The informer may have had to list again; then it tells of all.
			for ctx.Err() == nil {
				have, err := informer.Lister().ConfigMaps(namespace).List(labels.Everything())
				if err == nil && len(have) == 6 {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if ctx.Err() != nil {
				t.Fatal("the informer does not have what the cluster has")
			}
			if _, err := maps.Patch(ctx, "during", "application/merge-patch+json", []byte(`{"data":{"a":"2"}}`), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
			expect("update during")
		})
	}
}
