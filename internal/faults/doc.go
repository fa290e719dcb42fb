// Package faults is the fault plane: what can go wrong with a process's network,
// disk, memory and clock, made to go wrong on purpose.
//
// # Model
//
// A [Plane] belongs to one process. Faults are set on it by name, listed and cleared
// at any time, and act at once on connections that are open already. What stands
// below a store asks the plane before it acts: [Plane.Dial] and [Plane.Listener]
// for connections, [Plane.PacketConn] and [Plane.Packet] for datagrams, [Plane.Write]
// for disks, [Plane.Now] for the wall clock. A nil *Plane lets everything pass and
// costs nothing: product code calls it without a condition.
//
// A [Fault] has one stable text form, in tests, logs and on the control socket:
//
//	cut peer=p2 direction=out
//	delay delay=50ms jitter=100ms bandwidth=125000
//	disk-fail part=log times=1
//
// Memory goes wrong at one moment and not for a time: [Plane.Flip], [Plane.Diverge].
//
// # Time and chance
//
// Timers are the standard library's, so that testing/synctest can drive them. Chance
// follows the plane's seed, in the order in which the plane is asked.
//
// # Out of scope
//
// A plane cannot stop goroutines: "pause" holds back everything that passes through
// it, which is all that others see of a process that stands still. Stop a real
// process with SIGSTOP.
package faults
