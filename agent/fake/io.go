package fake

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// input is the stdin of an exec: it is read ahead by a goroutine, so that a
// command which waits for it can be killed.
type input struct {
	r       io.Reader // nil: none
	mu      sync.Mutex
	data    []byte
	ended   bool
	changed chan struct{}
}

// maxAhead is how much is read ahead.
const maxAhead = 64 << 10

func newInput(r io.Reader) *input { return &input{r: r, ended: r == nil, changed: make(chan struct{})} }

func (in *input) touch() {
	close(in.changed)
	in.changed = make(chan struct{})
}

// begin starts to read ahead. With a terminal, what is read goes through it.
func (in *input) begin(t *terminal) {
	if in.r == nil {
		return
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := in.r.Read(buf)
			if t != nil {
				t.typed(buf[:n])
			} else {
				in.put(buf[:n])
			}
			if err != nil {
				in.close()
				return
			}
			if in.full() {
				return
			}
		}
	}()
}

// full waits until there is room; true: the input was closed.
func (in *input) full() bool {
	for {
		in.mu.Lock()
		n, ended, changed := len(in.data), in.ended, in.changed
		in.mu.Unlock()
		switch {
		case ended:
			return true
		case n < maxAhead:
			return false
		}
		<-changed
	}
}

func (in *input) put(p []byte) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(p) > 0 && !in.ended {
		in.data = append(in.data, p...)
		in.touch()
	}
}

// close ends the input: what came before can still be read.
func (in *input) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.ended {
		in.ended = true
		in.touch()
	}
}

func (in *input) over() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.ended
}

// read returns up to n bytes; false at the end, or when ctx ends.
func (in *input) read(ctx context.Context, n int) ([]byte, bool) {
	for {
		in.mu.Lock()
		if len(in.data) > 0 {
			n = min(n, len(in.data))
			p := bytes.Clone(in.data[:n])
			in.data = in.data[n:]
			in.touch()
			in.mu.Unlock()
			return p, true
		}
		ended, changed := in.ended, in.changed
		in.mu.Unlock()
		if ended {
			return nil, false
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, false
		}
	}
}

// lockedWriter is for commands in the background beside one in the foreground.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(p)
}

// terminal is the line discipline of a TTY: it echoes, edits lines, turns ^C
// into an interrupt and ^D into the end of input, and line feeds into CR LF.
type terminal struct {
	in *input

	mu        sync.Mutex
	out       io.Writer
	line      []byte
	interrupt chan struct{}
	w, h      uint32
}

func newTerminal(out io.Writer, in *input, resize <-chan [2]uint32, done <-chan struct{}) *terminal {
	t := &terminal{out: out, in: in, interrupt: make(chan struct{}), w: 80, h: 24}
	select { // the first size is there before the command starts
	case size, ok := <-resize:
		if ok {
			t.resize(size)
		}
	default:
	}
	if resize != nil {
		go func() {
			for {
				select {
				case size, ok := <-resize:
					if !ok {
						return
					}
					t.resize(size)
				case <-done:
					return
				}
			}
		}()
	}
	return t
}

func (t *terminal) resize(size [2]uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.w, t.h = size[0], size[1]
}

func (t *terminal) size() (width, height uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.w, t.h
}

// interrupted returns a channel that the next ^C closes.
func (t *terminal) interrupted() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.interrupt
}

// Write writes for the command.
func (t *terminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.out.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// typed takes what the user typed.
func (t *terminal) typed(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	echo := func(s string) { _, _ = io.WriteString(t.out, s) }
	for _, c := range p {
		switch c {
		case '\r', '\n':
			echo("\r\n")
			t.in.put(append(t.line, '\n'))
			t.line = nil
		case 3: // ^C
			echo("^C\r\n")
			t.line = nil
			close(t.interrupt)
			t.interrupt = make(chan struct{})
			t.in.put([]byte("\n")) // a shell shows its prompt again
		case 4: // ^D
			if len(t.line) > 0 {
				t.in.put(t.line)
				t.line = nil
			} else {
				t.in.close()
			}
		case 8, 127:
			if n := len(t.line); n > 0 {
				t.line = t.line[:n-1]
				echo("\b \b")
			}
		default:
			t.line = append(t.line, c)
			echo(string(rune(c)))
		}
	}
}

// files are those of a container: its mounts, which are the node's, what the pod
// gives it, and what it wrote.
type files struct {
	mounts   map[string]string // container path to host path
	readOnly bool              // but for mounts

	mu      sync.Mutex
	content map[string][]byte
}

func newFiles(c *container) *files {
	f := &files{mounts: map[string]string{}, readOnly: c.spec.Security.ReadOnlyRoot, content: map[string][]byte{
		"/etc/hostname":     []byte(c.pod.Hostname + "\n"),
		"/proc/self/status": processStatus(c.spec.Security),
	}}
	for name, value := range c.pod.Sysctls {
		f.content["/proc/sys/"+strings.ReplaceAll(name, ".", "/")] = []byte(value + "\n")
	}
	if c.pod.Hosts != nil {
		f.content["/etc/hosts"] = c.pod.Hosts
	}
	if c.pod.ResolvConf != nil {
		f.content["/etc/resolv.conf"] = c.pod.ResolvConf
	}
	for _, m := range c.spec.Mounts {
		f.mounts[path.Clean(m.ContainerPath)] = m.HostPath
	}
	return f
}

// host returns the node's path of a file that is in a mount.
func (f *files) host(name string) (string, bool) {
	for at, host := range f.mounts {
		if rest, ok := strings.CutPrefix(name, at); ok && (rest == "" || rest[0] == '/') {
			return filepath.Join(host, rest), true
		}
	}
	return "", false
}

func (f *files) read(name string) ([]byte, error) {
	name = path.Clean("/" + name)
	if host, ok := f.host(name); ok {
		return os.ReadFile(host)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	data, ok := f.content[name]
	if !ok {
		return nil, fmt.Errorf("can't open '%s': No such file or directory", name)
	}
	return bytes.Clone(data), nil
}

func (f *files) create(name string, add bool) (io.WriteCloser, error) {
	name = path.Clean("/" + name)
	if host, ok := f.host(name); ok {
		flags := os.O_CREATE | os.O_WRONLY | os.O_TRUNC
		if add {
			flags = os.O_CREATE | os.O_WRONLY | os.O_APPEND
		}
		return os.OpenFile(host, flags, 0o644)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readOnly && !strings.HasPrefix(name, "/dev/") {
		return nil, fmt.Errorf("can't create %s: Read-only file system", name)
	}
	if !add || name == "/dev/null" {
		f.content[name] = nil
	}
	return &fileWriter{f, name}, nil
}

func (f *files) list(dir string) []string {
	dir = path.Clean("/" + dir)
	names := map[string]bool{}
	f.mu.Lock()
	defer f.mu.Unlock()
	all := slices.Collect(maps.Keys(f.content))
	for at := range f.mounts {
		all = append(all, at)
	}
	for _, name := range all {
		if rest, ok := strings.CutPrefix(name, strings.TrimSuffix(dir, "/")+"/"); ok {
			first, _, _ := strings.Cut(rest, "/")
			names[first] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

type fileWriter struct {
	f    *files
	name string
}

func (w *fileWriter) Write(p []byte) (int, error) {
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	if w.name != "/dev/null" {
		w.f.content[w.name] = append(w.f.content[w.name], p...)
	}
	return len(p), nil
}

func (w *fileWriter) Close() error { return nil }
