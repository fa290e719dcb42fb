package kube

import (
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Media types of bodies.
const (
	typeJSON     = "application/json"
	typeYAML     = "application/yaml"
	typeProtobuf = "application/vnd.kubernetes.protobuf"
)

// form is what an answer shows of objects.
type form int

const (
	formWhole    form = iota
	formTable         // metav1.Table
	formMetadata      // metav1.PartialObjectMetadata, or its list
)

// media is how an answer is wanted.
type media struct {
	typ  string // typeJSON, typeYAML or typeProtobuf
	form form
}

func (m media) protobuf() bool { return m.typ == typeProtobuf }

// offer is one entry of an Accept header.
type offer struct {
	typ    string
	params map[string]string
	weight float64
}

// parseAccept returns the entries of Accept headers, the most wanted first. What
// cannot be read is left out.
func parseAccept(headers []string) []offer {
	var offers []offer
	for _, header := range headers {
		for entry := range strings.SplitSeq(header, ",") {
			typ, params, err := mime.ParseMediaType(strings.TrimSpace(entry))
			if err != nil {
				continue
			}
			weight := 1.0
			if q, err := strconv.ParseFloat(params["q"], 64); err == nil {
				weight = q
			}
			if weight > 0 {
				offers = append(offers, offer{typ, params, weight})
			}
		}
	}
	slices.SortStableFunc(offers, func(a, b offer) int {
		switch {
		case a.weight > b.weight:
			return -1
		case a.weight < b.weight:
			return 1
		}
		return 0
	})
	return offers
}

// negotiate chooses the first form that can be had. Objects of custom kinds
// cannot be had in protobuf; without an Accept header the answer is JSON.
func negotiate(accept []string, custom bool) (media, error) {
	offers := parseAccept(accept)
	if len(offers) == 0 && strings.TrimSpace(strings.Join(accept, "")) == "" {
		return media{typ: typeJSON}, nil
	}
	for _, o := range offers {
		m := media{typ: o.typ}
		switch o.typ {
		case "*/*", "application/*", typeJSON:
			m.typ = typeJSON
		case typeYAML:
		case typeProtobuf:
			if custom && o.params["as"] == "" {
				continue
			}
		default:
			continue
		}
		meta := o.params["g"] == metav1.GroupName && o.params["v"] == "v1"
		switch as := o.params["as"]; {
		case as == "":
		case as == "Table" && meta:
			m.form = formTable
			if m.typ == typeProtobuf { // a Table has no protobuf form
				continue
			}
		case (as == "PartialObjectMetadata" || as == "PartialObjectMetadataList") && meta:
			m.form = formMetadata
		default:
			continue
		}
		return m, nil
	}
	return media{}, notAcceptable()
}

// negotiateType chooses among the forms of what is no object of a kind that is
// served: a review, a status.
func negotiateType(accept []string) string {
	for _, o := range parseAccept(accept) {
		switch o.typ {
		case typeJSON, typeYAML, typeProtobuf:
			return o.typ
		}
	}
	return typeJSON
}

func notAcceptable() error {
	err := apierrors.NewGenericServerResponse(http.StatusNotAcceptable, "", groupResource("", ""), "", "", 0, false)
	err.ErrStatus.Message = "only the following media types can be had: " + strings.Join([]string{typeJSON, typeYAML, typeProtobuf}, ", ")
	err.ErrStatus.Reason = metav1.StatusReasonNotAcceptable
	err.ErrStatus.Details = nil
	return err
}

func unsupportedMediaType(typ string, want ...string) error {
	err := apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "", groupResource("", ""), "", "", 0, false)
	err.ErrStatus.Message = "the body of the request was in an unknown format - accepted media types include: " + strings.Join(want, ", ")
	if typ != "" {
		err.ErrStatus.Message += "; it says " + strconv.Quote(typ)
	}
	err.ErrStatus.Reason = metav1.StatusReasonUnsupportedMediaType
	err.ErrStatus.Details = nil
	return err
}

// encodings of content.

// acceptsGzip reports whether the answer may be compressed.
func acceptsGzip(header http.Header) bool {
	for _, o := range parseTokens(header.Values("Accept-Encoding")) {
		if o == "gzip" {
			return true
		}
	}
	return false
}

// parseTokens returns the entries of a comma-separated header that are not
// refused by q=0.
func parseTokens(headers []string) []string {
	var out []string
	for _, header := range headers {
		for entry := range strings.SplitSeq(header, ",") {
			token, params, _ := strings.Cut(strings.TrimSpace(entry), ";")
			if q, ok := strings.CutPrefix(strings.ReplaceAll(params, " ", ""), "q="); ok {
				if weight, err := strconv.ParseFloat(q, 64); err == nil && weight == 0 {
					continue
				}
			}
			out = append(out, strings.ToLower(strings.TrimSpace(token)))
		}
	}
	return out
}
