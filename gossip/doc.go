// Package gossip finds the machines of a cluster and watches whether they are
// there, with SWIM gossip by hashicorp/memberlist.
//
// # What it knows
//
// A [Member] is a machine that gossips: its name, role, gossip address, for
// peers the API's address, and a [State]: alive, suspect (did not answer, and
// may still speak up), dead (nobody got an answer in time) or left (it said
// goodbye). [Gossip.Members] lists all, this machine and those that died within
// the last day included; [Gossip.Changed] tells when to look again.
//
// # What it is worth
//
// Hints. Everybody who has the cluster's gossip key can say anything here about
// anybody. So nothing may be admitted, evicted, routed to for good or removed
// on gossip's word: it finds addresses, shortens a wait, vetoes a conviction.
//
// # Guarantees
//
//   - Packets are encrypted (AES-GCM) with the cluster's key and labelled with
//     the cluster's id: two clusters never merge, even on one network.
//   - Members whose meta data this version cannot read are refused.
//   - A machine may come back under another address once its old one is dead.
//   - Members that died are looked for until they have been gone for a day, so
//     that the two sides of a healed partition find each other.
//
// # Goroutines
//
// New starts nothing and binds nothing. [Gossip.Run] listens on TCP and UDP,
// owns all goroutines, and returns after they have ended.
package gossip
