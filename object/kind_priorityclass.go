package object

import (
	schedulingv1 "k8s.io/api/scheduling/v1"
)

var kindPriorityClass = define(Resource{Group: "scheduling.k8s.io", Version: "v1", Kind: "PriorityClass", Plural: "priorityclasses", Singular: "priorityclass", ShortNames: []string{"pc"}},
	func() *schedulingv1.PriorityClass { return new(schedulingv1.PriorityClass) },
	rules[*schedulingv1.PriorityClass]{
		supported: `
			value
			globalDefault
			description
			preemptionPolicy
		`,
	})
