// Command web is the example's web server. It answers with the name of its pod,
// and logs a line for each request.
//
//	web            serves on :8080 until it is told to end
//	web env        prints its environment, sorted
//	web get URL    asks a server; a path alone is this container's own
//	web exit CODE  exits with a code
//	web shell      a small shell, since the image has none
//	web crash      writes a last word and exits with 1
//	web beat DIR   writes the machine's clock into a file of its own in DIR, each 10 ms until it is killed
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const port = "8080"

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		if err := serve(); err != nil {
			log.Fatal(err)
		}
		return
	}
	os.Exit(command(args, os.Stdin, os.Stdout, os.Stderr))
}

// serve answers until SIGTERM or SIGINT, then finishes what it is answering.
func serve() error {
	log.SetFlags(0) // whoever keeps the log knows the time
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	server := &http.Server{Addr: ":" + port, Handler: handler(name, log.Default()), ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	log.Printf("%s listens on :%s", name, port)
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	log.Printf("%s ends", name)
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		return err
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func handler(name string, log *log.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "hello from %s\n", name) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		seen := &status{ResponseWriter: w, code: http.StatusOK}
		mux.ServeHTTP(seen, r)
		log.Printf("%s %s %d %s from %s", r.Method, r.URL.Path, seen.code, time.Since(began).Round(time.Microsecond), r.RemoteAddr)
	})
}

// status remembers the code of an answer.
type status struct {
	http.ResponseWriter
	code int
}

func (s *status) WriteHeader(code int) {
	s.code = code
	s.ResponseWriter.WriteHeader(code)
}

// command runs one command and returns its exit code.
func command(args []string, in io.Reader, out, errs io.Writer) int {
	switch args[0] {
	case "env":
		env := os.Environ()
		slices.Sort(env)
		fmt.Fprintln(out, strings.Join(env, "\n"))
	case "get":
		url := "/"
		if len(args) > 1 {
			url = args[1]
		}
		if strings.HasPrefix(url, "/") {
			url = "http://127.0.0.1:" + port + url
		}
		return get(url, out, errs)
	case "cat":
		for _, file := range args[1:] {
			data, err := os.ReadFile(file)
			if err != nil {
				fmt.Fprintln(errs, err)
				return 1
			}
			_, _ = out.Write(data)
		}
	case "echo":
		fmt.Fprintln(out, strings.Join(args[1:], " "))
	case "exit":
		return exitCode(args, errs)
	case "crash":
		fmt.Fprintln(errs, "web: told to crash, so this is the end")
		return 1
	case "beat":
		return beat(args[1:], errs)
	case "shell":
		return shell(in, out, errs)
	default:
		fmt.Fprintf(errs, "web: unknown command %q; there are env, get, cat, echo, exit, crash, beat, shell\n", args[0])
		return 127
	}
	return 0
}

// beat writes when it runs: CLOCK_BOOTTIME in nanoseconds, the same for all that runs on a
// machine. It does not end when it is asked to.
func beat(args []string, errs io.Writer) int {
	signal.Ignore(syscall.SIGTERM, os.Interrupt)
	name, err := os.Hostname()
	var f *os.File
	if err == nil && len(args) == 1 {
		f, err = os.CreateTemp(args[0], name+".*")
	}
	for err == nil && f != nil {
		var now unix.Timespec
		if err = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err == nil {
			_, err = fmt.Fprintln(f, now.Nano())
		}
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Fprintf(errs, "web: beat wants a directory to write to: %v\n", err)
	return 1
}

// exitCode is what "exit CODE" asks for.
func exitCode(words []string, errs io.Writer) int {
	if len(words) == 1 {
		return 0
	}
	code, err := strconv.Atoi(words[1])
	if err != nil {
		fmt.Fprintf(errs, "web: exit %s: want a number\n", words[1])
		return 2
	}
	return code
}

func get(url string, out, errs io.Writer) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		fmt.Fprintln(errs, err)
		return 2
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		fmt.Fprintln(errs, err)
		return 1
	}
	defer res.Body.Close()
	_, _ = io.Copy(out, res.Body)
	if res.StatusCode >= http.StatusBadRequest {
		return 1
	}
	return 0
}

// shell reads lines and runs each as a command, until the input or `exit` ends it.
func shell(in io.Reader, out, errs io.Writer) int {
	name, _ := os.Hostname()
	lines := bufio.NewScanner(in)
	last := 0
	for {
		fmt.Fprintf(out, "%s$ ", name)
		if !lines.Scan() {
			fmt.Fprintln(out)
			return last
		}
		words := strings.Fields(lines.Text())
		switch {
		case len(words) == 0:
		case words[0] == "exit":
			if len(words) > 1 {
				return exitCode(words, errs)
			}
			return last
		case words[0] == "shell":
			fmt.Fprintln(errs, "this is the shell")
		default:
			last = command(words, in, out, errs)
		}
	}
}
