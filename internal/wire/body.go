package wire

import (
	"encoding/binary"
	"io"
)

// prefixBytes come before each message of a stream, in gRPC's and Connect's framing: a
// byte of flags, and the message's length.
const prefixBytes = 5

// Whole returns a stream's request body that reads a message together with its prefix,
// if p has room for both. Connect writes one after the other, and net/http would make
// a frame of each. It never waits for what is not on its way: a body that does not
// begin with a prefix alone is passed on as it is.
func Whole(body io.ReadCloser) io.ReadCloser { return &whole{ReadCloser: body} }

type whole struct {
	io.ReadCloser
	left  uint32 // of the message, to be read
	plain bool
}

// Read implements io.Reader.
func (w *whole) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	switch {
	case w.plain:
		return n, err
	case w.left > 0:
		w.take(n)
		return n, err
	case n == 0:
		return n, err
	case n != prefixBytes:
		w.plain = true
		return n, err
	}
	if w.left = binary.BigEndian.Uint32(p[1:]); err != nil || w.left == 0 || len(p) == n {
		return n, err
	}
	more, err := w.ReadCloser.Read(p[n:])
	w.take(more)
	return n + more, err
}

func (w *whole) take(n int) {
	if w.plain = n > int(w.left); !w.plain {
		w.left -= uint32(n)
	}
}
