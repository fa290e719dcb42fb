// Command load asks a URL at a steady rate until it is told to end, half of it over new
// connections and half over kept ones, and says how many requests failed, and how.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	url := flag.String("url", "", "what to ask for")
	rate := flag.Int("rate", 2000, "requests a second")
	limit := flag.Duration("limit", 5*time.Second, "how long an answer may take")
	inFlight := flag.Int("in-flight", 256, "requests under way at most: a slow machine gets fewer a second")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	kept := &http.Client{Timeout: *limit, Transport: &http.Transport{MaxIdleConnsPerHost: *inFlight}}
	fresh := &http.Client{Timeout: *limit, Transport: &http.Transport{DisableKeepAlives: true}}
	var done, failed atomic.Int64
	var first sync.Map // error -> true
	ask := func(client *http.Client) error {
		res, err := client.Get(*url)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			return err
		}
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", res.Status)
		}
		return nil
	}
	places := make(chan struct{}, *inFlight)
	var all sync.WaitGroup
	begin := time.Now()
	for n := 0; ctx.Err() == nil; n++ {
		if early := time.Duration(n)*time.Second/time.Duration(*rate) - time.Since(begin); early > 0 {
			time.Sleep(early)
		} else if early < -time.Second {
			begin, n = time.Now(), 0 // too slow: what was missed is not made up for in a burst
		}
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			client := kept
			if n%2 == 0 {
				client = fresh
			}
			done.Add(1)
			if err := ask(client); err != nil {
				failed.Add(1)
				first.Store(err.Error(), true)
			}
		})
	}
	all.Wait()
	fmt.Printf("requests %d\nfailed %d\n", done.Load(), failed.Load())
	shown := 0
	first.Range(func(text, _ any) bool {
		fmt.Println("failed:", text)
		shown++
		return shown < 5
	})
}
