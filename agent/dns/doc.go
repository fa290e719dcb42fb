// Package dns answers the names that pods ask for, on the node they run on.
//
// # What it answers
//
// Names below the cluster's domain come from the node's own [netstate.State], by
// Kubernetes' DNS specification, version 1.1: services, headless services and
// their endpoints, ports (SRV), addresses (PTR) and external names. No peer and no
// other node is asked, so that names work when all of them are down. Everything
// else goes to the resolvers that the node itself uses, through a cache.
//
// # Parts
//
// [Zone.Answer] is pure: a state and a question give an answer. [Server] is the
// thin rest: sockets, EDNS0, truncation, forwarding. [PodResolvConf] is what makes
// pods ask it.
//
// # Promises
//
//   - A state given to [Server.Set] is what every query that comes after is answered
//     from. A query sees one state, never parts of two.
//   - Nothing grows without bound: cache, queries under way and connections each
//     have a limit, and past it the answer is SERVFAIL, at once.
//   - A resolver that leads back here is noticed and not asked again.
package dns
