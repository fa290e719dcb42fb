package main

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The kinds of metrics.k8s.io/v1beta1, which k8s.io/api has not: k8s.io/metrics
// would be a module for four structs. Their comments are their descriptions.

// NodeMetrics is the resource usage of a node.
type NodeMetrics struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// The usage was measured over the interval that ends at timestamp and has the length of window.
	Timestamp metav1.Time `json:"timestamp"`
	// Length of the interval of the measurement.
	Window metav1.Duration `json:"window"`
	// Memory is the working set: what cannot be taken back from the node.
	Usage corev1.ResourceList `json:"usage"`
}

// NodeMetricsList is a list of NodeMetrics.
type NodeMetricsList struct {
	metav1.TypeMeta `json:",inline"`
	// Standard list metadata.
	metav1.ListMeta `json:"metadata,omitempty"`

	// The metrics of each node.
	Items []NodeMetrics `json:"items"`
}

// PodMetrics is the resource usage of a pod.
type PodMetrics struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// The usage was measured over the interval that ends at timestamp and has the length of window.
	Timestamp metav1.Time `json:"timestamp"`
	// Length of the interval of the measurement.
	Window metav1.Duration `json:"window"`
	// The usage of each container, measured over the same interval.
	Containers []ContainerMetrics `json:"containers"`
}

// PodMetricsList is a list of PodMetrics.
type PodMetricsList struct {
	metav1.TypeMeta `json:",inline"`
	// Standard list metadata.
	metav1.ListMeta `json:"metadata,omitempty"`

	// The metrics of each pod.
	Items []PodMetrics `json:"items"`
}

// ContainerMetrics is the resource usage of a container.
type ContainerMetrics struct {
	// Name of the container in pod.spec.containers.
	Name string `json:"name"`
	// Memory is the working set: what cannot be taken back from the container.
	Usage corev1.ResourceList `json:"usage"`
}

const metricsModel = "io.k8s.metrics.pkg.apis.metrics.v1beta1."

// OpenAPIModelName is what generator asks each type for.
func (NodeMetrics) OpenAPIModelName() string { return metricsModel + "NodeMetrics" }

// OpenAPIModelName is what generator asks each type for.
func (NodeMetricsList) OpenAPIModelName() string { return metricsModel + "NodeMetricsList" }

// OpenAPIModelName is what generator asks each type for.
func (PodMetrics) OpenAPIModelName() string { return metricsModel + "PodMetrics" }

// OpenAPIModelName is what generator asks each type for.
func (PodMetricsList) OpenAPIModelName() string { return metricsModel + "PodMetricsList" }

// OpenAPIModelName is what generator asks each type for.
func (ContainerMetrics) OpenAPIModelName() string { return metricsModel + "ContainerMetrics" }

// DeepCopyObject is what a scheme asks for; nothing here copies.
func (m *NodeMetrics) DeepCopyObject() runtime.Object { return m }

// DeepCopyObject is what a scheme asks for; nothing here copies.
func (m *NodeMetricsList) DeepCopyObject() runtime.Object { return m }

// DeepCopyObject is what a scheme asks for; nothing here copies.
func (m *PodMetrics) DeepCopyObject() runtime.Object { return m }

// DeepCopyObject is what a scheme asks for; nothing here copies.
func (m *PodMetricsList) DeepCopyObject() runtime.Object { return m }

func addMetrics(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(schema.GroupVersion{Group: "metrics.k8s.io", Version: "v1beta1"},
		&NodeMetrics{}, &NodeMetricsList{}, &PodMetrics{}, &PodMetricsList{})
	return nil
}
