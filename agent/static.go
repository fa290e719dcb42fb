package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
)

// Annotations that Kubernetes gives static pods and their mirrors.
const (
	annotationSource = "kubernetes.io/config.source"
	annotationHash   = "kubernetes.io/config.hash"
	annotationMirror = corev1.MirrorPodAnnotationKey
)

const (
	// staticPeriod is how often the folder of static pods is read.
	staticPeriod = 5 * time.Second
	// mirrorTimeout is longer than a peer waits for a leader (10 s).
	mirrorTimeout = 15 * time.Second
	// mirrorRetry is how long to wait before the mirror pods are asked for again: the
	// first time after a failure, at most, and for the stream to show them.
	mirrorRetryFirst = time.Second
	mirrorRetryMax   = 30 * time.Second
)

// readStatic reads the pods of a folder: every file whose name begins with no dot
// holds one or more. A file that is faulty is left out and named in the error; the
// rest counts.
func readStatic(dir, node string) (map[string]*corev1.Pod, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read static pods: %w", err)
	}
	all := map[string]*corev1.Pod{}
	names := map[string]string{}
	var faults []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || e.IsDir() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has just been taken away
		}
		if err != nil {
			faults = append(faults, err)
			continue
		}
		pods, err := parseStatic(path, data, node)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		for _, pod := range pods {
			name := pod.Namespace + "/" + pod.Name
			if other, taken := names[name]; taken {
				faults = append(faults, fmt.Errorf("%s: pod %s is in %s already", path, name, other))
				continue
			}
			names[name] = path
			all[string(pod.UID)] = pod
		}
	}
	return all, errors.Join(faults...)
}

// parseStatic makes the pods of one file what the node runs: bound to it, named
// after it, and identified by what they are, so that a changed file is another pod.
func parseStatic(path string, data []byte, node string) ([]*corev1.Pod, error) {
	docs, err := object.ParseManifests(path, data)
	if err != nil {
		return nil, err
	}
	var pods []*corev1.Pod
	for _, doc := range docs {
		pod, ok := doc.Object.(*corev1.Pod)
		if !ok {
			return nil, fmt.Errorf("%s:%d: %s is no pod: a folder of static pods holds nothing else", path, doc.Line, object.Title(doc.Object))
		}
		pod = pod.DeepCopy()
		if faults := doc.Check(); len(faults) > 0 {
			return nil, faults
		}
		if keys := object.PodInputs(pod); len(keys) > 0 {
			return nil, fmt.Errorf("%s:%d: a static pod cannot refer to objects of the cluster, and this one refers to %s", path, doc.Line, keys[0])
		}
		if len(tokensOf(pod)) > 0 {
			return nil, fmt.Errorf("%s:%d: a static pod cannot have tokens of a service account", path, doc.Line)
		}
		if pod.Namespace == "" {
			pod.Namespace = corev1.NamespaceDefault
		}
		pod.Name += "-" + node
		pod.Spec.NodeName = node
		// As Kubernetes: a static pod is not evicted for its node's faults.
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})
		object.Default(pod)
		if faults := object.Validate(pod); len(faults) > 0 {
			return nil, fmt.Errorf("%s:%d: %w", path, doc.Line, faults)
		}
		pod.UID, pod.ResourceVersion, pod.Status = "", "", corev1.PodStatus{}
		raw, err := object.Encode(pod)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, doc.Line, err)
		}
		sum := sha256.Sum256(raw)
		hash := hex.EncodeToString(sum[:16])
		pod.UID = types.UID(hash)
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations[annotationSource], pod.Annotations[annotationHash] = "file", hash
		pods = append(pods, pod)
	}
	return pods, nil
}

// mirrorOf is the pod by which the cluster sees a static pod.
func mirrorOf(static *corev1.Pod) *corev1.Pod {
	pod := static.DeepCopy()
	pod.UID = ""
	pod.Annotations[annotationMirror] = pod.Annotations[annotationHash]
	return pod
}

// mirrored says whether the mirrors are those of the static pods, none missing,
// none too many, none about to go.
func mirrored(static map[string]*corev1.Pod, mirrors map[string]*corev1.Pod) bool {
	if len(static) != len(mirrors) {
		return false
	}
	for _, pod := range static {
		mirror := mirrors[pod.Namespace+"/"+pod.Name]
		if mirror == nil || mirror.DeletionTimestamp != nil || mirror.Annotations[annotationMirror] != string(pod.UID) {
			return false
		}
	}
	return true
}

// staticPods runs the pods of a folder, whatever the peers say, and keeps their
// mirrors in the cluster.
type staticPods struct {
	dir    string // "": there are none, but mirrors of an earlier life may be
	node   string
	client Client
	pods   *pods
	log    *slog.Logger
	fault  string // of the last read, so that it is told once
}

// load reads the folder.
func (s *staticPods) load() {
	if s.dir == "" {
		return
	}
	found, err := readStatic(s.dir, s.node)
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != s.fault {
		if s.fault = text; text != "" {
			s.log.Error("not all static pods can be run", "error", text)
		} else {
			s.log.Info("all static pods can be run")
		}
	}
	if found != nil {
		s.pods.setStatic(found)
	}
}

// run reads the folder over and over, and asks for the mirror pods that are
// missing, until ctx ends.
func (s *staticPods) run(ctx context.Context) error {
	var due time.Time // when the mirrors may be asked for
	failures := 0
	for {
		static, mirrors, known := s.pods.mirrors()
		wait := staticPeriod
		if known && !mirrored(static, mirrors) {
			if wait = time.Until(due); wait <= 0 {
				err := s.mirror(ctx, static)
				if ctx.Err() != nil {
					return nil
				}
				if err != nil {
					failures++
					due = time.Now().Add(backoff(failures, mirrorRetryFirst, mirrorRetryMax))
					if failures == 1 {
						s.log.Warn("the cluster does not show the static pods yet", "error", err)
					}
				} else {
					failures = 0
					due = time.Now().Add(mirrorRetryFirst) // the stream shows them soon
				}
				wait = time.Until(due)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.pods.mirrorsChanged:
		case <-time.After(min(wait, staticPeriod)):
			s.load()
		}
	}
}

func (s *staticPods) mirror(ctx context.Context, static map[string]*corev1.Pod) error {
	req := &agentv1.MirrorRequest{}
	for _, uid := range slices.Sorted(maps.Keys(static)) {
		data, err := object.Encode(mirrorOf(static[uid]))
		if err != nil {
			return err
		}
		req.Pods = append(req.Pods, data)
	}
	ctx, cancel := context.WithTimeout(ctx, mirrorTimeout)
	defer cancel()
	_, err := s.client.Agent().Mirror(ctx, req)
	return err
}
