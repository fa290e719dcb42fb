package agent

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// registryAuth is an entry of a docker configuration.
type registryAuth struct {
	Username string `json:"username"`
	Password string `json:"password"`
	Auth     string `json:"auth"` // both, in base64
}

// pullCredentials returns what may be shown to the registry of image: the entries of
// the pod's pull secrets that are for it, those for the longest path first. A secret that is not
// there or cannot be read is left out and named in missing: the image may be public.
func pullCredentials(pod *corev1.Pod, image string, lookup func(name string) *corev1.Secret) (found []runtime.Credential, missing []string) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil, nil // the runtime says so
	}
	type match struct {
		at         string
		credential runtime.Credential
	}
	var matches []match
	for _, ref := range pod.Spec.ImagePullSecrets {
		secret := lookup(ref.Name)
		if secret == nil {
			missing = append(missing, fmt.Sprintf("secret %q not found", ref.Name))
			continue
		}
		auths, err := registryAuths(secret)
		if err != nil {
			missing = append(missing, fmt.Sprintf("secret %q: %v", ref.Name, err))
			continue
		}
		for at, auth := range auths {
			if !registryMatches(at, named.Name()) {
				continue
			}
			c, err := auth.credential()
			if err != nil {
				missing = append(missing, fmt.Sprintf("secret %q: %s: %v", ref.Name, at, err))
				continue
			}
			matches = append(matches, match{at, c})
		}
	}
	slices.SortStableFunc(matches, func(a, b match) int {
		return cmp.Or(cmp.Compare(len(b.at), len(a.at)), cmp.Compare(a.at, b.at))
	})
	for _, m := range matches {
		found = append(found, m.credential)
	}
	return found, missing
}

// registryAuths reads a secret of either of the types that Kubernetes has for this.
func registryAuths(secret *corev1.Secret) (map[string]registryAuth, error) {
	var auths map[string]registryAuth
	switch {
	case secret.Data[corev1.DockerConfigJsonKey] != nil:
		var file struct {
			Auths map[string]registryAuth `json:"auths"`
		}
		if err := json.Unmarshal(secret.Data[corev1.DockerConfigJsonKey], &file); err != nil {
			return nil, fmt.Errorf("its %s is not JSON of a docker configuration", corev1.DockerConfigJsonKey)
		}
		auths = file.Auths
	case secret.Data[corev1.DockerConfigKey] != nil:
		if err := json.Unmarshal(secret.Data[corev1.DockerConfigKey], &auths); err != nil {
			return nil, fmt.Errorf("its %s is not JSON of a docker configuration", corev1.DockerConfigKey)
		}
	default:
		return nil, fmt.Errorf("it has neither %s nor %s", corev1.DockerConfigJsonKey, corev1.DockerConfigKey)
	}
	return auths, nil
}

func (a registryAuth) credential() (runtime.Credential, error) {
	if a.Auth == "" {
		return runtime.Credential{Username: a.Username, Password: a.Password}, nil
	}
	text, err := base64.StdEncoding.DecodeString(a.Auth)
	user, password, ok := strings.Cut(strings.TrimRight(string(text), "\x00"), ":")
	if err != nil || !ok {
		return runtime.Credential{}, fmt.Errorf("its auth is not user:password in base64")
	}
	return runtime.Credential{Username: user, Password: password}, nil
}

// registryMatches says whether an entry of a docker configuration, "host/path" with
// or without a scheme, is for an image, as Kubernetes does: "*" stands for a part of
// the host's name, and the path is one above the image's.
func registryMatches(at, image string) bool {
	at = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(at, "https://"), "http://"), "/")
	for _, version := range []string{"/v1", "/v2"} {
		at = strings.TrimSuffix(at, version)
	}
	host, below, _ := strings.Cut(at, "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	imageHost, imagePath, _ := strings.Cut(image, "/")
	if below != "" && imagePath != below && !strings.HasPrefix(imagePath, below+"/") {
		return false
	}
	want, have := strings.Split(host, "."), strings.Split(imageHost, ".")
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], have[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
