package containerd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// socketName is in the directory of a container's log: where to attach.
const socketName = "attach"

// What goes over the socket of a hub: packets of a tag and up to maxFrame bytes.
// The agent begins with frameHello, whose one byte says whether stdin comes; the
// answer is frameHello, whose one byte says whether there is a terminal, or
// frameNoStdin.
const (
	frameHello   byte = 'h'
	frameNoStdin byte = 'n'
	frameStdin   byte = 'i'
	frameEnd     byte = 'e' // of stdin
	frameStdout  byte = '1'
	frameStderr  byte = '2'

	maxFrame = 32 << 10
)

// hub lets agents take part in a container's streams. It is where these are, in
// the shim, so that it outlives agents. Who attaches gets what comes from then on,
// and whoever reads slowly holds the container back, as a terminal does: nothing is
// dropped, and nothing but the socket buffers it. A nil hub has nobody.
type hub struct {
	how        output
	listener   *net.UnixListener
	closeStdin func() // has the shim let go of stdin

	mu       sync.Mutex
	attached map[*net.UnixConn]struct{}
	stdin    *os.File // nil: the container has none, or it has ended
	closed   bool
}

// newHub opens the socket of a container. The hub owns stdin, if there is any.
func newHub(how output, stdin *os.File, closeStdin func()) (*hub, error) {
	h := &hub{how: how, stdin: stdin, closeStdin: closeStdin, attached: map[*net.UnixConn]struct{}{}}
	err := atSocket(how.dir, func(path string) (err error) {
		if err = os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of an earlier try
			return err
		}
		h.listener, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen for those who attach: %w", err)
	}
	h.listener.SetUnlinkOnClose(false) // its name is good for this moment only
	go func() {
		for {
			conn, err := h.listener.AcceptUnix()
			if err != nil {
				return
			}
			go h.serve(conn)
		}
	}()
	return h, nil
}

// atSocket calls f with a name for the socket in dir that is short enough for one,
// however deep dir is. It is valid during the call.
func atSocket(dir string, f func(path string) error) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", fd, socketName))
}

// close ends all connections, once what was written has been read.
func (h *hub) close() {
	if h == nil {
		return
	}
	h.listener.Close()
	_ = os.Remove(filepath.Join(h.how.dir, socketName))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for conn := range h.attached {
		conn.Close()
	}
	h.attached = nil
	if h.stdin != nil {
		h.stdin.Close()
		h.stdin = nil
	}
}

// serve lets one agent take part until it leaves or the container ends.
func (h *hub) serve(conn *net.UnixConn) {
	defer conn.Close()
	buf := make([]byte, 1+maxFrame)
	n, err := conn.Read(buf)
	if err != nil || n != 2 || buf[0] != frameHello {
		return
	}
	input := buf[1] != 0
	stdin, ok := h.join(conn, input)
	if !ok {
		return
	}
	defer h.leave(conn, input)
	for {
		n, err := conn.Read(buf)
		switch {
		case err != nil || n == 0:
			return
		case buf[0] == frameStdin && stdin != nil:
			if _, err := stdin.Write(buf[1:n]); err != nil {
				stdin = nil // it has ended
			}
		case buf[0] == frameEnd && input && h.how.stdin == stdinOnce && !h.how.tty:
			h.endStdin()
		}
	}
}

// join answers an agent's hello. From then on it misses nothing.
func (h *hub) join(conn *net.UnixConn, input bool) (stdin *os.File, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, false
	}
	hello := []byte{frameHello, 0}
	if h.how.tty {
		hello[1] = 1
	}
	if input {
		if stdin = h.stdin; stdin == nil {
			hello = []byte{frameNoStdin}
		}
	}
	if _, err := conn.Write(hello); err != nil || hello[0] == frameNoStdin {
		return nil, false
	}
	h.attached[conn] = struct{}{}
	return stdin, true
}

func (h *hub) leave(conn *net.UnixConn, input bool) {
	h.mu.Lock()
	delete(h.attached, conn)
	h.mu.Unlock()
	if input && h.how.stdin == stdinOnce {
		h.endStdin()
	}
}

// endStdin ends the container's stdin behind what was written to it.
func (h *hub) endStdin() {
	h.mu.Lock()
	stdin := h.stdin
	h.stdin = nil
	h.mu.Unlock()
	if stdin != nil {
		stdin.Close()
		h.closeStdin()
	}
}

// tee returns r, of which all that is read goes to those attached as well.
func (h *hub) tee(tag byte, r io.Reader) io.Reader {
	if h == nil {
		return r
	}
	return io.TeeReader(r, &hubWriter{h: h, frame: []byte{tag}})
}

// hubWriter writes one stream. It never fails: those attached come and go.
type hubWriter struct {
	h     *hub
	frame []byte // tag, then data
}

func (w *hubWriter) Write(p []byte) (int, error) {
	for at := 0; at < len(p); at += maxFrame {
		w.frame = append(w.frame[:1], p[at:min(at+maxFrame, len(p))]...)
		w.h.mu.Lock()
		conns := make([]*net.UnixConn, 0, len(w.h.attached))
		for conn := range w.h.attached {
			conns = append(conns, conn)
		}
		w.h.mu.Unlock()
		for _, conn := range conns {
			_, _ = conn.Write(w.frame) // whoever is gone leaves by itself
		}
	}
	return len(p), nil
}

// dialHub connects to the hub of a container whose log is in dir.
func dialHub(dir string) (*net.UnixConn, error) {
	var conn *net.UnixConn
	err := atSocket(dir, func(path string) (err error) {
		conn, err = net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		return err
	})
	return conn, err
}
