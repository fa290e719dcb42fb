// Package deadman ends a node's fenced pods at their deadline, whatever has become
// of the agent.
//
// A fenced pod may run only while the node's lease lasts. The agent writes how long
// that is into a file ([Guard.Renew]) and names the pods ([Guard.Watch]). A process
// of its own, the dead-man, reads both. When the lease is over it kills all
// processes of those pods and freezes their control groups, so that a container
// which a runtime starts too late does not run either. When the lease has been
// renewed, it kills what came in meanwhile and thaws.
//
// The process is this program under another name ([Is], [Main]). It talks to
// nobody, waits for nobody's answer, and needs neither network, runtime nor disk once it
// runs. It is there while there are pods to watch.
//
// # Time
//
// All times are of CLOCK_BOOTTIME: since the machine's start, time asleep included.
// What was recorded before a restart of the machine says nothing, and there is
// nothing left to end.
//
// See DESIGN.md for why that is enough, and what it is not enough for.
package deadman
