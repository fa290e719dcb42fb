package object

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindEvent = define(Resource{Version: "v1", Kind: "Event", Plural: "events", Singular: "event", ShortNames: []string{"ev"}, Namespaced: true},
	func() *corev1.Event { return new(corev1.Event) },
	rules[*corev1.Event]{
		supported: `
			involvedObject
			related
			reason
			message
			action
			type
			source
			reportingComponent
			reportingInstance
			firstTimestamp
			lastTimestamp
			eventTime
			count
			series
		`,
		validate:   validateEvent,
		selectable: eventFields,
		columns: []Column{
			{Name: "LAST SEEN"},
			{Name: "TYPE"},
			{Name: "REASON"},
			{Name: "OBJECT"},
			{Name: "SUBOBJECT", Wide: true},
			{Name: "SOURCE", Wide: true},
			{Name: "MESSAGE"},
			{Name: "FIRST SEEN", Wide: true},
			{Name: "COUNT", Wide: true},
			{Name: "NAME", Wide: true},
		},
		row:      eventRow,
		describe: func(d *describer, e *corev1.Event, _ []Object) { d.event(e) },
	})

func eventFields(obj *corev1.Event, set fields.Set) {
	about := obj.InvolvedObject
	set["involvedObject.kind"] = about.Kind
	set["involvedObject.namespace"] = about.Namespace
	set["involvedObject.name"] = about.Name
	set["involvedObject.uid"] = string(about.UID)
	set["involvedObject.apiVersion"] = about.APIVersion
	set["involvedObject.resourceVersion"] = about.ResourceVersion
	set["involvedObject.fieldPath"] = about.FieldPath
	set["reason"] = obj.Reason
	set["type"] = obj.Type
	set["source"] = obj.Source.Component
	if set["source"] == "" {
		set["source"] = obj.ReportingController
	}
	set["reportingComponent"] = obj.ReportingController
}

func validateEvent(event *corev1.Event) field.ErrorList {
	var errs field.ErrorList
	if ns := event.InvolvedObject.Namespace; ns != "" && ns != event.Namespace {
		errs = append(errs, field.Invalid(field.NewPath("involvedObject", "namespace"), ns, fmt.Sprintf("must be the event's own namespace, %s", event.Namespace)))
	}
	return errs
}

func eventRow(e *corev1.Event, now time.Time) []string {
	first, last := eventTimes(e)
	return []string{
		since(last, now), e.Type, e.Reason, strings.ToLower(e.InvolvedObject.Kind) + "/" + e.InvolvedObject.Name,
		e.InvolvedObject.FieldPath, eventSource(e), strings.TrimSpace(e.Message), since(first, now), itoa(eventCount(e)), e.Name,
	}
}

func eventTimes(e *corev1.Event) (first, last time.Time) {
	first, last = e.FirstTimestamp.Time, e.LastTimestamp.Time
	if first.IsZero() {
		first = e.EventTime.Time
	}
	if e.Series != nil {
		last = e.Series.LastObservedTime.Time
	}
	if last.IsZero() {
		last = first
	}
	return first, last
}

func eventCount(e *corev1.Event) int32 {
	if e.Series != nil {
		return e.Series.Count
	}
	return max(e.Count, 1)
}

func eventSource(e *corev1.Event) string {
	component := cmp.Or(e.Source.Component, e.ReportingController)
	host := cmp.Or(e.Source.Host, e.ReportingInstance)
	if component == "" || host == "" || host == component {
		return cmp.Or(component, host)
	}
	return component + ", " + host
}

func (d *describer) event(e *corev1.Event) {
	d.meta(e)
	first, last := eventTimes(e)
	d.line(0, "Involved Object:", title(e.InvolvedObject.Kind, e.InvolvedObject.Namespace, e.InvolvedObject.Name))
	d.line(0, "Type:", e.Type)
	d.line(0, "Reason:", e.Reason)
	d.line(0, "Message:", strings.TrimSpace(e.Message))
	d.line(0, "Source:", eventSource(e))
	d.line(0, "First Seen:", since(first, d.now))
	d.line(0, "Last Seen:", since(last, d.now))
	d.line(0, "Count:", itoa(eventCount(e)))
}
