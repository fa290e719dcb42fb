package object

import (
	appsv1 "k8s.io/api/apps/v1"
)

var kindDaemonSet = define(Resource{Group: "apps", Version: "v1", Kind: "DaemonSet", Plural: "daemonsets", Singular: "daemonset", ShortNames: []string{"ds"}, Namespaced: true, Categories: inAll, Status: true},
	func() *appsv1.DaemonSet { return new(appsv1.DaemonSet) },
	rules[*appsv1.DaemonSet]{
		supported: `
			spec
			status
		`,
	})
