// Package network gives the pods of one node their addresses, and leads services'
// traffic to them, by netlink alone.
//
// # Model
//
// A pod has a network namespace of its own, held by a bind mount, and in it
// eth0: one end of a veth pair, with one address as a /32 and a default route
// through 169.254.1.1, which a permanent neighbour entry resolves to the other
// end. The node has that other end, named after the pod's uid, and a host route
// to the pod's address through it. There is no bridge: all traffic of a pod
// passes the IP layer of its node, where services and policies act. Other
// nodes' pods are reached by one route for each of their pod CIDRs: directly on
// one link, by VXLAN behind routers, by WireGuard where one of the two nodes asks
// for it.
//
// A service is elements of nftables maps, which a fixed set of rules looks up: see
// DESIGN.md.
//
// # State
//
// The kernel is the only record. A veth's alias says which pod it serves and
// with which address; routes carry a protocol number of our own ([Protocol]),
// so that those of others are told apart and left alone. An agent that starts
// anew finds everything by looking.
//
// # Namespaces
//
// All calls act in the network namespace of the calling thread, which for an
// agent is the node's. Nothing here starts a goroutine, apart from the
// throw-away thread in which a pod's namespace is made, and the one that waits for the
// process of the tunnels ([TunnelMain]), which outlives its agent.
//
// # Out of scope
//
// IPv6 for pods and services.
package network
