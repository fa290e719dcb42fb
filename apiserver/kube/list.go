package kube

import (
	"encoding/json"
	"net/http"
	"strconv"

	"google.golang.org/protobuf/types/known/durationpb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// anyAge is how old an answer may be that the client accepts from any time
// (resourceVersion "0"): Kubernetes bounds it by nothing, but a peer that cannot
// tell how old its state is should say so rather than go back in time.
const anyAge = 60

// readOptions is how fresh an answer must be, by Kubernetes' rules of
// resourceVersion. The caller has looked at continue before.
func (q query) readOptions() *holdfastv1.ReadOptions {
	revision := q.revision()
	exact := q.match == string(metav1.ResourceVersionMatchExact) || (q.match == "" && q.limit > 0 && !q.watch)
	switch {
	case q.resourceVersion == "":
		return &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LINEARIZABLE}
	case revision == 0:
		return &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_BOUNDED, MaxAge: &durationpb.Duration{Seconds: anyAge}}
	case exact:
		return &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL, MinRevision: revision, AtRevision: revision}
	default:
		return &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_SESSION, MinRevision: revision}
	}
}

// get answers with one object, or with its subresource.
func (c *call) get(subresource string) error {
	q := c.query
	q.limit, q.match = 0, ""
	resp, err := c.cfg.Objects.Get(c.r.Context(), &holdfastv1.GetRequest{
		Kind: c.kind(), Namespace: c.at.namespace, Name: c.at.name,
		Read: q.readOptions(), Encoding: c.wants(), Subresource: subresource,
	})
	if err != nil {
		return c.failed(err)
	}
	c.answered(resp.GetAnswer())
	return c.object(http.StatusOK, resp.GetObject())
}

// list answers with the objects of a kind.
func (c *call) list() error {
	resp, err := c.cfg.Objects.List(c.r.Context(), &holdfastv1.ListRequest{
		Kind: c.kind(), Namespace: c.at.namespace,
		LabelSelector: c.query.labelSelector, FieldSelector: c.query.fieldSelector,
		Read: c.query.readOptions(), Encoding: c.wants(),
		Limit: int32(c.query.limit), Continue: c.query.continueAt,
	})
	if err != nil {
		return c.failed(err)
	}
	c.answered(resp.GetAnswer())
	meta := metav1.ListMeta{ResourceVersion: c.listVersion(resp), Continue: resp.GetContinue()}
	if n := resp.GetRemaining(); n > 0 {
		meta.RemainingItemCount = &n
	}
	return c.objects(meta, resp.GetObjects())
}

// eventKind is the one kind whose revisions are not the store's: a watch goes on
// from the last position that the list showed.
const eventKind = "Event"

// listVersion is where a watch that follows the list begins.
func (c *call) listVersion(resp *holdfastv1.ListResponse) string {
	revision := resp.GetAnswer().GetRevision()
	if c.resource.Kind == eventKind {
		revision = 0
		for _, obj := range resp.GetObjects() {
			revision = max(revision, obj.GetRevision())
		}
	}
	return strconv.FormatInt(revision, 10)
}

// objects answers with a list of objects in the form that was agreed on.
func (c *call) objects(meta metav1.ListMeta, objs []*holdfastv1.Object) error {
	if c.accept.form != formWhole {
		typed := make([]object.Object, len(objs))
		for i, obj := range objs {
			var err error
			if typed[i], err = c.decode(obj); err != nil {
				return err
			}
		}
		if c.accept.form == formTable {
			table, err := c.table(typed, meta)
			if err != nil {
				return err
			}
			return c.write(http.StatusOK, table)
		}
		return c.structure(http.StatusOK, partialList(typed, meta))
	}
	apiVersion, kind := c.resource.APIVersion(), c.resource.Kind+"List"
	if c.accept.protobuf() {
		items, revisions := make([][]byte, len(objs)), make([]int64, len(objs))
		for i, obj := range objs {
			items[i], revisions[i] = obj.GetData(), obj.GetRevision()
		}
		data, err := protobufList(apiVersion, kind, meta, items, revisions)
		if err != nil {
			return err
		}
		return c.write(http.StatusOK, data)
	}
	head, err := json.Marshal(struct {
		Kind       string          `json:"kind"`
		APIVersion string          `json:"apiVersion"`
		Metadata   metav1.ListMeta `json:"metadata"`
	}{kind, apiVersion, meta})
	if err != nil {
		return err
	}
	pieces := make([][]byte, 0, 2*len(objs)+2)
	pieces = append(pieces, append(head[:len(head)-1], `,"items":[`...))
	for i, obj := range objs {
		if i > 0 {
			pieces = append(pieces, comma)
		}
		data, err := c.jsonOf(obj)
		if err != nil {
			return err
		}
		pieces = append(pieces, data)
	}
	return c.write(http.StatusOK, append(pieces, listEnd)...)
}

var comma, listEnd = []byte(","), []byte("]}")
