// Package agent runs a node: it takes the node's desired state from any peer
// and makes it so with a container runtime and the node's network.
//
// # How it works
//
// One session with one peer at a time brings the desired state: a complete
// message, then increments. It is saved, then acted on. Each pod has a worker,
// which asks a pure function what to do next ([Config.Runtime] says what is
// there), does that one thing, and asks again. What it sees becomes the pod's
// status, which is reported until a peer has acknowledged its commit.
//
// # Guarantees
//
//   - The desired state never goes back to an earlier revision, on whichever
//     peer the stream goes on.
//   - Loss of the control plane, or of the agent, stops no pod. An agent that
//     starts takes up what runs, before it asks any peer.
//   - A pod that the agent does not know is removed only after a peer has sent a
//     complete message that does not name it.
//   - A pod is reported as removed once no container, mount or address of it is
//     left, and not before.
//   - Calls to the runtime and the network for one pod never overlap, but for
//     stops of its containers.
//   - A status is reported again until its commit was acknowledged, and in any
//     case to each new session.
//
// # Goroutines
//
// New starts nothing. [Agent.Run] owns: the runtime's Run; the session and its
// heartbeats; the reporter; the network's configuration; the listing of what
// runs; a worker for each pod and its action under way; the stream of session
// wishes and each open logs or exec session; the server on the agent's socket.
//
// # Out of scope
//
// Where a pod runs is decided before it comes here, and what replaces it after.
// The agent writes a Node's status and labels by registering, and a Pod's status
// but for the condition PodScheduled; nothing else. See DESIGN.md for what is
// still to come.
package agent
