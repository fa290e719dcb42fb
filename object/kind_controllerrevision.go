package object

import (
	appsv1 "k8s.io/api/apps/v1"
)

var kindControllerRevision = define(Resource{Group: "apps", Version: "v1", Kind: "ControllerRevision", Plural: "controllerrevisions", Singular: "controllerrevision", Namespaced: true},
	func() *appsv1.ControllerRevision { return new(appsv1.ControllerRevision) },
	rules[*appsv1.ControllerRevision]{
		supported: `
			data
			revision
		`,
	})
