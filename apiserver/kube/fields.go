package kube

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"github.com/holdfast-io/holdfast/object"
)

// Holdfast reads objects strictly: an unknown field is a fault. Kubernetes lets a
// client choose (fieldValidation): Strict is the same, Warn, which is what counts
// without a choice, drops such fields and says so, Ignore drops them in silence. In
// protobuf there are none: what a reader does not know is not there for it.

// validateFields returns a JSON object, or a patch in the form of one, without the
// fields that the kind does not have, if the client wants that.
func (c *call) validateFields(data []byte) ([]byte, error) {
	if c.query.fieldValidation == metav1.FieldValidationStrict {
		return data, nil
	}
	var tree map[string]any
	strict, err := kjson.UnmarshalStrict(data, &tree)
	if err != nil {
		return nil, apierrors.NewBadRequest("the body cannot be read: " + err.Error())
	}
	dropped := object.DropUnknown(c.resource, tree)
	if len(strict) == 0 && len(dropped) == 0 {
		return data, nil
	}
	for _, err := range strict { // fields that come twice
		c.warnOfField(err.Error())
	}
	for _, path := range dropped {
		c.warnOfField(fmt.Sprintf("unknown field %q", path))
	}
	return json.Marshal(tree)
}

func (c *call) warnOfField(text string) {
	if c.query.fieldValidation != metav1.FieldValidationIgnore {
		c.warn(text)
	}
}

// validateOperations is validateFields for a JSON patch: of what its operations add,
// unknown fields go, and with an unknown field's operation the operation. What a patch
// copies or moves to where no field is stays a fault.
func (c *call) validateOperations(data []byte) ([]byte, error) {
	if c.query.fieldValidation == metav1.FieldValidationStrict {
		return data, nil
	}
	var operations []map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &operations); err != nil {
		return data, nil // what is wrong with it the handlers say
	}
	kept, changed := operations[:0:0], false
	for _, operation := range operations {
		op, _ := operation["op"].(string)
		path, _ := operation["path"].(string)
		value, has := operation["value"]
		if op != "add" && op != "replace" || !has || !strings.HasPrefix(path, "/") {
			kept = append(kept, operation)
			continue
		}
		tokens := strings.Split(path[1:], "/")
		tree, _ := wrapValue(tokens, value).(map[string]any)
		dropped := object.DropUnknown(c.resource, tree)
		for _, path := range dropped {
			c.warnOfField(fmt.Sprintf("unknown field %q", path))
		}
		changed = changed || len(dropped) > 0
		if _, there := unwrapValue(tokens, tree); there { // pruned in place
			kept = append(kept, operation)
		}
	}
	if !changed {
		return data, nil
	}
	return json.Marshal(kept)
}

// wrapValue returns an object that has nothing but value, at the place that the tokens of
// a JSON pointer say. A number, or "-", is taken for a list's index.
func wrapValue(tokens []string, value any) any {
	if len(tokens) == 0 {
		return value
	}
	inner := wrapValue(tokens[1:], value)
	if isIndex(tokens[0]) {
		return []any{inner}
	}
	return map[string]any{unescape(tokens[0]): inner}
}

// unwrapValue returns what wrapValue wrapped, false if it is gone.
func unwrapValue(tokens []string, in any) (value any, there bool) {
	for _, token := range tokens {
		switch node := in.(type) {
		case map[string]any:
			if in, there = node[unescape(token)]; !there {
				return nil, false
			}
		case []any:
			in = node[0]
		}
	}
	return in, true
}

func isIndex(token string) bool {
	_, err := strconv.ParseUint(token, 10, 32)
	return err == nil || token == "-"
}

// unescape reads a token of a JSON pointer.
func unescape(token string) string { return strings.NewReplacer("~1", "/", "~0", "~").Replace(token) }
