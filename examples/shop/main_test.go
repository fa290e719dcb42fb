package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func ask(t *testing.T, method, url, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(answer)
}

// TestTiers: an order goes through all three, is kept once, and is there after a restart,
// without what was written of an order that was never acknowledged.
func TestTiers(t *testing.T) {
	dir := t.TempDir()
	open := func() *httptest.Server {
		orders, err := openLedger(dir)
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewServer(db(orders))
		t.Cleanup(s.Close)
		return s
	}
	keeper := open()
	taker := httptest.NewServer(api(next{keeper.URL}))
	defer taker.Close()
	page := httptest.NewServer(front(next{taker.URL}))
	defer page.Close()
	for _, tt := range []struct {
		id, body string
		code     int
	}{
		{"a-1", "tea", 200}, {"a-1", "tea", 200}, {"a-1", "milk", 409}, {"b", "", 400}, {"c", "two\nlines", 400}, {"d", strings.Repeat("x", 2000), 400}, {"e", "milk", 200},
	} {
		if code, answer := ask(t, "PUT", page.URL+"/orders/"+tt.id, tt.body); code != tt.code {
			t.Errorf("%s %q: %d %s, want %d", tt.id, tt.body, code, answer, tt.code)
		}
	}
	const want = "a-1 tea\ne milk\n"
	if _, got := ask(t, "GET", page.URL+"/orders", ""); got != want {
		t.Errorf("orders are %q, want %q", got, want)
	}
	keeper.Close()
	if code, _ := ask(t, "PUT", page.URL+"/orders/f", "tea"); code != 502 {
		t.Errorf("without a database: %d, want 502", code)
	}
	file, err := os.OpenFile(filepath.Join(dir, "orders"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString("g half an ord"); err != nil {
		t.Fatal(err)
	}
	file.Close()
	if _, got := ask(t, "GET", open().URL+"/orders", ""); got != want {
		t.Errorf("after a restart orders are %q, want %q", got, want)
	}
}
