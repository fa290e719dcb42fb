// Package node puts one node's process together: the credentials it joined with,
// its place in the gossip, and the agent, which runs pods.
//
// [Prepare] makes the data directory belong to a cluster, or finds that it was
// done before; [Node.Run] lives. The container runtime and the network are given
// to Run, so that a cluster of pretended nodes is put together just like a real
// one.
//
// The data directory holds:
//
//	node.json    the cluster's id, the node's name, addresses of peers
//	pki/         the node's key and certificate
//	gossip.key   the key of the gossip
//	agent/       what the agent should run, and its socket
package node
