package kubecompat

import (
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// TestServiceAccountToken makes a token with kubectl, and is its service account with
// client-go, as a pod would be: with the token alone, until the account is deleted.
func TestServiceAccountToken(t *testing.T) {
	needKubectl(t)
	for _, version := range versions() {
		t.Run(version, func(t *testing.T) {
			namespace := "tokens-" + strings.ReplaceAll(version, ".", "-")
			p := kubectl(t, version, namespace, false)
			must := func(args ...string) string {
				t.Helper()
				out, code := p.run(t.Context(), args...)
				if code != 0 {
					t.Fatalf("kubectl %s: exit %d\n%s", strings.Join(args, " "), code, out)
				}
				return strings.TrimSpace(out)
			}
			must("create", "serviceaccount", "robot")
			token := must("create", "token", "robot", "--duration=20m")
			config, err := clientcmd.BuildConfigFromFlags("", p.kubeconfig)
			if err != nil {
				t.Fatal(err)
			}
			config = rest.AnonymousClientConfig(config)
			config.BearerToken = token
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			whoAmI := func() (*authenticationv1.SelfSubjectReview, error) {
				return client.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
			}
			me, err := whoAmI()
			if err != nil {
				t.Fatal(err)
			}
			if user := me.Status.UserInfo; user.Username != "system:serviceaccount:"+namespace+":robot" || !slices.Contains(user.Groups, "system:serviceaccounts:"+namespace) {
				t.Errorf("who am I: %+v", user)
			}
			if _, err := client.CoreV1().Secrets(namespace).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
				t.Errorf("list of secrets: %v, want it forbidden", err)
			}
			must("delete", "serviceaccount", "robot")
			if _, err := whoAmI(); !apierrors.IsUnauthorized(err) {
				t.Errorf("after the deletion: %v, want unauthorized", err)
			}
		})
	}
}
