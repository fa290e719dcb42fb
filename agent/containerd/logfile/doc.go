// Package logfile keeps what a container wrote in files, with the time and the
// stream of each line, and reads it back, also while it grows.
//
// # Form
//
// A log is a directory. It holds segments, 00000001.log, 00000002.log, …, of
// which the newest few are kept, and a file named lock. A line of a segment is
// in the form of Kubernetes' container runtime interface:
//
//	2026-01-02T15:04:05.123456789Z stdout F text of the line
//
// with P instead of F for a piece of a line whose rest follows.
//
// # Who is there
//
// One process writes, the container's shim, and holds an open file description
// lock on the lock file as long as it may write. So a reader can tell, from any
// process and after any crash, whether more may come: the kernel knows.
package logfile
