// Package fake has a container runtime and a network that exist in memory only.
// They need no privileges and nothing installed, so that a whole cluster runs in
// one process: in tests, and in `holdfast dev --runtime fake`.
//
// They are simulators with rules of their own, not recorders: [Runtime] refuses
// what a real runtime refuses (starting a container twice, starting one without
// its pod or image, two changes of one pod at once), and passes the same
// conformance suite as containerd.
//
// # What a container does
//
// A container with a command runs it in a small shell (see shell.go): echo, cat,
// sleep, exit, env, trap and a few more. A command that the shell does not know
// runs until it is stopped, as a server would. Without a command, the image's
// name decides:
//
//	fake/exit:3        writes a line, runs 1 s, exits with 3
//	fake/crash         writes a stack trace, exits with 1 at once
//	fake/oom           is killed for its memory after 1 s
//	fake/stubborn      ignores SIGTERM
//	fake/missing       cannot be pulled
//	fake/slow          takes 10 s to be pulled
//	anything else      runs until stopped; a line of log each 10 s
//
// A container that runs until stopped is a server, too: port 7 of its pod sends back
// what comes, ports 80 and 8080 answer HTTP requests, with status N on /status/N. Each container uses a thousandth
// of a CPU and 2 MiB.
package fake
