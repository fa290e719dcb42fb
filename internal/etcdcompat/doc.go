// Package etcdcompat proves that etcd's own client and etcdctl work on Holdfast as
// they are: its tests start three peers on loopback, with TLS, and run them. It is a
// module of its own, so that what they need is no part of the product. Run it with
// `make test-etcd`.
package etcdcompat
