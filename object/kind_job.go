package object

import (
	batchv1 "k8s.io/api/batch/v1"
)

var kindJob = define(Resource{Group: "batch", Version: "v1", Kind: "Job", Plural: "jobs", Singular: "job", Namespaced: true, Categories: inAll, Status: true},
	func() *batchv1.Job { return new(batchv1.Job) },
	rules[*batchv1.Job]{
		supported: `
			spec
			status
		`,
	})
