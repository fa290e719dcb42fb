package object

import (
	policyv1 "k8s.io/api/policy/v1"
)

var kindPodDisruptionBudget = define(Resource{Group: "policy", Version: "v1", Kind: "PodDisruptionBudget", Plural: "poddisruptionbudgets", Singular: "poddisruptionbudget", ShortNames: []string{"pdb"}, Namespaced: true, Status: true},
	func() *policyv1.PodDisruptionBudget { return new(policyv1.PodDisruptionBudget) },
	rules[*policyv1.PodDisruptionBudget]{
		supported: `
			spec
			status
		`,
	})
