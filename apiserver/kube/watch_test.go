package kube_test

import (
	"bufio"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// stream is an open watch.
type stream struct {
	t     testing.TB
	resp  *http.Response
	lines *bufio.Scanner
}

func (s *server) watch(path string, headers ...string) *stream {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), "GET", s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		req.Header.Set(name, value)
	}
	resp, err := s.admin.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 {
		s.t.Fatalf("watch %s: %s", path, resp.Status)
	}
	return &stream{s.t, resp, bufio.NewScanner(resp.Body)}
}

// next returns the next event in short: "ADDED web a=1".
func (w *stream) next() string {
	w.t.Helper()
	if !w.lines.Scan() {
		return "end"
	}
	var event struct {
		Type   string
		Object struct {
			Kind     string
			Code     int
			Reason   string
			Metadata struct {
				Name, ResourceVersion string
				Annotations           map[string]string
			}
			Data              map[string]string
			ColumnDefinitions []any
			Rows              []struct{ Cells []any }
		}
	}
	if err := json.Unmarshal(w.lines.Bytes(), &event); err != nil {
		w.t.Fatalf("%s: %v", w.lines.Bytes(), err)
	}
	o := event.Object
	out := event.Type
	switch {
	case o.Kind == "Status":
		return out + " " + o.Reason
	case o.Kind == "Table":
		out += " Table " + strconv.Itoa(len(o.ColumnDefinitions))
		for _, row := range o.Rows {
			out += " " + row.Cells[0].(string)
		}
		return out
	case o.Metadata.Name != "":
		out += " " + o.Metadata.Name
	}
	if o.Kind != "ConfigMap" {
		out += " " + o.Kind
	}
	if a, ok := o.Data["a"]; ok {
		out += " a=" + a
	}
	if o.Metadata.Annotations["k8s.io/initial-events-end"] == "true" {
		out += " initial-events-end"
	}
	if o.Metadata.ResourceVersion == "" {
		out += " without resourceVersion"
	}
	return out
}

func (w *stream) want(events ...string) {
	w.t.Helper()
	for _, want := range events {
		if got := w.next(); got != want {
			w.t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func TestWatch(t *testing.T) {
	s := start(t)
	const all, one = "/api/v1/namespaces/default/configmaps", "/api/v1/namespaces/default/configmaps/web"
	made := s.want(201, "POST", all, webConfig).at("metadata.resourceVersion").(string)
	set := func(label, a string) {
		t.Helper()
		body := `{"metadata":{"labels":{"app":"` + label + `"}},"data":{"a":"` + a + `"}}`
		s.want(200, "PATCH", one, body, "Content-Type: application/merge-patch+json")
	}

	plain := s.watch(all + "?watch=true")
	table := s.watch(all+"?watch=true", "Accept: application/json;as=Table;v=v1;g=meta.k8s.io")
	meta := s.watch(all+"?watch=true&resourceVersion=0", "Accept: application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io")
	resumed := s.watch(all + "?watch=true&resourceVersion=" + made)
	selected := s.watch(all + "?watch=true&labelSelector=app%3Dweb")
	initial := s.watch(all + "?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion=")
	none := s.watch(all + "?watch=true&sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion=")
	named := s.watch("/api/v1/namespaces/default/configmaps/web?watch=1")

	plain.want("ADDED web a=1")
	table.want("ADDED Table 3 web")
	meta.want("ADDED web PartialObjectMetadata")
	selected.want("ADDED web a=1")
	initial.want("ADDED web a=1", "BOOKMARK initial-events-end")
	named.want("ADDED web a=1")

	set("web", "2")
	set("other", "3")
	set("web", "4")
	s.want(201, "POST", all, strings.Replace(webConfig, `"web"`, `"second"`, 1))
	s.want(200, "DELETE", one, "")

	plain.want("MODIFIED web a=2", "MODIFIED web a=3", "MODIFIED web a=4", "ADDED second a=1", "DELETED web a=4")
	table.want("MODIFIED Table 0 web", "MODIFIED Table 0 web", "MODIFIED Table 0 web", "ADDED Table 0 second", "DELETED Table 0 web")
	meta.want("MODIFIED web PartialObjectMetadata")
	resumed.want("MODIFIED web a=2", "MODIFIED web a=3")
	selected.want("MODIFIED web a=2", "DELETED web a=2", "ADDED web a=4", "ADDED second a=1", "DELETED web a=4")
	initial.want("MODIFIED web a=2")
	none.want("MODIFIED web a=2")
	named.want("MODIFIED web a=2", "MODIFIED web a=3", "MODIFIED web a=4", "DELETED web a=4")

	s.watch(all+"?watch=1&timeoutSeconds=1&resourceVersion="+made).want("MODIFIED web a=2", "MODIFIED web a=3", "MODIFIED web a=4", "ADDED second a=1", "DELETED web a=4", "end")

	// What has been compacted cannot be resumed, in either form.
	if err := s.store.Compact(t.Context(), s.store.View().Revision()); err != nil {
		t.Fatal(err)
	}
	s.watch(all+"?watch=1&resourceVersion="+made).want("ERROR Expired", "end")
	s.wantStatus(410, "Expired", "compacted", "GET", all+"?resourceVersionMatch=Exact&resourceVersion="+made, "")

	s.stop()
	plain.want("end")
}
