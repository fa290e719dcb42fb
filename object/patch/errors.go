package patch

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrMalformed is wrapped by errors about a patch that cannot be read, or that
	// is too big.
	ErrMalformed = errors.New("malformed patch")

	// ErrInapplicable is wrapped by errors about a patch that can be read and does
	// not fit the object: a path that it does not have, a test that fails, a list
	// with a key twice.
	ErrInapplicable = errors.New("the patch cannot be applied")

	// ErrUnsupported is returned for a strategic merge patch of a custom kind.
	ErrUnsupported = errors.New("strategic merge patches are for built-in kinds, whose lists say how they merge: use a merge patch or a JSON patch")

	// ErrPrecondition is wrapped by errors about a patch with the uid or the
	// resourceVersion of another object, or of another version of it: read it
	// again.
	ErrPrecondition = errors.New("the object is not the one that the patch is for")
)

// ConflictError is returned by [Apply] when other managers own fields that the
// applied object would change.
type ConflictError struct {
	Conflicts []Conflict
	// Message has all conflicts, as Kubernetes words them.
	Message string
}

// Error returns the message.
func (e *ConflictError) Error() string { return e.Message }

// Conflict is one field that another manager owns.
type Conflict struct {
	Manager string // "kubectl-client-side-apply"
	Field   string // ".spec.replicas", `.spec.template.spec.containers[name="web"].image`
	Message string // `conflict with "kubectl" using apps/v1`
}

// reasonError says why, and is one of the errors above.
type reasonError struct {
	error
	message string
}

func (e reasonError) Error() string { return e.message }
func (e reasonError) Unwrap() error { return e.error }

func because(kind error, format string, args ...any) error {
	return reasonError{kind, strings.TrimSpace(fmt.Sprintf(format, args...))}
}
