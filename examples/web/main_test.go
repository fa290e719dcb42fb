package main

import (
	"bytes"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHandlerNamesItsPodAndLogsEachRequest(t *testing.T) {
	var logged bytes.Buffer
	h := handler("web-1", log.New(&logged, "", 0))
	for path, want := range map[string]struct {
		code int
		body string
	}{
		"/":        {http.StatusOK, "hello from web-1\n"},
		"/healthz": {http.StatusOK, "ok\n"},
		"/nothing": {http.StatusNotFound, "404 page not found\n"},
	} {
		logged.Reset()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		if w.Code != want.code || w.Body.String() != want.body {
			t.Errorf("%s: %d %q, want %d %q", path, w.Code, w.Body, want.code, want.body)
		}
		if line := logged.String(); !strings.HasPrefix(line, "GET "+path+" ") || strings.Count(line, "\n") != 1 {
			t.Errorf("%s is logged as %q", path, line)
		}
	}
}

func TestCommandsExitCodes(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want int
	}{
		{[]string{"echo", "hi"}, 0},
		{[]string{"exit", "7"}, 7},
		{[]string{"exit"}, 0},
		{[]string{"exit", "soon"}, 2},
		{[]string{"crash"}, 1},
		{[]string{"cat", "/no/such/file"}, 1},
		{[]string{"vi"}, 127},
	} {
		var out, errs bytes.Buffer
		if got := command(tc.args, strings.NewReader(""), &out, &errs); got != tc.want {
			t.Errorf("%v exits %d, want %d", tc.args, got, tc.want)
		}
	}
}

func TestShell(t *testing.T) {
	var out, errs bytes.Buffer
	code := command([]string{"shell"}, strings.NewReader("echo two  words\n\nnonsense\nexit 3\necho never\n"), &out, &errs)
	if code != 3 {
		t.Errorf("exit code %d, want that of exit", code)
	}
	if !strings.Contains(out.String(), "two words\n") || strings.Contains(out.String(), "never") {
		t.Errorf("output %q", out.String())
	}
	if !strings.Contains(errs.String(), `unknown command "nonsense"`) {
		t.Errorf("errors %q", errs.String())
	}
	if code := command([]string{"shell"}, strings.NewReader("nonsense\n"), &out, &errs); code != 127 {
		t.Errorf("exit code at the end of the input %d, want that of the last command", code)
	}
}
