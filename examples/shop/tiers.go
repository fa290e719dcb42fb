package main

import (
	"bufio"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
)

const largestOrder = 1 << 10 // bytes

func readerOf(s string) io.Reader { return strings.NewReader(s) }

func healthz(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }

// front is what buyers see.
func front(api next) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", healthz)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		name, _ := os.Hostname()
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(w, "<!doctype html><title>shop</title><h1>Shop</h1><p>All orders: <a href=/orders>/orders</a>.<p>This page is from %s.\n", html.EscapeString(name))
	})
	mux.HandleFunc("GET /orders", func(w http.ResponseWriter, r *http.Request) { api.forward(w, r, "") })
	mux.HandleFunc("PUT /orders/{id}", func(w http.ResponseWriter, r *http.Request) {
		if body, ok := order(w, r); ok {
			api.forward(w, r, body)
		}
	})
	return mux
}

// api is what takes orders: only good ones get to the database.
func api(db next) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", healthz)
	mux.HandleFunc("GET /orders", func(w http.ResponseWriter, r *http.Request) { db.forward(w, r, "") })
	mux.HandleFunc("PUT /orders/{id}", func(w http.ResponseWriter, r *http.Request) {
		body, ok := order(w, r)
		if !ok {
			return
		}
		if body == "" || strings.ContainsAny(body, "\n\r") {
			http.Error(w, "an order is a line of text", http.StatusBadRequest)
			return
		}
		db.forward(w, r, body)
	})
	return mux
}

// db is what keeps orders.
func db(orders *ledger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if err := orders.healthy(); err != nil { // a restart reads what is there
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		healthz(w, r)
	})
	mux.HandleFunc("GET /orders", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, orders.all()) })
	mux.HandleFunc("PUT /orders/{id}", func(w http.ResponseWriter, r *http.Request) {
		body, ok := order(w, r)
		if !ok {
			return
		}
		switch err := orders.put(r.PathValue("id"), body); {
		case errors.Is(err, errOther):
			http.Error(w, err.Error(), http.StatusConflict)
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		default:
			fmt.Fprintln(w, "kept")
		}
	})
	return mux
}

func order(w http.ResponseWriter, r *http.Request) (string, bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, largestOrder))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return "", false
	}
	return string(body), true
}

var (
	errOther = errors.New("another order has this id")
	isID     = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
)

// ledger is the database: a file of lines, "ID TEXT". What put has returned for is on
// disk. Its methods may be called at the same time.
type ledger struct {
	mu    sync.Mutex
	file  *os.File
	lines strings.Builder
	by    map[string]string
	wrong error // once a write has failed: nobody knows what is on disk until it is read again
}

// openLedger opens or makes the ledger in dir. A last line that is not whole was never
// acknowledged, and is dropped.
func openLedger(dir string) (*ledger, error) {
	file, err := os.OpenFile(filepath.Join(dir, "orders"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	l := &ledger{file: file, by: map[string]string{}}
	for in := bufio.NewReader(file); ; {
		line, err := in.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, errors.Join(err, file.Close())
		}
		if err != nil {
			break
		}
		id, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		l.by[id] = text
		l.lines.WriteString(line)
	}
	whole := int64(l.lines.Len())
	if err := file.Truncate(whole); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if _, err := file.Seek(whole, io.SeekStart); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return l, nil
}

func (l *ledger) put(id, text string) error {
	if !isID.MatchString(id) || strings.ContainsAny(text, "\n\r") {
		return fmt.Errorf("%q: want letters, digits and dashes, and one line of text", id)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if have, ok := l.by[id]; ok {
		if have != text {
			return errOther
		}
		return nil
	}
	if l.wrong != nil {
		return l.wrong
	}
	line := id + " " + text + "\n"
	if _, l.wrong = l.file.WriteString(line); l.wrong == nil {
		l.wrong = l.file.Sync()
	}
	if l.wrong != nil {
		return l.wrong
	}
	l.by[id] = text
	l.lines.WriteString(line)
	return nil
}

func (l *ledger) healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wrong
}

func (l *ledger) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.String()
}
