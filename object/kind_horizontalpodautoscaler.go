package object

import (
	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

var kindHorizontalPodAutoscaler = define(Resource{Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler", Plural: "horizontalpodautoscalers", Singular: "horizontalpodautoscaler", ShortNames: []string{"hpa"}, Namespaced: true, Categories: inAll, Status: true},
	func() *autoscalingv2.HorizontalPodAutoscaler { return new(autoscalingv2.HorizontalPodAutoscaler) },
	rules[*autoscalingv2.HorizontalPodAutoscaler]{
		supported: `
			spec
			status
		`,
	})
