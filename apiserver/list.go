package apiserver

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"iter"
	"strings"

	"connectrpc.com/connect/v2"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// listBytes bounds an answer of List: what one message can bring, and what a peer
	// can afford to hold several of.
	listBytes = 64 << 20
	// objectOverhead is what an object takes in an answer besides its bytes, about.
	objectOverhead = 64
	// pagesOf is the limit that an error proposes.
	pagesOf = 5000
)

// List returns the objects of one kind from one revision. A continue token
// pins that revision: OutOfRange once it has been compacted.
func (s objectService) List(ctx context.Context, req *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
	r, err := s.resource(ctx, req.GetKind())
	if err != nil {
		return nil, err
	}
	if err := outsideNamespaces(r, req.GetNamespace()); err != nil {
		return nil, err
	}
	match, err := newMatcher(r, req.GetLabelSelector(), req.GetFieldSelector())
	if err != nil {
		return nil, err
	}
	if req.GetLimit() < 0 {
		return nil, badRequest("limit", "is %d: use 0 for all, or a positive number", req.GetLimit())
	}
	if err := presentOnly(ctx, req.GetRead()); err != nil {
		return nil, err
	}
	prefix := r.Prefix(req.GetNamespace())
	var page pageToken
	if req.GetContinue() != "" {
		if page, err = parsePageToken(req.GetContinue(), prefix); err != nil {
			return nil, err
		}
	}
	if r.Kind == eventKind {
		return s.listEvents(r, req, match, page)
	}
	var read reading
	if page.Key != "" {
		if _, err := s.waitRevision(ctx, page.Revision); err != nil {
			return nil, err
		}
		// Its age is unknown: the revision is as old as the first page.
		if read.view, err = s.store.ViewAt(page.Revision); err != nil {
			return nil, storeError("list "+r.Plural, err)
		}
	} else if read, err = s.read(ctx, req.GetRead()); err != nil {
		return nil, err
	}
	if err := s.confine(ctx, attributes("list", r, "", req.GetNamespace(), "").selecting(req.GetFieldSelector())).check(read.view); err != nil {
		return nil, err
	}
	resp := &holdfastv1.ListResponse{Answer: s.answer(read)}
	enc := encoder{resource: r, kinds: s.catalog(read.view), secrets: s.secrets, lenient: true, prefix: prefix, namespace: req.GetNamespace(), encoding: req.GetEncoding(), slab: objectSlab}
	limit, size, last := int(req.GetLimit()), 0, ""
	for kv := range keysAfter(read.view, prefix, page.Key) {
		obj, err := match.encode(&enc, kv)
		if err != nil {
			return nil, err
		}
		if obj == nil {
			continue
		}
		size += len(obj.GetData()) + len(kv.Key) + objectOverhead
		if limit == 0 && size > listBytes {
			return nil, withInfo(connect.Errorf(connect.CodeResourceExhausted,
				"list %s: there are more than %d MiB of them: ask for pages, with limit %d and then continue, or narrow the list by namespace or selector",
				r.Plural, listBytes>>20, pagesOf), &holdfastv1.ErrorInfo{Reason: "RequestEntityTooLarge"})
		}
		if limit > 0 && (len(resp.Objects) == limit || size > listBytes && len(resp.Objects) > 0) {
			next := pageToken{Revision: read.view.Revision(), Key: last}
			if match.all() {
				// Counted once for all pages: the revision stays.
				if next.Left = page.Left - int64(len(resp.Objects)); page.Key == "" {
					next.Left = read.view.Count(last+"\x00", prefixEnd(prefix))
				}
				resp.Remaining = next.Left
			}
			resp.Continue = next.String()
			break
		}
		resp.Objects = append(resp.Objects, obj)
		last = kv.Key
	}
	return resp, nil
}

// keysAfter yields what lies under prefix, behind the key after if it is set.
func keysAfter(view raftstore.View, prefix, after string) iter.Seq[raftstore.KeyValue] {
	if after == "" {
		return view.Prefix(prefix)
	}
	return view.Range(after+"\x00", prefixEnd(prefix))
}

// prefixEnd returns the first key behind all that begin with prefix, which ends
// in '/'.
func prefixEnd(prefix string) string {
	return prefix[:len(prefix)-1] + string(prefix[len(prefix)-1]+1)
}

// pageToken is where a list goes on. Its text form is opaque to clients.
type pageToken struct {
	Revision int64  `json:"r"`
	Key      string `json:"k"`           // the last one returned
	Left     int64  `json:"n,omitempty"` // how many come after it, if that is known
}

func (t pageToken) String() string {
	data, _ := json.Marshal(t) // of an int and a string: cannot fail
	return base64.RawURLEncoding.EncodeToString(data)
}

func parsePageToken(s, prefix string) (pageToken, error) {
	var t pageToken
	data, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(data, &t)
	}
	if err != nil || t.Revision <= 0 || !strings.HasPrefix(t.Key, prefix) {
		return pageToken{}, badRequest("continue", "is not from the last page of the same list: list again without it")
	}
	return t, nil
}
