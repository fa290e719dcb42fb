package kube

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// query is what the parameters of a URL ask for. Kubernetes' documentation has
// their meaning.
type query struct {
	// Of reads.
	resourceVersion, match       string
	labelSelector, fieldSelector string
	limit                        int64
	continueAt                   string
	watch, bookmarks             bool
	initialEvents                *bool
	timeout                      time.Duration
	includeObject                metav1.IncludeObjectPolicy

	// Of writes.
	dryRun          bool
	fieldManager    string
	fieldValidation string // Strict, Warn or Ignore
	force           bool

	// Of deletions; a body with DeleteOptions goes before them.
	grace       *int64
	propagation *metav1.DeletionPropagation
	orphan      *bool

	pretty string // as given
}

// parseQuery reads all parameters, and reports everything that is wrong with
// them at once. Those that it does not know belong to others: it leaves them.
func parseQuery(values url.Values) (query, error) {
	p := &params{values: values}
	q := query{
		resourceVersion: p.text("resourceVersion"),
		match:           p.oneOf("resourceVersionMatch", string(metav1.ResourceVersionMatchExact), string(metav1.ResourceVersionMatchNotOlderThan)),
		labelSelector:   p.text("labelSelector"),
		fieldSelector:   p.text("fieldSelector"),
		limit:           p.number("limit"),
		continueAt:      p.text("continue"),
		watch:           p.flag("watch"),
		bookmarks:       p.flag("allowWatchBookmarks"),
		timeout:         time.Duration(p.number("timeoutSeconds")) * time.Second,
		includeObject:   metav1.IncludeObjectPolicy(p.oneOf("includeObject", string(metav1.IncludeNone), string(metav1.IncludeMetadata), string(metav1.IncludeObject))),
		dryRun:          slices.Contains(values["dryRun"], metav1.DryRunAll),
		fieldManager:    p.text("fieldManager"),
		fieldValidation: p.oneOf("fieldValidation", metav1.FieldValidationStrict, metav1.FieldValidationWarn, metav1.FieldValidationIgnore),
		force:           p.flag("force"),
		pretty:          p.text("pretty"),
	}
	if p.has("sendInitialEvents") {
		send := p.flag("sendInitialEvents")
		q.initialEvents = &send
	}
	if p.has("gracePeriodSeconds") {
		grace := p.number("gracePeriodSeconds")
		q.grace = &grace
	}
	if s := p.oneOf("propagationPolicy", string(metav1.DeletePropagationOrphan), string(metav1.DeletePropagationBackground), string(metav1.DeletePropagationForeground)); s != "" {
		policy := metav1.DeletionPropagation(s)
		q.propagation = &policy
	}
	if p.has("orphanDependents") {
		orphan := p.flag("orphanDependents")
		q.orphan = &orphan
	}
	for _, value := range values["dryRun"] {
		if value != metav1.DryRunAll {
			p.wrong("dryRun", value, `want "All"`)
		}
	}
	if len(q.fieldManager) > maxFieldManager {
		p.wrong("fieldManager", q.fieldManager[:maxFieldManager]+"…", fmt.Sprintf("it may have %d characters", maxFieldManager))
	}
	q.checkVersions(p)
	if len(p.faults) > 0 {
		return query{}, apierrors.NewBadRequest(strings.Join(p.faults, "; "))
	}
	return q, nil
}

const maxFieldManager = 128

// checkVersions holds Kubernetes' rules of which parameters go together.
func (q query) checkVersions(p *params) {
	if q.resourceVersion != "" {
		if _, err := strconv.ParseUint(q.resourceVersion, 10, 63); err != nil {
			p.wrong("resourceVersion", q.resourceVersion, "want one that this server gave, a number")
		}
	}
	switch {
	case q.watch && q.initialEvents == nil && q.match != "":
		p.faults = append(p.faults, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is given")
	case q.watch && q.initialEvents != nil && q.match != string(metav1.ResourceVersionMatchNotOlderThan):
		p.faults = append(p.faults, "sendInitialEvents needs resourceVersionMatch=NotOlderThan")
	case !q.watch && q.initialEvents != nil:
		p.faults = append(p.faults, "sendInitialEvents is forbidden for list")
	case q.watch:
	case q.match != "" && q.continueAt != "":
		p.faults = append(p.faults, "resourceVersionMatch is forbidden with continue, which says the resourceVersion")
	case q.match != "" && q.resourceVersion == "":
		p.faults = append(p.faults, "resourceVersionMatch is forbidden without resourceVersion")
	case q.match == string(metav1.ResourceVersionMatchExact) && q.resourceVersion == "0":
		p.faults = append(p.faults, `resourceVersionMatch=Exact is forbidden for resourceVersion "0"`)
	case q.continueAt != "" && q.resourceVersion != "" && q.resourceVersion != "0":
		p.faults = append(p.faults, "resourceVersion is forbidden with continue, which says it")
	}
}

// params reads parameters and collects what is wrong with them.
type params struct {
	values url.Values
	faults []string
}

func (p *params) has(name string) bool    { return len(p.values[name]) > 0 }
func (p *params) text(name string) string { return p.values.Get(name) }

func (p *params) wrong(name, value, want string) {
	p.faults = append(p.faults, fmt.Sprintf("invalid value %q of %s: %s", value, name, want))
}

// flag is true for everything but "false" and "0", once the parameter is there.
func (p *params) flag(name string) bool {
	value := p.values.Get(name)
	return p.has(name) && value != "false" && value != "0"
}

// number is 0 for a parameter that is not there.
func (p *params) number(name string) int64 {
	value := p.values.Get(name)
	if value == "" {
		return 0
	}
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n < 0 {
		p.wrong(name, value, "want a number that is not negative")
		return 0
	}
	return n
}

func (p *params) oneOf(name string, words ...string) string {
	value := p.values.Get(name)
	if value != "" && !slices.Contains(words, value) {
		p.wrong(name, value, "want "+strings.Join(words, ", "))
		return ""
	}
	return value
}

// revision is the resourceVersion as a number; parseQuery has checked it.
func (q query) revision() int64 {
	n, _ := strconv.ParseInt(q.resourceVersion, 10, 64)
	return n
}
