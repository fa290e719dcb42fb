// Package wire makes many small messages on an HTTP/2 connection cheap.
//
// With small messages most of the CPU time of both ends goes into system calls, and
// net/http makes one for each frame: the headers of a request, its body, and of a
// stream's messages even the five bytes that stand before each. [Coalesce] lets those
// that are written at about the same time share one. [Whole] puts a message into one
// frame, which saves the receiver as much.
package wire
