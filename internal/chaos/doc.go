// Command chaos breaks real peers, and demands that the store keeps its promises.
//
// Each row of the fault matrix is played over processes of `holdfast server`, each in
// a network namespace of its own: killed, stopped, cut off, starved, with disks and
// clocks that fail through the fault plane's socket. Real clients, over TLS to every
// peer, write, swap, delete, read and watch meanwhile.
//
// What they were told is checked by package history against the store's own events,
// which a watch of all keys has seen over all peers and faults: each revision is a
// transaction, and must be one that a client meant (P1, P2, P3, and porcupine without
// being told the order); every watcher, and at the end every peer, must tell the same
// events (P4); leases end, and not before their time (P5); states at equal indexes have equal hashes (P7); bounded reads are not
// older than they may be (P8); within 10 s of the end of all faults each peer writes,
// reads and watches (P9); and faults and load were really there (P11). Anything else,
// times above all, is measured and printed, not judged: the machine may be busy.
//
// It needs root. All that it makes is gone when it ends; what a killed run left, the
// next one removes.
package main
