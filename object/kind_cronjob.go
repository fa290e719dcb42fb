package object

import (
	batchv1 "k8s.io/api/batch/v1"
)

var kindCronJob = define(Resource{Group: "batch", Version: "v1", Kind: "CronJob", Plural: "cronjobs", Singular: "cronjob", ShortNames: []string{"cj"}, Namespaced: true, Categories: inAll, Status: true},
	func() *batchv1.CronJob { return new(batchv1.CronJob) },
	rules[*batchv1.CronJob]{
		supported: `
			spec
			status
		`,
	})
