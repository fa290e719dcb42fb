package audit

import (
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// Record is one call, or one stream. The log gives it its number and its time.
type Record struct {
	Sequence  uint64            `json:"n"`
	Time      time.Time         `json:"t"`
	User      string            `json:"user,omitempty"`
	Role      string            `json:"role,omitempty"`
	Source    string            `json:"from,omitempty"`
	Verb      string            `json:"verb"`
	Resource  string            `json:"resource,omitempty"`
	Namespace string            `json:"namespace,omitempty"`
	Name      string            `json:"name,omitempty"`
	Others    []string          `json:"others,omitempty"`
	More      int               `json:"more,omitempty"`
	Outcome   string            `json:"outcome,omitempty"`
	Reason    string            `json:"reason,omitempty"`
	Revision  int64             `json:"revision,omitempty"`
	DryRun    bool              `json:"dryRun,omitempty"`
	Notes     map[string]string `json:"notes,omitempty"`

	// Of a witness alone: another peer's newest record, as it was then.
	Peer string `json:"peer,omitempty"`
	Seen uint64 `json:"seen,omitempty"`
	Hash string `json:"hash,omitempty"`
}

// What bounds a record: callers choose most of what is in it.
const (
	maxText   = 512
	maxOthers = 64
)

// VerbWitness is the verb of records about other peers' heads, VerbStart of those that a
// process begins with.
const (
	VerbWitness = "witness"
	VerbStart   = "start"
)

// bound cuts off what is longer than a record may be.
func (r *Record) bound() {
	for _, text := range []*string{&r.User, &r.Role, &r.Source, &r.Verb, &r.Resource, &r.Namespace, &r.Name, &r.Outcome, &r.Reason} {
		*text = cut(*text, maxText)
	}
	if extra := len(r.Others) - maxOthers; extra > 0 {
		r.Others, r.More = r.Others[:maxOthers:maxOthers], r.More+extra
	}
	for i, text := range r.Others {
		r.Others[i] = cut(text, maxText)
	}
	for key, text := range r.Notes {
		r.Notes[key] = cut(text, 4*maxText)
	}
}

func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most-3], "") + "..."
}

// Message returns the record as the API gives it.
func (r Record) Message(peer string) *holdfastv1.AuditRecord {
	m := &holdfastv1.AuditRecord{
		Peer: peer, Sequence: r.Sequence, Time: timestamppb.New(r.Time), User: r.User, Role: r.Role, Source: r.Source,
		Verb: r.Verb, Resource: r.Resource, Namespace: r.Namespace, Name: r.Name, Others: r.Others, More: int32(r.More),
		Outcome: r.Outcome, Reason: r.Reason, Revision: r.Revision, DryRun: r.DryRun, Annotations: r.Notes,
	}
	if r.Verb == VerbWitness {
		m.Name, m.Reason = r.Peer, "its newest record then"
	}
	return m
}

// Filter says which records are wanted: all that is set must match. Texts match whole,
// or as a prefix when they end in "*".
type Filter struct {
	User, Verb, Resource, Namespace, Name string
	// Outcome is "ok", a code, or "refused": any but ok.
	Outcome     string
	From, Until time.Time
}

// Matches reports whether the filter lets r through.
func (f Filter) Matches(r *Record) bool {
	if !f.From.IsZero() && r.Time.Before(f.From) || !f.Until.IsZero() && r.Time.After(f.Until) {
		return false
	}
	if f.Outcome == "refused" {
		if r.Outcome == "ok" || r.Outcome == "" {
			return false
		}
	} else if !matches(f.Outcome, r.Outcome) {
		return false
	}
	return matches(f.User, r.User) && matches(f.Verb, r.Verb) && f.object(r)
}

// object reports whether one of the record's objects is what the filter names.
func (f Filter) object(r *Record) bool {
	if matches(f.Resource, r.Resource) && matches(f.Namespace, r.Namespace) && matches(f.Name, r.Name) {
		return true
	}
	for _, other := range r.Others {
		resource, place, ok := strings.Cut(other, " ")
		if !ok {
			resource, place = r.Resource, other
		}
		namespace, name, ok := strings.Cut(place, "/")
		if !ok {
			namespace, name = "", place
		}
		if matches(f.Resource, resource) && matches(f.Namespace, namespace) && matches(f.Name, name) {
			return true
		}
	}
	return false
}

func matches(want, have string) bool {
	if prefix, ok := strings.CutSuffix(want, "*"); ok {
		return strings.HasPrefix(have, prefix)
	}
	return want == "" || want == have
}

// parseLine reads a record's line, without its end.
func parseLine(line []byte) (hash [hashSize]byte, body []byte, r Record, ok bool) {
	if len(line) < 2*hashSize+2 || line[2*hashSize] != ' ' {
		return hash, nil, r, false
	}
	if _, err := hex.Decode(hash[:], line[:2*hashSize]); err != nil {
		return hash, nil, r, false
	}
	body = line[2*hashSize+1:]
	return hash, body, r, json.Unmarshal(body, &r) == nil
}
