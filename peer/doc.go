// Package peer puts one control-plane process together: the store, gossip, the
// API and, while this peer leads, the scheduler and the controllers.
//
// [Prepare] makes the data directory belong to a cluster: it starts one, joins
// one, or finds that it was done before. [Peer.Run] starts the parts in order
// and stops them in the opposite one. Everything speaks through one listener;
// ALPN tells raft from the API.
//
// Peers find each other by name: gossip knows where each is now, raft's
// configuration where it was. When all addresses have changed at once, one peer
// that --join names is enough.
//
// The data directory holds:
//
//	peer.json    the cluster's id, this peer's id and its last address
//	pki/         this peer's key and certificate
//	ca/          the cluster's CA and its key
//	gossip.key   the key of the gossip
//	raft/        log, votes and snapshots
//	events/      the events that this peer has seen
package peer
