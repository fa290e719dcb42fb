package raftstore

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// A backup is the magic, then frames: kind (one byte), length of the payload and
// CRC-32C of kind and payload (four bytes each, big endian), payload. The first is
// the header, the last the trailer with the SHA-256 of all before it; between them
// lies a snapshot as mvcc writes it, cut anywhere. The sum finds what was changed,
// the trailer what was cut off, the snapshot's state hash what was written wrongly.
const (
	backupMagic   = "holdfast/backup\r\n\x1a"
	backupVersion = 1

	frameBackupHeader  = 1
	frameBackupBody    = 2
	frameBackupTrailer = 3

	backupFrame    = 256 << 10 // usual size of a body's frame
	maxBackupFrame = 16 << 20  // refuses lengths that no writer makes
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrBadBackup is returned, wrapped with the particulars, for what is not a whole
// and undamaged backup of a known version.
var ErrBadBackup = errors.New("bad backup")

// BackupInfo says what a backup holds.
type BackupInfo struct {
	ClusterID string
	// Incarnation is the cluster's when the backup was taken.
	Incarnation uint64
	// Peer wrote it, and its wall clock said TakenAt.
	Peer    string
	TakenAt time.Time
	// Revision is the store's, Keys the number of keys, Hash the state hash.
	Revision Revision
	Keys     int64
	Hash     [16]byte
	// Term is raft's, Index the last log entry that is in it.
	Term, Index uint64
	// Size is the backup's, in bytes.
	Size int64
}

// Pinned is the store at one revision, to be written as a backup.
type Pinned struct {
	// Info is what the backup will hold. Its Size is not known yet.
	Info BackupInfo
	// Bytes is about how much memory the keys take.
	Bytes int64
	root  *mvcc.Root
}

// Backup writes a backup of the store at one revision to w, from any peer, while it
// serves. The backup holds all that was acknowledged anywhere before the call.
// Errors: those of Sync, w's, and ctx's.
func (s *Store) Backup(ctx context.Context, w io.Writer) (BackupInfo, error) {
	p, err := s.Pin(ctx)
	if err != nil {
		return BackupInfo{}, err
	}
	return p.Write(ctx, w)
}

// Pin returns what Backup would write. It fails as Sync does.
func (s *Store) Pin(ctx context.Context) (Pinned, error) {
	view, err := s.Sync(ctx)
	if err != nil {
		return Pinned{}, fmt.Errorf("backup: %w", err)
	}
	return s.pin(view.at.root), nil
}

// PinLocal returns what this peer has, without asking the others: for one that is
// cut off from them. What they acknowledged meanwhile is not in it.
func (s *Store) PinLocal() Pinned { return s.pin(s.current.Load().root) }

func (s *Store) pin(root *mvcc.Root) Pinned {
	_, term := s.Leader()
	return Pinned{
		Info: BackupInfo{
			ClusterID: s.cfg.ClusterID, Incarnation: s.Incarnation(), Peer: s.cfg.ID, TakenAt: time.Now().UTC(),
			Revision: root.Revision(), Keys: root.Keys(), Hash: root.Hash(),
			Term: max(term, root.MarkerTerm()), Index: root.Index(),
		},
		Bytes: root.Bytes(), root: root,
	}
}

// Write writes the backup to w, and returns what it has written.
func (p Pinned) Write(ctx context.Context, w io.Writer) (BackupInfo, error) {
	info := p.Info
	bw := &backupWriter{ctx: ctx, w: w, sum: sha256.New()}
	bw.write([]byte(backupMagic))
	bw.frame(frameBackupHeader, &raftv1.BackupHeader{
		Version: backupVersion, ClusterId: info.ClusterID, Incarnation: info.Incarnation,
		Peer: info.Peer, TakenAt: timestamppb.New(info.TakenAt),
		Term: info.Term, Index: info.Index, Revision: info.Revision, Keys: info.Keys, Hash: info.Hash[:],
	})
	body := bufio.NewWriterSize(bodyWriter{bw}, backupFrame)
	if err := errors.Join(p.root.WriteSnapshot(body), body.Flush()); err != nil {
		return BackupInfo{}, fmt.Errorf("write backup: %w", err)
	}
	bw.frame(frameBackupTrailer, &raftv1.BackupTrailer{Sha256: bw.sum.Sum(nil)})
	if bw.err != nil {
		return BackupInfo{}, fmt.Errorf("write backup: %w", bw.err)
	}
	info.Size = bw.size
	return info, nil
}

// backupWriter writes frames. After its first error it writes nothing more.
type backupWriter struct {
	ctx  context.Context // of the one call that uses it
	w    io.Writer
	sum  hash.Hash
	size int64
	err  error
}

func (bw *backupWriter) write(data []byte) {
	if bw.err == nil && bw.ctx.Err() != nil {
		bw.err = context.Cause(bw.ctx)
	}
	if bw.err != nil {
		return
	}
	n, err := bw.w.Write(data)
	bw.sum.Write(data[:n])
	bw.size += int64(n)
	bw.err = err
}

func (bw *backupWriter) raw(kind byte, payload []byte) {
	head := make([]byte, 9)
	head[0] = kind
	binary.BigEndian.PutUint32(head[1:], uint32(len(payload)))
	binary.BigEndian.PutUint32(head[5:], frameSum(kind, payload))
	bw.write(head)
	bw.write(payload)
}

func (bw *backupWriter) frame(kind byte, m proto.Message) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil && bw.err == nil {
		bw.err = err
	}
	bw.raw(kind, data)
}

func frameSum(kind byte, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte{kind}, castagnoli), castagnoli, payload)
}

// bodyWriter makes each Write a frame of the body.
type bodyWriter struct{ *backupWriter }

func (b bodyWriter) Write(data []byte) (int, error) {
	for rest := data; len(rest) > 0; {
		n := min(len(rest), backupFrame)
		b.raw(frameBackupBody, rest[:n])
		rest = rest[n:]
	}
	if b.err != nil {
		return 0, b.err
	}
	return len(data), nil
}

// ReadBackup reads a backup to its end and checks all of it. It takes as much
// memory as the store that it is of.
func ReadBackup(r io.Reader) (BackupInfo, error) {
	_, info, err := readBackup(r)
	return info, err
}

// ReadBackupHeader reads what a backup says of itself, and checks nothing more. Its
// Size is 0.
func ReadBackupHeader(r io.Reader) (BackupInfo, error) {
	br := &backupReader{r: bufio.NewReader(r), sum: sha256.New()}
	info, err := br.header()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: it ends within its header", ErrBadBackup)
	}
	return info, err
}

// readBackup is ReadBackup, and returns the state.
func readBackup(r io.Reader) (*mvcc.State, BackupInfo, error) {
	br := &backupReader{r: bufio.NewReaderSize(r, backupFrame), sum: sha256.New()}
	state, info, err := br.read()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: it ends early, after %d bytes: it was not written to its end, or was cut off", ErrBadBackup, br.size)
	}
	return state, info, err
}

type backupReader struct {
	r       *bufio.Reader
	sum     hash.Hash
	size    int64
	body    []byte // what is left of the frame at hand
	trailer []byte // once it was met
	before  []byte // the sum of all bytes before the trailer
}

func (br *backupReader) full(data []byte) error {
	n, err := io.ReadFull(br.r, data)
	br.sum.Write(data[:n])
	br.size += int64(n)
	return err
}

// next reads a frame.
func (br *backupReader) next() (kind byte, payload []byte, err error) {
	before := br.sum.Sum(nil)
	var head [9]byte
	if err := br.full(head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > maxBackupFrame {
		return 0, nil, fmt.Errorf("%w: frame of %d bytes at %d", ErrBadBackup, size, br.size)
	}
	payload = make([]byte, size)
	if err := br.full(payload); err != nil {
		return 0, nil, err
	}
	if want, have := binary.BigEndian.Uint32(head[5:]), frameSum(head[0], payload); want != have {
		return 0, nil, fmt.Errorf("%w: the frame that ends at byte %d has the sum %08x, not %08x: the file is damaged", ErrBadBackup, br.size, have, want)
	}
	if head[0] == frameBackupTrailer {
		br.before = before
	}
	return head[0], payload, nil
}

// Read returns the body.
func (br *backupReader) Read(p []byte) (int, error) {
	for len(br.body) == 0 {
		if br.trailer != nil {
			return 0, io.EOF
		}
		kind, payload, err := br.next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		switch kind {
		case frameBackupBody:
			br.body = payload
		case frameBackupTrailer:
			br.trailer = payload
		default:
			return 0, fmt.Errorf("%w: frame of kind %d in the body", ErrBadBackup, kind)
		}
	}
	n := copy(p, br.body)
	br.body = br.body[n:]
	return n, nil
}

func (br *backupReader) header() (BackupInfo, error) {
	magic := make([]byte, len(backupMagic))
	if err := br.full(magic); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return BackupInfo{}, err
	}
	if string(magic) != backupMagic {
		return BackupInfo{}, fmt.Errorf("%w: it does not begin like one", ErrBadBackup)
	}
	kind, payload, err := br.next()
	if err != nil {
		return BackupInfo{}, err
	}
	var h raftv1.BackupHeader
	if err := proto.Unmarshal(payload, &h); err != nil || kind != frameBackupHeader || len(h.GetHash()) != 16 {
		return BackupInfo{}, fmt.Errorf("%w: it has no header", ErrBadBackup)
	}
	if h.GetVersion() != backupVersion {
		return BackupInfo{}, fmt.Errorf("%w: format version %d, this program reads %d: use the holdfast that wrote it, or a newer one", ErrBadBackup, h.GetVersion(), backupVersion)
	}
	return BackupInfo{
		ClusterID: h.GetClusterId(), Incarnation: h.GetIncarnation(), Peer: h.GetPeer(), TakenAt: h.GetTakenAt().AsTime(),
		Revision: h.GetRevision(), Keys: h.GetKeys(), Hash: [16]byte(h.GetHash()), Term: h.GetTerm(), Index: h.GetIndex(),
	}, nil
}

func (br *backupReader) read() (*mvcc.State, BackupInfo, error) {
	info, err := br.header()
	if err != nil {
		return nil, BackupInfo{}, err
	}
	state, err := mvcc.ReadSnapshot(br)
	if err != nil {
		if !errors.Is(err, ErrBadBackup) && !errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: %w", ErrBadBackup, err)
		}
		return nil, info, err
	}
	if _, err := io.Copy(io.Discard, br); err != nil {
		return nil, info, err
	}
	var trailer raftv1.BackupTrailer
	if err := proto.Unmarshal(br.trailer, &trailer); err != nil || !bytes.Equal(trailer.GetSha256(), br.before) {
		return nil, info, fmt.Errorf("%w: its contents are not what its trailer says", ErrBadBackup)
	}
	if _, err := br.r.ReadByte(); err == nil {
		return nil, info, fmt.Errorf("%w: there is more after its end", ErrBadBackup)
	}
	root := state.Root()
	if root.Revision() != info.Revision || root.Index() != info.Index || root.Keys() != info.Keys || root.Hash() != info.Hash {
		return nil, info, fmt.Errorf("%w: its contents are not what its header says", ErrBadBackup)
	}
	info.Size = br.size
	return state, info, nil
}
