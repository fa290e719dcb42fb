package object

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Fault is one thing wrong with one object.
type Fault struct {
	File    string // "" if the object did not come from a file
	Line    int    // in File, from 1; 0 if unknown
	Object  string // "Deployment default/web"; "" if the fault is not an object's
	Field   string // "spec.template.spec.containers[0].image"; "" for the object as a whole
	Message string // what is wrong and what to do
	Index   int    // which object of the input, from 0
}

// String writes the fault in one line, without the parts that are unknown:
// "web.yaml:12: Deployment default/web: spec.replicas: must be a whole number".
func (f Fault) String() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File)
		if f.Line > 0 {
			b.WriteString(":" + strconv.Itoa(f.Line))
		}
		b.WriteString(": ")
	} else if f.Line > 0 {
		b.WriteString("line " + strconv.Itoa(f.Line) + ": ")
	}
	for _, part := range []string{f.Object, f.Field} {
		if part != "" {
			b.WriteString(part + ": ")
		}
	}
	b.WriteString(f.Message)
	return b.String()
}

// Faults is everything wrong with an input. As an error it reads as its faults,
// one a line. An empty Faults must not be used as an error: see Err.
type Faults []Fault

// Error returns the faults, one a line.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, fault := range f {
		lines[i] = fault.String()
	}
	return strings.Join(lines, "\n")
}

// Err returns f as an error, nil if there are none.
func (f Faults) Err() error {
	if len(f) == 0 {
		return nil
	}
	return f
}

// faultsOf turns validation errors about obj into faults.
func faultsOf(obj Object, errs field.ErrorList) Faults {
	if len(errs) == 0 {
		return nil
	}
	name := Title(obj)
	faults := make(Faults, len(errs))
	for i, err := range errs {
		path := err.Field
		if path == "<nil>" { // how field.Path prints the root
			path = ""
		}
		faults[i] = Fault{Object: name, Field: path, Message: errorBody(err)}
	}
	return faults
}

// notSupportedYet is the type of an error about a field without behavior. Its
// detail is the whole message.
const notSupportedYet field.ErrorType = "FieldNotSupportedYet"

// patterns are the regular expressions in Kubernetes' messages. The words and
// examples before them say the same.
var patterns = regexp.MustCompile(`,? ?regex used for validation is '[^']*'`)

// errorBody is Kubernetes' text for an error, kept short: neither a regular
// expression nor a wrong value that is a whole struct helps anybody.
func errorBody(err *field.Error) string {
	const longest = 400
	if err.Type == notSupportedYet {
		return err.Detail
	}
	body := patterns.ReplaceAllString(strings.TrimSuffix(err.ErrorBody(), ": "), "")
	body = strings.ReplaceAll(body, ",  or ", " or ")
	if len(body) > longest && err.Detail != "" {
		return err.Type.String() + ": " + err.Detail
	}
	return body
}

// sortFaults puts faults in the order in which a reader of the file meets them.
func sortFaults(faults Faults) {
	slices.SortStableFunc(faults, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Index, b.Index))
	})
}
