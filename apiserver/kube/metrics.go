package kube

import (
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/apiserver"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// metricsGroup is the API of what pods and nodes use, which "kubectl top" reads. Its
// types are not in k8s.io/api; these are all fields they have.
const metricsGroup, metricsVersion = "metrics.k8s.io", "v1beta1"

type usage struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Timestamp         metav1.Time         `json:"timestamp"`
	Window            metav1.Duration     `json:"window"`
	Usage             corev1.ResourceList `json:"usage,omitempty"`
	Containers        []containerUsage    `json:"containers,omitempty"`
}

type containerUsage struct {
	Name  string              `json:"name"`
	Usage corev1.ResourceList `json:"usage"`
}

type usageList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []usage `json:"items"`
}

func resources(nanocores, bytes int64) corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewScaledQuantity(nanocores, resource.Nano),
		corev1.ResourceMemory: *resource.NewQuantity(bytes, resource.BinarySI),
	}
}

// hasMetrics tells whether usage is known at all.
func (h *Handler) hasMetrics() bool { return h.cfg.Usage != nil }

// metrics answers one object or a list of the metrics API.
func (c *call) metrics() error {
	if c.r.Method != http.MethodGet || c.query.watch {
		return c.notAllowed()
	}
	verb := "list"
	if c.at.name != "" {
		verb = "get"
	}
	wish := apiserver.Attributes{Verb: verb, Group: metricsGroup, Resource: c.at.plural, Namespace: c.at.namespace, Name: c.at.name}
	if err := c.cfg.Authorize(c.r.Context(), wish); err != nil {
		return c.failed(err)
	}
	kind, items := "", []usage{}
	switch {
	case c.at.subresource != "", c.at.version != metricsVersion:
		return errNoPath
	case c.at.plural == "pods":
		resp, err := c.cfg.Usage.ListPodUsage(c.r.Context(), &holdfastv1.ListPodUsageRequest{Namespace: c.at.namespace, Name: c.at.name, LabelSelector: c.query.labelSelector})
		if err != nil {
			return c.failed(err)
		}
		kind = "PodMetrics"
		c.answered(resp.GetAnswer())
		for _, pod := range resp.GetPods() {
			item := c.usage(kind, pod.GetNamespace(), pod.GetName(), pod.GetLabels(), pod.GetAge().AsDuration(), pod.GetWindow().AsDuration())
			for _, container := range pod.GetContainers() {
				item.Containers = append(item.Containers, containerUsage{container.GetName(), resources(container.GetCpuNanocores(), container.GetMemoryBytes())})
			}
			items = append(items, item)
		}
	case c.at.plural == "nodes" && c.at.namespace == "":
		resp, err := c.cfg.Usage.ListNodeUsage(c.r.Context(), &holdfastv1.ListNodeUsageRequest{Name: c.at.name, LabelSelector: c.query.labelSelector})
		if err != nil {
			return c.failed(err)
		}
		kind = "NodeMetrics"
		c.answered(resp.GetAnswer())
		for _, node := range resp.GetNodes() {
			item := c.usage(kind, "", node.GetName(), node.GetLabels(), node.GetAge().AsDuration(), node.GetWindow().AsDuration())
			item.Usage = resources(node.GetCpuNanocores(), node.GetMemoryBytes())
			items = append(items, item)
		}
	default:
		return errNoPath
	}
	if c.at.name == "" {
		return writeJSON(c.w, c.r, typeJSON, usageList{
			TypeMeta: metav1.TypeMeta{Kind: kind + "List", APIVersion: metricsGroup + "/" + metricsVersion}, Items: items,
		})
	}
	if len(items) == 0 {
		return apierrors.NewNotFound(c.groupResource(), c.at.name)
	}
	return writeJSON(c.w, c.r, typeJSON, items[0])
}

func (c *call) usage(kind, namespace, name string, labels map[string]string, age, window time.Duration) usage {
	at := metav1.NewTime(c.now().Add(-age))
	return usage{
		TypeMeta:   metav1.TypeMeta{Kind: kind, APIVersion: metricsGroup + "/" + metricsVersion},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels, CreationTimestamp: at},
		Timestamp:  at, Window: metav1.Duration{Duration: window},
	}
}
