// Command shop is an example in three tiers: what buyers see, what takes their orders,
// and what keeps them. Each is a Service of its own, and any may die at any moment: an
// order that was acknowledged is kept, once.
//
//	shop front        pages and orders on :8080; asks $API
//	shop api          orders on :8080, checked; asks $DB
//	shop db DIR       orders on :8080, kept in DIR/orders
//	shop buy          orders until it is told to end, and counts what happens: see -h
//
// An order is PUT /orders/ID, with a line of text; the same again changes nothing, so
// whoever hears nothing can ask again. GET /orders has all of them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	args := os.Args[1:]
	role := ""
	if len(args) > 0 {
		role, args = args[0], args[1:]
	}
	var err error
	switch role {
	case "front":
		err = serve(ctx, front(next{os.Getenv("API")}))
	case "api":
		err = serve(ctx, api(next{os.Getenv("DB")}))
	case "db":
		if len(args) != 1 {
			err = errors.New("db wants a directory")
			break
		}
		var orders *ledger
		if orders, err = openLedger(args[0]); err == nil {
			err = serve(ctx, db(orders))
		}
	case "buy":
		err = buy(ctx, args, os.Stdout)
	default:
		err = fmt.Errorf("%q: there are front, api, db DIR and buy", role)
	}
	if err != nil {
		log.Fatalln("shop:", err)
	}
}

// serve answers until ctx ends, then finishes what it is answering.
func serve(ctx context.Context, handler http.Handler) error {
	server := &http.Server{Addr: ":8080", Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return server.Shutdown(grace)
}

// next is the tier behind this one.
type next struct{ url string }

// hop bounds one question to the next tier: there may be a better pod to ask.
const hop = time.Second

var nextClient = &http.Client{Timeout: hop}

// forward asks the next tier, twice at most: everything asked here may be asked again.
func (n next) forward(w http.ResponseWriter, r *http.Request, body string) {
	var failed error
	for range 2 {
		req, err := http.NewRequestWithContext(r.Context(), r.Method, n.url+r.URL.Path, nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if body != "" {
			req.Body, req.ContentLength = io.NopCloser(readerOf(body)), int64(len(body))
		}
		res, err := nextClient.Do(req)
		if err != nil {
			failed = err
			continue
		}
		answer, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode == http.StatusBadGateway {
			failed = errors.Join(err, errors.New(res.Status))
			continue
		}
		w.WriteHeader(res.StatusCode)
		_, _ = w.Write(answer)
		return
	}
	http.Error(w, failed.Error(), http.StatusBadGateway)
}
