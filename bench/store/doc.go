// Command store measures Holdfast's replicated store and etcd side by side: three
// members each, as processes of their own on this machine, with the same clients,
// keys and values, taking turns.
//
// Holdfast is the product's own binary, with its authentication, authorization and
// metrics. etcd is embedded (go.etcd.io/etcd/server/v3) with its defaults, but
// for the quota (8 GiB, or the large case would not fit) and the log level. Both speak
// TLS 1.3 with client certificates, to each other and to the client.
//
// See bench/README.md for what is measured and how to read it.
package main
