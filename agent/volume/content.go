package volume

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// file is one file of a volume that shows something.
type file struct {
	data []byte
	mode fs.FileMode
	// owner is the user that it belongs to, nil: root.
	owner *int
}

// isShown says whether a volume shows objects or the pod's own fields: files that
// the agent writes, and that containers only read.
func isShown(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

// showsSecrets says whether what a volume shows must never be on a disk.
func showsSecrets(v *corev1.Volume) bool {
	return v.Secret != nil || v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool { return s.Secret != nil || s.ServiceAccountToken != nil })
}

const defaultFileMode = 0o644

// content returns the files of a volume that shows something, by path. It is
// pure.
func content(pod *corev1.Pod, v *corev1.Volume, src Sources) (map[string]file, error) {
	files := map[string]file{}
	var err error
	switch {
	case v.ConfigMap != nil:
		err = addConfigMap(files, src, v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional, v.ConfigMap.DefaultMode)
	case v.Secret != nil:
		err = addSecret(files, src, v.Secret.SecretName, v.Secret.Items, v.Secret.Optional, v.Secret.DefaultMode)
	case v.DownwardAPI != nil:
		err = addDownward(files, src, pod, v.DownwardAPI.Items, v.DownwardAPI.DefaultMode)
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			mode := v.Projected.DefaultMode
			switch {
			case s.ConfigMap != nil:
				err = addConfigMap(files, src, s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional, mode)
			case s.Secret != nil:
				err = addSecret(files, src, s.Secret.Name, s.Secret.Items, s.Secret.Optional, mode)
			case s.DownwardAPI != nil:
				err = addDownward(files, src, pod, s.DownwardAPI.Items, mode)
			case s.ServiceAccountToken != nil:
				err = addToken(files, src, pod, s.ServiceAccountToken, mode)
			default:
				err = fmt.Errorf("a projection of this type is not supported")
			}
			if err != nil {
				break
			}
		}
	}
	if err != nil {
		return nil, err
	}
	return files, nil
}

func addConfigMap(files map[string]file, src Sources, name string, items []corev1.KeyToPath, optional *bool, mode *int32) error {
	cm := src.ConfigMap(name)
	values := map[string][]byte{}
	if cm != nil {
		maps.Copy(values, cm.BinaryData)
		for key, value := range cm.Data {
			values[key] = []byte(value)
		}
	}
	return add(files, fmt.Sprintf("configmap %q", name), values, cm != nil, items, optional != nil && *optional, mode)
}

func addSecret(files map[string]file, src Sources, name string, items []corev1.KeyToPath, optional *bool, mode *int32) error {
	secret := src.Secret(name)
	var values map[string][]byte
	if secret != nil {
		values = secret.Data
	}
	return add(files, fmt.Sprintf("secret %q", name), values, secret != nil, items, optional != nil && *optional, mode)
}

// addToken adds a token of the pod's service account. As in Kubernetes it is for the pod's one user
// if it has one, and for its group.
func addToken(files map[string]file, src Sources, pod *corev1.Pod, p *corev1.ServiceAccountTokenProjection, mode *int32) error {
	text, _ := src.Token(p)
	if text == "" {
		return fmt.Errorf("token of the pod's service account for %q %w", p.Audience, ErrMissing)
	}
	f := file{data: []byte(text), mode: modeOf(nil, mode), owner: onlyUser(pod)}
	if f.owner != nil || fsGroup(pod) != nil {
		f.mode = 0o600
	}
	files[path.Clean(p.Path)] = f
	return nil
}

// onlyUser returns the user that all containers of the pod run as by its spec, nil if it does
// not say so or they differ.
func onlyUser(pod *corev1.Pod) *int {
	var common *int64
	if sc := pod.Spec.SecurityContext; sc != nil {
		common = sc.RunAsUser
	}
	var user *int64
	for _, all := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range all {
			own := common
			if sc := all[i].SecurityContext; sc != nil && sc.RunAsUser != nil {
				own = sc.RunAsUser
			}
			if own == nil || user != nil && *user != *own {
				return nil
			}
			user = own
		}
	}
	if user == nil {
		return nil
	}
	return new(int(*user))
}

// add adds the values of an object: all, or those that items name.
func add(files map[string]file, what string, values map[string][]byte, exists bool, items []corev1.KeyToPath, optional bool, mode *int32) error {
	if !exists {
		if optional {
			return nil
		}
		return fmt.Errorf("%s %w", what, ErrMissing)
	}
	if len(items) == 0 {
		for key, value := range values {
			files[key] = file{data: value, mode: modeOf(nil, mode)}
		}
		return nil
	}
	for _, item := range items {
		value, ok := values[item.Key]
		switch {
		case ok:
			files[path.Clean(item.Path)] = file{data: value, mode: modeOf(item.Mode, mode)}
		case !optional:
			return fmt.Errorf("key %q of %s %w", item.Key, what, ErrMissing)
		}
	}
	return nil
}

func addDownward(files map[string]file, src Sources, pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode *int32) error {
	for _, item := range items {
		var text string
		var err error
		switch {
		case item.ResourceFieldRef != nil:
			text, err = src.Resource(item.ResourceFieldRef)
		case item.FieldRef == nil:
			err = fmt.Errorf("it refers to nothing")
		case item.FieldRef.FieldPath == "metadata.labels":
			text = lines(pod.Labels)
		case item.FieldRef.FieldPath == "metadata.annotations":
			text = lines(pod.Annotations)
		default:
			text, err = src.Field(item.FieldRef.FieldPath)
		}
		if err != nil {
			return fmt.Errorf("downward API file %q: %w", item.Path, err)
		}
		files[path.Clean(item.Path)] = file{data: []byte(text), mode: modeOf(item.Mode, mode)}
	}
	return nil
}

// lines writes labels or annotations as Kubernetes does: key="quoted", sorted.
func lines(m map[string]string) string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		out = append(out, key+"="+strconv.Quote(m[key]))
	}
	return strings.Join(out, "\n")
}

func modeOf(own, common *int32) fs.FileMode {
	switch {
	case own != nil:
		return fs.FileMode(*own)
	case common != nil:
		return fs.FileMode(*common)
	default:
		return defaultFileMode
	}
}

// Key identifies what the volumes of a pod show at the moment: another key,
// another content. "": they never change. It is pure.
func Key(pod *corev1.Pod, src Sources) string {
	var b strings.Builder
	object := func(kind, name string, version string) { fmt.Fprintf(&b, "%s %s %s\n", kind, name, version) }
	configMap := func(name string) {
		version := "none"
		if cm := src.ConfigMap(name); cm != nil {
			version = string(cm.UID) + "/" + cm.ResourceVersion
		}
		object("configmap", name, version)
	}
	secret := func(name string) {
		version := "none"
		if s := src.Secret(name); s != nil {
			version = string(s.UID) + "/" + s.ResourceVersion
		}
		object("secret", name, version)
	}
	downward := func() { fmt.Fprintf(&b, "%s\n\n%s\n", lines(pod.Labels), lines(pod.Annotations)) }
	for i := range pod.Spec.Volumes {
		switch v := &pod.Spec.Volumes[i]; {
		case v.ConfigMap != nil:
			configMap(v.ConfigMap.Name)
		case v.Secret != nil:
			secret(v.Secret.SecretName)
		case v.DownwardAPI != nil:
			downward()
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				switch {
				case s.ConfigMap != nil:
					configMap(s.ConfigMap.Name)
				case s.Secret != nil:
					secret(s.Secret.Name)
				case s.DownwardAPI != nil:
					downward()
				case s.ServiceAccountToken != nil:
					_, version := src.Token(s.ServiceAccountToken)
					object("token", s.ServiceAccountToken.Audience, version)
				}
			}
		}
	}
	return b.String()
}
