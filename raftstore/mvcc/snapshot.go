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
	"unsafe"

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
	snapshotVersion = 2 // of what is written; 1 is still read

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
		Horizon: r.meta.horizon, EventHorizon: r.meta.eventHorizon, MarkerTerm: r.meta.markerTerm,
	})
	for l := range r.Leases() {
		sw.chunk.Leases = append(sw.chunk.Leases, &raftv1.SnapshotLease{Id: l.ID, TtlMillis: l.TTL, RemainingMillis: l.Remaining})
		sw.add(32)
	}
	sw.flush()
	r.keys.Ascend(func(head *record) bool {
		sw.history(head)
		return sw.err == nil
	})
	for t := range r.ids.all() {
		sw.chunk.Ids = append(sw.chunk.Ids, &raftv1.SnapshotTxnId{
			Id: []byte(t.id), Index: t.index, Revision: t.revision, Succeeded: t.succeeded, Refusal: t.refusal,
		})
		sw.add(len(t.id) + 32)
	}
	for t := range r.samples.all() {
		sw.sample(t)
	}
	samples := int64(r.samples.len())
	if r.meta.newest.millis > 0 {
		sw.sample(r.meta.newest)
		samples++
	}
	sw.flush()
	hash := r.Hash()
	sw.frame(frameTrailer, &raftv1.SnapshotTrailer{
		Keys: r.meta.live, Versions: sw.versions, Index: r.meta.index,
		Revision: r.meta.revision, Hash: hash[:],
		Leases: int64(r.leases.Len()), Ids: int64(r.ids.len()), Samples: samples,
	})
	if sw.err != nil {
		return sw.err
	}
	return sw.w.Flush()
}

func (sw *snapshotWriter) sample(t timeSample) {
	sw.chunk.Samples = append(sw.chunk.Samples, &raftv1.SnapshotSample{ProposedMillis: t.millis, Revision: t.revision})
	sw.add(16)
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
			Value: r.bytes(), CreateRevision: r.create, ModRevision: r.mod,
			Version: r.ver, Lease: r.lease, Sub: r.sub,
		})
		sw.versions++
		if sw.add(len(r.value) + 32) {
			key = nil
		}
	}
}

// add notes that the chunk has grown, and reports whether it was full and is a new
// one now.
func (sw *snapshotWriter) add(size int) bool {
	if sw.size += size; sw.size < chunkSize {
		return false
	}
	sw.flush()
	return true
}

func (sw *snapshotWriter) flush() {
	if sw.size > 0 {
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
	buf      bytes.Buffer
	zip      []byte
	state    *State
	version  uint32
	versions int64
	samples  int64
	events   []*record
	head     *record // the newest version read of the last key
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
	if _, err := sr.frame(&header); err != nil {
		return err
	}
	m := &sr.state.meta
	m.index, m.revision, m.markerTerm = header.GetIndex(), header.GetRevision(), header.GetMarkerTerm()
	m.horizon, m.eventHorizon = header.GetHorizon(), header.GetEventHorizon()
	switch sr.version = header.GetVersion(); sr.version {
	case 1:
		m.eventHorizon = m.horizon
	case snapshotVersion:
	default:
		return fmt.Errorf("%w: format version %d, this program reads 1 to %d", ErrBadSnapshot, sr.version, snapshotVersion)
	}
	if strange(&header) {
		return fmt.Errorf("%w: its header has a field that this program does not know", ErrBadSnapshot)
	}
	if m.eventHorizon < 0 || m.eventHorizon > m.horizon || m.horizon > m.revision {
		return fmt.Errorf("%w: revision %d, horizon %d, events after %d", ErrBadSnapshot, m.revision, m.horizon, m.eventHorizon)
	}
	for {
		var chunk raftv1.SnapshotChunk
		var trailer raftv1.SnapshotTrailer
		kind, err := sr.frame(&chunk, &trailer)
		if err != nil {
			return err
		}
		if kind == frameTrailer {
			return sr.finish(&trailer)
		}
		if err := sr.chunk(&chunk); err != nil {
			return err
		}
	}
}

func (sr *snapshotReader) chunk(chunk *raftv1.SnapshotChunk) error {
	s := sr.state
	known := !strange(chunk)
	for _, l := range chunk.GetLeases() {
		known = known && !strange(l)
		if _, twice := s.leases.get(l.GetId()); twice || l.GetId() == 0 || sr.head != nil {
			return fmt.Errorf("%w: lease %d out of place", ErrBadSnapshot, l.GetId())
		}
		s.putLease(Lease{ID: l.GetId(), TTL: l.GetTtlMillis(), Remaining: l.GetRemainingMillis()})
	}
	for _, key := range chunk.GetKeys() {
		known = known && !strange(key)
		if err := sr.key(key); err != nil {
			return err
		}
		for _, v := range key.GetVersions() {
			known = known && !strange(v)
		}
	}
	for _, t := range chunk.GetIds() {
		known = known && !strange(t)
		id := string(t.GetId())
		if _, twice := s.ids.byID[id]; twice || s.ids.list.len() >= maxTxnIDs {
			return fmt.Errorf("%w: the transaction id %x out of place", ErrBadSnapshot, id)
		}
		s.remember(txnID{id: id, index: t.GetIndex(), revision: t.GetRevision(), succeeded: t.GetSucceeded(), refusal: t.GetRefusal()})
	}
	for _, t := range chunk.GetSamples() {
		known = known && !strange(t)
		if s.meta.newest.millis > 0 { // the last one is not among the others
			s.samples.append(s.meta.newest)
		}
		s.meta.newest = timeSample{t.GetProposedMillis(), t.GetRevision()}
		sr.samples++
	}
	if !known {
		return fmt.Errorf("%w: it has a field that this program does not know", ErrBadSnapshot)
	}
	return nil
}

// key takes some versions of the last key, or the first ones of the next.
func (sr *snapshotReader) key(key *raftv1.SnapshotKey) error {
	s := sr.state
	if sr.head != nil && key.GetKey() != sr.head.key {
		if key.GetKey() < sr.head.key {
			return fmt.Errorf("%w: key %q after %q", ErrBadSnapshot, key.GetKey(), sr.head.key)
		}
		sr.insert()
	}
	for _, v := range key.GetVersions() {
		r := &record{
			key: key.GetKey(), create: v.GetCreateRevision(), mod: v.GetModRevision(),
			ver: v.GetVersion(), lease: v.GetLease(), sub: v.GetSub(), prev: sr.head,
			value: unsafe.String(unsafe.SliceData(v.GetValue()), len(v.GetValue())), // nobody else has it
		}
		if last := sr.head; last != nil {
			r.key = last.key
			s.meta.pastBytes += last.size()
		}
		if r.mod > s.meta.revision || r.ver < 0 || sr.head != nil && r.mod < sr.head.mod {
			return fmt.Errorf("%w: versions of key %q are out of order", ErrBadSnapshot, r.key)
		}
		if r.live() {
			r.sum = s.hasher.record(r)
		}
		if r.mod > s.meta.eventHorizon {
			sr.events = append(sr.events, r)
		}
		sr.versions++
		sr.head = r
	}
	if sr.head == nil {
		return fmt.Errorf("%w: key %q has no versions", ErrBadSnapshot, key.GetKey())
	}
	return nil
}

// insert puts the last key's newest version into the tree.
func (sr *snapshotReader) insert() {
	s, head := sr.state, sr.head
	sr.head = nil
	s.keys.change().ReplaceOrInsert(head)
	s.leases.move(nil, head)
	if head.live() {
		s.meta.live++
		s.meta.liveBytes += head.size()
		s.meta.sum = s.meta.sum.add(head.sum)
	} else {
		s.meta.pastBytes += head.size()
	}
}

func (sr *snapshotReader) finish(t *raftv1.SnapshotTrailer) error {
	if sr.head != nil {
		sr.insert()
	}
	s := sr.state
	hash := s.meta.sum.bytes()
	if sr.version > 1 {
		hash = s.hasher.whole(&s.meta).bytes()
	}
	leases, ids, samples := int64(s.leases.byID.tree.Len()), int64(s.ids.list.len()), sr.samples
	switch {
	case strange(t):
		return fmt.Errorf("%w: its trailer has a field that this program does not know", ErrBadSnapshot)
	case t.GetVersions() != sr.versions || t.GetKeys() != s.meta.live:
		return fmt.Errorf("%w: %d keys and %d versions, its trailer says %d and %d", ErrBadSnapshot, s.meta.live, sr.versions, t.GetKeys(), t.GetVersions())
	case t.GetLeases() != leases || t.GetIds() != ids || t.GetSamples() != samples:
		return fmt.Errorf("%w: %d leases, %d ids and %d samples, its trailer says %d, %d and %d", ErrBadSnapshot, leases, ids, samples, t.GetLeases(), t.GetIds(), t.GetSamples())
	case t.GetIndex() != s.meta.index || t.GetRevision() != s.meta.revision:
		return fmt.Errorf("%w: header and trailer differ in index or revision", ErrBadSnapshot)
	case !bytes.Equal(t.GetHash(), hash[:]):
		return fmt.Errorf("%w: state hash %x, its trailer says %x", ErrBadSnapshot, hash, t.GetHash())
	}
	slices.SortFunc(sr.events, func(a, b *record) int {
		return cmp.Or(cmp.Compare(a.mod, b.mod), cmp.Compare(a.sub, b.sub))
	})
	for _, r := range sr.events {
		s.events.append(r)
	}
	s.markHash()
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
	sr.buf.Reset() // grows as the bytes come: a damaged length takes no memory
	if _, err := io.CopyN(&sr.buf, sr.r, int64(size)); err != nil {
		return 0, err
	}
	payload := sr.buf.Bytes()
	if got := crc32.Checksum(payload, castagnoli); got != sum {
		return 0, fmt.Errorf("%w: a frame's sum is %08x, not %08x", ErrBadSnapshot, got, sum)
	}
	switch head[1] {
	case codecPlain:
	case codecZstd:
		sr.zip, err = sr.dec.DecodeAll(payload, sr.zip[:0])
		if payload = sr.zip; err != nil {
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
