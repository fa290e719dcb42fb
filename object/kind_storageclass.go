package object

import (
	storagev1 "k8s.io/api/storage/v1"
)

var kindStorageClass = define(Resource{Group: "storage.k8s.io", Version: "v1", Kind: "StorageClass", Plural: "storageclasses", Singular: "storageclass", ShortNames: []string{"sc"}},
	func() *storagev1.StorageClass { return new(storagev1.StorageClass) },
	rules[*storagev1.StorageClass]{
		supported: `
			provisioner
			parameters
			reclaimPolicy
			mountOptions
			allowVolumeExpansion
			volumeBindingMode
			allowedTopologies
		`,
	})
