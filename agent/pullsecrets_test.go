package agent

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestRegistryMatches(t *testing.T) {
	for _, c := range []struct {
		at, image string
		want      bool
	}{
		{"https://index.docker.io/v1/", "docker.io/library/web", true},
		{"docker.io", "docker.io/team/web", true},
		{"registry.example", "registry.example/a/b", true},
		{"http://registry.example:5000/v2/", "registry.example:5000/a", true},
		{"registry.example", "registry.example:5000/a", false},
		{"registry.example/team", "registry.example/team/web", true},
		{"registry.example/team", "registry.example/teammate/web", false},
		{"registry.example/team/web", "registry.example/team/web", true},
		{"*.example", "registry.example/a", true},
		{"*.example", "a.registry.example/a", false},
		{"*.example", "example/a", false},
		{"reg*.example", "registry.example/a", true},
		{"", "registry.example/a", false},
		{"[.example", "registry.example/a", false},
	} {
		if got := registryMatches(c.at, c.image); got != c.want {
			t.Errorf("%q for %q: %v, want %v", c.at, c.image, got, c.want)
		}
	}
}

func TestPullCredentials(t *testing.T) {
	secrets := map[string]*corev1.Secret{
		"json": {Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(
			`{"auths": {"registry.example": {"username": "wide", "password": "1"}, "registry.example/team": {"auth": "bmFycm93OmE6Yg=="}, "other.example": {"username": "no"}}}`)}},
		"old":     {Data: map[string][]byte{corev1.DockerConfigKey: []byte(`{"https://registry.example/v1/": {"username": "old", "password": "2"}}`)}},
		"broken":  {Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{`)}},
		"strange": {Data: map[string][]byte{"password": []byte("x")}},
		"auth":    {Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths": {"registry.example": {"auth": "!"}}}`)}},
	}
	for _, c := range []struct{ name, names, image, want, missing string }{
		{"longest path first", "json", "registry.example/team/web:1", "narrow=a:b wide=1", ""},
		{"of several secrets", "json old", "registry.example/web", "old=2 wide=1", ""},
		{"another registry", "json", "web:1", "", ""},
		{
			"what cannot be read does not hide the rest", "gone broken strange auth json", "registry.example/web", "wide=1",
			`secret "gone" not found; secret "broken": its .dockerconfigjson is not JSON of a docker configuration; secret "strange": it has neither .dockerconfigjson nor .dockercfg; secret "auth": registry.example: its auth is not user:password in base64`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := &corev1.Pod{}
			for name := range strings.FieldsSeq(c.names) {
				pod.Spec.ImagePullSecrets = append(pod.Spec.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
			}
			found, missing := pullCredentials(pod, c.image, func(name string) *corev1.Secret { return secrets[name] })
			var got []string
			for _, f := range found {
				got = append(got, fmt.Sprintf("%s=%s", f.Username, f.Password))
			}
			if text := strings.Join(got, " "); text != c.want || strings.Join(missing, "; ") != c.missing {
				t.Errorf("got %q and %q, want %q and %q", text, strings.Join(missing, "; "), c.want, c.missing)
			}
		})
	}
}
