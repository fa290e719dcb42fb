package mvcc

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// A snapshot is the magic, then frames: kind and codec (one byte each), length and
// CRC-32C of the payload (four bytes each, big endian), payload. The payload is a
// message of holdfast.raft.v1, by kind, compressed as the codec says.
//
// It holds the whole history window, not only the newest versions: a peer that
// restarts, or that is sent a snapshot, then still serves every watch that the
// others serve. The price is its size, which the history's bound bounds.
const (
	snapshotMagic   = "holdfast/snap\r\n\x1a"
	snapshotVersion = 1

	frameHeader  = 1
	frameChunk   = 2
	frameTrailer = 3

	codecPlain = 0
	codecZstd  = 1

	// chunkSize is the size of uncompressed chunks: at least, by up to one value.
	chunkSize = 1 << 20
	// maxFrame refuses lengths that no writer makes, before memory is taken.
	maxFrame = 256 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrBadSnapshot is returned, wrapped with the particulars, by ReadSnapshot for
// what is not a whole and undamaged snapshot of a known version.
var ErrBadSnapshot = errors.New("bad snapshot")

// WriteSnapshot writes the root to w. It does not hold up the state's writer.
func (r *Root) WriteSnapshot(w io.Writer) error {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return err
	}
	defer enc.Close()
	return r.writeSnapshot(w, enc)
}

// writeSnapshot compresses with enc; nil leaves everything plain, for tests of the
// format that must not depend on a compressor's version.
func (r *Root) writeSnapshot(w io.Writer, enc *zstd.Encoder) error {
	sw := &snapshotWriter{w: bufio.NewWriterSize(w, 1<<18), enc: enc}
	if _, err := io.WriteString(sw.w, snapshotMagic); err != nil {
		return err
	}
	sw.frame(frameHeader, &raftv1.SnapshotHeader{
		Version: snapshotVersion, Index: r.meta.index, Revision: r.meta.revision,
		Horizon: r.horizon, MarkerTerm: r.meta.markerTerm,
	})
	r.tree.Ascend(func(head *record) bool {
		sw.history(head)
		return sw.err == nil
	})
	sw.flush()
	hash := r.Hash()
	sw.frame(frameTrailer, &raftv1.SnapshotTrailer{
		Keys: r.meta.live, Versions: sw.versions, Index: r.meta.index,
		Revision: r.meta.revision, Hash: hash[:],
	})
	if sw.err != nil {
		return sw.err
	}
	return sw.w.Flush()
}

type snapshotWriter struct {
	w        *bufio.Writer
	enc      *zstd.Encoder
	chunk    raftv1.SnapshotChunk
	size     int
	versions int64
	buf, zip []byte
	err      error // the first; nothing is written after it
}

// history adds all versions of a key, oldest first.
func (sw *snapshotWriter) history(head *record) {
	var versions []*record
	for r := head; r != nil; r = r.prev {
		versions = append(versions, r)
	}
	slices.Reverse(versions)
	var key *raftv1.SnapshotKey
	for _, r := range versions {
		if key == nil {
			key = &raftv1.SnapshotKey{Key: r.key}
			sw.chunk.Keys = append(sw.chunk.Keys, key)
			sw.size += len(r.key)
		}
		key.Versions = append(key.Versions, &raftv1.SnapshotVersion{
			Value: r.value, CreateRevision: r.create, ModRevision: r.mod,
			Version: r.ver, Lease: r.lease, Sub: r.sub,
		})
		sw.versions++
		if sw.size += len(r.value) + 32; sw.size >= chunkSize {
			sw.flush()
			key = nil
		}
	}
}

func (sw *snapshotWriter) flush() {
	if len(sw.chunk.Keys) > 0 {
		sw.frame(frameChunk, &sw.chunk)
		sw.chunk.Reset()
		sw.size = 0
	}
}

func (sw *snapshotWriter) frame(kind byte, m proto.Message) {
	if sw.err != nil {
		return
	}
	sw.buf, sw.err = proto.MarshalOptions{Deterministic: true}.MarshalAppend(sw.buf[:0], m)
	if sw.err != nil {
		return
	}
	payload, codec := sw.buf, byte(codecPlain)
	if sw.enc != nil && kind == frameChunk {
		sw.zip = sw.enc.EncodeAll(sw.buf, sw.zip[:0])
		if len(sw.zip) < len(sw.buf) {
			payload, codec = sw.zip, codecZstd
		}
	}
	head := [10]byte{kind, codec}
	binary.BigEndian.PutUint32(head[2:], uint32(len(payload)))
	binary.BigEndian.PutUint32(head[6:], crc32.Checksum(payload, castagnoli))
	if _, sw.err = sw.w.Write(head[:]); sw.err == nil {
		_, sw.err = sw.w.Write(payload)
	}
}

// ReadSnapshot reads what WriteSnapshot wrote and checks it: frames by their sums,
// the whole by the trailer's counts and state hash. It reads to the trailer, not
// to the end of src.
func ReadSnapshot(src io.Reader) (*State, error) {
	sr := &snapshotReader{r: bufio.NewReaderSize(src, 1<<18), state: New()}
	if err := sr.read(); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: it ends early", ErrBadSnapshot)
		}
		return nil, err
	}
	return sr.state, nil
}

type snapshotReader struct {
	r        *bufio.Reader
	dec      *zstd.Decoder
	state    *State
	versions int64
	events   []*record
}

func (sr *snapshotReader) read() error {
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(sr.r, magic); err != nil {
		return err
	}
	if string(magic) != snapshotMagic {
		return fmt.Errorf("%w: it does not begin like one", ErrBadSnapshot)
	}
	var err error
	if sr.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxFrame)); err != nil {
		return err
	}
	defer sr.dec.Close()

	var header raftv1.SnapshotHeader
	if kind, err := sr.frame(&header); err != nil {
		return err
	} else if kind != frameHeader {
		return fmt.Errorf("%w: frame of kind %d in place of the header", ErrBadSnapshot, kind)
	}
	if v := header.GetVersion(); v != snapshotVersion {
		return fmt.Errorf("%w: format version %d, this program reads %d", ErrBadSnapshot, v, snapshotVersion)
	}
	s := sr.state
	s.horizon = header.GetHorizon()
	s.meta.index, s.meta.revision, s.meta.markerTerm = header.GetIndex(), header.GetRevision(), header.GetMarkerTerm()

	var last *record // the newest version read of the last key
	for {
		var chunk raftv1.SnapshotChunk
		var trailer raftv1.SnapshotTrailer
		kind, err := sr.frame(&chunk, &trailer)
		if err != nil {
			return err
		}
		if kind == frameTrailer {
			if last != nil {
				sr.insert(last)
			}
			return sr.finish(&trailer)
		}
		for _, key := range chunk.GetKeys() {
			if last != nil && key.GetKey() < last.key {
				return fmt.Errorf("%w: key %q after %q", ErrBadSnapshot, key.GetKey(), last.key)
			}
			if last != nil && key.GetKey() != last.key {
				sr.insert(last)
				last = nil
			}
			for _, v := range key.GetVersions() {
				r := &record{
					key: key.GetKey(), value: v.GetValue(), create: v.GetCreateRevision(), mod: v.GetModRevision(),
					ver: v.GetVersion(), lease: v.GetLease(), sub: v.GetSub(), prev: last,
				}
				if last != nil {
					r.key = last.key
					s.meta.pastBytes += last.size()
				}
				if r.mod > s.meta.revision || last != nil && r.mod < last.mod {
					return fmt.Errorf("%w: versions of key %q are out of order", ErrBadSnapshot, r.key)
				}
				if r.live() {
					if r.value == nil {
						r.value = []byte{}
					}
					r.sum = sumOf(r)
				}
				if r.mod > s.horizon {
					sr.events = append(sr.events, r)
				}
				sr.versions++
				last = r
			}
		}
	}
}

// insert puts a key's newest version into the tree.
func (sr *snapshotReader) insert(head *record) {
	m := &sr.state.meta
	sr.state.tree.ReplaceOrInsert(head)
	if head.live() {
		m.live++
		m.liveBytes += head.size()
		m.hash = m.hash.add(head.sum)
	} else {
		m.pastBytes += head.size()
	}
}

func (sr *snapshotReader) finish(t *raftv1.SnapshotTrailer) error {
	s := sr.state
	hash := s.meta.hash.bytes()
	switch {
	case t.GetVersions() != sr.versions || t.GetKeys() != s.meta.live:
		return fmt.Errorf("%w: %d keys and %d versions, its trailer says %d and %d", ErrBadSnapshot, s.meta.live, sr.versions, t.GetKeys(), t.GetVersions())
	case t.GetIndex() != s.meta.index || t.GetRevision() != s.meta.revision:
		return fmt.Errorf("%w: header and trailer differ in index or revision", ErrBadSnapshot)
	case !bytes.Equal(t.GetHash(), hash[:]):
		return fmt.Errorf("%w: state hash %x, its trailer says %x", ErrBadSnapshot, hash, t.GetHash())
	}
	slices.SortFunc(sr.events, func(a, b *record) int {
		return cmp.Or(cmp.Compare(a.mod, b.mod), cmp.Compare(a.sub, b.sub))
	})
	for _, r := range sr.events {
		s.log.append(r)
	}
	return nil
}

// frame reads one frame into the message of its kind: of a header, or of a chunk
// and a trailer, whichever comes.
func (sr *snapshotReader) frame(into ...proto.Message) (kind byte, err error) {
	var head [10]byte
	if _, err := io.ReadFull(sr.r, head[:]); err != nil {
		return 0, err
	}
	kind = head[0]
	size, sum := binary.BigEndian.Uint32(head[2:]), binary.BigEndian.Uint32(head[6:])
	if size > maxFrame {
		return 0, fmt.Errorf("%w: frame of %d bytes", ErrBadSnapshot, size)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(sr.r, payload); err != nil {
		return 0, err
	}
	if got := crc32.Checksum(payload, castagnoli); got != sum {
		return 0, fmt.Errorf("%w: a frame's sum is %08x, not %08x", ErrBadSnapshot, got, sum)
	}
	switch head[1] {
	case codecPlain:
	case codecZstd:
		if payload, err = sr.dec.DecodeAll(payload, nil); err != nil {
			return 0, fmt.Errorf("%w: decompress: %w", ErrBadSnapshot, err)
		}
	default:
		return 0, fmt.Errorf("%w: unknown codec %d", ErrBadSnapshot, head[1])
	}
	var m proto.Message
	switch {
	case kind == frameHeader && len(into) == 1:
		m = into[0]
	case kind == frameChunk && len(into) == 2:
		m = into[0]
	case kind == frameTrailer && len(into) == 2:
		m = into[1]
	default:
		return 0, fmt.Errorf("%w: frame of kind %d out of place", ErrBadSnapshot, kind)
	}
	if err := proto.Unmarshal(payload, m); err != nil {
		return 0, fmt.Errorf("%w: decode a frame: %w", ErrBadSnapshot, err)
	}
	return kind, nil
}
