package object

import (
	corev1 "k8s.io/api/core/v1"
)

var kindReplicationController = define(Resource{Version: "v1", Kind: "ReplicationController", Plural: "replicationcontrollers", Singular: "replicationcontroller", ShortNames: []string{"rc"}, Namespaced: true, Categories: inAll, Status: true, Scale: true},
	func() *corev1.ReplicationController { return new(corev1.ReplicationController) },
	rules[*corev1.ReplicationController]{
		supported: `
			spec
			status
		`,
	})
