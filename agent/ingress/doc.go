// Package ingress is the reverse proxy that carries out Ingress objects on the nodes
// chosen for it.
//
// # Model
//
// A [Table] is what one [netstate.State] says: which host and path lead to which
// service, the endpoints behind it, and the certificates. It is made anew for each
// state and put in place by one pointer, so that no request sees half a change and no
// connection ends because of one. [Table.Route] is pure.
//
// # Promises
//
//   - The precedence of hosts and paths is that of Kubernetes' documentation;
//     DESIGN.md says what it leaves open.
//   - A request goes to an endpoint that is ready, or while there is none to one that
//     is ending and still serves. One that refused a connection is passed over for a
//     while, unless there is no other.
//   - A request is sent again only if nobody can have seen it, or if it is idempotent,
//     has no body, and the connection broke before an answer.
//   - A client that sends or reads slowly holds a connection, and after a while not
//     even that: headers, bodies and answers each have a limit of time.
package ingress
