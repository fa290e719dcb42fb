// Package devcluster runs a whole cluster on one machine, for `holdfast dev`.
//
// # Model
//
// A cluster is a set of machines, peers p1, p2, … and nodes n1, n2, …. A
// [Driver] knows how to make a machine and how to run the one program that it
// is for. [NewNetns] makes VMs in the small: each machine is a network
// namespace with an address of its own, joined to the others by a switch, and
// its program is a process of its own. [NewInProcess] runs everything inside
// this process on loopback ports, for machines where nobody is root.
//
// [Cluster] is the same over both: it lays the machines out, starts those that
// belong to the cluster already, lets the others join, reports a machine that
// dies, and starts or kills machines when it is told to over the control socket
// ([Listen], [Serve], [Dial]). Nothing that dies is restarted by itself: the point of a
// development cluster is to watch what the rest does about it.
//
// # Lifetime
//
// [Open] takes the data directory (one Cluster at a time), [Cluster.Run] brings
// the machines up and lives until its context ends. Data stays in the
// directory, so that the next Run comes back with all of it, also after
// everything was killed at once.
package devcluster
