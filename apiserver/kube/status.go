package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// WriteError answers with err as a metav1.Status. Errors with a code of Connect
// become what Kubernetes' clients understand as the same.
func (h *Handler) WriteError(w http.ResponseWriter, r *http.Request, err error) {
	status := h.statusOf(err, subject{})
	if status.Details != nil && status.Details.RetryAfterSeconds > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(status.Details.RetryAfterSeconds)))
	}
	data, _ := json.Marshal(status) // of strings and numbers: cannot fail
	w.Header().Set("Content-Type", typeJSON)
	w.Header().Set("Cache-Control", "no-cache, private")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(int(status.Code))
	if r.Method != http.MethodHead {
		_, _ = w.Write(data) // a client that has gone misses it
	}
}

// subject is what a request is about, for the words of its error.
type subject struct {
	resource    schema.GroupResource
	kind        string
	name        string
	verb        string
	subresource string
	waited      time.Duration // how long the answer took
	revision    int64         // which the request asked to wait for
}

// failed gives err the words and details that Kubernetes' clients expect of this
// call.
func (c *call) failed(err error) error {
	if err == nil {
		return nil
	}
	about := subject{
		resource: c.groupResource(), kind: c.resource.Kind, name: c.at.name, subresource: c.at.subresource,
		verb: verbOf(c.r.Method, c.at, c.query.watch), waited: time.Since(c.began), revision: c.query.revision(),
	}
	status := c.statusOf(err, about)
	return &apierrors.StatusError{ErrStatus: status}
}

// retryUnless is how long a call may have taken so that its client is told to
// repeat it at once by itself: client-go does so up to ten times, in silence. One
// that has waited for a quorum already should rather tell its user.
const retryUnless = 5 * time.Second

// evictionBlocked is the cause that Kubernetes gives for an eviction that a
// PodDisruptionBudget does not allow.
const evictionBlocked metav1.CauseType = "DisruptionBudget"

// statusOf translates an error. Its switch is the whole contract between the two
// dialects' errors.
func (h *Handler) statusOf(err error, about subject) metav1.Status {
	if status, ok := errors.AsType[*apierrors.StatusError](err); ok {
		out := status.Status()
		out.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
		return out
	}
	rpcErr, ok := errors.AsType[*connect.Error](err)
	if !ok {
		h.log.Error("request failed unexpectedly", "verb", about.verb, "resource", about.resource.String(), "name", about.name, "err", err)
		return newStatus(http.StatusInternalServerError, metav1.StatusReasonInternalError, "internal error: the peer's log has more", about.details())
	}
	message, details := rpcErr.Message(), about.details()
	switch rpcErr.Code() {
	case connect.CodeInvalidArgument:
		return invalidStatus(message, faultsOf(rpcErr), about)
	case connect.CodeNotFound:
		if name, ok := strings.CutPrefix(message, "Namespace "); ok && about.resource.Resource != "namespaces" {
			if name, ok = strings.CutSuffix(name, " not found"); ok {
				return h.statusOf(apierrors.NewNotFound(groupResource("", "namespaces"), name), about)
			}
		}
		if about.name != "" && strings.HasPrefix(message, about.kind+" ") && strings.HasSuffix(message, about.name+" not found") {
			message = fmt.Sprintf("%s %q not found", about.resource.String(), about.name)
		}
		return newStatus(http.StatusNotFound, metav1.StatusReasonNotFound, message, details)
	case connect.CodeAlreadyExists:
		if about.name != "" {
			message = fmt.Sprintf("%s %q already exists", about.resource.String(), about.name)
		}
		return newStatus(http.StatusConflict, metav1.StatusReasonAlreadyExists, message, details)
	case connect.CodeAborted:
		return conflictStatus(message, faultsOf(rpcErr), about)
	case connect.CodeFailedPrecondition:
		if about.subresource == "log" {
			return newStatus(http.StatusBadRequest, metav1.StatusReasonBadRequest, message, details)
		}
		return newStatus(http.StatusConflict, metav1.StatusReasonConflict, message, details)
	case connect.CodeOutOfRange:
		return newStatus(http.StatusGone, metav1.StatusReasonExpired, message, details)
	case connect.CodePermissionDenied:
		return newStatus(http.StatusForbidden, metav1.StatusReasonForbidden, message, details)
	case connect.CodeUnauthenticated:
		return newStatus(http.StatusUnauthorized, metav1.StatusReasonUnauthorized, message, details)
	case connect.CodeResourceExhausted:
		if about.subresource == "eviction" {
			// No time to come back after: client-go would wait by itself, and drain
			// wants to say what it waits for.
			details.Causes = []metav1.StatusCause{{Type: evictionBlocked, Message: message}}
			return newStatus(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests, "Cannot evict pod as it would violate the pod's disruption budget.", details)
		}
		details.RetryAfterSeconds = 1
		return newStatus(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests, message, details)
	case connect.CodeUnimplemented:
		return newStatus(http.StatusNotImplemented, metav1.StatusReasonUnknown, message, details)
	case connect.CodeUnavailable:
		if about.revision > 0 && strings.Contains(message, "did not reach") {
			details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
			details.RetryAfterSeconds = 1
			return newStatus(http.StatusGatewayTimeout, metav1.StatusReasonTimeout, message, details)
		}
		if about.waited < retryUnless {
			details.RetryAfterSeconds = 1
		}
		return newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, message, details)
	case connect.CodeUnknown, connect.CodeDeadlineExceeded, connect.CodeCanceled:
		// Whether a write took place cannot be told: nobody may repeat it unasked.
		return newStatus(http.StatusGatewayTimeout, metav1.StatusReasonTimeout, message, details)
	default:
		return newStatus(http.StatusInternalServerError, metav1.StatusReasonInternalError, message, details)
	}
}

func newStatus(code int32, reason metav1.StatusReason, message string, details *metav1.StatusDetails) metav1.Status {
	return metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: code, Reason: reason, Message: message, Details: details,
	}
}

// details names the object as errors and deletions do: by its plural.
func (about subject) details() *metav1.StatusDetails {
	return &metav1.StatusDetails{Group: about.resource.Group, Kind: about.resource.Resource, Name: about.name}
}

// invalidStatus is Invalid for what is wrong with an object, and BadRequest for
// what is wrong with a request.
func invalidStatus(message string, faults []*holdfastv1.Fault, about subject) metav1.Status {
	details := about.details()
	ofObject := false
	var lines []string
	for _, fault := range faults {
		ofObject = ofObject || fault.GetObject() != ""
		details.Causes = append(details.Causes, metav1.StatusCause{Type: causeOf(fault.GetMessage()), Field: fault.GetField(), Message: fault.GetMessage()})
		line := fault.GetMessage()
		if fault.GetField() != "" {
			line = fault.GetField() + ": " + line
		}
		lines = append(lines, line)
		if name := nameIn(fault.GetObject()); details.Name == "" && name != "" {
			details.Name = name
		}
	}
	if name := missingNamespace(faults); name != "" {
		details.Kind, details.Group, details.Name = "namespaces", "", name
		details.Causes = nil
		return newStatus(http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("namespaces %q not found", name), details)
	}
	if !ofObject {
		return newStatus(http.StatusBadRequest, metav1.StatusReasonBadRequest, parameterNames.Replace(message), details)
	}
	details.Kind = about.kind
	text := strings.Join(lines, ", ")
	if len(lines) > 1 {
		text = "[" + text + "]"
	}
	kind := schema.GroupKind{Group: about.resource.Group, Kind: about.kind}
	return newStatus(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, fmt.Sprintf("%s %q is invalid: %s", kind.String(), details.Name, text), details)
}

// missingNamespace returns the namespace that a write needs and that is not there,
// if that is all that is wrong: for Kubernetes' clients that is NotFound.
func missingNamespace(faults []*holdfastv1.Fault) string {
	if len(faults) != 1 || faults[0].GetField() != "metadata.namespace" {
		return ""
	}
	var name string
	if _, err := fmt.Sscanf(faults[0].GetMessage(), "namespace %q does not exist", &name); err != nil {
		return ""
	}
	return name
}

// parameterNames are the names here of what the handlers call otherwise.
var parameterNames = strings.NewReplacer("label_selector", "labelSelector", "field_selector", "fieldSelector")

// nameIn returns the name in "Deployment default/web".
func nameIn(title string) string {
	_, name, _ := strings.Cut(title, " ")
	return name[strings.LastIndexByte(name, '/')+1:]
}

// causeOf finds the machine's word for what a sentence about a field begins with.
func causeOf(message string) metav1.CauseType {
	for begin, cause := range map[string]metav1.CauseType{
		"Required value":    metav1.CauseTypeFieldValueRequired,
		"Duplicate value":   metav1.CauseTypeFieldValueDuplicate,
		"Unsupported value": metav1.CauseTypeFieldValueNotSupported,
		"Forbidden":         metav1.CauseTypeForbidden,
		"Too long":          metav1.CauseTypeTooLong,
		"Too many":          metav1.CauseTypeTooMany,
	} {
		if strings.HasPrefix(message, begin) {
			return cause
		}
	}
	return metav1.CauseTypeFieldValueInvalid
}

// conflictStatus is Conflict: with a cause for each field that another manager
// owns, or else because the object was changed meanwhile.
func conflictStatus(message string, faults []*holdfastv1.Fault, about subject) metav1.Status {
	details := about.details()
	if len(faults) == 0 {
		return newStatus(http.StatusConflict, metav1.StatusReasonConflict,
			fmt.Sprintf("Operation cannot be fulfilled on %s %q: %s", about.resource.String(), about.name, message), details)
	}
	var lines []string
	for _, fault := range faults {
		field := fault.GetField()
		if !strings.HasPrefix(field, ".") {
			field = "." + field
		}
		details.Causes = append(details.Causes, metav1.StatusCause{Type: metav1.CauseTypeFieldManagerConflict, Field: field, Message: fault.GetMessage()})
		lines = append(lines, fault.GetMessage()+": "+field)
	}
	text := "Apply failed with 1 conflict: " + lines[0]
	if len(lines) > 1 {
		text = fmt.Sprintf("Apply failed with %d conflicts: %s", len(lines), strings.Join(lines, ", "))
	}
	return newStatus(http.StatusConflict, metav1.StatusReasonConflict, text, details)
}

// faultsOf returns the Fault details of an error.
func faultsOf(err *connect.Error) []*holdfastv1.Fault {
	var faults []*holdfastv1.Fault
	for _, detail := range err.Details() {
		if msg, err := connectproto.UnmarshalErrorDetail(detail); err == nil {
			if fault, ok := msg.(*holdfastv1.Fault); ok {
				faults = append(faults, fault)
			}
		}
	}
	return faults
}
