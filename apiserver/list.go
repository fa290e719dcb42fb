package apiserver

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"iter"
	"strings"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
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
	resp := &holdfastv1.ListResponse{Answer: s.answer(read)}
	last := ""
	for kv := range keysAfter(read.view, prefix, page.Key) {
		obj, err := match.encode(r, kv.Key, kv.Value, kv.Mod, req.GetEncoding())
		if err != nil {
			return nil, err
		}
		if obj == nil {
			continue
		}
		if req.GetLimit() > 0 && len(resp.Objects) == int(req.GetLimit()) {
			resp.Continue = pageToken{Revision: read.view.Revision(), Key: last}.String()
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
	Key      string `json:"k"` // the last one returned
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
