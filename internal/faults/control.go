package faults

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Serve lets others drive the plane through a unix socket at path, until ctx ends:
// through the file system, so that no fault of the network can lock them out. Who
// can open the file, which is this user alone, can break the process at will.
//
// A request is a line, an answer lines that end with "ok" or "error: why":
//
//	set NAME FAULT    as Parse reads it
//	clear [NAME ...]  all, without names
//	flip KEY          a bit of that key's value, in memory
//	diverge           the state in memory from the log
//	list              name, hits, fault of each
//	fired             how often each kind has struck
func (p *Plane) Serve(ctx context.Context, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // of a former process, which is gone
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("fault socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel() // before the wait
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("fault socket: %w", err)
		}
		conns.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			lines := bufio.NewScanner(conn)
			for lines.Scan() {
				answer, err := p.Command(lines.Text())
				if err != nil {
					answer = fmt.Sprintf("error: %v\n", err)
				} else {
					answer += "ok\n"
				}
				if _, err := conn.Write([]byte(answer)); err != nil {
					return
				}
			}
		})
	}
}

// Command does what a line of Serve's protocol says and returns the answer's lines.
func (p *Plane) Command(line string) (string, error) {
	verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	var out strings.Builder
	switch verb {
	case "set":
		name, text, _ := strings.Cut(strings.TrimSpace(rest), " ")
		f, err := Parse(text)
		if err != nil {
			return "", err
		}
		return "", p.Set(name, f)
	case "clear":
		p.Clear(strings.Fields(rest)...)
	case "list":
		for _, a := range p.List() {
			fmt.Fprintf(&out, "%s %d %s\n", a.Name, a.Hits, a.Fault)
		}
	case "fired":
		fired := p.Fired()
		for _, kind := range slices.Sorted(maps.Keys(fired)) {
			fmt.Fprintf(&out, "%s %d\n", kind, fired[kind])
		}
	case "flip":
		return "", p.Flip(rest)
	case "diverge":
		return "", p.Diverge()
	default:
		return "", fmt.Errorf("%q is no command: use set, clear, list, fired, flip or diverge", verb)
	}
	return out.String(), nil
}

// Control sends one line to the plane that is served at path and returns the lines
// of its answer, without the last.
func Control(ctx context.Context, path, line string) (string, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return "", fmt.Errorf("fault socket: %w; was the process started with it?", err)
	}
	defer conn.Close()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(5 * time.Second)
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return "", err
	}
	var out strings.Builder
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		text := lines.Text()
		if text == "ok" {
			return out.String(), nil
		}
		if why, failed := strings.CutPrefix(text, "error: "); failed {
			return "", errors.New(why)
		}
		out.WriteString(text + "\n")
	}
	return "", errors.New("fault socket: the process has closed it")
}
