package client

import (
	"google.golang.org/protobuf/proto"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// A client's reads do not go back in time, and see its writes, whichever peer
// answers. A linearizable read does so by itself. A local one shows what its peer
// has, as it says.

// ahead returns req with the least revision that its answer must have reached, if
// it is a read of consistency session or bounded that names none. req itself is
// the caller's and not changed.
func (c *Client) ahead(req any) any {
	read, ok := req.(interface {
		proto.Message
		GetRead() *holdfastv1.ReadOptions
	})
	if !ok || read.GetRead().GetMinRevision() != 0 {
		return req
	}
	switch read.GetRead().GetConsistency() {
	case holdfastv1.Consistency_CONSISTENCY_SESSION, holdfastv1.Consistency_CONSISTENCY_BOUNDED:
	default:
		return req
	}
	seen := c.seen.Load()
	if seen == 0 {
		return req
	}
	out := proto.CloneOf(read)
	out.GetRead().MinRevision = seen
	return out
}

// saw remembers how far an answer was.
func (c *Client) saw(res any) {
	answered, ok := res.(interface{ GetAnswer() *holdfastv1.Answer })
	if !ok {
		return
	}
	revision := answered.GetAnswer().GetRevision()
	for {
		seen := c.seen.Load()
		if revision <= seen || c.seen.CompareAndSwap(seen, revision) {
			return
		}
	}
}
