package seal

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A sealed stream is, with integers big endian:
//
//	 0  magic, version   8 bytes
//	 8  key              4
//	12  salt            32
//	44  chunks of 64 KiB, each sealed, followed by its tag of 16; the last is shorter,
//	    or as long, or empty
//
// Chunks are sealed under a key derived from data key, salt, owner and purpose. The
// nonce is the chunk's number, and 1 in its last byte for the last chunk: what was
// cut short, or goes on after its end, or has chunks in another order does not open
// (STREAM, by Hoang, Reyhanitabar, Rogaway and Vizár; laid out as in age).
const (
	streamMagic  = "\x00hfstrm\x01"
	streamSalt   = 12
	streamHeader = streamSalt + 32
	chunkSize    = 64 << 10
)

// streamKey returns the key of a stream's chunks.
func (r *Ring) streamKey(k *dataKey, salt []byte, purpose string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, k.secret, salt, "stream\x00"+string(r.bound[:])+purpose, keySize)
	if err != nil {
		return nil, err
	}
	return newAEAD(key)
}

// chunkNonce counts up to 2^64 chunks.
func chunkNonce(number uint64, last bool) []byte {
	nonce := make([]byte, nonceSize)
	binary.BigEndian.PutUint64(nonce[3:], number)
	if last {
		nonce[11] = 1
	}
	return nonce
}

// StreamSize returns the length of what a sealed stream of the given length holds.
func StreamSize(sealed int64) int64 {
	body := max(0, sealed-streamHeader)
	chunks := (body + chunkSize + tagSize - 1) / (chunkSize + tagSize)
	return max(0, body-chunks*tagSize)
}

// StreamKey returns the key that a sealed stream needs, from its beginning.
func StreamKey(r io.Reader) (uint32, error) {
	var head [streamHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, streamEnd(err)
	}
	return headerKey(head[:])
}

func headerKey(head []byte) (uint32, error) {
	switch {
	case !bytes.Equal(head[:7], []byte(streamMagic[:7])):
		return 0, fmt.Errorf("%w: it is no sealed stream", ErrDamaged)
	case head[7] != streamMagic[7]:
		return 0, fmt.Errorf("%w: it has version %d, this program knows version %d", ErrDamaged, head[7], streamMagic[7])
	}
	return binary.BigEndian.Uint32(head[8:]), nil
}

// streamEnd makes an end that came too soon an ErrDamaged.
func streamEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends too soon", ErrDamaged)
	}
	return err
}

// StreamWriter seals what is written to it. Close must be called for the stream to
// be whole.
type StreamWriter struct {
	w      io.Writer
	aead   cipher.AEAD
	key    uint32
	chunk  []byte // what waits to be sealed, with room for the tag
	number uint64
	err    error // the first; nothing is written after it
}

// NewStreamWriter returns a writer of a stream to w, for a purpose that its reader
// must know. It writes the stream's header.
func (r *Ring) NewStreamWriter(w io.Writer, purpose string) (*StreamWriter, error) {
	k, err := r.sealer(streamHeader)
	if err != nil {
		return nil, err
	}
	head := make([]byte, streamHeader)
	copy(head, streamMagic)
	binary.BigEndian.PutUint32(head[8:], k.id)
	if _, err := io.ReadFull(r.random, head[streamSalt:]); err != nil {
		return nil, err
	}
	aead, err := r.streamKey(k, head[streamSalt:], purpose)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(head); err != nil {
		return nil, err
	}
	return &StreamWriter{w: w, aead: aead, key: k.id, chunk: make([]byte, 0, chunkSize+tagSize)}, nil
}

// Key returns the key that the stream needs.
func (s *StreamWriter) Key() uint32 { return s.key }

// Write implements io.Writer.
func (s *StreamWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 && s.err == nil {
		if len(s.chunk) == chunkSize {
			s.flush(false) // only now: the last chunk may be full
			continue
		}
		take := min(len(p), chunkSize-len(s.chunk))
		s.chunk = append(s.chunk, p[:take]...)
		n, p = n+take, p[take:]
	}
	return n, s.err
}

func (s *StreamWriter) flush(last bool) {
	if s.err != nil {
		return
	}
	sealed := s.aead.Seal(s.chunk[:0], chunkNonce(s.number, last), s.chunk, nil)
	s.number++
	_, s.err = s.w.Write(sealed)
	s.chunk = s.chunk[:0]
}

// Close ends the stream. It does not close what is below.
func (s *StreamWriter) Close() error {
	s.flush(true)
	if s.err != nil {
		return s.err
	}
	s.err = errors.New("write to a closed stream")
	return nil
}

// StreamReader opens a sealed stream. It returns nothing that was not sealed, and
// io.EOF only at the end that the writer made.
type StreamReader struct {
	r      io.Reader
	aead   cipher.AEAD
	key    uint32
	buf    []byte // a sealed chunk, and one byte more
	ahead  int    // how many bytes of buf are read already: 0 or 1
	number uint64
	err    error

	plainBuf []byte // for opened chunks
	plain    []byte // the part of it that is not yet returned
}

// NewStreamReader returns a reader of the stream in r, which it reads to its end.
func (r *Ring) NewStreamReader(rd io.Reader, purpose string) (*StreamReader, error) {
	head := make([]byte, streamHeader)
	if _, err := io.ReadFull(rd, head); err != nil {
		return nil, streamEnd(err)
	}
	id, err := headerKey(head)
	if err != nil {
		return nil, err
	}
	k, err := r.opener(id)
	if err != nil {
		return nil, err
	}
	aead, err := r.streamKey(k, head[streamSalt:], purpose)
	if err != nil {
		return nil, err
	}
	return &StreamReader{r: rd, aead: aead, key: id, buf: make([]byte, chunkSize+tagSize+1)}, nil
}

// Key returns the key that the stream needs.
func (s *StreamReader) Key() uint32 { return s.key }

// Read implements io.Reader.
func (s *StreamReader) Read(p []byte) (int, error) {
	for len(s.plain) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		s.next()
	}
	n := copy(p, s.plain)
	s.plain = s.plain[n:]
	return n, nil
}

// next opens a chunk. It is the last one if nothing follows it, which reading one
// byte more tells.
func (s *StreamReader) next() {
	n, err := io.ReadFull(s.r, s.buf[s.ahead:])
	n += s.ahead
	last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if err != nil && !last {
		s.err = err
		return
	}
	sealed := s.buf[:n]
	if !last {
		sealed = s.buf[:n-1]
	}
	plain, err := s.aead.Open(s.plainBuf[:0], chunkNonce(s.number, last), sealed, nil)
	if err != nil {
		s.err = fmt.Errorf("%w: chunk %d, at byte %d", ErrDamaged, s.number, streamHeader+int64(s.number)*(chunkSize+tagSize))
		return
	}
	s.plain, s.plainBuf = plain, plain
	s.number++
	if last {
		s.err = io.EOF
		return
	}
	s.buf[0], s.ahead = s.buf[n-1], 1
}
