// Package containerd runs pods with containerd and runc. It is the only
// importer of containerd's code.
//
// # Processes
//
// One binary is four programs. The agent, which imports this package, starts
// containerd as a child ([ServeCommand]) in a session of its own, so that it
// outlives the agent and is found again by the next one. containerd starts one
// shim per pod: the same binary again, under another name ([IsShim],
// [RunShim]); it holds the pod's containers, and writes their logs. With a
// containerd that is not ours ([Config.Address]), the shims are its own and
// each container has a log process ([IsLogger], [RunLogger]). A pod whose
// containers share process ids has a process that holds those ([IsHolder],
// [RunHolder]). runc comes from the host.
//
// So nothing ends with the agent, and only the connection ends with containerd:
// containers, their logs and their exit codes are in the hands of the shim.
//
// # Records
//
// containerd's container records carry labels with all that [Runtime.List]
// returns; a pod without containers is a file. What runs is asked of containerd
// each time, by listing its tasks. Each container is also waited for, and how it
// ended is written to its labels before its task is deleted. containerd's events
// are not used: they can be lost, and waiting is at least as prompt.
//
// # Goroutines
//
// New starts nothing. [Runtime.Run] owns one goroutine that keeps containerd
// alive and the records true, one that imports images, and one for each
// running container that waits for its end. [Runtime.Exec] owns those that copy
// its streams; of these, one that is blocked reading ExecOptions.Stdin outlives
// it until that read returns, and another, that clears up, for some seconds. One
// goroutine stays until containerd ends, to see it end.
//
// # Names
//
// All that is machine-wide carries the node's name, so that several nodes can
// share a machine: containerd's namespace is holdfast-<node>, and a container's
// cgroup is /holdfast/<node>/<pod uid>/<container>-<attempt>, with a directory
// more for pods that are not guaranteed what they use.
package containerd
