package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// buyer orders through the Ingress as a browser would, except that it does not give up:
// an order is asked for at one address after the other until one acknowledges it.
type buyer struct {
	host   string
	at     []string
	client *http.Client // keeps its connections
	fresh  *http.Client // makes one for each request

	turn      atomic.Int64
	tried     atomic.Int64
	failed    atomic.Int64
	mu        sync.Mutex
	kept      map[string]bool
	last      time.Time // acknowledgement
	longest   time.Duration
	lastError string
}

// buy orders for a while, prints what happened, and fails when an order that was
// acknowledged is missing in the end.
func buy(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("buy", flag.ContinueOnError)
	host := flags.String("host", "shop.example", "the name that the certificate is for")
	at := flags.String("at", "", "addresses of the nodes that serve Ingresses, separated by commas")
	ca := flags.String("ca", "", "file of the certificate to trust")
	buyers := flags.Int("buyers", 8, "how many order at the same time; half of them over new connections")
	pause := flags.Duration("pause", 20*time.Millisecond, "between two orders of a buyer")
	span := flags.Duration("for", 0, "how long; 0: until it is told to end")
	least := flags.Int("least", 0, "go on until so many orders are acknowledged, also when it is told to end")
	settle := flags.Duration("settle", time.Minute, "how long an order may take to be acknowledged, and the list to be read in the end")
	if err := flags.Parse(args); err != nil {
		return err
	}
	pem, err := os.ReadFile(*ca)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s: no certificate", *ca)
	}
	transport := func() *http.Transport {
		return &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: *host, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
			DialContext: (&net.Dialer{Timeout: time.Second}).DialContext, MaxIdleConnsPerHost: *buyers,
		}
	}
	b := &buyer{
		host: *host, at: strings.Split(*at, ","), kept: map[string]bool{}, last: time.Now(),
		client: &http.Client{Transport: transport(), Timeout: 3 * time.Second},
	}
	once := transport()
	once.DisableKeepAlives = true
	b.fresh = &http.Client{Transport: once, Timeout: 3 * time.Second}

	ordering, done := ctx, context.CancelFunc(func() {})
	if *span > 0 {
		ordering, done = context.WithTimeout(ctx, *span)
	}
	defer done()
	run := rand.Text()[:8]
	var all sync.WaitGroup
	errs := make([]error, *buyers)
	for i := range *buyers {
		all.Go(func() {
			for n := 0; ordering.Err() == nil || b.orders() < *least; n++ {
				// An order that was begun is brought to its end.
				if errs[i] = b.order(fmt.Sprintf("%s-%d-%d", run, i, n), i%2 == 0, *settle); errs[i] != nil {
					return
				}
				time.Sleep(*pause)
			}
		})
	}
	all.Wait()
	list, err := b.list(*settle)
	if err := errors.Join(append(errs, err)...); err != nil {
		return err
	}
	lost, twice := 0, 0
	count := map[string]int{}
	for line := range strings.Lines(list) {
		id, _, _ := strings.Cut(line, " ")
		count[id]++
	}
	for id := range b.kept {
		switch count[id] {
		case 0:
			lost++
		case 1:
		default:
			twice++
		}
	}
	fmt.Fprintf(out, "orders %d\ntries_that_failed %d\nlongest_time_without_an_order %d ms\nlost %d\ntwice %d\n",
		len(b.kept), b.failed.Load(), b.longest.Milliseconds(), lost, twice)
	if b.lastError != "" {
		fmt.Fprintf(out, "the last try that failed: %s\n", b.lastError)
	}
	if lost+twice > 0 {
		return fmt.Errorf("%d orders were acknowledged and are lost, %d are there twice", lost, twice)
	}
	return nil
}

// do asks one address after the other until one answers with 200.
func (b *buyer) do(client *http.Client, method, path, body string, limit time.Duration) (string, error) {
	var last error
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		b.tried.Add(1)
		address := b.at[int(b.turn.Add(1))%len(b.at)]
		answer, err := b.once(client, method, "https://"+address+path, body)
		if err == nil {
			return answer, nil
		}
		b.failed.Add(1)
		last = err
		b.mu.Lock()
		b.lastError = err.Error()
		b.mu.Unlock()
	}
	return "", fmt.Errorf("%s %s: not done in %s: %w", method, path, limit, last)
}

func (b *buyer) once(client *http.Client, method, url, body string) (string, error) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Host = b.host
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, strings.TrimSpace(string(answer)))
	}
	return string(answer), err
}

func (b *buyer) order(id string, keep bool, limit time.Duration) error {
	client := b.fresh
	if keep {
		client = b.client
	}
	if _, err := b.do(client, http.MethodPut, "/orders/"+id, "one of "+id, limit); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept[id] = true
	now := time.Now()
	b.longest, b.last = max(b.longest, now.Sub(b.last)), now
	return nil
}

func (b *buyer) orders() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.kept)
}

func (b *buyer) list(limit time.Duration) (string, error) {
	return b.do(b.client, http.MethodGet, "/orders", "", limit)
}
