package apiserver

import (
	"fmt"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// matcher is a request's selectors.
type matcher struct {
	labels labels.Selector // nil: everything
	fields fields.Selector // nil: everything
}

func newMatcher(r object.Resource, labelSelector, fieldSelector string) (matcher, error) {
	var m matcher
	if labelSelector != "" {
		selector, err := labels.Parse(labelSelector)
		if err != nil {
			return matcher{}, badRequest("label_selector", "%q: %v", labelSelector, err)
		}
		if !selector.Empty() {
			m.labels = selector
		}
	}
	if fieldSelector != "" {
		selector, err := object.FieldSelector(r, fieldSelector)
		if err != nil {
			return matcher{}, badRequest("field_selector", "%v", err)
		}
		if !selector.Empty() {
			m.fields = selector
		}
	}
	return m, nil
}

func (m matcher) all() bool { return m.labels == nil && m.fields == nil }

func (m matcher) matches(obj object.Object) bool {
	return (m.labels == nil || m.labels.Matches(labels.Set(obj.GetLabels()))) &&
		(m.fields == nil || object.MatchesFields(obj, m.fields))
}

// selects is matches for stored bytes.
func (m matcher) selects(kinds catalog, key string, value []byte) (bool, error) {
	if m.all() {
		return true, nil
	}
	obj, err := kinds.Decode(value, 0)
	if err != nil {
		return false, fmt.Errorf("stored object %s: %w", key, err)
	}
	return m.matches(obj), nil
}

// encode returns a stored object as it goes out, nil if it is not selected.
func (m matcher) encode(enc *encoder, kv raftstore.KeyValue) (*holdfastv1.Object, error) {
	ok, err := m.selects(enc.kinds, kv.Key, kv.Value)
	if err != nil || !ok {
		return nil, err
	}
	return enc.object(kv.Key, kv.Value, kv.Mod)
}
