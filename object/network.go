package object

// IngressNodeLabel is on the nodes that serve Ingresses, with any value but
// "false". Such a node is told the Secrets that Ingresses name, so an
// administrator puts it on the Node: an agent cannot give it to itself.
const IngressNodeLabel = "holdfast.dev/ingress"
